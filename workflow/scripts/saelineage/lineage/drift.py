"""How far a child's activations have moved from its parent's, beside what the SAEs leave unexplained.

A child that has hardly moved cannot have lost many features, whatever a comparison of two SAEs says. Both SAEs leave a
part of the activations unexplained, and they may divide up the rest differently. If the model has moved by less than
that part, the SAEs' own errors are enough to make features seem lost or new (docs/decisions/0024).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from saelineage.activations import ActivationShard, require_same_tokens
from saelineage.errors import InputError
from saelineage.saes.metrics import Moments

CHUNK_TOKENS = 1024


@dataclass
class DriftSums:
    """Sums over aligned tokens of a parent and a child; `add` joins two sets of tokens."""

    moved: float = 0.0
    """Summed |x_child - x_parent|^2."""
    moments: Moments = field(default_factory=Moments)
    """Of the parent's activations."""
    n_left_out: int = 0
    """Tokens that one of the models does not share, or that are outliers for one of the SAEs."""

    def add(self, other: "DriftSums") -> "DriftSums":
        """The sums over both sets."""
        return DriftSums(self.moved + other.moved, self.moments.add(other.moments), self.n_left_out + other.n_left_out)


def drift(sums: DriftSums) -> float | None:
    """Drift as a share of variance: sum |x_child - x_parent|^2 / sum |x_parent - mean|^2, the mean over all tokens.

    It is in the units of `metrics.fvu`: 0 for equal activations, 1 for a child whose activations are all the parent's
    mean, and about 2 for one with unrelated activations of the same mean and variance. None if the parent's activations
    do not vary.
    """
    return sums.moved / sums.moments.deviation if sums.moments.deviation else None


def drift_sums(
    parent: Sequence[Path | str],
    child: Sequence[Path | str],
    max_norms: tuple[float, float] = (math.inf, math.inf),
    target: Callable[[Tensor], Tensor] | None = None,
) -> DriftSums | None:
    """Sum over the tokens of two models' activation shards, in float64.

    Args:
        parent, child: shards of the same tokens, in the same order.
        max_norms: `Sae.max_norm` of the parent's and of the child's SAE; longer activations are left out, as they are
            from features and from `fvu`.
        target: `Sae.target` of the parent's SAE, applied to the activations of both; None leaves them as they are.

    Returns:
        The sums, or None if the activations of the two models have different widths.

    Raises:
        InputError: if the shards are not of the same tokens.
    """
    sums = DriftSums()
    for paths in _paired(parent, child):
        shards = tuple(map(ActivationShard, paths))
        require_same_tokens(*shards)
        if shards[0].d_in != shards[1].d_in:
            return None
        norms = [shard.norms() for shard in shards]
        compared = (norms[0] <= max_norms[0]) & (norms[1] <= max_norms[1])  # False for NaN, of a token not shared
        masks = compared.split(CHUNK_TOKENS)
        for mask, *chunks in zip(masks, *(shard.chunks(CHUNK_TOKENS) for shard in shards), strict=True):
            before, after = (chunk[mask] if target is None else target(chunk[mask]) for chunk in chunks)
            sums = sums.add(_chunk_sums(before, after, n_left_out=len(mask) - int(mask.sum())))
    return sums


def report(sums: DriftSums | None) -> dict[str, float | int | None]:
    """The drift, and the numbers of tokens that it is measured on and that were left out; all None without sums."""
    if sums is None:
        return {"drift": None, "n_tokens": None, "n_left_out": None}
    return {"drift": drift(sums), "n_tokens": sums.moments.n, "n_left_out": sums.n_left_out}


def unexplained(fvus: Iterable[float | None]) -> float | None:
    """The larger share of variance that the SAEs of an edge leave unexplained; None if one was not measured."""
    measured = list(fvus)
    return None if None in measured else max(of for of in measured if of is not None)


def is_visible(drift: float | None, unexplained: float | None) -> bool | None:
    """True if a drift is at least as large as what the SAEs leave unexplained.

    Below that, no verdict on losses follows from a comparison of the SAEs. None if one of them was not measured.
    """
    return None if drift is None or unexplained is None else drift >= unexplained


def _chunk_sums(parent: Float[Tensor, "token d_in"], child: Float[Tensor, "token d_in"], n_left_out: int) -> DriftSums:
    parent, child = parent.double(), child.double()
    return DriftSums(float((child - parent).square_().sum()), Moments.of(parent), n_left_out)


def _paired(parent: Sequence[Path | str], child: Sequence[Path | str]) -> list[tuple[Path | str, Path | str]]:
    if len(parent) != len(child) or not parent:
        raise InputError(
            f"drift needs one activation shard of the child for each of the parent's, got {len(child)} and "
            f"{len(parent)}; list both in the same order"
        )
    return list(zip(parent, child, strict=True))
