"""The files of a corpus: tables or texts, told apart by their endings before any is opened."""

from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.plan.text_formats import TextFormat, text_format
from saelineage.plan.user_files import find_files, left_out, require_content


def names_of(folder: Path, *names: str, path: str = ".", glob: str = "**/*") -> list[str]:
    """The files that are found once some empty ones have been made."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    files = find_files("web", {"path": path, "glob": glob}, str(folder))
    return [Path(file).relative_to(folder).as_posix() for file in files]


def test_the_format_of_a_file_is_told_by_its_name_in_any_case():
    formats = {
        "a.txt": ("text", None),
        "a.lua": ("text", None),
        "Makefile": ("text", None),
        ".csv": ("text", None),  # a hidden file without an ending
        "a.TXT.GZ": ("text", "gzip"),
        "a.csv": ("csv", None),
        "a.TSV": ("tsv", None),
        "a.b.json": ("json", None),
        "c4-train.00000-of-01024.json.gz": ("json", "gzip"),
        "00.jsonl.zst": ("jsonl", "zstd"),
        "a.ndjson": ("jsonl", None),
        "a.Parquet": ("parquet", None),
        "a.json.txt": ("text", None),
    }
    assert {name: text_format(name) for name in formats} == {
        name: TextFormat(*expected) for name, expected in formats.items()
    }


def test_readmes_and_licences_beside_tables_are_left_out(tmp_path: Path):
    beside = ("README.md", "data/readme", "LICENSE", "LICENCE.txt", "license-data.md", "README.json")
    assert names_of(tmp_path, "data/a.jsonl", "data/b.csv", *beside) == ["README.json", "data/a.jsonl", "data/b.csv"]


def test_a_readme_among_texts_is_a_text(tmp_path: Path):
    assert names_of(tmp_path, "README.md", "a.lua") == ["README.md", "a.lua"]
    assert names_of(tmp_path, "only/LICENSE", path="only") == ["only/LICENSE"]


def test_a_readme_that_the_glob_asks_for_is_not_left_out(tmp_path: Path):
    assert names_of(tmp_path, "a.jsonl", "README.md", glob="*.md") == ["README.md"]
    with pytest.raises(InputError, match="must hold either tables or texts"):
        names_of(tmp_path, glob="**/*.*")


NOTES = ("CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.rst", "LICENSE", "docs/dataset_card.md")


def note(folder: Path, path: str = ".", glob: str = "**/*") -> str | None:
    return left_out("web", {"path": path, "glob": glob}, str(folder))


def test_notes_and_cards_beside_tables_are_left_out_and_counted(tmp_path: Path):
    assert names_of(tmp_path, "a.parquet", *NOTES) == ["a.parquet"]
    assert note(tmp_path) == (
        f"corpora.web.path: '{tmp_path}' is read as a folder of tables, so 6 of its 7 files are left out "
        "(CHANGELOG.md, CITATION.cff, CODE_OF_CONDUCT.md and 3 more); to read others, name them with corpora.web.glob"
    )


def test_a_json_table_beside_notes_is_the_corpus(tmp_path: Path):
    assert names_of(tmp_path, "data.json", *NOTES) == ["data.json"]


def test_json_files_beside_more_texts_are_left_out_and_counted(tmp_path: Path):
    code = ("LICENSE", "README.md", "src/a.js", "src/b.js", "src/c.js")
    assert names_of(tmp_path, *code, "package.json", "tsconfig.JSON") == list(code)
    assert note(tmp_path) == (
        f"corpora.web.path: '{tmp_path}' is read as a folder of texts, so 2 of its 7 files are left out (package.json, "
        "tsconfig.JSON); to read others, name them with corpora.web.glob"
    )


@pytest.mark.parametrize("table", ["a.csv", "a.tsv", "a.jsonl", "a.ndjson.gz", "a.parquet", "a.json.zst"])
def test_a_file_that_is_surely_a_table_is_not_left_out_beside_texts(table: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"corpora\.web\.glob, such as \*\*/\*\.js$"):
        names_of(tmp_path, "a.js", "b.js", "c.js", "d.txt", "package.json", table)


def test_many_markdown_texts_are_not_taken_for_notes_about_a_table(tmp_path: Path):
    with pytest.raises(InputError, match=r"corpora\.web\.glob, such as \*\*/\*\.md$"):
        names_of(tmp_path, "a.md", "b.md", "index.csv")


def test_files_that_are_no_text_are_left_out_beside_texts_and_named(tmp_path: Path):
    assert names_of(tmp_path, "a.txt", "b.lua", "figure.PNG", "sub/all.tar.gz") == ["a.txt", "b.lua"]
    assert note(tmp_path) == (
        f"corpora.web.path: '{tmp_path}' is read as a folder of texts, so 2 of its 4 files are left out (figure.PNG, "
        "sub/all.tar.gz); to read others, name them with corpora.web.glob"
    )


def test_files_that_are_no_text_are_left_out_beside_tables(tmp_path: Path):
    assert names_of(tmp_path, "a.parquet", "README.md", "figure.png") == ["a.parquet"]


@pytest.mark.parametrize("glob", ["**/*", "*.p*"])
def test_a_folder_of_images_alone_or_a_glob_of_them_is_refused_before_any_is_read(glob: str, tmp_path: Path):
    names = ["figure.png"] if glob == "**/*" else ["a.py", "figure.png"]
    with pytest.raises(
        InputError, match=r"must hold texts or tables, but 'figure\.png' is neither, by its ending; put"
    ):
        names_of(tmp_path, *names, glob=glob)


def test_where_nothing_is_left_out_there_is_nothing_to_say(tmp_path: Path):
    names_of(tmp_path, "texts/a.js", "tables/a.csv", "tables/README.md", "mixed/a.csv", path="texts")
    assert note(tmp_path, "texts") is None
    assert note(tmp_path, "texts/a.js") is None
    assert note(tmp_path, "tables", glob="*.csv") is None


def test_files_that_the_user_s_own_glob_matches_are_all_the_user_s_choice(tmp_path: Path):
    with pytest.raises(InputError, match=r"must hold either tables or texts, but 'package\.json' is a table"):
        names_of(tmp_path, "a.js", "b.js", "package.json", glob="**/*.js*")


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["a.json.gz", "b/notes.txt"], "**/*.json.gz"),
        (["a.json.gz", "b.py", "c.py", "d.txt"], "**/*.py"),
        (["a.json.gz", "Makefile", "b/Makefile"], "**/Makefile"),
        (["a.json.gz", "b.csv", "c.csv", "d.txt", "e.py"], "**/*.csv"),
    ],
)
def test_tables_among_texts_are_refused_with_a_pattern_of_the_majority(tmp_path: Path, files: list[str], pattern: str):
    with pytest.raises(InputError) as raised:
        names_of(tmp_path, *files)
    text = sorted(name for name in files if not text_format(name).is_table)[0]
    assert str(raised.value) == (
        f"corpora.web.path: '{tmp_path}' must hold either tables or texts, but 'a.json.gz' is a table and '{text}' a "
        f"text; name the files of one kind with corpora.web.glob, such as {pattern}"
    )


@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst", "a.csv", "a.tsv.gz", "a.json", "a.ndjson.zst", "A.PARQUET"])
def test_a_file_that_the_config_names_may_have_any_of_these_endings(tmp_path: Path, name: str):
    assert names_of(tmp_path, name, path=name) == [name]


@pytest.mark.parametrize("name", ["a.lua", "a", "a.gz", "a.pdf", "a.txt.bz2"])
def test_a_file_that_the_config_names_with_an_unknown_ending_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=r"must be one of \.txt, \.csv, .*\.jsonl, .*\.zst.*; convert it"):
        names_of(tmp_path, name, path=name)


def test_compressed_parquet_is_refused_before_it_is_opened(tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.parquet\.gz' must be decompressed"):
        names_of(tmp_path, "a.parquet.gz", path="a.parquet.gz")
    with pytest.raises(InputError, match=r"b\.parquet\.zst' must be decompressed"):
        names_of(tmp_path, "c/b.parquet.zst", path="c")


def test_empty_files_alone_are_refused_before_the_first_job(tmp_path: Path):
    empty, full = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    Path(empty).touch()
    Path(full).write_text("text")
    require_content([empty, full], "corpora.web.path")
    with pytest.raises(InputError) as raised:
        require_content([empty], "corpora.web.path")
    assert str(raised.value) == (
        f"corpora.web.path: must hold text, but '{empty}' is empty; correct the path, or fetch the text again"
    )
    with pytest.raises(InputError, match=r"a\.txt' is empty like all of the 2 files; correct the path"):
        require_content([empty, empty], "corpora.web.path")
