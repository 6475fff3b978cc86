"""Corpora: every document once, unchanged and in one split; damaged input is named."""

import gzip
import hashlib
import json
import os
import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from saelineage.corpora import sorting
from saelineage.corpora.documents import (
    Null,
    count_documents,
    mixed,
    read_documents,
    read_split,
    split_of,
    without_lone_surrogates,
    write_splits,
)
from saelineage.corpora.samples.kinds import sample_documents
from saelineage.errors import InputError
from saelineage.plan.user_files import find_files
from tests.hostile import LONG_LINE
from tests.hostile import TEXTS as HOSTILE

FRACTIONS = {"validation": 0.08, "probe": 0.12}
TEXTS = ["print(1)", "local naïve = '✓'", "", "  two\nlines\n"]


def files_settings(path: str, **changed: object) -> dict:
    """A `files` corpus with the schema's defaults."""
    defaults = {"glob": "**/*", "text_column": "text", "separator": None, "max_bytes": None}
    return {"source": "files", "path": path} | defaults | changed


def read(folder: Path, name: str, **changed: object) -> list[str | Null]:
    """Find and read the documents of a `files` corpus in `folder`, as the workflow does."""
    settings = files_settings(name, **changed)
    return list(read_documents("lua", settings, find_files("lua", settings, str(folder))))


def error_of(folder: Path, name: str, **changed: object) -> str:
    """The error message of reading, without the name of the folder."""
    with pytest.raises(InputError) as raised:
        read(folder, name, **changed)
    return str(raised.value).replace(f"{folder}/", "")


def write_parquet(path: Path, table: dict) -> None:
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def write_jsonl(path: Path, texts: list[str]) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def paths_in(folder: Path) -> dict[str, Path]:
    return {split: folder / f"{split}.parquet" for split in ("train", "validation", "probe")}


def splits_in(folder: Path) -> dict[str, list[str]]:
    return {split: list(read_split(path)) for split, path in paths_in(folder).items()}


