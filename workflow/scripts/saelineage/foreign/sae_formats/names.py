"""Names of repositories, folders and files of published SAEs, which often say what no config does."""

import re
from collections.abc import Iterable

WIDTH = re.compile(r"width_(\d+)([km])(?![a-z])")
UNITS = {"k": 1000, "m": 1_000_000}


def search(pattern: str, names: Iterable[str]) -> re.Match[str] | None:
    """The match of a pattern in the last name that has one."""
    return next((match for name in reversed(list(names)) if (match := re.search(pattern, name))), None)


def layer_of(names: Iterable[str]) -> int | None:
    """The layer in a name such as `layer_12`."""
    match = search(r"(?<![a-z])layer_(\d{1,4})(?!\d)", names)
    return int(match[1]) if match else None


def width_of(names: Iterable[str]) -> int | None:
    """The number of latents in a name such as `width_16k`: the power of two that it rounds.

    16k is 16,384, 65k is 65,536, 262k is 262,144 and 1m is 1,048,576: the largest power of two of at most 6 % more.
    """
    match = search(WIDTH.pattern, names)
    if match is None or int(match[1]) == 0:
        return None
    most = int(match[1]) * UNITS[match[2]] * 1.06
    return 1 << (int(most).bit_length() - 1)
