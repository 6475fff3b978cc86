"""Bootstrap intervals of best matches, and of shares of features that have one, over the documents of the probe.

Whole documents are drawn with replacement (Efron 1979, Ann. Statist. 7, 1-26), because tokens of one document are not
independent draws (a bootstrap of clusters: Cameron, Gelbach and Miller 2008, Rev. Econ. Stat. 90, 414-427). They are
drawn within each corpus, so that each corpus keeps its number of documents. r of a pair follows from sums by document,
weighted by how often each document was drawn, so that tokens are read once. In the order of use: `document_numbers`,
`document_sums`, `bootstrap`, `replicate_shares`, `centred_interval`.

A replicate holds about 63 % of the documents, some of them several times. So r varies more, and of many features just
below a threshold more reach it than over all documents: the replicates' mean is biased, by about as much as the value
over all documents already is (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 10). Intervals
therefore take the spread of the replicates and not their place (`centred_interval`), and hold the value that they are
of. benchmarks/interval_coverage.py measures how often they hold the truth.

An interval does not cover training (the models, the SAEs and their seeds), nor partners other than a few candidates of
each feature, which are the best on all documents.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.special
from jaxtyping import Bool, Float, Int, Integer
from safetensors import SafetensorError

from saelineage.correlations.matches import MIN_VARIANCE, SIDES, Correlation
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, require_aligned
from saelineage.files.tensors import read_group
from saelineage.tokens import TokenRows

ARRAYS = 2 * len(SIDES)
"""Arrays of a group of a file of replicates."""
NO_DOCUMENT = -1
ENTRIES_AT_ONCE = 1 << 22
"""Activations of pairs that are multiplied at a time, about 50 MB. A feature may be in thousands of pairs."""
MIN_DOCUMENTS = 3
"""Least number of documents in which a feature fires, below which nothing can be said of it over documents."""
N_CANDIDATES = 3
"""Partners of each feature among which its best match in a replicate is looked for."""
LARGEST_R = 1 - 1e-9
"""Bound of r in Fisher's z, which is infinite at 1."""
REPLICATES_AT_ONCE = 32
"""Replicates computed at a time. Each of several arrays takes 25 MB per hundred thousand pairs."""


class DocumentSums(NamedTuple):
    """Sums over the aligned tokens of each document; documents of all corpora, in the corpora's sorted order."""

    names: tuple[str, str]
    """The two SAEs, as `{model}.{sae}`."""
    n_documents: dict[str, int]
    """Documents of each corpus, by sorted corpora."""
    n_tokens: Int[np.ndarray, " document"]
    """Tokens that are compared on both sides."""
    totals: tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]
    """Per side, [d_sae, document] sums of activations, in float64 like all sums here."""
    squares: tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]
    """Per side, [d_sae, document] sums of squared activations."""
    products: scipy.sparse.csr_array
    """[pair, document] sums of activation x activation."""
    pairs: Int[np.ndarray, "pair 2"]
    """The two latents of each pair, ascending."""
    pair_numbers: tuple[Int[np.ndarray, "d_sae_a rank_a"], Int[np.ndarray, "d_sae_b rank_b"]]
    """Per side, the number of the pair of each feature and candidate; -1 where there is no candidate."""


class Replicates(NamedTuple):
    """Best matches in replicates of the documents."""

    names: tuple[str, str]
    n_documents: dict[str, int]
    """Documents of each corpus."""
    seed: int
    best: tuple[Float[np.ndarray, "replicate d_sae_a"], Float[np.ndarray, "replicate d_sae_b"]]
    """Per side, each feature's largest r among its candidates, in float32; NaN where none is defined."""
    documents: tuple[Int[np.ndarray, " d_sae_a"], Int[np.ndarray, " d_sae_b"]]
    """Per side, the number of documents in which each feature fires."""


def documents_of(rows: TokenRows) -> Int[np.ndarray, " position"]:
    """Number the document of each position: as `document_numbers` does, and of conversations the row."""
    if rows.classes is None:
        return document_numbers(rows.ids, rows.info["eos_id"])
    mask = rows.text_mask(range(len(rows.ids)))
    numbers = np.cumsum(mask.any(axis=1)) - 1
    return np.where(mask, numbers[:, None], NO_DOCUMENT).reshape(-1)


