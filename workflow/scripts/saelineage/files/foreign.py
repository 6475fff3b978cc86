"""Files from strangers, looked at before anything is opened, allocated or trained.

A header or a config can claim any size, and name any file. What is checked here is what the libraries that read these
files take on trust.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from saelineage.errors import InputError
from saelineage.files.links import leads_out

MOST_JSON_BYTES = 16 << 20
MOST_HEADER_BYTES = 16 << 20
"""Of a safetensors file: 100,000 tensors. The library reads 100 MB, for which it takes half a minute and 1.6 GB."""
GIB = 1 << 30


def read_foreign_json(path: Path | str, remedy: str = "fetch it again", most_bytes: int = MOST_JSON_BYTES) -> dict:
    """Read a JSON mapping that somebody else wrote.

    Args:
        path: the file.
        remedy: the next step, for error messages.
        most_bytes: it may not be larger.

    Raises:
        InputError: if it is no regular file, too large, not JSON, nested too deeply for Python, no mapping, or holds a
            key twice, of which every library takes another one.
    """
    require_regular(path, most_bytes, remedy)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise InputError(f"'{path}' must be JSON that is not nested so deeply; {remedy}") from error
    except (ValueError, OSError) as error:
        raise InputError(f"'{path}' must be JSON, but {str(error)[:200]}; {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"'{path}' must be a JSON mapping, not {type(value).__name__}; {remedy}")
    return value


def require_inside(folder: Path | str, endings: tuple[str, ...], remedy: str = "put a copy there") -> None:
    """Refuse a folder in which a file with one of these endings is a link that leads out of it (see `links`).

    Raises:
        InputError: naming the first.
    """
    for path in sorted(Path(folder).glob("*")):
        if path.name.endswith(endings) and (real := leads_out(path, folder)) is not None:
            raise InputError(f"'{path}' is a link that leads out of '{folder}', to '{real}'; {remedy}")


def require_regular(path: Path | str, most_bytes: int | None = None, remedy: str = "fetch it again") -> int:
    """The size of a regular file; a pipe would never end, a device never either.

    Raises:
        InputError: if it is not there, no regular file, or larger than `most_bytes`.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be opened ({getattr(error, 'strerror', error)}); {remedy}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"'{path}' must be a regular file; {remedy}")
    if most_bytes is not None and found.st_size > most_bytes:
        raise InputError(f"'{path}' must have at most {most_bytes} bytes, but has {found.st_size}; {remedy}")
    return found.st_size


def tensor_shapes(path: Path | str, remedy: str = "fetch it again") -> dict[str, tuple[int, ...]]:
    """Shapes by name of the tensors in a safetensors file, whose header is checked against the file's size.

    Nothing but the header is read.

    Raises:
        InputError: if it is no whole safetensors file, its header is larger than that of any real model, or it does not
            fit into this machine's memory.
    """
    size = require_regular(path, None, remedy)
    try:
        with open(path, "rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
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
    """Refuse what this machine cannot hold at all; a file with holes in it can be larger than its disk.

    Raises:
        InputError: if it has less memory than `n_bytes`.
    """
    there_is = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > there_is:
        raise InputError(
            f"'{path}' needs {n_bytes / GIB:.0f} GiB of memory, but this machine has {there_is / GIB:.0f}; take a "
            "larger machine or a smaller file"
        )


def mappings(value: object) -> Iterator[dict]:
    """Every mapping in what JSON gave, the outermost first."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
        waiting.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else [])


def named_numbers(value: object, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in what JSON gave, with the key it stands under; in lists, the list's."""
    waiting = [(key, value)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.items())
        elif isinstance(item, list):
            waiting.extend((name, inner) for inner in item)
        elif type(item) is int:
            yield name, item


def _without_twins(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"key {twin[:80]!r} stands twice in one mapping")
    return found
