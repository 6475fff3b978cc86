"""Third-party files, checked before anything is opened, allocated or trained.

A header or a config can claim any size and name any file. These checks cover what the libraries that read such files
take on trust.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from saelineage.errors import InputError
from saelineage.files.links import leads_out

MOST_JSON_BYTES = 16 << 20
MOST_HEADER_BYTES = 16 << 20
"""Limit for a safetensors header, enough for 100,000 tensors.

The library itself accepts 100 MB, and takes half a minute and 1.6 GB of memory to parse them.
"""
GIB = 1 << 30


def read_foreign_json(path: Path | str, remedy: str = "fetch it again", most_bytes: int = MOST_JSON_BYTES) -> dict:
    """Read a JSON mapping from a third-party file.

    Args:
        path: the file.
        remedy: the next step, for error messages.
        most_bytes: upper limit of the file's size.

    Raises:
        InputError: if it is not a regular file, too large, not JSON, nested too deeply for Python, not a mapping, or
            repeats a key. Libraries disagree on which of the two values counts.
    """
    require_regular(path, most_bytes, remedy)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeated_keys)
    except RecursionError as error:
        raise InputError(f"'{path}' must be JSON that is not nested so deeply; {remedy}") from error
    except (ValueError, OSError) as error:
        raise InputError(f"'{path}' must be JSON, but {str(error)[:200]}; {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"'{path}' must be a JSON mapping, not {type(value).__name__}; {remedy}")
    return value


def require_inside(folder: Path | str, endings: tuple[str, ...], remedy: str = "put a copy there") -> None:
    """Refuse a folder that holds a link with one of these endings to a place outside the folder (see `links`).

    Raises:
        InputError: naming the first such link.
    """
    for path in sorted(Path(folder).glob("*")):
        if path.name.endswith(endings) and (real := leads_out(path, folder)) is not None:
            raise InputError(f"'{path}' is a link that leads out of '{folder}', to '{real}'; {remedy}")


def require_regular(path: Path | str, most_bytes: int | None = None, remedy: str = "fetch it again") -> int:
    """Return the size of a regular file; refuse pipes and devices, because reading them may never end.

    Raises:
        InputError: if the file does not exist, is not regular, or is larger than `most_bytes`.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be opened ({getattr(error, 'strerror', error)}); {remedy}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"'{path}' must be a regular file; {remedy}")
    if most_bytes is not None and status.st_size > most_bytes:
        raise InputError(f"'{path}' must have at most {most_bytes} bytes, but has {status.st_size}; {remedy}")
    return status.st_size


def tensor_shapes(path: Path | str, remedy: str = "fetch it again") -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file, by name, and check its header against its size.

    Reads the header and no tensor.

    Raises:
        InputError: if the file is damaged, its header is larger than that of any real model, or it does not fit into
            this machine's memory.
    """
    size = require_regular(path, None, remedy)
    try:
        with open(path, "rb") as start:
            n_header = int.from_bytes(start.read(8), "little")
        if MOST_HEADER_BYTES < n_header < size:
            raise InputError(
                f"'{path}' must have a header of at most {MOST_HEADER_BYTES} bytes, but it has {n_header}; {remedy}"
            )
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is not a whole safetensors file ({error}); {remedy}") from error
    require_memory(size, path)
    return shapes


def require_memory(n_bytes: int, path: Path | str) -> None:
    """Refuse a file that needs more memory than this machine has; a sparse file can be larger than its disk.

    Raises:
        InputError: if the machine has less memory than `n_bytes`.
    """
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > memory_bytes:
        raise InputError(
            f"'{path}' needs {n_bytes / GIB:.0f} GiB of memory, but this machine has {memory_bytes / GIB:.0f}; use a "
            "larger machine or a smaller file"
        )


def mappings(value: object) -> Iterator[dict]:
    """Yield every mapping in a JSON value, the outermost first."""
    left_to_visit = [value]
    while left_to_visit:
        item = left_to_visit.pop()
        if isinstance(item, dict):
            yield item
            left_to_visit.extend(item.values())
        elif isinstance(item, list):
            left_to_visit.extend(item)


def named_numbers(value: object, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield every whole number in a JSON value with its key; numbers in a list have the key of the list."""
    left_to_visit = [(key, value)]
    while left_to_visit:
        name, item = left_to_visit.pop()
        if isinstance(item, dict):
            left_to_visit.extend(item.items())
        elif isinstance(item, list):
            left_to_visit.extend((name, inner) for inner in item)
        elif type(item) is int:
            yield name, item


def _without_repeated_keys(pairs: list[tuple[str, object]]) -> dict:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"key {name[:80]!r} appears twice in one mapping")
    return dict(pairs)
