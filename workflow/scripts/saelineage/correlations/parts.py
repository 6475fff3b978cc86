"""Splits and merges: features that several features of the other side stand for together.

A feature (the whole) may be divided among several of another SAE (its parts). How well they stand for it together is
the multiple correlation R of the whole with its parts: of all weighted sums of the parts, the one that correlates with
it most. Parts that fire together stand for one thing several times over rather than for pieces of the whole, so parts
are taken only where they are nearly uncorrelated with one another. `verdicts` says from R what is split or merged.
"""

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saelineage.correlations.matches import Combined, Correlation
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, require_aligned

MIN_PART_R = 0.3
"""A part correlates with its whole at least so much."""
MAX_PARTS = 8
"""Features looked at as parts of one whole, those with the largest r: what falls into more may count as lost."""
MAX_BETWEEN = 0.2
"""Two parts of one whole correlate with each other at most so much (docs/decisions/0012-evidence.md says why)."""
MIN_INDEPENDENT = 1e-9
"""Directions in which correlations between parts are a smaller share of their largest count as none."""
ENTRIES_AT_ONCE = 1 << 22
"""Activations of pairs that are multiplied at a time: 50 MB or so, for a feature may be in several pairs."""


class _Sums(NamedTuple):
    """Sums over tokens of features of one side, in float64."""

    totals: Float[np.ndarray, " d_sae"]
    squares: Float[np.ndarray, " d_sae"]
    products: Float[np.ndarray, " pair"]
    """Of two candidates for parts of one whole."""


def combined_r(found: Correlation, shards: Iterable[tuple[FeatureShard, FeatureShard]]) -> Combined:
    """The multiple correlation R of each feature with its parts on the other side, over all compared tokens.

    Candidates for parts of a feature are those of the other side whose best match it is, with r >= `MIN_PART_R`; the
    `MAX_PARTS` with the largest r, of equal ones the lower latents. They are its parts from the largest r on, but for
    those that correlate with one taken before by more than `MAX_BETWEEN`. A feature is a part of its best match only.

    Args:
        found: the correlation of the two SAEs.
        shards: aligned shards of both, all that the correlation is over, in any order, which changes R by rounding
            alone; each pair is let go before the next is asked for.

    Returns:
        R (`multiple_r`) of features with two parts or more, and the parts used.

    Raises:
        InputError: if shards are not aligned, or are not the correlation's.
    """
    candidates = tuple(_candidates(found, whole) for whole in range(2))  # those of side 0's features are of side 1
    pairs = tuple(_pairs(candidates[1 - side]) for side in range(2))
    n_tokens, sums = _sums(found, shards, pairs)
    between = [_correlations(n_tokens, own, of) for own, of in zip(sums, pairs, strict=True)]
    sides = [_combined(found, whole, candidates[whole], between[1 - whole]) for whole in range(2)]
    return Combined(r=(sides[0][0], sides[1][0]), whole_of=(sides[1][1], sides[0][1]))


def multiple_r(with_whole: Float[np.ndarray, " part"], between: Float[np.ndarray, "part part"]) -> float:
    """The multiple correlation of one variable with several: R^2 = c' C^-1 c; in [0, 1].

    R is the correlation of the variable with its least squares fit by the others and a constant (Anderson 2003, An
    Introduction to Multivariate Statistical Analysis, section 2.5). Where the others are uncorrelated it is the square
    root of the sum of c^2. A variable that is a weighted sum of others adds nothing, so C^-1 is the pseudoinverse.

    Args:
        with_whole: c, Pearson r of the one with each of the others.
        between: C, Pearson r of the others with one another.
    """
    inverse = np.linalg.pinv(between, rcond=MIN_INDEPENDENT, hermitian=True)
    return float(np.sqrt(np.clip(with_whole @ inverse @ with_whole, 0.0, 1.0)))


def _candidates(found: Correlation, whole: int) -> dict[int, list[int]]:
    """Of each feature of a side that has two or more, the features of the other side that may be its parts."""
    r, owner = found.pearson.best[1 - whole][:, 0], found.pearson.partners[1 - whole][:, 0]
    candidates: dict[int, list[int]] = {}
    for latent in np.argsort(-r, kind="stable"):  # NaN, the best of untestable features, last
        if r[latent] >= MIN_PART_R:
            candidates.setdefault(int(owner[latent]), []).append(int(latent))
    return {feature: own[:MAX_PARTS] for feature, own in sorted(candidates.items()) if len(own) > 1}


