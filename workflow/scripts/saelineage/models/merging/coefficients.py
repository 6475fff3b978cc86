"""The value of a merge's setting for each tensor: by patterns of names, and by layer."""

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from saelineage.errors import InputError
from saelineage.foreign.models import named

REST = "*"
"""The pattern of all tensors that no other one matches."""
LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")

Coefficient = float | Mapping[str, float]
"""A number, or numbers by pattern of tensors' names; the first pattern that matches counts, and `*` is the last."""


def value_for(coefficient: Coefficient, tensor: str) -> float:
    """The value of a setting for a tensor."""
    if not isinstance(coefficient, Mapping):
        return float(coefficient)
    patterns = [pattern for pattern in coefficient if pattern != REST]
    return float(coefficient[next((pattern for pattern in patterns if fnmatchcase(tensor, pattern)), REST)])


def require_patterns_match(coefficients: Mapping[str, object], tensors: Collection[str]) -> None:
    """Refuse patterns that match no tensor, because they are most likely misspelt.

    Args:
        coefficients: settings by name.
        tensors: names of all tensors.

    Raises:
        InputError: naming the setting and the pattern.
    """
    for setting, value in coefficients.items():
        for coefficient in value if isinstance(value, list) else [value]:
            for pattern in coefficient if isinstance(coefficient, Mapping) else []:
                if not any(fnmatchcase(name, pattern) for name in tensors):
                    raise InputError(
                        f"merge.{setting}: the pattern '{pattern}' must match a tensor, but the models' tensors are "
                        f"{named(tensors)}; correct it"
                    )


def depths(tensors: Iterable[str], first: Collection[str]) -> dict[str, float]:
    """How deep in the model each tensor lies: layer l of L at l / (L - 1), what comes before at 0, and after at 1.

    Args:
        tensors: names of all tensors.
        first: names of those before the layers, the input embeddings.

    Raises:
        InputError: if the model has fewer than two layers.
    """
    numbers = {name: int(found.group(1)) for name in tensors if (found := LAYER_NUMBER.search(name))}
    n_layers = len(set(numbers.values()))
    if n_layers < 2:
        raise InputError(
            f"merge.lines: must have two layers or more to scale by layer, but the models have {n_layers}; leave lines "
            "out, and set lambda"
        )
    last = max(numbers.values())
    return {name: numbers[name] / last if name in numbers else float(name not in first) for name in tensors}


def line(lines: Mapping[str, float] | None, depth: float) -> float:
    """alpha + beta x depth, the factor of a layer's change from the base (LiNeS, arXiv 2410.17146, equation 4)."""
    return 1.0 if lines is None else lines["alpha"] + lines["beta"] * depth
