"""Splits and merges: features that are divided between several features of the other side.

A feature (the whole) may be divided between several features of another SAE (its parts). The multiple correlation R of
the whole with its parts measures how well they represent it together: it is the correlation of the whole with the
weighted sum of the parts that correlates with it most. Parts that fire together represent the same piece several times
over, so only parts that are nearly uncorrelated with one another are used. `verdicts` decides from R what is split or
merged.
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

MIN_PART_R = 0.4
"""Smallest r of a part with its whole, a sixth of the variance (docs/decisions/0012-evidence.md gives the reason)."""
MAX_PARTS = 8
"""Most candidates for parts of one whole, those with the largest r. A feature in more pieces may count as lost."""
MAX_BETWEEN = 0.2
"""Largest r between two parts of one whole (docs/decisions/0012-evidence.md gives the reason)."""
MIN_INDEPENDENT = 1e-9
"""Eigenvalues of the correlations between parts that are a smaller share of the largest one count as zero."""
ENTRIES_AT_ONCE = 1 << 22
"""Activations of pairs that are multiplied at a time, about 50 MB. A feature may be in several pairs."""


class _Sums(NamedTuple):
    """Sums over tokens of features of one side, in float64."""

    totals: Float[np.ndarray, " d_sae"]
    squares: Float[np.ndarray, " d_sae"]
    products: Float[np.ndarray, " pair"]
    """Sums for pairs of candidates for parts of one whole."""


def combined_r(correlation: Correlation, shards: Iterable[tuple[FeatureShard, FeatureShard]]) -> Combined:
    """The multiple correlation R of each feature with its parts on the other side, over all compared tokens.

    Candidates for parts of a feature are the features of the other side that have it as their best match, with
    r >= `MIN_PART_R`. The `MAX_PARTS` with the largest r are kept, the lower latents among equals. In descending order
    of r, each becomes a part unless it correlates by more than `MAX_BETWEEN` with one taken before. A feature is a part
    of its best match only.

    Args:
        correlation: the correlation of the two SAEs.
        shards: aligned shards of both, all that the correlation is over. Their order changes R by rounding only. Each
            pair is freed before the next is asked for.

    Returns:
        R (`multiple_r`) of features with two parts or more, and the parts used.

    Raises:
        InputError: if shards are not aligned, or are not the correlation's.
    """
    candidates = [_candidates(correlation, whole) for whole in range(2)]  # those of side 0's features are of side 1
    pairs = _pairs(candidates[1]), _pairs(candidates[0])
    n_tokens, sums = _sums(correlation, shards, pairs)
    between = [
        _correlations(n_tokens, sums_of_side, pairs_of_side)
        for sums_of_side, pairs_of_side in zip(sums, pairs, strict=True)
    ]
    sides = [_combined(correlation, whole, candidates[whole], between[1 - whole]) for whole in range(2)]
    return Combined(r=(sides[0][0], sides[1][0]), whole_of=(sides[1][1], sides[0][1]))


def multiple_r(with_whole: Float[np.ndarray, " part"], between: Float[np.ndarray, "part part"]) -> float:
    """The multiple correlation of one variable with several: R^2 = c' C^-1 c; in [0, 1].

    R is the correlation of the variable with its least squares fit by the others and a constant (Anderson 2003, An
    Introduction to Multivariate Statistical Analysis, section 2.5). If the others are uncorrelated, it is the square
    root of the sum of c^2. A variable that is a weighted sum of others adds nothing, so C^-1 is the pseudoinverse.

    Args:
        with_whole: c, Pearson r of the variable with each of the others.
        between: C, Pearson r of the others with one another.
    """
    inverse = np.linalg.pinv(between, rcond=MIN_INDEPENDENT, hermitian=True)
    return float(np.sqrt(np.clip(with_whole @ inverse @ with_whole, 0.0, 1.0)))


def _candidates(correlation: Correlation, whole: int) -> dict[int, list[int]]:
    """The candidates for parts of each feature of a side that has two or more."""
    r, owner = correlation.pearson.best[1 - whole][:, 0], correlation.pearson.partners[1 - whole][:, 0]
    candidates: dict[int, list[int]] = {}
    for latent in np.argsort(-r, kind="stable"):  # NaN, the best of untestable features, comes last
        if r[latent] >= MIN_PART_R:
            candidates.setdefault(int(owner[latent]), []).append(int(latent))
    return {feature: latents[:MAX_PARTS] for feature, latents in sorted(candidates.items()) if len(latents) > 1}


def _pairs(candidates: dict[int, list[int]]) -> Int[np.ndarray, "pair 2"]:
    """All pairs of candidates for parts of one whole, each once because a feature has one best match."""
    pairs = [pair for latents in candidates.values() for pair in combinations(latents, 2)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _sums(
    correlation: Correlation,
    shards: Iterable[tuple[FeatureShard, FeatureShard]],
    pairs: tuple[np.ndarray, np.ndarray],
) -> tuple[int, tuple[_Sums, _Sums]]:
    """The number of tokens compared, and the sums of both sides over them."""
    n_tokens = dict.fromkeys(correlation.n_tokens, 0)
    sums = [
        _Sums(np.zeros(d_sae), np.zeros(d_sae), np.zeros(len(pairs_of_side)))
        for d_sae, pairs_of_side in zip(_widths(correlation), pairs, strict=True)
    ]
    for a, b in shards:
        _require_of(correlation, a, b)
        compared = a.compared & b.compared
        n_tokens[a.corpus] += int(compared.sum())
        for side, shard in enumerate((a, b)):
            _add(sums[side], shard.latents[compared], pairs[side])
        del a, b, shard  # or they would stay in memory while the next are loaded
    if n_tokens != correlation.n_tokens:
        raise InputError(
            f"parts of features of {correlation.names} must be looked for on the tokens of their correlation, "
            f"{correlation.n_tokens} by corpus, but the shards have {n_tokens}; give every shard once"
        )
    return sum(n_tokens.values()), (sums[0], sums[1])


def _add(sums: _Sums, latents: scipy.sparse.csr_array, pairs: np.ndarray) -> None:
    """Add a shard's sums, in place."""
    by_latent = latents.T.tocsr().astype(np.float64)
    sums.totals[:] += by_latent.sum(axis=1)
    sums.squares[:] += by_latent.power(2).sum(axis=1)
    entries = np.diff(by_latent.indptr)[pairs].sum(axis=1).cumsum()
    for block in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(entries // ENTRIES_AT_ONCE)) + 1):
        first, second = pairs[block].T
        sums.products[block] += by_latent[first].multiply(by_latent[second]).sum(axis=1)


def _correlations(n_tokens: int, sums: _Sums, pairs: np.ndarray) -> dict[tuple[int, int], float]:
    """Pearson r of pairs of candidates. All of them vary, or they would have no r with their whole."""
    first, second = pairs.T
    spread = np.sqrt(np.maximum(n_tokens * sums.squares - sums.totals**2, 0.0))
    covariance = n_tokens * sums.products - sums.totals[first] * sums.totals[second]
    r = np.clip(covariance / (spread[first] * spread[second]), -1.0, 1.0)
    return dict(zip(map(tuple, pairs.tolist()), r.tolist(), strict=True))


def _combined(
    correlation: Correlation, whole: int, candidates: dict[int, list[int]], between: dict[tuple[int, int], float]
) -> tuple[Float[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae_of_parts"]]:
    """R of the features of a side, and the whole of each feature of the other side."""
    n_wholes, n_parts = (_widths(correlation)[side] for side in (whole, 1 - whole))
    combined, whole_of = np.full(n_wholes, np.nan), np.full(n_parts, -1)
    with_whole = correlation.pearson.best[1 - whole][:, 0]
    for feature, latents in candidates.items():
        parts = _nearly_uncorrelated(latents, between)
        if len(parts) > 1:
            combined[feature] = multiple_r(with_whole[parts], _matrix(parts, between))
            whole_of[parts] = feature
    return combined, whole_of


def _nearly_uncorrelated(candidates: list[int], between: dict[tuple[int, int], float]) -> list[int]:
    """The candidates that are nearly uncorrelated with those taken before them."""
    parts: list[int] = []
    for latent in candidates:
        if all(between[part, latent] <= MAX_BETWEEN for part in parts):
            parts.append(latent)
    return parts


def _matrix(parts: list[int], between: dict[tuple[int, int], float]) -> Float[np.ndarray, "part part"]:
    """Correlations of parts with one another, as a matrix."""
    upper = np.zeros((len(parts), len(parts)))
    for (row, part_of_row), (column, part_of_column) in combinations(enumerate(parts), 2):
        upper[row, column] = between[part_of_row, part_of_column]
    return upper + upper.T + np.eye(len(parts))


def _widths(correlation: Correlation) -> tuple[int, int]:
    """d_sae of both sides."""
    return len(correlation.testable[0]), len(correlation.testable[1])


def _require_of(correlation: Correlation, a: FeatureShard, b: FeatureShard) -> None:
    """Refuse shards that are not aligned, or not of a correlation's SAEs and corpora."""
    require_aligned(a, b)
    names = (f"{a.model}.{a.sae}", f"{b.model}.{b.sae}")
    widths = _widths(correlation)
    if (names, (a.d_sae, b.d_sae)) != (correlation.names, widths) or a.corpus not in correlation.n_tokens:
        raise InputError(
            f"parts must be looked for in the features that were correlated, {correlation.names} with {widths} "
            f"latents on {correlation.corpora}, but '{a.path}' and '{b.path}' are of {names} with "
            f"{(a.d_sae, b.d_sae)} on '{a.corpus}'; give the shards of the correlation's pair"
        )
