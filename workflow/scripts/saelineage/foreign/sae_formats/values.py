"""Values in configs from elsewhere, which may be of any type."""

from collections.abc import Mapping
from math import isfinite

REMEDY = "fetch it again, or save it again with the library that made it"


def block(config: Mapping, key: str) -> dict:
    """The mapping under a key of a config; empty if the key is missing or holds something else."""
    return value if isinstance(value := config.get(key), dict) else {}


def storable(value: object) -> object:
    """A JSON value that can be written again and logged: printable strings and finite numbers."""
    if isinstance(value, dict):
        return {storable(key): storable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [storable(entry) for entry in value]
    if isinstance(value, str):
        return "".join(character if character.isprintable() else "?" for character in value)
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def text(value: object) -> str | None:
    return str(storable(value)) if isinstance(value, str) and value else None


def whole_number(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= 2**40 else None


def number(value: object) -> float | None:
    """A number from 0 to 1e30."""
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e30 else None
    )
