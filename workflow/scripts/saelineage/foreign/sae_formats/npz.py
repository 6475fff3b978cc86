"""Headers of .npz archives, read without numpy, so that no size in one is trusted before it is checked."""

import ast
import math
import zipfile
import zlib
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import require_memory, require_regular
from saelineage.foreign.sae_formats.values import REMEDY

MAGIC = b"\x93NUMPY"
MOST_HEADER_BYTES = 4096
MOST_MEMBERS = 100
MOST_EXPANSION = 20
"""Largest size of an archive's contents, as a multiple of its own; trained weights hardly compress."""
FLOAT_BYTES = {"<f2": 2, "<f4": 4, "<f8": 8}
"""Bytes of a number, by numpy's names of the types that may be read."""


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the arrays in an .npz archive, by name, and check their sizes; unpacks headers only.

    Raises:
        InputError: if it is no such archive, holds anything but floats, or claims more than its members, this machine's
            memory or a compression of weights can hold.
    """
    size = require_regular(path, remedy=REMEDY)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _require_bounded(members, size, path)
            return {member.filename.removesuffix(".npy"): _shape(archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError) as error:
        raise InputError(f"'{path}' must be an .npz archive of floats, but {str(error)[:200]}; {REMEDY}") from error


def _require_bounded(members: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    """Refuse members that unpack to too much, or in unusual ways."""
    if len(members) > MOST_MEMBERS or len({member.filename for member in members}) < len(members):
        raise ValueError(f"it has {len(members)} members, more than {MOST_MEMBERS} or of equal names")
    unusual = [m for m in members if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    if unusual:
        raise ValueError(f"'{unusual[0].filename[:80]}' is compressed in an unusual way")
    unpacked = sum(member.file_size for member in members)
    require_memory(unpacked, path)
    if unpacked > MOST_EXPANSION * size:
        raise ValueError(f"its {size} bytes claim to unpack to {unpacked}, more than {MOST_EXPANSION} times as many")


def _shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """The shape in the header of a member, whose size must be that of the array that it claims."""
    name = repr(member.filename[:80])
    with archive.open(member) as file:
        start = file.read(12)
        if start[:6] != MAGIC or start[6] not in (1, 2, 3):
            raise ValueError(f"{name} is no array of numpy")
        n_start = 10 if start[6] == 1 else 12
        n_text = int.from_bytes(start[8:n_start], "little")
        if n_text > MOST_HEADER_BYTES:
            raise ValueError(f"{name} has a header of {n_text} bytes, more than {MOST_HEADER_BYTES}")
        text = (start[n_start:] + file.read(n_text - (12 - n_start))).decode("latin1")
    shape, dtype = _array(text, name)
    needed = n_start + n_text + math.prod(shape) * FLOAT_BYTES[dtype]
    if needed != member.file_size:
        raise ValueError(f"{name} claims {needed} bytes, for {shape} numbers, but has {member.file_size}")
    return shape


def _array(text: str, name: str) -> tuple[tuple[int, ...], str]:
    """The shape and the type in the text of a header."""
    try:
        header = ast.literal_eval(text.strip())
        shape, dtype = header["shape"], header["descr"]
    except (SyntaxError, TypeError, ValueError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} has a damaged header") from error
    if dtype not in list(FLOAT_BYTES):
        raise ValueError(f"{name} must hold floats of 16, 32 or 64 bits, not {str(dtype)[:40]!r}")
    if not isinstance(shape, tuple) or len(shape) > 2 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError(f"{name} must be a vector or matrix, not of shape {str(shape)[:80]}")
    return shape, dtype