def document_numbers(ids: Integer[np.ndarray, "row n_ctx"], eos_id: int) -> Int[np.ndarray, " position"]:
    """Number the document of each position of the token rows (row x n_ctx + place in the row, as in feature shards).

    Numbers run from 0 without a gap over the documents that have text here. A document continues from row to row until
    its EOS. BOS and EOS are not text and get -1. The first column is BOS whatever its id, so that a tokenizer with one
    id for both ends no document there.

    Args:
        ids: the rows that features are read from (`tokens.TokenRows.ids`). More rows would add documents without
            tokens.
        eos_id: the id that ends a document.
    """
    ends = ids == eos_id
    ends[:, 0] = False
    is_text = ~ends
    is_text[:, 0] = False
    ends_before = np.cumsum(ends)  # at text, the ends up to a place are those before it
    numbers = np.full(ids.size, NO_DOCUMENT)
    numbers[is_text.ravel()] = np.unique(ends_before[is_text.ravel()], return_inverse=True)[1]
    return numbers


def leading_candidates(
    correlation: Correlation, n_candidates: int = N_CANDIDATES
) -> tuple[Int[np.ndarray, "d_sae_a rank_a"], Int[np.ndarray, "d_sae_b rank_b"]]:
    """Per side, the partners with which each feature correlates most over all corpora; -1 where there are no more."""
    a, b = (partners[:, :n_candidates] for partners in correlation.pearson.partners)
    return a, b


def document_sums(
    shards: Iterable[tuple[FeatureShard, FeatureShard]],
    candidates: tuple[Int[np.ndarray, "d_sae_a rank_a"], Int[np.ndarray, "d_sae_b rank_b"]],
    documents: Mapping[str, Int[np.ndarray, " _position"]],
) -> DocumentSums:
    """Compute the sums behind r of the candidate pairs by document, over tokens that are compared on both sides.

    Args:
        shards: aligned shards of the two SAEs, of any corpora and any number. Each pair is freed before the next is
            asked for, so that a generator that loads them holds one at a time.
        candidates: per side, possible partners of each feature (`leading_candidates`); -1 where there are no more.
        documents: `document_numbers` of each corpus. Corpora and documents without shards take part with no tokens, so
            that every pair of SAEs is resampled alike.

    Raises:
        InputError: if shards are not aligned, not of one pair of SAEs with these candidates, or occur twice, or if a
            token is of no known document.
    """
    n_documents = {corpus: int(documents[corpus].max(initial=NO_DOCUMENT)) + 1 for corpus in sorted(documents)}
    starts = dict(zip(n_documents, accumulate(n_documents.values(), initial=0), strict=False))
    pairs, pair_numbers = _pairs_of(candidates)
    names: tuple[str, str] | None = None
    covered: list[tuple[str, str, int, int]] = []
    sums: _Sums | None = None
    for a, b in shards:
        names = names or _names(a, b)
        _require_addable(a, b, names, candidates, covered)
        covered.append((a.corpus, a.ids_sha256, a.first_row, a.stop_row))
        of_token = starts.get(a.corpus, 0) + _documents_of(a, documents)
        of_shard = _shard_sums(a, b, pairs, of_token, sum(n_documents.values()))
        sums = of_shard if sums is None else _added(sums, of_shard)
        del a, b, of_shard  # or they would stay in memory while the next are loaded
    if sums is None or names is None:
        raise InputError("there are no features to sum by document; give at least one shard of each SAE")
    total_a, total_b, square_a, square_b, products = sums.matrices
    totals, squares = (total_a, total_b), (square_a, square_b)
    return DocumentSums(names, n_documents, sums.n_tokens, totals, squares, products, pairs, pair_numbers)


