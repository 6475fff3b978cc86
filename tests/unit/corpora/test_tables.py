"""Tables are read as tables, whatever their format and compression; what is ambiguous is refused with a remedy."""

import csv
import gzip
import io
import json
import logging
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from saelineage.corpora import tables
from saelineage.corpora.documents import Null, read_documents, write_splits
from saelineage.errors import InputError
from saelineage.plan.user_files import find_files
from tests.unit.corpora.test_documents import FRACTIONS, error_of, paths_in, read, splits_in, write_parquet

ROWS = [
    {"id": 1, "text": "one, two"},
    {"id": 2, "text": 'she said "three"\nand\r\nfour'},
    {"id": 3, "text": ""},
    {"id": 4, "text": "NA"},
    {"id": 5, "text": "naïve \u2028✓\t\\t"},
]
TEXTS = [row["text"] for row in ROWS]


def delimited(rows: list[dict], delimiter: str) -> bytes:
    """Rows as the standard library's writer quotes them."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def json_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def streamed_zstd(content: bytes, path: Path) -> bytes:
    """Compressed as a stream, whose frame does not tell its size; programs that write line by line make such files."""
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(content)
    return path.read_bytes()


CONTENTS = {
    ".csv": delimited(ROWS, ","),
    ".tsv": delimited(ROWS, "\t"),
    ".jsonl": json_lines(ROWS),
    ".ndjson": json_lines(ROWS),
    ".json": json.dumps(ROWS, indent=2).encode(),
}


@pytest.mark.parametrize("ending", CONTENTS)
def test_a_table_is_read_as_a_table_plain_and_compressed(tmp_path: Path, ending: str):
    content = CONTENTS[ending]
    packed = {
        f"a{ending}": content,
        f"b{ending}.gz": gzip.compress(content),
        f"c{ending}.zst": streamed_zstd(content, tmp_path / "stream"),
        f"D{ending.upper()}": b"\xef\xbb\xbf" + content,
    }
    for name, written in packed.items():
        (tmp_path / name).write_bytes(written)
        assert read(tmp_path, name) == TEXTS


def test_a_json_file_is_an_array_of_records_or_has_one_record_a_line(tmp_path: Path):
    cases = {
        b' \n[{"text": "a"} , {"text": "b", "more": [1, {"text": "no"}]}]\n': ["a", "b"],
        b"[]": [],
        b'{"text": "a"}\n\n{"text": "b"}\n': ["a", "b"],
        b'{"text": "a"}': ["a"],
    }
    for content, texts in cases.items():
        (tmp_path / "a.json").write_bytes(content)
        assert read(tmp_path, "a.json") == texts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{\n  "text": "a"\n}', "line 1 of 'a.json' is not JSON ("),
        (b'[{"text": "a"}, {"text": ]', "record 2 of 'a.json' is not JSON (Expecting value"),
        (b'[{"text": "a"},]', "record 2 of 'a.json' is not JSON (Expecting value"),
        (b'[{"text": "a"}', "'a.json' is not JSON, because its array does not end after record 1; "),
        (b'[{"text": "a"}] []', "'a.json' is not JSON, because its array does not end after record 1; "),
        (b'["a"]', "a.json, record 1 has no 'text', only []; "),
        (b'{"data": [{"text": "a"}]}', "a.json, line 1 has no 'text', only ['data']; "),
        (b'[{"text": ["a"]}]', "'text' in a.json, record 1 must be text, not list; "),
        (b"[" * 100_000, "record 1 of 'a.json' is not JSON ("),
    ],
)
def test_json_that_is_no_list_of_records_is_refused_with_the_place(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "a.json").write_bytes(content)
    message = error_of(tmp_path, "a.json")
    assert message.startswith(f"corpus 'lua': {said}")
    assert "; " in message


def test_a_pretty_printed_record_says_how_a_json_file_must_be(tmp_path: Path):
    (tmp_path / "a.json").write_text('{\n  "text": "a"\n}')
    assert error_of(tmp_path, "a.json").endswith("must be an array of records, or have one record a line; convert it")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id;text\n1;a\n", "a.csv has no 'text', only ['id;text']; set corpora.lua.text_column"),
        (b"one line, without a header\n", "a.csv has no 'text', only ['one line', ' without a header']; "),
        (b"", "a.csv has no 'text', only []; "),
        (b"text,text\na,b\n", "a.csv must have one column 'text', not 2; rename the others"),
        (b"id,text\n1,a\n2,b, and c\n", "line 3 of 'a.csv' must have 2 cells, as its header, but has 3; put cells"),
        (b"id,text\n1,a\n2\n", "line 3 of 'a.csv' must have 2 cells, as its header, but has 1; "),
        (b'id,text\n1,"a\nb"\n2,"c\n', "line 4 of 'a.csv' is not CSV (unexpected end of data); put the cell in quotes"),
        (b'id,text\n1,"a \\"b\\" c"\n', "line 2 of 'a.csv' is not CSV (',' expected after '\"'); "),
        (b"id,text\n1,caf\xe9\n", "line 2 of 'a.csv' must be UTF-8, but byte 5 of it is not; "),
    ],
)
def test_a_csv_that_could_be_read_in_two_ways_is_refused_with_the_line(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "a.csv").write_bytes(content)
    assert error_of(tmp_path, "a.csv").startswith(f"corpus 'lua': {said}")


def test_a_message_names_few_columns_and_their_beginnings(tmp_path: Path):
    (tmp_path / "a.csv").write_text(",".join(["x" * 5000, *map(str, range(30))]) + "\n")
    message = error_of(tmp_path, "a.csv")
    assert f"only ['{'x' * 40}...', '0', " in message
    assert "'18'] and 11 more; " in message


def test_a_cell_may_be_longer_than_the_standard_library_s_limit(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert read(tmp_path, "a.csv") == ["x" * 200_000]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
@pytest.mark.parametrize("place", ["header", "row"])
def test_a_row_of_many_lines_is_read_no_further_than_its_limit(
    place: str, name: str, delimiter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "MOST_DOCUMENT_BYTES", 1000)
    lines_read = []
    lines_of = tables._lines
    monkeypatch.setattr(
        tables, "_lines", lambda *arguments: (lines_read.append(line) or line for line in lines_of(*arguments))
    )
    cells = (f'"a\n"{delimiter}' * 5000).encode()
    content = cells if place == "header" else f'text{delimiter}b\n"one\ntwo"{delimiter}c\n'.encode() + cells
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    line = {"header": 1, "row": 4}[place]
    assert error_of(tmp_path, name).startswith(
        f"corpus 'lua': the row that begins at line {line} of '{name}' must be a document of at most 1000 bytes, but "
        "is longer; "
    )
    assert len(lines_read) <= 1000 / 5 + 5


def test_many_rows_may_be_longer_than_the_limit_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "MOST_DOCUMENT_BYTES", 20)
    (tmp_path / "a.csv").write_text("text,other\n" + '"é\n\n12345",6789\n' * 100 + "\n" * 100)
    assert read(tmp_path, "a.csv") == ["é\n\n12345"] * 100


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_compressed_text_is_read_as_the_text(tmp_path: Path, name: str):
    content = "\ufeffone\r\n|naïve ✓".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else zstd(content))
    assert read(tmp_path, name) == ["one\n|naïve ✓"]
    assert read(tmp_path, name, separator="|") == ["one\n", "naïve ✓"]


def test_several_zstd_frames_in_one_file_are_all_read(tmp_path: Path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(b'{"text": "a"}\n') + zstd(b'{"text": "b"}\n'))
    assert read(tmp_path, "a.jsonl.zst") == ["a", "b"]


def test_damaged_zstd_is_named(tmp_path: Path):
    whole = zstd(json_lines([{"text": f"document {number} {number * 7919}"} for number in range(2000)]))
    for content in (whole[: len(whole) // 2], b"<html>not found</html>", whole + b"more"):
        (tmp_path / "a.jsonl.zst").write_bytes(content)
        message = error_of(tmp_path, "a.jsonl.zst")
        assert message.startswith("corpus 'lua': 'a.jsonl.zst' cannot be read (")
        assert message.endswith("); fetch it again or correct corpora.lua.path")


def test_a_compressed_text_without_a_separator_is_read_no_further_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("saelineage.corpora.documents.MOST_DOCUMENT_BYTES", 3 * tables.CHUNK_BYTES)
    read_bytes = []
    monkeypatch.setattr(tables, "require_memory", lambda n_bytes, _: read_bytes.append(n_bytes))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * (20 * tables.CHUNK_BYTES)))
    assert "a.txt.gz must be a document of at most 3145728 bytes" in error_of(tmp_path, "a.txt.gz")
    assert max(read_bytes) <= tables.READ_TIMES * (3 * tables.CHUNK_BYTES + 1)


# --- nulls ---


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_null_text_is_skipped_and_counted_and_the_first_is_named(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
):
    texts = ["one", None, *(f"document {number}" for number in range(100)), None]
    if name == "a.parquet":
        write_parquet(tmp_path / name, {"text": texts})
    else:
        rows = [{"text": text} for text in texts]
        (tmp_path / name).write_bytes(json_lines(rows) if name == "a.jsonl" else json.dumps(rows).encode())
    documents = read(tmp_path, name)
    assert [document is not None and not isinstance(document, Null) for document in documents] == [
        text is not None for text in texts
    ]
    with caplog.at_level(logging.WARNING):
        counts = write_splits(documents, FRACTIONS, paths_in(tmp_path / "out"), "lua")
    assert counts["nulls"] == 2
    assert sum(map(len, splits_in(tmp_path / "out").values())) == 101
    kind = {"a.jsonl": "line", "a.json": "record", "a.parquet": "row"}[name]
    assert caplog.messages == [f"{tmp_path / name}, {kind} 2 has no text (null); such rows are skipped and counted"]


def test_nulls_are_no_bytes_of_text(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "ab"}\n{"text": null}\n{"text": "c"}\n{"text": "d"}\n')
    texts = [document for document in read(tmp_path, "a.jsonl", max_bytes=3) if not isinstance(document, Null)]
    assert texts == ["ab", "c"]


def test_a_corpus_of_nulls_is_refused_with_their_number(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", {"text": pyarrow.array([None, None], pyarrow.string())})
    with pytest.raises(InputError, match=r"^corpus 'lua' is empty \(0 blank documents, 2 without a text\); "):
        write_splits(read(tmp_path, "a.parquet"), FRACTIONS, paths_in(tmp_path / "out"), "lua")


# --- the whole way, as the issue has it ---


def test_json_syntax_readmes_and_licences_are_no_text(tmp_path: Path):
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# A data set")
    (folder / "LICENSE").write_text("CC BY")
    (folder / "data" / "Readme.txt").write_text("Columns: text.")
    for number, ending in enumerate(CONTENTS):
        (folder / "data" / f"{number}{ending}").write_bytes(CONTENTS[ending])
    settings = {"source": "files", "path": "dataset", "glob": "**/*", "text_column": "text"}
    files = find_files("lua", settings, str(tmp_path))
    assert [Path(file).name for file in files] == ["0.csv", "1.tsv", "2.jsonl", "3.ndjson", "4.json"]
    documents = list(read_documents("lua", settings | {"separator": None, "max_bytes": None}, files))
    assert documents == TEXTS * len(CONTENTS)
