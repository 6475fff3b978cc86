"""The methods of merging, and what each of them needs; `models.merging` computes them."""

from collections.abc import Mapping, Sequence
from math import fsum
from typing import NamedTuple

from saelineage.errors import InputError


class MergeMethod(NamedTuple):
    """What a method needs."""

    settings: Mapping[str, object]
    """The settings that it has beside those of every method, with their defaults."""
    n_parents: tuple[int, int | None] = (1, None)
    """The fewest and the most parents; None if there may be any number."""
    from_base: bool = True
    """True if it adds differences of the parents from a base."""


_SUM = {"weights": None, "lambda": 1.0}
_RANDOM = {"density": 0.1, "rescale": "density", "q": None, "seed": 0}
_CRUMBS = {"density": 0.15, "gamma": 0.006, "mask": "row"}

GREEDY = "greedy_soup"
"""The method that chooses its models."""

METHODS = {
    "linear": MergeMethod({"t": None, "weights": None}, from_base=False),
    GREEDY: MergeMethod({}, (2, None), from_base=False),
    "slerp": MergeMethod({"t": 0.5}, (2, 2), from_base=False),
    "karcher": MergeMethod({"weights": None, "norms": "parents"}, from_base=False),
    "task_arithmetic": MergeMethod(_SUM),
    "ties": MergeMethod(_SUM | {"density": 0.2, "trim": "model", "normalize": True}),
    "dare_linear": MergeMethod(_SUM | _RANDOM),
    "dare_ties": MergeMethod(_SUM | _RANDOM | {"normalize": True}),
    "breadcrumbs": MergeMethod(_SUM | _CRUMBS),
    "breadcrumbs_ties": MergeMethod(
        _SUM | _CRUMBS | {"normalize": True},
    ),
    "graft": MergeMethod({"lambda": 1.0, "density": 0.1, "trim": "model"}, (1, 1)),
    "compress": MergeMethod({"lambda": 1.0, "density": 0.2, "alpha": 1.0, "trim": "model"}, (1, 1)),
    "transfer": MergeMethod(_SUM, (2, None)),
}
"""The methods by the names that mergekit has for them, where it has them."""

SETTINGS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.settings))
"""The settings that only some methods have."""
SWEPT = ("t", "lambda", "density", "gamma", "q", "alpha")
"""Settings that are numbers."""
FROM_SWEEP = "from_sweep"
"""The key by which a setting takes the best value of a sweep."""


def merge_settings(block: Mapping, key: str) -> dict:
    """Check a `merge` block, and fill in the defaults of its method.

    Args:
        block: checked against the schema.
        key: its place in the config, for messages.

    Returns:
        The block with the settings of its method alone, none of which is left open.

    Raises:
        InputError: if the method does not have one of the settings, or not so many parents.
    """
    name = block["method"]
    method, n = METHODS[name], len(block["parents"])
    fewest, most = method.n_parents
    if n < fewest or (most is not None and n > most):
        number = f"{fewest}" if fewest == most else f"at least {fewest}"
        raise InputError(f"{key}.parents: {name} must have {number}, not {n}; change the list or the method")
    for setting in SETTINGS:
        if setting not in method.settings and block.get(setting) is not None:
            having = [other for other in METHODS if setting in METHODS[other].settings]
            raise InputError(
                f"{key}.{setting}: {name} must not have it, because it does not use it; leave it out, or choose a "
                f"method that does ({', '.join(having)})"
            )
    chosen = {
        setting: default if block.get(setting) is None else block[setting]
        for setting, default in method.settings.items()
    }
    density = chosen.get("density")
    if isinstance(density, Mapping) and FROM_SWEEP not in density and chosen.get("trim") == "model":
        raise InputError(
            f"{key}.density: must be one number where the largest differences of the whole model are kept, not one for "
            "each pattern; set trim: tensor"
        )
    for setting, is_used in (("base", needs_base(block)), ("chosen_on", needs_choice({**block, **chosen}))):
        if block[setting] is not None and not is_used:
            raise InputError(
                f"{key}.{setting}: {name} must not have it here, because nothing depends on it; leave it out"
            )
    others = {setting: value for setting, value in block.items() if setting not in SETTINGS}
    return others | chosen | _weights(name, chosen, n, key) | _random(chosen, key)


