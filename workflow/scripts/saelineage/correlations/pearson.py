"""Pearson correlations of the features of two SAEs over all aligned tokens, zeros included.

All pairs of features are compared by Pearson r of their activations over all corpora and, if asked for, by r over
single corpora and the Jaccard index of the tokens that they fire on. Raw sums are added over all shards (`pair_sums`).
Similarities are computed from them a block of rows at a time, and `Matches` are kept. Notebooks use `correlate`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float
from numba import njit
from tqdm import tqdm

from saelineage.correlations.assignments import one_to_one
from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import MIN_VARIANCE, Correlation
from saelineage.correlations.pair_sums import ShardSums, all_sums, require_addable
from saelineage.correlations.parts import combined_r
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.files.atomic import atomic_path
from saelineage.plan.graph import POOLED

JACCARD = "jaccard index"
"""Key of the Jaccard index among r by corpus. No corpus has a name with a space."""
NEAR_BYTES, MIN_ROWS_AT_ONCE = 1 << 20, 4
"""Bytes of rows that a thread computes at once, so that they stay in its cache, and the least number of rows."""
Latents = np.ndarray | scipy.sparse.sparray | scipy.sparse.spmatrix


def correlate(
    a: Latents | Path | str,
    b: Latents | Path | str,
    *,
    min_firings: int = 20,
    top_matches: int = 8,
    keep_above: float = 0.3,
    n_bins: int = 200,
    block_features: int = 1024,
    by_corpus: bool = False,
    jaccard: bool = False,
    threads: int = 1,
    progress: bool = True,
) -> Correlation:
    """Correlate all features of two SAEs over the same tokens.

    Args:
        a, b: latent activations [token, d_sae], all >= 0, dense or sparse; or the folder of an SAE's feature shards,
            `results/{run}/features/{hookpoint}/{model}/{sae}`, of which both are held in memory.
        min_firings, top_matches, keep_above, n_bins, block_features, by_corpus, jaccard: the config's `correlations`
            block.
        threads: the number of threads, which changes no bit of the result.
        progress: show progress bars.

    Raises:
        InputError: if the two are not of the same tokens, or activations are negative or not finite.
    """
    kept: dict[str, Any] = {"min_firings": min_firings, "top_matches": top_matches}
    kept |= {"keep_above": keep_above, "n_bins": n_bins, "block_features": block_features}
    kept |= {"by_corpus": by_corpus, "jaccard": jaccard}
    settings = kept | {"threads": threads, "progress": progress}
    if isinstance(a, str | Path) and isinstance(b, str | Path):
        return _correlate_folders(Path(a), Path(b), settings)
    if not isinstance(a, str | Path) and not isinstance(b, str | Path):
        return _correlate_arrays(a, b, settings)
    raise InputError("a and b must both be arrays or both be folders of feature shards; give two of one kind")


def correlate_sums(
    sums: Iterable[ShardSums],
    *,
    min_firings: int,
    top_matches: int,
    keep_above: float,
    n_bins: int,
    block_features: int,
    by_corpus: bool = False,
    jaccard: bool = False,
    threads: int = 1,
    progress: bool = False,
) -> Correlation:
    """Correlate all pairs from raw sums.

    Args:
        sums: of all shards and corpora, in any order.
        min_firings: features that fire on fewer tokens are untestable and no partners.
        top_matches: partners kept per feature.
        keep_above: every similarity at or above this is kept.
        n_bins: bins of the histograms.
        block_features: features of side a whose similarities are held at once.
        by_corpus: also keep r over single corpora.
        jaccard: also keep the Jaccard index of the tokens that features fire on.
        threads: the number of threads, which changes no bit of the result.
        progress: show a progress bar.

    Raises:
        InputError: if the sums cannot be added (`pair_sums.require_addable`).
    """
    of_corpora = added_by_corpus(sums)
    first = next(iter(of_corpora.values()))[0]
    singles = list(of_corpora) if by_corpus else []
    names = [*singles, POOLED, *([JACCARD] if jaccard else [])]
    finders = {
        name: MatchFinder(first.shape, top_matches=top_matches, keep_above=keep_above, n_bins=n_bins, threads=threads)
        for name in names
    }
    blocks = similarity_blocks(of_corpora, block_features, min_firings, threads, by_corpus=by_corpus, jaccard=jaccard)
    n_blocks = -(-first.shape[0] // block_features)
    for rows, similarities in tqdm(blocks, total=n_blocks, unit="block", disable=not progress):
        for name, finder in finders.items():
            finder.offer(rows.start, similarities[name])
    matches = {name: finder.result() for name, finder in finders.items()}
    pooled = OneSided.of([of_shard for shards in of_corpora.values() for of_shard in shards])
    return Correlation(
        names=first.names,
        n_tokens={corpus: sum(of_shard.n_tokens for of_shard in shards) for corpus, shards in of_corpora.items()},
        firings=_firings(of_corpora),
        testable=(~np.isnan(pooled.spread(0, min_firings)), ~np.isnan(pooled.spread(1, min_firings))),
        pearson=matches[POOLED],
        by_corpus={corpus: matches[corpus] for corpus in singles},
        one_to_one=one_to_one(matches[POOLED].kept),
        jaccard=matches.get(JACCARD),
        totals=pooled.totals,
        squares=pooled.squares,
    )


def _firings(of_corpora: Mapping[str, Sequence[ShardSums]]) -> tuple[np.ndarray, np.ndarray]:
    """Per side, [corpus, d_sae]: tokens on which each feature fires."""
    a, b = (
        np.stack([np.sum([of_shard.firings[side] for of_shard in shards], axis=0) for shards in of_corpora.values()])
        for side in range(2)
    )
    return a, b


def dense_pearson(
    sums: Iterable[ShardSums], path: Path | str, block_features: int, min_firings: int, threads: int = 1
) -> None:
    """Write Pearson r of every pair over all corpora as a NumPy file [d_sae of a, d_sae of b] in float32.

    Raises:
        InputError: if the sums cannot be added.
    """
    of_corpora = added_by_corpus(sums)
    shape = next(iter(of_corpora.values()))[0].shape
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _, similarities in similarity_blocks(of_corpora, block_features, min_firings, threads):
            file.write(similarities[POOLED].astype("<f4").data)


def added_by_corpus(sums: Iterable[ShardSums]) -> dict[str, list[ShardSums]]:
    """Sort sums by corpus and, within each corpus, by the order of their tokens.

    Raises:
        InputError: if they cannot be added (`pair_sums.require_addable`).
    """
    in_order = sorted(sums, key=lambda of_shard: (of_shard.corpus, of_shard.covered))
    require_addable(in_order)
    of_corpora: dict[str, list[ShardSums]] = {}
    for of_shard in in_order:
        of_corpora.setdefault(of_shard.corpus, []).append(of_shard)
    return of_corpora


class OneSided(NamedTuple):
    """The sums of single features over several shards."""

    n_tokens: int
    totals: tuple[np.ndarray, np.ndarray]
    squares: tuple[np.ndarray, np.ndarray]
    firings: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, sums: Sequence[ShardSums]) -> "OneSided":
        """Add the sums of some shards."""

        def added(name: str) -> tuple[np.ndarray, np.ndarray]:
            a, b = (np.sum([getattr(of_shard, name)[side] for of_shard in sums], axis=0) for side in range(2))
            return a, b

        return cls(sum(of_shard.n_tokens for of_shard in sums), added("totals"), added("squares"), added("firings"))

    def spread(self, side: int, min_firings: int) -> Float[np.ndarray, " d_sae"]:
        """sqrt(n sum(x^2) - sum(x)^2) of each feature of a side; NaN where it is constant or fires too rarely."""
        total, square = self.totals[side], self.squares[side]
        variance = self.n_tokens * square - total**2
        testable = (variance > MIN_VARIANCE * self.n_tokens * square) & (self.firings[side] >= min_firings)
        return np.sqrt(np.where(testable, variance, np.nan))


class Spread(NamedTuple):
    """The sums of single features, and what r is divided by."""

    sums: OneSided
    spreads: tuple[np.ndarray, np.ndarray]
    """`OneSided.spread` of both sides."""

    @classmethod
    def of(cls, sums: OneSided, min_firings: int) -> "Spread":
        """Compute the spreads."""
        return cls(sums, (sums.spread(0, min_firings), sums.spread(1, min_firings)))

    def to_pearson(self, products: Float[np.ndarray, "row d_sae_b"], first: int) -> None:
        """Turn sums of products of features `first`, `first` + 1, ... of side a into Pearson r, in place."""
        rows = slice(first, first + len(products))
        a, b = ((self.sums.totals[side], self.spreads[side]) for side in range(2))
        _pearson_rows(products, self.sums.n_tokens, a[0][rows], a[1][rows], *b)


class Similarities:
    """Computes rows of all similarities; any rows can be computed at the same time as others."""

    def __init__(
        self, of_corpora: Mapping[str, Sequence[ShardSums]], min_firings: int, *, by_corpus: bool, jaccard: bool
    ):
        """Add the sums of single features; the arguments are those of `similarity_blocks`."""
        self._of_corpora, self._min_firings = of_corpora, min_firings
        added = {corpus: OneSided.of(shards) for corpus, shards in of_corpora.items()} if by_corpus else {}
        self._singles = {corpus: Spread.of(sums, min_firings) for corpus, sums in added.items()}
        everything = OneSided.of([of_shard for shards in of_corpora.values() for of_shard in shards])
        self._pooled = Spread.of(everything, min_firings)
        self.names = [*self._singles, POOLED, *([JACCARD] if jaccard else [])]

    def fill(self, rows: dict[str, np.ndarray], first: int) -> None:
        """Compute rows `first`, `first` + 1, ... of all similarities, by `names`."""
        pooled = rows[POOLED]
        pooled.fill(0)
        for corpus, shards in self._of_corpora.items():
            single = rows.get(corpus)
            if corpus not in self._singles or single is None:
                _add_products(shards, first, pooled)
                continue
            single.fill(0)
            _add_products(shards, first, single)
            pooled += single
            self._singles[corpus].to_pearson(single, first)
        self._pooled.to_pearson(pooled, first)
        if JACCARD in rows:
            self._fill_jaccard(rows[JACCARD], first)

    def _fill_jaccard(self, out: np.ndarray, first: int) -> None:
        """Compute rows of Jaccard indices."""
        together = np.zeros(out.shape, dtype=np.int64)
        for shards in self._of_corpora.values():
            for of_shard in shards:
                of_shard.add_together(first, together)
        firings_a, firings_b = self._pooled.sums.firings
        _jaccard_rows(out, together, firings_a[first : first + len(out)], firings_b, self._min_firings)


def similarity_blocks(
    of_corpora: Mapping[str, Sequence[ShardSums]],
    block_features: int,
    min_firings: int,
    threads: int,
    *,
    by_corpus: bool = False,
    jaccard: bool = False,
) -> Iterator[tuple[range, dict[str, Float[np.ndarray, "row d_sae_b"]]]]:
    """Compute a block of rows of all similarities at a time: Pearson r as `POOLED`, by corpus, and as `JACCARD`.

    r = (n sum(ab) - sum(a) sum(b)) / sqrt((n sum(a^2) - sum(a)^2) (n sum(b^2) - sum(b)^2)), in [-1, 1]; NaN where a
    feature does not vary or fires on fewer than `min_firings` tokens. The next block overwrites the arrays.
    """
    n_rows, n_columns = next(iter(of_corpora.values()))[0].shape
    similarities = Similarities(of_corpora, min_firings, by_corpus=by_corpus, jaccard=jaccard)
    buffers = {name: np.empty((min(block_features, n_rows), n_columns)) for name in similarities.names}
    n_at_once = max(MIN_ROWS_AT_ONCE, NEAR_BYTES // (8 * n_columns))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, n_rows, block_features):
            rows = range(start, min(start + block_features, n_rows))
            block = {name: buffer[: len(rows)] for name, buffer in buffers.items()}
            places = range(0, len(rows), n_at_once)
            pieces = [{name: of[place : place + n_at_once] for name, of in block.items()} for place in places]
            list(pool.map(similarities.fill, pieces, [start + place for place in places]))
            yield rows, block


def _correlate_arrays(a: Latents, b: Latents, settings: dict) -> Correlation:
    """Correlate arrays; `settings` are those of `correlate_sums`."""
    shape_a, shape_b = (tuple(getattr(latents, "shape", ())) for latents in (a, b))
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[0]:
        raise InputError(
            f"a and b must be [token, d_sae] arrays of the same tokens, but their shapes are {shape_a} and "
            f"{shape_b}; give the latents of both SAEs on the same tokens"
        )
    shards = FeatureShard.of_array(a, "a"), FeatureShard.of_array(b, "b")
    correlation = correlate_sums([ShardSums(*shards)], **settings)
    return correlation._replace(combined=combined_r(correlation, [shards]))


def _correlate_folders(a: Path, b: Path, settings: dict) -> Correlation:
    """Correlate folders of shards; `settings` are those of `correlate_sums`."""
    pairs = _shards_of_both(a, b)
    shards = _loaded(tqdm(pairs, unit="shard", disable=not settings["progress"]))
    correlation = correlate_sums(all_sums(shards), **settings)
    return correlation._replace(combined=combined_r(correlation, _loaded(pairs)))


def _loaded(paths: Iterable[tuple[Path, Path]]) -> Iterator[tuple[FeatureShard, FeatureShard]]:
    """Load pairs of shards, one at a time."""
    for path_to_a, path_to_b in paths:
        yield FeatureShard(path_to_a), FeatureShard(path_to_b)


def _shards_of_both(a: Path, b: Path) -> list[tuple[Path, Path]]:
    """Pairs of feature shards that have the same name in two folders."""
    names = [sorted(path.relative_to(folder) for path in folder.glob("**/shard-*.safetensors")) for folder in (a, b)]
    if not names[0] or names[0] != names[1]:
        unpaired = sorted(set(names[0]) ^ set(names[1]))
        raise InputError(
            f"'{a}' and '{b}' must hold feature shards (shard-*.safetensors) of the same names, but hold "
            f"{len(names[0])} and {len(names[1])}{f', only one of them {str(unpaired[0])!r}' if unpaired else ''}; "
            "give the folders of two SAEs of one run"
        )
    return [(a / name, b / name) for name in names[0]]


def _add_products(shards: Sequence[ShardSums], first: int, out: np.ndarray) -> None:
    """Add the sums of products of some shards, in their order."""
    for of_shard in shards:
        of_shard.add_products(first, out)


@njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def _pearson_rows(products, n_tokens, totals_a, spread_a, totals_b, spread_b):
    for row in range(products.shape[0]):
        for column in range(products.shape[1]):
            covariance = n_tokens * products[row, column] - totals_a[row] * totals_b[column]
            r = covariance / (spread_a[row] * spread_b[column])  # NaN is neither above nor below
            r = 1.0 if r > 1.0 else r
            products[row, column] = -1.0 if r < -1.0 else r


@njit(nogil=True, cache=True)
@no_type_check
def _jaccard_rows(out, together, firings_a, firings_b, min_firings):
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            either = firings_a[row] + firings_b[column] - together[row, column]
            tested = firings_a[row] >= min_firings and firings_b[column] >= min_firings and either > 0
            out[row, column] = together[row, column] / either if tested else np.nan
