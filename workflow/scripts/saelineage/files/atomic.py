"""Atomic writes, digests and JSON: a file appears under its final name only when it is complete."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from saelineage.errors import InputError

READ_BYTES = 1 << 20
HEADER_KEY = "saelineage"
HOST = re.sub(r"[^\w-]", "-", socket.gethostname())
PLACE = f"{HOST}-{os.stat('/proc/self/ns/pid').st_ino}" if os.path.exists("/proc/self/ns/pid") else HOST
"""Host and PID namespace: process ids can be compared only within one of them."""
TEMPORARY = re.compile(r"\..+\.(?P<place>[\w-]+)\.(?P<pid>[0-9]+)\.tmp")
"""Hidden name of a file or folder that a process is writing."""
DISK_FAULTS = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "make its disk writable",
    errno.EACCES: "allow access to it",
    errno.EPERM: "allow access to it",
}
"""Remedies for errors of the disk, by errno."""
UNMISTAKABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors recognised by their text alone, because some libraries pass on no errno and nothing else has these texts."""
SHORT_WRITE = re.compile(r"[0-9]+ requested and [0-9]+ written")
"""NumPy's message for a full disk."""


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to `path`; when the block succeeds, sync the file and rename it to `path`.

    When the block raises, the temporary file is removed and any earlier file at `path` stays untouched.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        _place(temporary, path)
    except Exception as error:
        error.add_note(f"'{path}'")
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder in `folder`; when the block succeeds, move its files up one by one, each atomically.

    Meant for libraries that choose the names of the files they save. When the block raises, nothing is moved.
    """
    folder = Path(folder)
    temporary = _temporary(folder / "saving")
    try:
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.iterdir()):
            _place(path, folder / path.name)
    except Exception as error:
        error.add_note(f"'{folder}'")
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def disk_fault(error: BaseException) -> str | None:
    """Describe an exception that the disk caused (full, read-only, no access); None for any other exception.

    Libraries wrap system errors in their own exceptions, so causes and texts are searched too.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number, remedy in DISK_FAULTS.items():
            if _is_fault(cause, number):
                return f"{_faulty_path(cause, error)}: {os.strerror(number)}; {remedy} and run again"
        cause = cause.__cause__ or cause.__context__
    return None


def is_abandoned(path: Path) -> bool:
    """Return True for the temporary file or folder of a killed process of this host or container."""
    name = TEMPORARY.fullmatch(path.name)
    return name is not None and name["place"] == PLACE and not _is_running(int(name["pid"]))


def may_be_abandoned(path: Path) -> bool:
    """Return True for a temporary file or folder whose process is dead, or runs on another host and may be dead."""
    name = TEMPORARY.fullmatch(path.name)
    return name is not None and (name["place"] != PLACE or is_abandoned(path))


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write JSON atomically, with sorted keys, so that equal values give equal bytes.

    Raises:
        ValueError: if a float is NaN or infinite, because JSON has neither; write None for an undefined number.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str, remedy: str = "delete it and run again") -> dict:
    """Read a JSON mapping from a file of this workflow.

    Args:
        path: the file.
        remedy: the next step, for error messages.

    Raises:
        InputError: if the file is not a JSON mapping.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' must be JSON, but {error}; {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"'{path}' must be a JSON mapping, not {type(value).__name__}; {remedy}")
    return value


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    digest, block = hashlib.sha256(), bytearray(READ_BYTES)
    view = memoryview(block)
    with open(path, "rb", buffering=0) as file:
        while n_read := file.readinto(block):
            digest.update(view[:n_read])
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """Hex sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def encode_header(header: Mapping[str, object]) -> dict[str, str]:
    """Encode a header as safetensors metadata: one JSON text, because the order of several keys would be random."""
    return {HEADER_KEY: json.dumps(header, sort_keys=True)}


def decode_header(metadata: Mapping[str, str] | None) -> dict:
    """Decode the header that `encode_header` made.

    Raises:
        ValueError: if the metadata holds none.
    """
    if metadata is None or HEADER_KEY not in metadata:
        raise ValueError("its header does not say what it holds")
    return json.loads(metadata[HEADER_KEY])


def _temporary(path: Path) -> Path:
    """Return the temporary name for `path`, after removing files that killed processes left in its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent.resolve())
    return path.with_name(f".{path.name}.{PLACE}.{os.getpid()}.tmp")


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files of killed processes of this host; once per process, because a folder may be large.

    Temporary files of other hosts stay, because this host cannot see whether their processes are running.
    """
    for path in filter(is_abandoned, folder.iterdir()):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@cache
def _umask() -> int:
    """Return the process's umask, which can be read only by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _is_fault(error: BaseException, number: int) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        # Without a file name, a denied permission may be that of a socket.
        return error.errno == number and (number in UNMISTAKABLE or error.filename is not None)
    text = str(error)
    is_short = number == errno.ENOSPC and SHORT_WRITE.search(text) is not None
    return is_short or (number in UNMISTAKABLE and os.strerror(number) in text)


def _faulty_path(cause: BaseException, error: BaseException) -> str:
    """The quoted path that a disk error names, or else the final path in the notes that `atomic_path` added."""
    filename = getattr(cause, "filename", None) or None
    if isinstance(filename, str | os.PathLike) and not TEMPORARY.search(str(filename)):
        return f"'{filename}'"
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("'")]
    return notes[0] if notes else "a file"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it belongs to another user
    return True


def _place(temporary: Path, path: Path) -> None:
    """Sync a file and rename it to `path`, with the permissions of the umask, which some libraries narrow."""
    with open(temporary, "rb") as written:
        os.fchmod(written.fileno(), 0o666 & ~_umask())
        os.fsync(written.fileno())
    os.replace(temporary, path)