def sweeps_behind(settings: Mapping) -> dict[str, str]:
    """The settings of a merge that take the best value of a sweep, and the sweep of each."""
    return {name: sweep for name in SWEPT if (sweep := _sweep_of(settings.get(name))) is not None}


def with_best(settings: Mapping, best: Mapping[str, Mapping[str, float]]) -> dict:
    """A merge's settings with numbers for those that take the best value of a sweep.

    Args:
        settings: of the merge.
        best: the settings of the best point of each sweep.
    """
    return dict(settings) | {name: best[sweep][name] for name, sweep in sweeps_behind(settings).items()}


def _sweep_of(setting: object) -> str | None:
    return setting.get(FROM_SWEEP) if isinstance(setting, Mapping) else None


def needs_base(settings: Mapping) -> bool:
    """True if a merge takes differences from a base."""
    return METHODS[settings["method"]].from_base or settings["lines"] is not None


def merge_words(settings: Mapping) -> str:
    """A merge's method, and its settings that are numbers."""
    numbers = [f"{name} = {settings[name]:g}" for name in SWEPT if isinstance(settings.get(name), float | int)]
    numbers += [f"{name} by sweep {sweep}" for name, sweep in sweeps_behind(settings).items()]
    return f"{settings['method']} ({', '.join(numbers)})" if numbers else settings["method"]


def _weights(method: str, chosen: Mapping, n_parents: int, key: str) -> dict:
    """The weight of each parent, by default equal ones; t gives those of two parents."""
    if "weights" not in chosen:
        return {}
    weights, t = chosen["weights"], chosen.get("t")
    if any(_sweep_of(weight) is not None for weight in weights or []):
        raise InputError(f"{key}.weights: must be numbers, because no sweep varies weights; sweep t, or lambda")
    if t is not None and (n_parents != 2 or weights is not None):
        raise InputError(
            f"{key}.t: must stand alone with two parents, not with "
            f"{'weights' if weights is not None else f'{n_parents} parents'}; give weights instead"
        )
    expected = n_parents - 1 if method == "transfer" else n_parents
    if weights is None:
        halves = {"t": 0.5} if "t" in chosen and t is None and n_parents == 2 else {}
        return {"weights": [1.0] * expected} | halves
    if len(weights) != expected:
        of = "each parent but the first" if method == "transfer" else "each parent"
        raise InputError(f"{key}.weights: must have one number for {of} ({expected}), not {len(weights)}; correct it")
    _require_usable(method, weights, chosen, key)
    return {"weights": list(weights)}


def _require_usable(method: str, weights: Sequence, chosen: Mapping, key: str) -> None:
    """Refuse weights that a mean cannot have."""
    numbers = [
        number for weight in weights for number in (weight.values() if isinstance(weight, Mapping) else [weight])
    ]
    if min(numbers) < 0 and (method == "karcher" or chosen.get("normalize")):
        other = "choose another method" if method == "karcher" else "set normalize: false"
        raise InputError(
            f"{key}.weights: must not be negative where sums are divided by them, but one is {min(numbers):g}; {other}"
        )
    if method in ("linear", "karcher") and len(numbers) == len(weights) and fsum(numbers) == 0:
        raise InputError(f"{key}.weights: must not add up to zero, but they are {numbers}; change one of them")


def _random(chosen: Mapping, key: str) -> dict:
    """Refuse a divisor of random differences that is not used."""
    if chosen.get("q") is not None and chosen["rescale"] != "q":
        raise InputError(
            f"{key}.q: must be given with rescale: q alone, but rescale is {chosen['rescale']}; correct one of them"
        )
    q, density = chosen.get("q"), chosen.get("density")
    if isinstance(q, float | int) and (q == 0 or (isinstance(density, float | int) and q < density)):
        raise InputError(f"{key}.q: must be above 0 and at least the density ({density}), not {q:g}; raise it")
    if chosen.get("rescale") == "q" and q is None and isinstance(density, Mapping):
        raise InputError(
            f"{key}.q: must be given where the density is not one number, because only one divisor is chosen; give it, "
            "or one density"
        )
    return {}


def needs_choice(settings: Mapping) -> bool:
    """True if some settings are chosen by what merged models do: a greedy soup, or a divisor that is not given."""
    return settings["method"] == GREEDY or (settings.get("rescale") == "q" and settings["q"] is None)


def with_choice(settings: Mapping, choice: Mapping) -> dict:
    """A merge's settings with those that were chosen."""
    return {**settings, **choice}