def mixed_up(texts: list[str]) -> list[str]:
    """Texts in the order of their sha256."""
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def share_of(text: str) -> float:
    """The first 8 bytes of a document's sha256, as a fraction between 0 and 1."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64


# --- sources ---


def test_a_sample_is_generated_up_to_its_bytes():
    settings = {"source": "sample", "kind": "lua", "max_bytes": 3000, "seed": 4}
    assert list(read_documents("lua", settings, [])) == list(sample_documents("lua", 3000, 4))


def test_the_standard_library_is_read_in_the_order_of_the_hashes_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    # printf NAME | sha256sum: json/c.py 7a7c..., email/mime/d.py a2d9..., json/b.py ed0b..., a.py f0de...
    for name in ("a.py", "email/mime/d.py", "json/b.py", "json/c.py", "test/t.py", "json/tests/t.py", "e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}".ljust(200))
    (tmp_path / "empty.py").write_text("x" * 199)
    (tmp_path / "table.py").write_text("x" * 100_001)
    texts = read_documents("python", {"source": "stdlib", "max_bytes": None}, [])
    assert [text.strip() for text in texts] == ["# json/c.py", "# email/mime/d.py", "# json/b.py", "# a.py"]


def test_the_real_standard_library_is_python_source():
    texts = list(read_documents("python", {"source": "stdlib", "max_bytes": 100_000}, []))
    assert 100_000 <= sum(len(text.encode()) for text in texts) < 200_000
    for text in texts:
        compile(text, "stdlib", "exec")


def test_with_a_limit_on_the_text_files_are_read_in_an_order_that_mixes_them(tmp_path: Path):
    files = [str(tmp_path / "in" / f"{part}/{number}.txt") for part in "ab" for number in range(50)]
    order = mixed(files)
    assert sorted(order) == sorted(files)
    assert [path.replace(str(tmp_path), "elsewhere") for path in order] == mixed(
        [path.replace(str(tmp_path), "elsewhere") for path in files]
    )
    assert 10 < sum(path.startswith(str(tmp_path / "in" / "a")) for path in order[:50]) < 40
    for path in map(Path, files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    texts = read(tmp_path, "in", max_bytes=20)
    assert texts == [Path(path).name for path in order[: len(texts)]]
    assert mixed(["one.txt"]) == ["one.txt"]


def test_a_text_file_is_one_document(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\ntwo ✓\n", encoding="utf-8")
    assert read(tmp_path, "a.txt") == ["one\n\ntwo ✓\n"]


def test_a_byte_order_mark_at_the_start_of_a_file_is_dropped(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone \xef\xbb\xbf")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}\n{"text": "three"}\n')
    assert read(tmp_path, "a.txt") == ["one \ufeff"]
    assert read(tmp_path, "b.jsonl") == ["two", "three"]


def test_line_endings_of_a_text_file_become_line_feeds_and_those_inside_json_stay(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "one\\r\\ntwo"}\r\n')
    assert read(tmp_path, "a.txt") == ["one\ntwo\nthree\n"]
    assert read(tmp_path, "b.jsonl") == ["one\r\ntwo"]


def test_a_text_file_is_split_at_the_separator(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two\n<|endoftext|>\n<|endoftext|>")
    assert read(tmp_path, "a.txt", separator="<|endoftext|>") == ["one", "two\n", "\n", ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_are_read_in_order_without_blank_lines(tmp_path: Path, name: str):
    content = "".join(json.dumps({"text": text, "id": 1}) + "\n \n" for text in TEXTS).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path, name) == TEXTS


def test_json_lines_may_hold_text_unescaped(tmp_path: Path):
    # Some readers end a line at U+2028; JSON lines do not.
    (tmp_path / "a.jsonl").write_text('{"text": "naïve \u2028✓"}\n', encoding="utf-8")
    assert read(tmp_path, "a.jsonl") == ["naïve \u2028✓"]


def test_parquet_is_read_in_order_whichever_text_type_it_has(tmp_path: Path):
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int8(), "string")):
        write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3, 4], "text": pyarrow.array(TEXTS).cast(kind)})
        assert read(tmp_path, "a.parquet") == TEXTS


def test_another_column_may_hold_the_text(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", {"text": ["no"], "content": ["yes"]})
    (tmp_path / "b.jsonl").write_text('{"text": "no", "content": "yes"}\n')
    assert read(tmp_path, "a.parquet", text_column="content") == ["yes"]
    assert read(tmp_path, "b.jsonl", text_column="content") == ["yes"]


def test_a_folder_with_several_formats_is_read_in_order_of_names(tmp_path: Path):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "c.lua").write_text("third")
    (folder / "b" / "z.txt").write_text("second")
    (folder / "a.md.gz").write_bytes(gzip.compress(b"first"))
    assert read(tmp_path, "texts") == ["first", "second", "third"]
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "c.CSV").write_text("text\nthird\n")
    write_parquet(folder / "b.parquet", {"text": ["second"]})
    write_jsonl(folder / "a.jsonl", ["first"])
    assert read(tmp_path, "tables") == ["first", "second", "third"]


def test_a_glob_picks_files_of_a_folder(tmp_path: Path):
    for name in ("a.lua", "b.md", "c.lua"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path, ".", glob="*.lua") == ["a.lua", "c.lua"]


def test_hidden_files_and_folders_are_skipped_unless_named(tmp_path: Path):
    for name in ("texts/.git/objects/aa", "texts/.DS_Store", "texts/sub/a.lua", ".cache/a.lua"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"text" if name.endswith(".lua") else b"\xff")
    assert read(tmp_path, "texts") == ["text"]
    assert read(tmp_path, ".cache") == ["text"]


def test_reading_ends_with_the_document_that_reaches_max_bytes(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", ["aaa", "é", "bbb"])
    # "é" is 2 bytes: 3, 5 and 8 bytes have been read after each document.
    n_documents = {1: 1, 3: 1, 4: 2, 6: 3, None: 3}
    assert {n: len(read(tmp_path, "a.jsonl", max_bytes=n)) for n in n_documents} == n_documents


# --- errors of reading ---


def test_a_file_deleted_after_the_workflow_started_is_named(tmp_path: Path):
    gone = str(tmp_path / "a.txt")
    with pytest.raises(InputError, match=rf"^corpora\.lua\.path: '{gone}' .*correct the path"):
        list(read_documents("lua", files_settings("a.txt"), [gone]))


@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b"x" * 9000 + b"caf\xe9", 9003),
        (b"\xef\xbb\xbfab\xff", 5),  # counted from the start of the file, including its byte order mark
        (b"cut off \xe2\x82", 8),
        ("UTF-16".encode("utf-16"), 0),
    ],
    ids=["Latin-1", "byte order mark", "cut off", "UTF-16"],
)
def test_a_text_file_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path, content: bytes, byte: int):
    (tmp_path / "a.txt").write_bytes(content)
    message = error_of(tmp_path, "a.txt")
    assert message.startswith(f"corpus 'lua': 'a.txt' must be UTF-8, but byte {byte} is not; convert it")
    assert "corpora.lua.path" in message


def test_parquet_whose_text_is_not_utf8_is_named(tmp_path: Path):
    _, offsets, data = pyarrow.array([b"fine", b"half a pair \xed\xa0\x80"]).buffers()
    write_parquet(tmp_path / "a.parquet", {"text": pyarrow.StringArray.from_buffers(2, offsets, data)})
    message = error_of(tmp_path, "a.parquet")
    assert message.startswith("corpus 'lua': 'a.parquet' cannot be read ('utf-8' codec can't decode byte 0xed in posi")
    assert message.endswith("correct corpora.lua.path")


@pytest.mark.parametrize(
    "line",
    ['{"text": ', '{"text": "b", "value": ' + "1" * 5000 + "}", '{"text": "b", "value": ' + "[" * 100_000 + "}"],
    ids=["cut off", "long number", "deep"],
)
def test_a_line_that_is_not_json_is_named(tmp_path: Path, line: str):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n\n{line}\n')
    message = error_of(tmp_path, "a.jsonl")
    assert message.startswith("corpus 'lua': line 3 of 'a.jsonl' is not JSON (")
    assert message.endswith("); correct that line")


def test_a_line_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 2000 + b'{"text": "caf\xe9"}\n')
    message = error_of(tmp_path, "a.jsonl")
    assert message.startswith("corpus 'lua': line 2001 of 'a.jsonl' must be UTF-8, but byte 13 of it is not; ")


def test_a_row_without_the_text_column_is_named_with_its_columns(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "a", "id": 1}')
    (tmp_path / "b.jsonl").write_text('["a"]')
    write_parquet(tmp_path / "c.parquet", {"id": [1], "content": ["a"]})
    remedy = "set corpora.lua.text_column to"
    assert f"a.jsonl, line 1 has no 'text', only ['content', 'id']; {remedy}" in error_of(tmp_path, "a.jsonl")
    assert f"b.jsonl, line 1 has no 'text', only []; {remedy}" in error_of(tmp_path, "b.jsonl")
    assert f"c.parquet has no 'text', only ['id', 'content']; {remedy}" in error_of(tmp_path, "c.parquet")


def test_a_column_that_holds_no_text_is_named_with_its_type(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": 3}')
    assert "'text' in a.jsonl, line 1 must be text, not int; " in error_of(tmp_path, "a.jsonl")
    for value, kind in ((b"a", "bytes"), (1, "int"), (["a"], "list")):
        write_parquet(tmp_path / "a.parquet", {"text": [value]})
        message = error_of(tmp_path, "a.parquet")
        assert f"corpus 'lua': 'text' in a.parquet, row 1 must be text, not {kind}; " in message
        assert "corpora.lua.text_column" in message


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def altered_at(start: int, content: bytes) -> bytes:
    return content[:start] + bytes(byte ^ 0x55 for byte in content[start : start + 8]) + content[start + 8 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param("a.jsonl.gz", truncated, id="half a gzip"),
        # The first compressed block starts at byte 10.
        pytest.param("a.jsonl.gz", partial(altered_at, 10), id="an altered gzip"),
        pytest.param("a.jsonl.gz", lambda _: b"<html>not found</html>", id="no gzip"),
        pytest.param("a.parquet", truncated, id="half a parquet"),
        pytest.param("a.parquet", partial(altered_at, 1000), id="an altered parquet"),
        pytest.param("a.parquet", lambda _: b"<html>not found</html>", id="no parquet"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]):
    texts = [f"document {number} {number * 7919}" * 5 for number in range(200)]
    if name == "a.parquet":
        write_parquet(tmp_path / name, {"text": texts})
    else:
        write_jsonl(tmp_path / name, texts)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    message = error_of(tmp_path, name)
    assert message.startswith(f"corpus 'lua': '{name}' cannot be read (")
    assert message.endswith("); fetch it again or correct corpora.lua.path")
    assert "\n" not in message


# --- splits ---


def test_documents_are_dealt_by_their_hash(tmp_path: Path):
    texts = [f"document {number}" for number in range(300)]
    write_splits(texts, FRACTIONS, paths_in(tmp_path), "lua")
    # Below 0.12 probe, below 0.12 + 0.08 = 0.2 validation.
    assert splits_in(tmp_path) == {
        "probe": mixed_up([text for text in texts if share_of(text) < 0.12]),
        "validation": mixed_up([text for text in texts if 0.12 <= share_of(text) < 0.2]),
        "train": mixed_up([text for text in texts if share_of(text) >= 0.2]),
    }


def test_the_first_documents_of_a_split_come_from_the_whole_corpus(tmp_path: Path):
    texts = [f"{number}" for number in range(4000)]
    write_splits(texts, FRACTIONS, paths_in(tmp_path), "lua")
    for split, first in splits_in(tmp_path).items():
        numbers = [int(text) for text in first[:100]]
        # Uniform on 0 to 3999: the mean of 100 has a standard error of 4000 / sqrt(12 x 100) = 115.
        assert abs(sum(numbers) / 100 - 2000) < 460, split
        assert min(numbers) < 400 < 3600 < max(numbers)


def test_a_split_does_not_depend_on_the_order_in_which_documents_come(tmp_path: Path):
    texts = [f"document {number}" for number in range(300)]
    write_splits(texts, FRACTIONS, paths_in(tmp_path / "a"), "lua")
    write_splits(random.Random(3).sample(texts, 300), FRACTIONS, paths_in(tmp_path / "b"), "lua")
    for split, path in paths_in(tmp_path / "a").items():
        assert path.read_bytes() == paths_in(tmp_path / "b")[split].read_bytes()
        assert count_documents(path) == len(splits_in(tmp_path / "a")[split])


def test_documents_that_memory_does_not_hold_are_sorted_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [f"document {number} ✓" for number in range(300)]
    write_splits(texts, FRACTIONS, paths_in(tmp_path / "whole"), "lua")
    for run_bytes in (1, 100, 1000):
        monkeypatch.setattr(sorting, "RUN_BYTES", run_bytes)
        write_splits(texts, FRACTIONS, paths_in(tmp_path / "runs"), "lua")
        for split, path in paths_in(tmp_path / "whole").items():
            assert path.read_bytes() == paths_in(tmp_path / "runs")[split].read_bytes()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "probe.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_a_hash_at_a_boundary_belongs_to_the_split_that_begins_there():
    # Of 2^64, 0.25 is 0x4000... and 0.5 is 0x8000...
    splits = {
        "0000000000000000": "probe",
        "3ffffffffffff000": "probe",
        "4000000000000000": "validation",
        "7ffffffffffff000": "validation",
        "8000000000000000": "train",
        "ffffffffffffffff": "train",
    }
    fractions = {"probe": 0.25, "validation": 0.25}
    assert {first: split_of(bytes.fromhex(first) + b"\xff" * 8, fractions) for first in splits} == splits


def test_the_split_of_a_document_does_not_depend_on_other_documents(tmp_path: Path):
    texts = [f"document {number}" for number in range(400)]
    some = random.Random(1).sample(texts, 200)
    write_splits(texts, FRACTIONS, paths_in(tmp_path / "all"), "lua")
    write_splits(some, FRACTIONS, paths_in(tmp_path / "some"), "stories")
    splits = splits_in(tmp_path / "all")
    for split, texts_of_some in splits_in(tmp_path / "some").items():
        assert set(texts_of_some) == set(splits[split]) & set(some)


def test_duplicates_and_blank_documents_are_dropped_and_counted(tmp_path: Path):
    texts = [f"document {number} é" for number in range(100)]
    texts += [f"{text}\n" for text in texts]  # white space makes another document
    counts = write_splits([*texts, *texts[:7], "", " \n", *texts[:1]], FRACTIONS, paths_in(tmp_path), "lua")
    splits = splits_in(tmp_path)
    assert sorted(text for split in splits.values() for text in split) == sorted(texts)
    assert counts == {
        "duplicates": 8,
        "empty": 2,
        "nulls": 0,
        "surrogates": 0,
        "splits": {
            split: {"documents": len(splits[split]), "bytes": sum(len(text.encode()) for text in splits[split])}
            for split in ("train", "validation", "probe")
        },
    }


def test_a_split_holds_the_digest_of_each_document(tmp_path: Path):
    write_splits([f"document {number}" for number in range(100)], FRACTIONS, paths_in(tmp_path), "lua")
    rows = pyarrow.parquet.read_table(tmp_path / "train.parquet").to_pylist()
    assert set(rows[0]) == {"document", "text"}
    assert all(row["document"] == hashlib.sha256(row["text"].encode()).hexdigest()[:32] for row in rows)


def test_more_documents_than_are_written_at_once_stay_complete(tmp_path: Path):
    texts = [f"document {number}" for number in range(2500)]
    write_splits(texts, {"validation": 0.01, "probe": 0.01}, paths_in(tmp_path), "lua")
    splits = splits_in(tmp_path)
    assert splits["train"] == mixed_up([text for text in texts if share_of(text) >= 0.02])
    assert sum(map(len, splits.values())) == 2500


def test_the_same_documents_are_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        write_splits([f"document {number}" for number in range(200)], FRACTIONS, paths_in(tmp_path / name), "lua")
    for split, path in paths_in(tmp_path / "a").items():
        assert path.read_bytes() == paths_in(tmp_path / "b")[split].read_bytes()


def test_an_empty_corpus_or_split_is_named_and_leaves_no_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"^corpus 'lua' is empty \(3 blank documents, 0 without.*corpora\.lua"):
        write_splits(["", " ", "\n"], FRACTIONS, paths_in(tmp_path), "lua")
    text = next(f"document {number}" for number in range(100) if share_of(f"document {number}") >= 0.2)
    with pytest.raises(InputError, match=r"its 1 documents leave the validation split empty; .*splits\.validation"):
        write_splits([text, text], FRACTIONS, paths_in(tmp_path), "lua")
    assert os.listdir(tmp_path) == []


def test_each_lone_surrogate_becomes_one_replacement_character_and_a_pair_its_character():
    replaced = {
        "naïve \U0001f600 \u202e \0": "naïve \U0001f600 \u202e \0",  # nothing to replace
        "a \ud83d b": "a \ufffd b",
        "\ude00": "\ufffd",
        "\ude00\ud83d": "\ufffd\ufffd",  # in the wrong order they are not a pair
        "\ud83d\ud83d\ude00": "\ufffd\U0001f600",
        "\U0001f600\ud83d": "\U0001f600\ufffd",
    }
    assert {text: without_lone_surrogates(text) for text in replaced} == replaced


def test_lone_surrogates_are_replaced_before_documents_are_hashed_and_counted(tmp_path: Path):
    # The second text is the first after replacement, so a duplicate; the fourth holds a whole pair.
    lines = [r'"cut off: \ud83d"', '"cut off: \ufffd"', r'"\ude00, \ud800"', r'"whole: \ud83d\ude00"']
    lines += [f'"document {number}"' for number in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": {line}}}\n' for line in lines), encoding="utf-8")
    counts = write_splits(read(tmp_path, "a.jsonl"), FRACTIONS, paths_in(tmp_path / "out"), "lua")
    assert (counts["surrogates"], counts["duplicates"], counts["empty"]) == (2, 1, 0)
    assert sum(split["documents"] for split in counts["splits"].values()) == 103
    rows = [row for path in paths_in(tmp_path / "out").values() for row in pyarrow.parquet.read_table(path).to_pylist()]
    digests = {row["text"]: row["document"] for row in rows if not row["text"].startswith("document")}
    assert set(digests) == {"cut off: \ufffd", "\ufffd, \ufffd", "whole: \U0001f600"}
    for text, document in digests.items():
        assert document == hashlib.sha256(text.encode()).hexdigest()[:32]
        split = "probe" if share_of(text) < 0.12 else "validation" if share_of(text) < 0.2 else "train"
        assert text in splits_in(tmp_path / "out")[split]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "escaped.jsonl", "parquet"])
def test_hostile_text_passes_from_a_file_to_a_split_unchanged(tmp_path: Path, kind: str):
    texts, path = [*HOSTILE.values(), LONG_LINE], tmp_path / f"a.{kind}"
    if kind == "parquet":
        write_parquet(path, {"text": texts})
    elif kind == "txt":
        texts = [text.replace("\r", "") for text in texts]  # line endings of text files become line feeds
        path.write_bytes("<separator>".join(texts).encode())
    else:
        lines = [json.dumps({"text": text}, ensure_ascii=kind == "escaped.jsonl") + "\n" for text in texts]
        path.write_text("".join(lines), encoding="utf-8")
    fillers = [f"document {number}" for number in range(100)]
    documents = read(tmp_path, path.name, separator="<separator>")
    write_splits([*documents, *fillers], FRACTIONS, paths_in(tmp_path / "out"), "lua")
    kept = {text for split in splits_in(tmp_path / "out").values() for text in split}
    assert documents == texts
    assert kept == {*texts, *fillers}


def test_an_error_half_way_leaves_the_earlier_splits_untouched(tmp_path: Path):
    def documents() -> Iterator[str]:
        yield from (f"document {number}" for number in range(3000))
        raise InputError("line 3001 is not JSON")

    write_splits([f"older {number}" for number in range(200)], FRACTIONS, paths_in(tmp_path), "lua")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="line 3001"):
        write_splits(documents(), FRACTIONS, paths_in(tmp_path), "lua")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