def document_weights(
    n_documents: Mapping[str, int], n_replicates: int, seed: int
) -> Int[np.ndarray, "replicate document"]:
    """Draw the number of times that each document occurs in each replicate.

    Within each corpus, as many documents are drawn as it has, with replacement. Equal arguments give equal weights
    whatever the SAEs, so that replicates of several pairs of SAEs of one run are paired (`require_paired`). The only
    document of a corpus is always drawn once, and so adds nothing to an interval.

    Args:
        n_documents: documents of each corpus; columns follow the sorted order of corpora.
        n_replicates: the number of replicates.
        seed: the seed of the draws.

    Raises:
        InputError: if a corpus has no document.
    """
    random = np.random.default_rng(seed)
    weights = []
    for corpus, n in sorted(n_documents.items()):
        if n < 1:
            raise InputError(
                f"a corpus must have at least one document to draw, but '{corpus}' has {n} in its probe split; "
                "raise splits.probe or leave the corpus out"
            )
        weights.append(random.multinomial(n, np.full(n, 1 / n), size=n_replicates))
    return np.concatenate(weights, axis=1)


def bootstrap(sums: DocumentSums, n_replicates: int, seed: int) -> Replicates:
    """Best matches in replicates of the documents (`document_weights`, `resampled_best`)."""
    weights = document_weights(sums.n_documents, n_replicates, seed)
    return Replicates(sums.names, sums.n_documents, seed, resampled_best(sums, weights), firing_documents(sums))


def firing_documents(sums: DocumentSums) -> tuple[Int[np.ndarray, " d_sae_a"], Int[np.ndarray, " d_sae_b"]]:
    """Per side, the number of documents with a token, compared on both sides, on which each feature fires."""
    a, b = (np.asarray((squares > 0).sum(axis=1)).astype(np.int32) for squares in sums.squares)
    return a, b


def fires_in_enough(
    sums: DocumentSums, least: int = MIN_DOCUMENTS
) -> tuple[Bool[np.ndarray, " d_sae_a"], Bool[np.ndarray, " d_sae_b"]]:
    """Per side, mark the features that fire in at least `least` documents; in a probe of fewer, in all documents."""
    n_needed = min(least, sum(sums.n_documents.values()))
    a, b = (documents >= n_needed for documents in firing_documents(sums))
    return a, b


def resampled_best(
    sums: DocumentSums, weights: Integer[np.ndarray, "replicate document"]
) -> tuple[Float[np.ndarray, "replicate d_sae_a"], Float[np.ndarray, "replicate d_sae_b"]]:
    """Per side, each feature's largest r among its candidates (`resampled_r`) in each replicate, in float32.

    NaN where a feature has no candidate, or r is defined with none of them.
    """
    a, b = (np.empty((len(weights), len(numbers)), dtype=np.float32) for numbers in sums.pair_numbers)
    for start in range(0, len(weights), REPLICATES_AT_ONCE):
        block = slice(start, start + REPLICATES_AT_ONCE)
        r = resampled_r(sums, weights[block])
        for best, numbers in zip((a, b), sums.pair_numbers, strict=True):
            best[block] = _largest(r, numbers).T
    return a, b


def resampled_r(
    sums: DocumentSums, weights: Integer[np.ndarray, "replicate document"]
) -> Float[np.ndarray, "pair replicate"]:
    """Pearson r of each candidate pair when each document counts as often as its weight, in float64, in [-1, 1].

    NaN where a feature does not vary over the documents drawn (`matches.MIN_VARIANCE`). `min_firings` applies to all
    documents together and not again to the documents drawn.
    """
    drawn = np.ascontiguousarray(weights.T, dtype=np.float64)
    n_tokens = sums.n_tokens @ drawn
    totals = [side @ drawn for side in sums.totals]
    spreads = [_spread(n_tokens, total, squares @ drawn) for total, squares in zip(totals, sums.squares, strict=True)]
    a, b = sums.pairs.T
    covariance = n_tokens * (sums.products @ drawn) - totals[0][a] * totals[1][b]
    return np.clip(covariance / (spreads[0][a] * spreads[1][b]), -1.0, 1.0)


def replicate_shares(
    best: Float[np.ndarray, "replicate d_sae"], testable: Bool[np.ndarray, " d_sae"], threshold: float
) -> Float[np.ndarray, " replicate"]:
    """Per replicate, the share of testable features whose best r is at or above a threshold, in [0, 1].

    An undefined r is no match, for example of a feature that fires in none of the documents drawn. NaN if no feature is
    testable.
    """
    if not testable.any():
        return np.full(len(best), np.nan)
    return (best[:, testable] >= threshold).mean(axis=1)


