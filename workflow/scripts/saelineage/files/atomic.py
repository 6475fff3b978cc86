"""Whole files or nothing: atomic writes, digests and JSON."""

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
"""Where process ids mean the same: a host, or a container of it."""
TEMPORARY = re.compile(r"\..+\.(?P<place>[\w-]+)\.(?P<pid>[0-9]+)\.tmp")
"""Names of what is being written: hidden, and saying which process writes."""
DISK_FAULTS = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space in your quota",
    errno.EROFS: "make its disk writable",
    errno.EACCES: "allow access to it",
    errno.EPERM: "allow access to it",
}
"""What to do about faults that are the disk's and nobody else's."""
UNMISTAKABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Those whose texts nothing else says: libraries hand on the text alone."""
SHORT_WRITE = re.compile(r"[0-9]+ requested and [0-9]+ written")
"""What NumPy says of a full disk."""


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it is synced and takes the final name.

    When the block raises, the temporary file is removed and whatever stood under the final name is left untouched.
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
    """Yield a temporary folder in `folder`; when the block ends well its files move up, one by one, each whole.

    For libraries that choose the names of what they save. When the block raises, nothing is moved.
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
    """What the disk has to do with an exception, as a message; None where it has nothing.

    Libraries wrap what the system says in exceptions of their own, so causes and texts are looked at too.
    """
    cause = error
    while cause is not None:
        for number, remedy in DISK_FAULTS.items():
            if _is_fault(cause, number):
                named = Path(getattr(cause, "filename", None) or ".")
                notes = [note for note in getattr(error, "__notes__", []) if note.startswith("'")]
                is_final = named != Path() and not TEMPORARY.search(str(named))
                path = f"'{named}'" if is_final else notes[0] if notes else "a file"
                return f"{path}: {os.strerror(number)}; {remedy} and run again"
        cause = cause.__cause__ or cause.__context__
    return None


def is_abandoned(path: Path) -> bool:
    """Whether a file or folder is what a process of this host, or container, was writing when it was killed."""
    name = TEMPORARY.fullmatch(path.name)
    return name is not None and name["place"] == PLACE and not _is_running(int(name["pid"]))


def may_be_abandoned(path: Path) -> bool:
    """Whether a file or folder was being written, and nobody here knows by whom: `is_abandoned`, or of another host."""
    name = TEMPORARY.fullmatch(path.name)
    return name is not None and (name["place"] != PLACE or is_abandoned(path))


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write JSON atomically, with sorted keys, so that equal values are equal bytes.

    Raises:
        ValueError: if a float is NaN or infinite, which JSON cannot hold; write None for "undefined".
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str, remedy: str = "delete it and run again") -> dict:
    """Read a JSON file, by default one that another step wrote.

    Raises:
        InputError: if the file is not a JSON mapping, naming it.
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
    """Hex sha256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def encode_header(header: Mapping[str, object]) -> dict[str, str]:
    """Metadata for a safetensors file: one JSON text, for safetensors writes several keys in random order."""
    return {HEADER_KEY: json.dumps(header, sort_keys=True)}


def decode_header(metadata: Mapping[str, str] | None) -> dict:
    """The header that `encode_header` made.

    Raises:
        ValueError: if there is none.
    """
    if HEADER_KEY not in (metadata or {}):
        raise ValueError("its header does not say what it holds")
    return json.loads(metadata[HEADER_KEY])


def _temporary(path: Path) -> Path:
    """What to write instead of `path`; what killed processes left beside it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent.resolve())
    return path.with_name(f".{path.name}.{PLACE}.{os.getpid()}.tmp")


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this host were writing in a folder; once in a process, for a folder may be large.

    That of other hosts is left, for whether their processes are running cannot be seen from here.
    """
    for path in filter(is_abandoned, folder.iterdir()):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@cache
def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _is_fault(error: BaseException, number: int) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == number and (number in UNMISTAKABLE or error.filename is not None)  # or a socket's
    says = str(error)
    is_short = number == errno.ENOSPC and SHORT_WRITE.search(says) is not None
    return is_short or (number in UNMISTAKABLE and os.strerror(number) in says)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _place(temporary: Path, path: Path) -> None:
    """Give a file the permissions of the umask, which some libraries narrow, and its final name once it is on disk."""
    os.chmod(temporary, 0o666 & ~_umask())
    with open(temporary, "rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, path)
