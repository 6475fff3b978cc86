"""Third-party corpora."""

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


def names_found(folder: Path, **settings: str) -> list[str]:
    paths = find_files("web", FILES | settings, str(folder))
    return [os.path.relpath(path, folder) for path in paths]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "theirs" / "inside").mkdir(parents=True)
    (tmp_path / "theirs" / "a.txt").write_text("A.")
    (tmp_path / "secret.txt").write_text("Secret.")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("Also.")
    return tmp_path


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path):
    for name, target in (("b.txt", "../secret.txt"), ("b.txt", "/etc/hostname"), ("inside/b", "../../secret.txt")):
        link = folder / "theirs" / name
        link.symlink_to(target)
        message = refusal(lambda: names_found(folder))
        assert message.startswith(f"corpora.web.path: '{link}' is a link that leads out of ")
        link.unlink()


def test_a_linked_folder_is_not_read(folder: Path):
    (folder / "theirs" / "b").symlink_to(folder / "private")
    assert names_found(folder) == ["theirs/a.txt"]
    assert "is a link that leads out of" in refusal(lambda: names_found(folder, glob="b/*"))


def test_links_inside_the_folder_and_to_it_are_followed(folder: Path):
    (folder / "theirs" / "inside" / "b.txt").symlink_to("../a.txt")
    (folder / "mine").symlink_to("theirs")
    assert names_found(folder) == ["theirs/a.txt", "theirs/inside/b.txt"]
    assert names_found(folder, path="mine") == ["mine/a.txt", "mine/inside/b.txt"]
    assert names_found(folder, path="secret.txt") == ["secret.txt"]


def test_a_snapshot_in_the_hugging_face_cache_can_be_read(folder: Path):
    repo = folder / "datasets--owner--texts"
    (repo / "snapshots" / "0123" / "data").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "9f86d081").write_text("A.")
    link = repo / "snapshots" / "0123" / "data" / "a.txt"
    link.symlink_to("../../../blobs/9f86d081")
    assert names_found(folder, path="datasets--owner--texts/snapshots/0123/data") == [str(link.relative_to(folder))]
    for target in ("../../../../secret.txt", "../../../refs", "../../../../datasets--owner--other/blobs/9f86d081"):
        link.unlink()
        link.symlink_to(target)
        link.parent.joinpath(target).resolve().parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.resolve().write_text("Another's.")
        message = refusal(lambda: names_found(folder, path="datasets--owner--texts/snapshots/0123"))
        assert "is a link that leads out of" in message


def test_blobs_next_to_a_folder_outside_the_hugging_face_cache_are_refused(folder: Path):
    (folder / "blobs").mkdir()
    (folder / "blobs" / "key.txt").write_text("Secret.")
    for between in ("elsewhere", "snapshots"):
        (folder / between / "theirs").mkdir(parents=True)
        (folder / between / "theirs" / "b.txt").symlink_to("../../blobs/key.txt")
        message = refusal(lambda between=between: names_found(folder, path=f"{between}/theirs"))
        assert "is a link that leads out of" in message


def test_circular_links_pipes_and_broken_links_are_skipped(folder: Path):
    (folder / "theirs" / "up").symlink_to("..")
    (folder / "theirs" / "round.txt").symlink_to("round.txt")
    (folder / "theirs" / "broken.txt").symlink_to("nothing.txt")
    os.mkfifo(folder / "theirs" / "pipe.txt")
    assert names_found(folder) == ["theirs/a.txt"]


def test_paths_and_patterns_that_lead_elsewhere_are_refused(folder: Path):
    cases = [
        ({"glob": "/etc/*"}, "corpora.web.glob: "),
        ({"glob": "../*"}, "corpora.web.glob"),
        ({"glob": "**x"}, "corpora.web.glob: "),
        ({"glob": "inside/../../*.txt"}, "corpora.web.glob"),
        ({"path": "x" * 5000}, "corpora.web.path: "),
        ({"path": "a.txt/b"}, "corpora.web.path: "),
        ({"path": "/dev/zero"}, "corpora.web.path: no file in '/dev/zero'"),
        ({"path": "/proc/self/mem"}, "corpora.web.path: '/proc/self/mem'"),
    ]
    for settings, said in cases:
        assert said in refusal(lambda settings=settings: names_found(folder, **settings))