def relative(
    shares: Float[np.ndarray, " replicate"], controls: Float[np.ndarray, " replicate"]
) -> Float[np.ndarray, " replicate"]:
    """Shares divided by those of a control, replicate by replicate. Both must be of the same draws (`require_paired`).

    NaN where a control is 0.
    """
    return np.divide(shares, controls, out=np.full(len(shares), np.nan), where=controls != 0)


def percentile_interval(values: Float[np.ndarray, " replicate"], level: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval (Efron 1979) that holds the middle `level` of the replicates.

    It need not hold the value over all documents, from which replicates are biased away: see `centred_interval`.
    None if there are no replicates or any is NaN, because leaving those out would make the interval too narrow.
    """
    if len(values) == 0 or np.isnan(values).any():
        return None
    low, high = np.quantile(values.astype(np.float64), _tails(level))
    return float(low), float(high)


def centred_interval(
    values: Float[np.ndarray, " replicate"],
    estimate: float | None,
    n_documents: Mapping[str, int],
    bounds: tuple[float, float] = (0.0, 1.0),
    level: float = 0.95,
) -> tuple[float, float] | None:
    """An interval around an estimate, as wide as its replicates are spread.

    Two intervals together. One has the replicates' quantiles, moved so that their median is the estimate; it is for
    the value that the same number of other documents would give on average. The other lies further away from the
    replicates by their bias, because the estimate is about as far off what endless documents would give (the
    bias-corrected, or basic, interval: Davison and Hinkley 1997, Bootstrap Methods and their Application, 5.2). Both
    are widened for few documents (`widening`).

    Args:
        values: of the replicates.
        estimate: the value over all documents; None where it is undefined.
        n_documents: documents of each corpus (`Replicates.n_documents`).
        bounds: the least and the largest value that is possible.
        level: the share of intervals that should hold the truth.

    Returns:
        Ends with the estimate between them; None where the estimate or any replicate is undefined, there are no
        replicates, or no corpus has a second document.
    """
    quantiles = percentile_interval(values, level)
    n_free = 1 + sum(n - 1 for n in n_documents.values())  # each corpus keeps its number of documents
    if quantiles is None or estimate is None or np.isnan(estimate) or n_free < 2:
        return None
    middle, wider = float(np.median(values)), float(widening(n_free, level))
    bias = middle - estimate
    below, above = (wider * (end - middle) for end in quantiles)
    low, high = estimate + below - max(bias, 0.0), estimate + above - min(bias, 0.0)
    least, largest = min(bounds[0], estimate), max(bounds[1], estimate)
    return max(low, least), min(high, largest)


def ratio_interval(
    numerators: Float[np.ndarray, " cluster"],
    denominators: Float[np.ndarray, " cluster"],
    n_replicates: int,
    seed: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float]:
    """A 95 % interval of the ratio of two sums over clusters, such as documents, drawn with replacement.

    Args:
        numerators, denominators: of each cluster; leave out clusters that were not read.
        n_replicates, seed: of the draws.
        bounds: the least and the largest value that is possible.

    Returns:
        Its ends (`centred_interval`); twice NaN where there is none.
    """
    n = len(numerators)
    if not n:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_replicates)
    values = (drawn @ numerators) / (drawn @ denominators)
    estimate = float(numerators.sum() / denominators.sum())
    return centred_interval(values, estimate, {"clusters": n}, bounds) or (np.nan, np.nan)


def widening(n_documents: int | Int[np.ndarray, "*of"], level: float = 0.95) -> Float[np.ndarray, "*of"]:
    """The factor by which the spread of replicates of n documents is too small; NaN for fewer than 2.

    sqrt(n / (n - 1)), because replicates vary around the mean of the n documents (Efron and Tibshirani 1993, 5.3), and
    the quantile of Student's t with n - 1 degrees of freedom over that of the normal distribution, because the spread
    itself is estimated (Cameron, Gelbach and Miller 2008).
    """
    upper = _tails(level)[1]
    n = np.asarray(n_documents, dtype=np.float64)
    n = np.where(n >= 2, n, np.nan)
    return np.asarray(scipy.special.stdtrit(n - 1, upper) / scipy.special.ndtri(upper) * np.sqrt(n / (n - 1)))


def feature_intervals(
    best: Float[np.ndarray, "replicate d_sae"],
    r: Float[np.ndarray, " d_sae"],
    documents: Int[np.ndarray, " d_sae"],
    level: float = 0.95,
) -> tuple[Float[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
    """Lower and upper ends of the interval of each feature's best r, with r between them.

    In Fisher's z (atanh r), where the spread of r depends little on r, the replicates' quantiles are moved so that
    their median is r, and widened for the number of documents in which the feature fires (`widening`).

    Args:
        best: of the replicates; those in which a feature has no r, because it fires in none of their documents, are
            left out, which `widening` more than makes up for.
        r: over all documents.
        documents: the number of documents in which each feature fires.
        level: the share of intervals that should hold the true r.

    Returns:
        NaN where r is undefined, the feature fires in fewer than `MIN_DOCUMENTS` documents, or it has fewer than two
        replicates.
    """
    z = np.arctanh(np.clip(best.astype(np.float64), -LARGEST_R, LARGEST_R))
    has_interval = ((~np.isnan(z)).sum(axis=0) >= 2) & (documents >= MIN_DOCUMENTS) & ~np.isnan(r)
    ends = np.full((2, best.shape[1]), np.nan)
    if has_interval.any():
        lower, upper = _tails(level)
        low, middle, high = (_quantile(z[:, has_interval], share) for share in (lower, 0.5, upper))
        centre, wider = r[has_interval], widening(documents[has_interval], level)
        moved = np.arctanh(np.clip(centre, -LARGEST_R, LARGEST_R)) + wider * (np.stack([low, high]) - middle)
        ends[0, has_interval] = np.minimum(np.tanh(moved[0]), centre)
        ends[1, has_interval] = np.maximum(np.tanh(moved[1]), centre)
    return ends[0], ends[1]


def share_bounds(
    low: Float[np.ndarray, " d_sae"],
    high: Float[np.ndarray, " d_sae"],
    testable: Bool[np.ndarray, " d_sae"],
    threshold: float,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Bounds of the share of testable features whose r over endless documents is at or above a threshold.

    The lower bound counts the features whose interval lies at or above it, the upper one those whose interval reaches
    it. Of the features on one side, as many as 1 - `level` may have an interval on the other, by chance: of a share s
    up to s + (1 - level) (1 - s) lie surely above, and at least level x s may lie above. The distance is the share of
    features of which the documents do not tell on which side they are. A feature without an interval may be on either.

    Args:
        low, high: of `feature_intervals`.
        testable: the features that a share is taken over.
        threshold: r at or above this is a match.
        level: of the intervals.

    Returns:
        None where no feature is testable.
    """
    if not testable.any():
        return None
    surely, surely_not = (low[testable] >= threshold).mean(), (high[testable] < threshold).mean()
    return max(0.0, float((surely - (1 - level)) / level)), min(1.0, float((1 - surely_not) / level))


def require_paired(replicates: Sequence[Replicates]) -> None:
    """Refuse to pair replicates that are not of the same draws of the same documents.

    Raises:
        InputError: naming the two that differ.
    """
    for a, b in pairwise(replicates):
        draws_a, draws_b = ((of_pair.seed, len(of_pair.best[0]), of_pair.n_documents) for of_pair in (a, b))
        if draws_a != draws_b:
            raise InputError(
                f"replicates must be of the same draws (seed, number, documents by corpus), but those of {a.names} "
                f"are of {draws_a} and those of {b.names} of {draws_b}; draw both again with one seed"
            )


def replicates_group(replicates: Replicates) -> tuple[dict, dict[str, np.ndarray]]:
    """Replicates as the header and arrays of a group of a file.

    The arrays are `best_a` and `best_b` [replicate, d_sae], `documents_a` and `documents_b` [d_sae].
    """
    header = {
        "names": replicates.names,
        "n_replicates": len(replicates.best[0]),
        "seed": replicates.seed,
        "n_documents": replicates.n_documents,
    }
    arrays = {"best": replicates.best, "documents": replicates.documents}
    return header, {
        f"{name}_{side}": of_side[nth] for name, of_side in arrays.items() for nth, side in enumerate(SIDES)
    }


def load_replicates(path: Path | str, partner: str) -> Replicates:
    """Read the replicates of the correlation with one partner.

    Args:
        path: `correlations/{hookpoint}/{a}/replicates.safetensors`.
        partner: the SAE on side b, `{model}.{sae}`; a random control's name includes its suffix.

    Raises:
        InputError: if the file is damaged or does not hold this partner.
    """
    try:
        header, tensors = read_group(path, partner)
        best_a, best_b = (tensors[f"best_{side}"] for side in SIDES)
        if {len(best_a), len(best_b)} != {header["n_replicates"]}:
            raise ValueError(f"it does not hold {header['n_replicates']} replicates of both sides")
        documents_a, documents_b = (tensors[f"documents_{side}"] for side in SIDES)
        if (len(documents_a), len(documents_b)) != (best_a.shape[1], best_b.shape[1]):
            raise ValueError("it does not hold the documents of every feature")
        a, b = header["names"]
        n_documents = dict(sorted(header["n_documents"].items()))
        return Replicates((a, b), n_documents, header["seed"], (best_a, best_b), (documents_a, documents_b))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{path}' must hold the replicates with '{partner}', but is damaged or another file ({error}); "
            "delete it and run again"
        ) from error


