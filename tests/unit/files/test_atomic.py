"""Files: complete or absent, and the same bytes for the same value."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import saelineage
from saelineage.errors import InputError
from saelineage.files.atomic import (
    PLACE,
    atomic_files,
    atomic_path,
    decode_header,
    disk_fault,
    encode_header,
    is_abandoned,
    may_be_abandoned,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_final_name_when_the_block_succeeds(tmp_path: Path):
    with atomic_path(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"
    assert names(tmp_path / "new") == ["a.txt"]


def test_the_temporary_name_is_hidden_and_holds_the_process_id(tmp_path: Path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.touch()
        assert temporary == tmp_path / f".a.txt.{PLACE}.{os.getpid()}.tmp"


WRITE = """
import os
import numpy as np
from saelineage.files.atomic import atomic_files
from saelineage.files.tensors import write_tensors

write_tensors("a.safetensors", {}, {"x": np.ones(2)})
with atomic_files(".") as folder:
    os.close(os.open(folder / "b.json", os.O_CREAT | os.O_WRONLY, 0o600))
"""


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_permissions_of_the_umask_even_if_a_library_narrows_them(tmp_path: Path, umask: int, mode: int):
    environment = {"PYTHONPATH": str(Path(saelineage.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", WRITE], cwd=tmp_path, env=environment, umask=umask, check=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"a.safetensors": mode, "b.json": mode}


def dead_pid() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_killed_processes_are_removed_when_a_file_is_written_again(tmp_path: Path):
    (tmp_path / f".a.txt.{PLACE}.{dead_pid()}.tmp").write_text("half")
    folder = tmp_path / f".saving.{PLACE}.{dead_pid()}.tmp"
    folder.mkdir()
    (folder / "half").touch()
    write_text(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == ["a.txt"]


def test_temporary_files_of_other_hosts_and_running_processes_stay(tmp_path: Path):
    kept = [f".a.txt.another-host.{dead_pid()}.tmp", f".a.txt.{PLACE}.{os.getppid()}.tmp", ".mine.tmp"]
    for name in kept:
        (tmp_path / name).touch()
    write_text(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == sorted([*kept, "a.txt"])
    assert not any(is_abandoned(tmp_path / name) for name in kept)
    assert [may_be_abandoned(tmp_path / name) for name in kept] == [True, False, False]


def test_files_named_by_a_library_move_up_when_the_block_succeeds(tmp_path: Path):
    (tmp_path / "a").write_text("before")
    with atomic_files(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "before"
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "new"


def test_no_file_named_by_a_library_moves_up_when_the_block_raises(tmp_path: Path):
    with pytest.raises(RuntimeError, match="half-way"), atomic_files(tmp_path / "new") as temporary:  # noqa: PT012
        (temporary / "a").write_text("half")
        raise RuntimeError("half-way")
    assert names(tmp_path / "new") == []


def raised(error: Exception) -> Exception:
    """Raise an exception while a file is written, and return it as it leaves."""
    with pytest.raises(type(error)) as caught, atomic_path("a.bin"):
        raise error
    return caught.value


FULL = "'a.bin': No space left on device; free space on its disk and run again"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), FULL),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (OSError("4096 requested and 1000 written"), FULL),
        (
            OSError(errno.EROFS, "read-only", f".a.bin.{PLACE}.1.tmp"),
            "'a.bin': Read-only file system; make its disk writable and run again",
        ),
        (
            PermissionError(errno.EACCES, "no", "lua.jsonl"),
            "'lua.jsonl': Permission denied; allow access to it and run again",
        ),
        (OSError(errno.ENOSPC, "full", 3), FULL),
    ],
    ids=["full", "full, safetensors", "full, NumPy", "read-only", "no access", "file descriptor"],
)
def test_a_fault_of_the_disk_is_described_with_the_file_and_the_remedy(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert disk_fault(raised(error)) == message
    wrapper = ValueError("could not save")
    wrapper.__cause__ = error
    assert disk_fault(raised(wrapper)) == message


def test_other_exceptions_are_no_fault_of_the_disk():
    errors = [
        ValueError("t must be at most 1"),
        FileNotFoundError(errno.ENOENT, "none", "x"),
        ValueError("403: Permission denied for model x"),
        PermissionError(errno.EACCES, "of a socket"),
    ]
    assert [disk_fault(error) for error in errors] == [None] * 4


def test_an_earlier_file_stays_when_the_block_raises(tmp_path: Path):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(RuntimeError, match="half-way"), atomic_path(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("half-way")
    assert (tmp_path / "a.txt").read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *_: calls.append("rename"))
    write_text(tmp_path / "a.txt", "whole")
    assert calls == ["sync", "rename"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_text_is_written_as_utf8(tmp_path: Path):
    write_text(tmp_path / "a.txt", "naïve ✓\n")
    assert (tmp_path / "a.txt").read_bytes() == b"na\xc3\xafve \xe2\x9c\x93\n"


def test_json_has_sorted_keys_and_keeps_its_letters(tmp_path: Path):
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "ï"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == ('{\n "a": "ï",\n "b": [\n  1,\n  null\n ]\n}\n')
    assert read_json(tmp_path / "a.json") == {"a": "ï", "b": [1, None]}


def test_json_refuses_nan_and_infinity_and_leaves_no_file(tmp_path: Path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"r": value})
    assert names(tmp_path) == []


def test_a_file_that_is_not_a_json_mapping_is_named(tmp_path: Path):
    path = tmp_path / "a.json"
    for content, reason in (
        (b'{"a": ', "Expecting value"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"[1, 2]", "mapping, not list"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"^'{path}' must be .*{reason}.*; delete it and run again$"):
            read_json(path)


def test_the_digest_of_a_file_is_that_of_all_its_bytes(tmp_path: Path):
    for size in (0, 3, (1 << 20) + 1):
        content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        (tmp_path / "a").write_bytes(content)
        assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_keys():
    # printf '{"a": 1, "b": {"c": 2, "d": 3}}' | sha256sum
    digest = "f85d0f4856723d9386047fc41597874e9f9264c7809b3db3d49306d24f8fe2b7"
    assert sha256_json({"a": 1, "b": {"c": 2, "d": 3}}) == digest
    assert sha256_json({"b": {"d": 3, "c": 2}, "a": 1}) == digest
    assert sha256_json({"a": 1, "b": {"c": 2, "d": 4}}) != digest
    assert sha256_json({"a": [1, 2]}) != sha256_json({"a": [2, 1]})


def test_a_header_survives_as_one_json_text():
    metadata = encode_header({"n_rows": 3, "corpora": ["lua"]})
    assert metadata == {"saelineage": '{"corpora": ["lua"], "n_rows": 3}'}
    assert decode_header(metadata) == {"n_rows": 3, "corpora": ["lua"]}


def test_metadata_without_our_header_is_refused():
    for metadata in (None, {}, {"format": "pt"}):
        with pytest.raises(ValueError, match="does not say what it holds"):
            decode_header(metadata)