def _pairs(candidates: dict[int, list[int]]) -> Int[np.ndarray, "pair 2"]:
    """All pairs of candidates for parts of one whole. Each is in one pair, for a feature has one best match."""
    pairs = [pair for own in candidates.values() for pair in combinations(own, 2)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _sums(
    found: Correlation, shards: Iterable[tuple[FeatureShard, FeatureShard]], pairs: tuple[np.ndarray, np.ndarray]
) -> tuple[int, tuple[_Sums, _Sums]]:
    """The number of tokens compared, and the sums of both sides over them."""
    n_tokens = dict.fromkeys(found.n_tokens, 0)
    sums = [_Sums(np.zeros(n), np.zeros(n), np.zeros(len(of))) for n, of in zip(_widths(found), pairs, strict=True)]
    for a, b in shards:
        _require_of(found, a, b)
        compared = a.compared & b.compared
        n_tokens[a.corpus] += int(compared.sum())
        for side, shard in enumerate((a, b)):
            _add(sums[side], shard.latents[compared], pairs[side])
        del a, b, shard  # or they would stay while the next are loaded
    if n_tokens != found.n_tokens:
        raise InputError(
            f"parts of features of {found.names} must be looked for on the tokens of their correlation, "
            f"{found.n_tokens} by corpus, but the shards have {n_tokens}; give every shard once"
        )
    return sum(n_tokens.values()), (sums[0], sums[1])


def _add(sums: _Sums, latents: scipy.sparse.csr_array, pairs: np.ndarray) -> None:
    """Add a shard's sums, in place."""
    by_latent = latents.T.tocsr().astype(np.float64)
    for mine, found in zip(sums, (by_latent.sum(axis=1), by_latent.power(2).sum(axis=1)), strict=False):
        mine += found
    entries = np.diff(by_latent.indptr)[pairs].sum(axis=1).cumsum()
    for block in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(entries // ENTRIES_AT_ONCE)) + 1):
        one, other = pairs[block].T
        sums.products[block] += by_latent[one].multiply(by_latent[other]).sum(axis=1)


def _correlations(n_tokens: int, sums: _Sums, pairs: np.ndarray) -> dict[tuple[int, int], float]:
    """Pearson r of pairs of candidates, which vary, or they would have no r with their whole."""
    one, other = pairs.T
    spread = np.sqrt(np.maximum(n_tokens * sums.squares - sums.totals**2, 0.0))
    covariance = n_tokens * sums.products - sums.totals[one] * sums.totals[other]
    r = np.clip(covariance / (spread[one] * spread[other]), -1.0, 1.0)
    return dict(zip(map(tuple, pairs.tolist()), r.tolist(), strict=True))


def _combined(
    found: Correlation, whole: int, candidates: dict[int, list[int]], between: dict[tuple[int, int], float]
) -> tuple[Float[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae_of_parts"]]:
    """R of the features of a side, and the whole of each feature of the other side."""
    n_wholes, n_parts = (_widths(found)[side] for side in (whole, 1 - whole))
    combined, whole_of = np.full(n_wholes, np.nan), np.full(n_parts, -1)
    with_whole = found.pearson.best[1 - whole][:, 0]
    for feature, own in candidates.items():
        parts = _nearly_uncorrelated(own, between)
        if len(parts) > 1:
            combined[feature] = multiple_r(with_whole[parts], _matrix(parts, between))
            whole_of[parts] = feature
    return combined, whole_of


def _nearly_uncorrelated(candidates: list[int], between: dict[tuple[int, int], float]) -> list[int]:
    """The candidates that go together, from the first on."""
    parts: list[int] = []
    for latent in candidates:
        if all(between[part, latent] <= MAX_BETWEEN for part in parts):
            parts.append(latent)
    return parts


def _matrix(parts: list[int], between: dict[tuple[int, int], float]) -> Float[np.ndarray, "part part"]:
    """Correlations of parts with one another, as a matrix."""
    upper = np.zeros((len(parts), len(parts)))
    for (row, one), (column, other) in combinations(enumerate(parts), 2):
        upper[row, column] = between[one, other]
    return upper + upper.T + np.eye(len(parts))


def _widths(found: Correlation) -> tuple[int, int]:
    """d_sae of both sides."""
    return len(found.testable[0]), len(found.testable[1])


def _require_of(found: Correlation, a: FeatureShard, b: FeatureShard) -> None:
    """Refuse shards of other tokens than each other, or of other SAEs or corpora than a correlation."""
    require_aligned(a, b)
    names = (f"{a.model}.{a.sae}", f"{b.model}.{b.sae}")
    if (names, (a.d_sae, b.d_sae)) != (found.names, _widths(found)) or a.corpus not in found.n_tokens:
        raise InputError(
            f"parts must be looked for in the features that were correlated, {found.names} with {_widths(found)} "
            f"latents on {found.corpora}, but '{a.path}' and '{b.path}' are of {names} with {(a.d_sae, b.d_sae)} on "
            f"'{a.corpus}'; give the shards of the correlation's pair"
        )