def _names(a: FeatureShard, b: FeatureShard) -> tuple[str, str]:
    return f"{a.model}.{a.sae}", f"{b.model}.{b.sae}"


def _require_addable(
    a: FeatureShard,
    b: FeatureShard,
    names: tuple[str, str],
    candidates: tuple[np.ndarray, np.ndarray],
    covered: Sequence[tuple[str, str, int, int]],
) -> None:
    """Refuse shards that are not aligned or of other SAEs than the first, and tokens counted twice."""
    require_aligned(a, b)
    if _names(a, b) != names:
        raise InputError(
            f"sums by document must be of one pair of SAEs, but '{a.path}' and '{b.path}' are of {_names(a, b)} "
            f"and the first shards of {names}; give the shards of one pair"
        )
    shape, candidates_shape = (a.d_sae, b.d_sae), tuple(map(len, candidates))
    largest = tuple(int(partners.max(initial=-1)) for partners in reversed(candidates))
    if shape != candidates_shape or any(latent >= d_sae for latent, d_sae in zip(largest, shape, strict=True)):
        raise InputError(
            f"candidates must be of the SAEs summed, but '{a.path}' and '{b.path}' have {shape} latents and the "
            f"candidates are of {candidates_shape} latents, up to {largest}; give the correlation of these SAEs"
        )
    for corpus, ids_sha256, first_row, stop_row in covered:
        if corpus == a.corpus and (
            ids_sha256 != a.ids_sha256 or max(first_row, a.first_row) < min(stop_row, a.stop_row)
        ):
            raise InputError(
                f"each token of '{a.corpus}' must be summed once, but '{a.path}' ({a.token_range}) comes after shards "
                f"of {ids_sha256} rows {first_row} to {stop_row}; give every shard of one probe split once"
            )