def test_file_names_with_wildcards_are_refused(folder: Path):
    for name in ("{run}.txt", "a}.txt"):
        (folder / "theirs" / name).write_text("B.")
        assert "without braces" in refusal(lambda: names_found(folder))
        (folder / "theirs" / name).unlink()


def test_a_compressed_line_of_200_mb_is_refused_before_it_is_decompressed(tmp_path: Path):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "fine"}\n')
        for _ in range(48):
            file.write(b"\0" * (1 << 22))
    assert path.stat().st_size < 2 << 20
    message = refusal(lambda: documents(path))
    assert f"line 2 of '{path}' must be a document of at most 67108864 bytes" in message


def test_a_line_that_holds_no_document_is_refused(tmp_path: Path):
    cases = [
        ("[" * 100_000, "line 1 of "),
        ("[" * 100_000 + "]" * 100_000, "is not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"text": NaN}', "must be text, not float"),
        ('"text"', "has no 'text'"),
        ("\0", "is not JSON"),
    ]
    for line, said in cases:
        (tmp_path / "a.jsonl").write_text(line)
        assert said in refusal(lambda: documents(tmp_path / "a.jsonl"))


def test_a_text_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(1 << 43)
    for separator in (None, "\n"):
        message = refusal(lambda separator=separator: documents(path, separator=separator))
        assert f"'{path}' needs 32768 GiB of memory" in message


def test_a_text_file_that_is_one_overlong_document_is_refused(tmp_path: Path):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(corpora.MOST_DOCUMENT_BYTES + 1)
    assert "(a .txt with corpora.web.separator)" in refusal(lambda: documents(path))


def test_the_limit_of_a_document_is_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpora, "MOST_DOCUMENT_BYTES", 100)  # 50 letters of two bytes
    for name in ("a.parquet", "a.txt"):
        path = tmp_path / name
        for text in ("\u00e9" * 50, "\u00e9" * 51):
            pyarrow.parquet.write_table(pyarrow.table({"text": ["a", text]}), tmp_path / "a.parquet")
            (tmp_path / "a.txt").write_text(f"a|{text}", encoding="utf-8")
            if len(text) == 50:
                assert documents(path, separator="|") == ["a", text]
            else:
                message = refusal(lambda path=path: documents(path, separator="|"))
                assert f"document 2 of '{path}' must be a document of at most 100 bytes" in message


def test_a_parquet_file_that_repeats_one_long_text_is_read_a_few_rows_at_a_time(tmp_path: Path):
    path, text = tmp_path / "same.parquet", "x" * (4 << 20)
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 150, pyarrow.int32()), pyarrow.array([text]))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1 << 20
    before = reset_peak_mb()
    assert sum(len(document) for document in file_documents("web", path, SETTINGS)) == 150 * len(text)  # 629 MB
    assert peak_mb() - before < 400  # the allocator's own share varies by some 50 MB


def test_a_parquet_file_of_compressed_texts_is_read_a_few_rows_at_a_time(tmp_path: Path):
    path, text = tmp_path / "packed.parquet", "x" * (4 << 20)
    table = pyarrow.table({"text": [f"{number}{text}" for number in range(150)]})  # 629 MB, a page each
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_batch_size=1)
    del table
    assert path.stat().st_size < 1 << 20
    before = reset_peak_mb()
    assert len([len(document) for document in file_documents("web", path, SETTINGS)]) == 150
    assert peak_mb() - before < 400


def test_a_truncated_parquet_file_is_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [str(number) for number in range(500)]}), path)
    content = path.read_bytes()
    for n_bytes in (0, 4, 100, 500):
        path.write_bytes(content[:n_bytes])
        assert f"corpus 'web': '{path}' cannot be read" in refusal(lambda: documents(path))


def test_a_parquet_file_with_an_altered_byte_gives_text_or_one_sentence(tmp_path: Path):
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
