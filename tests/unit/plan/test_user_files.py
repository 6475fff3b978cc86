"""The files of a corpus: tables or texts, told apart by their endings before any is opened."""

from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.plan.text_formats import TextFormat, text_format
from saelineage.plan.user_files import find_files


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


@pytest.mark.parametrize(
    ("text", "pattern"), [("b/notes.txt", r"\*\*/\*\.txt"), ("b.py", r"\*\*/\*\.py"), ("Makefile", r"\*\*/Makefile")]
)
def test_tables_among_texts_are_refused_with_patterns_of_either(tmp_path: Path, text: str, pattern: str):
    with pytest.raises(InputError, match=pattern) as raised:
        names_of(tmp_path, "a.json.gz", text)
    assert str(raised.value).startswith(
        f"corpora.web.path: '{tmp_path}' must hold either tables or texts, but 'a.json.gz' is a table and '{text}' a "
        "text; name the files of one kind with corpora.web.glob, such as **/*.json.gz or **/"
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