def _documents_of(shard: FeatureShard, documents: Mapping[str, np.ndarray]) -> Int[np.ndarray, " token"]:
    """The document of each token of a shard, numbered within its corpus."""
    numbers = documents.get(shard.corpus, np.empty(0, dtype=np.int64))
    if shard.positions.max(initial=-1) >= len(numbers):
        raise InputError(
            f"tokens of '{shard.path}' ({shard.corpus}) must be in the token rows that documents were counted in, "
            f"which have {len(numbers)} places; count the documents of the token rows that features come from"
        )
    of_token = numbers[shard.positions]
    if np.any(of_token == NO_DOCUMENT):
        place = shard.positions[of_token == NO_DOCUMENT][0]
        raise InputError(
            f"tokens of '{shard.path}' ({shard.corpus}) must be text, but place {place} of the token rows is BOS or "
            "EOS; count the documents of the token rows that features come from"
        )
    return of_token


def _pairs_of(
    candidates: tuple[np.ndarray, np.ndarray],
) -> tuple[Int[np.ndarray, "pair 2"], tuple[Int[np.ndarray, "d_sae_a rank_a"], Int[np.ndarray, "d_sae_b rank_b"]]]:
    """All candidate pairs once, ascending; and per side the number of the pair of each candidate, or -1."""
    d_sae_b = max(1, len(candidates[1]))
    latents_a, latents_b = (np.arange(len(partners))[:, None] for partners in candidates)
    keys = (latents_a * d_sae_b + candidates[0], candidates[1] * d_sae_b + latents_b)
    exists = [partners >= 0 for partners in candidates]
    all_keys = np.unique(np.concatenate([keys[side][exists[side]] for side in range(2)]))
    numbers_a, numbers_b = (np.where(exists[side], np.searchsorted(all_keys, keys[side]), -1) for side in range(2))
    return np.stack(np.divmod(all_keys, d_sae_b), axis=1), (numbers_a, numbers_b)


