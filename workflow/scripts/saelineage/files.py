"""Whole files or nothing: atomic writes, digests and JSON."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from saelineage.errors import InputError

READ_BYTES = 1 << 20
HEADER_KEY = "saelineage"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it is synced and takes the final name.

    When the block raises, the temporary file is removed and whatever stood under the final name is left untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
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
