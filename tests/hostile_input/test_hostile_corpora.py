"""Corpora from strangers."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from saelineage.corpora import documents as corpora
from saelineage.corpora.documents import file_documents
from saelineage.plan.user_files import find_files
from tests.hostile_input.refusals import peak_mb, refusal, reset_peak_mb

SETTINGS = {"text_column": "text", "separator": None}
FILES = {"path": "theirs", "glob": "**/*"}


def documents(path: Path, **settings: object) -> list[str]:
    return list(file_documents("web", path, SETTINGS | settings))


def found(folder: Path, **settings: str) -> list[str]:
    names = find_files("web", FILES | settings, str(folder))
    return [os.path.relpath(name, folder) for name in names]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "theirs" / "inside").mkdir(parents=True)
    (tmp_path / "theirs" / "a.txt").write_text("A.")
    (tmp_path / "secret.txt").write_text("The reader's own.")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("Also.")
    return tmp_path


@pytest.mark.parametrize(
    ("link", "target"), [("b.txt", "../secret.txt"), ("b.txt", "/etc/hostname"), ("inside/b", "../../secret.txt")]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, link: str, target: str):
    (folder / "theirs" / link).symlink_to(target)
    message = refusal(lambda: found(folder))
    assert message.startswith(f"corpora.web.path: '{folder / 'theirs' / link}' is a link that leads out of ")


def test_a_folder_that_is_linked_to_is_not_read(folder: Path):
    (folder / "theirs" / "b").symlink_to(folder / "private")
    assert found(folder) == ["theirs/a.txt"]
    assert "is a link that leads out of" in refusal(lambda: found(folder, glob="b/*"))


def test_links_within_the_folder_and_to_it_are_followed(folder: Path):
    (folder / "theirs" / "inside" / "b.txt").symlink_to("../a.txt")
    (folder / "mine").symlink_to("theirs")
    assert found(folder) == ["theirs/a.txt", "theirs/inside/b.txt"]
    assert found(folder, path="mine") == ["mine/a.txt", "mine/inside/b.txt"]
    assert found(folder, path="secret.txt") == ["secret.txt"]


def test_a_snapshot_in_the_cache_of_the_hub_can_be_read(folder: Path):
    repo = folder / "datasets--owner--texts"
    (repo / "snapshots" / "0123" / "data").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "9f86d081").write_text("A.")
    link = repo / "snapshots" / "0123" / "data" / "a.txt"
    link.symlink_to("../../../blobs/9f86d081")
    assert found(folder, path="datasets--owner--texts/snapshots/0123/data") == [str(link.relative_to(folder))]
    for target in ("../../../../secret.txt", "../../../refs", "../../../../datasets--owner--other/blobs/9f86d081"):
        link.unlink()
        link.symlink_to(target)
        link.parent.joinpath(target).resolve().parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.resolve().write_text("Another's.")
        message = refusal(lambda: found(folder, path="datasets--owner--texts/snapshots/0123"))
        assert "is a link that leads out of" in message


@pytest.mark.parametrize("between", ["elsewhere", "snapshots"])
def test_blobs_beside_a_folder_that_is_no_cache_are_not_its_own(folder: Path, between: str):
    (folder / "blobs").mkdir()
    (folder / "blobs" / "key.txt").write_text("The reader's own.")
    (folder / between / "theirs").mkdir(parents=True)
    (folder / between / "theirs" / "b.txt").symlink_to("../../blobs/key.txt")
    assert "is a link that leads out of" in refusal(lambda: found(folder, path=f"{between}/theirs"))


def test_circles_of_links_pipes_and_broken_links_are_no_documents(folder: Path):
    (folder / "theirs" / "up").symlink_to("..")
    (folder / "theirs" / "round.txt").symlink_to("round.txt")
    (folder / "theirs" / "broken.txt").symlink_to("nothing.txt")
    os.mkfifo(folder / "theirs" / "pipe.txt")
    assert found(folder) == ["theirs/a.txt"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"glob": "/etc/*"}, "corpora.web.glob: "),
        ({"glob": "../*"}, "matches '../*'; correct corpora.web.glob"),
        ({"glob": "**x"}, "corpora.web.glob: "),
        ({"glob": "inside/../../*.txt"}, "; correct corpora.web.glob"),
        ({"path": "x" * 5000}, "corpora.web.path: "),
        ({"path": "a.txt/b"}, "corpora.web.path: "),
        ({"path": "/dev/zero"}, "corpora.web.path: no file in '/dev/zero' matches"),
        ({"path": "/proc/self/mem"}, "corpora.web.path: '/proc/self/mem' must be one of .txt, .jsonl"),
    ],
)
def test_paths_and_patterns_that_lead_elsewhere_are_refused(folder: Path, settings: dict, said: str):
    assert said in refusal(lambda: found(folder, **settings))


@pytest.mark.parametrize("name", ["{run}.txt", "a}.txt"])
def test_names_that_would_be_wildcards_are_refused(folder: Path, name: str):
    (folder / "theirs" / name).write_text("B.")
    assert "must be without braces, which Snakemake reads as wildcards" in refusal(lambda: found(folder))


def test_a_packed_line_of_200_mb_is_refused_before_it_is_unpacked(tmp_path: Path):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b'{"text": "fine"}\n')
        for _ in range(48):
            file.write(b"\0" * (1 << 22))
    assert path.stat().st_size < 2 << 20
    assert refusal(lambda: documents(path)).startswith(
        f"corpus 'web': line 2 of '{path}' must be a document of at most 67108864 bytes, but is longer; cut it up"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "line 1 of "),
        ("[" * 100_000 + "]" * 100_000, "is not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"text": NaN}', "must be text, not float"),
        ('"text"', "has no 'text'"),
        ("\0", "is not JSON"),
    ],
    ids=["cut off", "deep", "long number", "NaN", "no mapping", "NUL"],
)
def test_a_line_that_is_no_document_is_refused(tmp_path: Path, line: str, said: str):
    (tmp_path / "a.jsonl").write_text(line)
    assert said in refusal(lambda: documents(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("separator", [None, "\n"])
def test_a_text_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path, separator: str | None):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(1 << 43)
    assert f"'{path}' needs 32768 GiB of memory" in refusal(lambda: documents(path, separator=separator))


def test_a_text_that_is_one_document_too_long_is_refused(tmp_path: Path):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(corpora.MOST_DOCUMENT_BYTES + 1)
    assert "cut it up (a .txt with corpora.web.separator)" in refusal(lambda: documents(path))


@pytest.mark.parametrize("n_characters", [50, 51])
def test_every_document_is_measured_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_characters: int):
    monkeypatch.setattr(corpora, "MOST_DOCUMENT_BYTES", 100)  # 50 letters of two bytes
    text = "\u00e9" * n_characters
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", text]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text(f"a|{text}", encoding="utf-8")
    for name in ("a.parquet", "a.txt"):
        path = tmp_path / name
        if n_characters == 50:
            assert documents(path, separator="|") == ["a", text]
        else:
            message = refusal(lambda path=path: documents(path, separator="|"))
            assert f"document 2 of '{path}' must be a document of at most 100 bytes" in message


def test_a_parquet_file_of_one_long_text_many_times_is_read_one_at_a_time(tmp_path: Path):
    path, text = tmp_path / "same.parquet", "x" * (4 << 20)
    once = pyarrow.array([text])
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 500, pyarrow.int32()), once)  # 2 GB, written out
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1 << 20
    before = reset_peak_mb()
    assert sum(len(document) for document in file_documents("web", path, SETTINGS)) == 500 * len(text)
    assert peak_mb() - before < 400


def test_a_parquet_file_of_packed_texts_is_unpacked_a_few_at_a_time(tmp_path: Path):
    path, text = tmp_path / "packed.parquet", "x" * (4 << 20)
    table = pyarrow.table({"text": [f"{number}{text}" for number in range(120)]})  # 480 MB, a page each
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_batch_size=1)
    del table
    assert path.stat().st_size < 1 << 20
    before = reset_peak_mb()
    assert len([len(document) for document in file_documents("web", path, SETTINGS)]) == 120
    assert peak_mb() - before < 400


@pytest.mark.parametrize("n_bytes", [0, 4, 100, 500])
def test_a_cut_off_parquet_file_is_refused(tmp_path: Path, n_bytes: int):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [str(number) for number in range(500)]}), path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert f"corpus 'web': '{path}' cannot be read" in refusal(lambda: documents(path))


def test_every_flipped_byte_of_a_parquet_file_ends_in_one_sentence_or_in_text(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"{number}" for number in range(40)], "other": range(40)}), path
    )
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x3C]) + whole[place + 1 :])
        try:
            assert all(isinstance(document, str) for document in documents(path))
        except ValueError as error:
            message = json.dumps(str(error))
            if type(error).__name__ != "InputError":
                pytest.fail(f"byte {place}: {type(error).__name__} {message}")