class _Sums(NamedTuple):
    """Sums by document over some shards."""

    n_tokens: Int[np.ndarray, " document"]
    matrices: list[scipy.sparse.csr_array]
    """Totals of a and b, squares of a and b, products; as in `DocumentSums`."""


def _shard_sums(a: FeatureShard, b: FeatureShard, pairs: np.ndarray, of_token: np.ndarray, n_documents: int) -> _Sums:
    """The sums over one shard."""
    compared = a.compared & b.compared
    sides = [shard.latents[compared].T.tocsr().astype(np.float64) for shard in (a, b)]
    columns, starts = of_token[compared], np.arange(compared.sum() + 1)
    by_document = scipy.sparse.csr_array((np.ones(len(columns)), columns, starts), shape=(len(columns), n_documents))
    matrices = [
        *(side @ by_document for side in sides),
        *(side.multiply(side) @ by_document for side in sides),
        _products(sides[0], sides[1], pairs, by_document),
    ]
    return _Sums(np.bincount(columns, minlength=n_documents), matrices)


def _added(sums: _Sums, of_shard: _Sums) -> _Sums:
    """Add a shard's sums one matrix at a time, freeing each, so that no more than one is in memory twice."""
    for index in range(len(sums.matrices)):
        sums.matrices[index] = sums.matrices[index] + of_shard.matrices.pop(0)
    return _Sums(sums.n_tokens + of_shard.n_tokens, sums.matrices)


def _products(
    a: scipy.sparse.csr_array, b: scipy.sparse.csr_array, pairs: np.ndarray, by_document: scipy.sparse.csr_array
) -> scipy.sparse.csr_array:
    """[pair, document] sums of products of a and b, [d_sae, token], about `ENTRIES_AT_ONCE` entries at a time."""
    entries = np.cumsum(np.diff(a.indptr)[pairs[:, 0]] + np.diff(b.indptr)[pairs[:, 1]], dtype=np.int64)
    blocks = np.split(pairs, np.flatnonzero(np.diff(entries // ENTRIES_AT_ONCE)) + 1)
    products = [a[block[:, 0]].multiply(b[block[:, 1]]) @ by_document for block in blocks]
    return scipy.sparse.vstack(products, format="csr")


def _spread(n_tokens: np.ndarray, totals: np.ndarray, squares: np.ndarray) -> Float[np.ndarray, "d_sae replicate"]:
    """sqrt(n sum(x^2) - sum(x)^2) of each feature in each replicate, as in `pearson.OneSided.spread`."""
    variance = n_tokens * squares - totals**2
    return np.sqrt(np.where(variance > MIN_VARIANCE * n_tokens * squares, variance, np.nan))


def _largest(r: np.ndarray, numbers: np.ndarray) -> Float[np.ndarray, "d_sae replicate"]:
    """Each feature's largest defined r among the pairs of its candidates."""
    best = np.full((len(numbers), r.shape[1]), np.nan)
    for column in numbers.T:
        exists = column >= 0
        best[exists] = np.fmax(best[exists], r[column[exists]])
    return best


def _quantile(values: Float[np.ndarray, "replicate d_sae"], share: float) -> Float[np.ndarray, " d_sae"]:
    """Quantile of each column's defined values, linear between them. `np.nanquantile` is a loop over columns."""
    ascending = np.sort(values, axis=0)  # NaN comes last
    place = share * ((~np.isnan(values)).sum(axis=0) - 1)
    ends = np.stack([np.floor(place), np.ceil(place)]).astype(np.int64)
    below, above = np.take_along_axis(ascending, ends, axis=0)
    return below + (place % 1.0) * (above - below)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
