"""Pearson correlations of the features of two SAEs over all aligned tokens, zeros included.

All pairs of features are compared by Pearson r of their activations over all corpora and, if asked for, by r over
single corpora and the Jaccard index of the tokens that they fire on. Raw sums are added shard by shard (`pair_sums`).
Similarities are computed from them a block of rows at a time, and `Matches` are kept. Notebooks use `correlate`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float
from numba import njit
from tqdm import tqdm

from saelineage.correlations.assignments import one_to_one
from saelineage.correlations.match_finder import MatchFinder, parts
from saelineage.correlations.matches import MIN_VARIANCE, Correlation
from saelineage.correlations.pair_sums import (
    PairSums,
    Products,
    ShardSums,
    ahead,
    load_sums,
    require_addable,
    save_sums,
)
from saelineage.correlations.parts import combined_r
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.files.atomic import atomic_path
from saelineage.plan.graph import POOLED

JACCARD = "jaccard index"
"""Key of the Jaccard index among r by corpus. No corpus has a name with a space."""
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
            `results/{run}/features/{hookpoint}/{model}/{sae}`. Raw sums of folders go into a temporary folder
            (`TMPDIR`).
        min_firings, top_matches, keep_above, n_bins, block_features, by_corpus, jaccard: the config's `correlations`
            block.
        threads: the number of threads, which changes no bit of the result.
        progress: show progress bars.

    Raises:
        InputError: if the two are not of the same tokens, or activations are negative or not finite.
    """
    kept: dict[str, Any] = {"min_firings": min_firings, "top_matches": top_matches}
    kept |= {"keep_above": keep_above, "n_bins": n_bins}
    kept |= {"by_corpus": by_corpus, "jaccard": jaccard}
    settings = kept | {"threads": threads, "progress": progress}
    if isinstance(a, str | Path) and isinstance(b, str | Path):
        return _correlate_folders(Path(a), Path(b), block_features, settings)
    if not isinstance(a, str | Path) and not isinstance(b, str | Path):
        return _correlate_arrays(a, b, block_features, settings)
    raise InputError("a and b must both be arrays or both be folders of feature shards; give two of one kind")


def correlate_sums(
    sums: Iterable[PairSums],
    *,
    min_firings: int,
    top_matches: int,
    keep_above: float,
    n_bins: int,
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
    blocks = similarity_blocks(of_corpora, min_firings, threads, by_corpus=by_corpus, jaccard=jaccard)
    for rows, similarities in tqdm(blocks, total=len(first.blocks()), unit="block", disable=not progress):
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


def _firings(of_corpora: Mapping[str, Sequence[PairSums]]) -> tuple[np.ndarray, np.ndarray]:
    """Per side, [corpus, d_sae]: tokens on which each feature fires."""
    a, b = (
        np.stack([np.sum([of_shard.firings[side] for of_shard in shards], axis=0) for shards in of_corpora.values()])
        for side in range(2)
    )
    return a, b


def dense_pearson(sums: Iterable[PairSums], path: Path | str, min_firings: int, threads: int = 1) -> None:
    """Write Pearson r of every pair over all corpora as a NumPy file [d_sae of a, d_sae of b] in float32.

    Raises:
        InputError: if the sums cannot be added.
    """
    of_corpora = added_by_corpus(sums)
    shape = next(iter(of_corpora.values()))[0].shape
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _, similarities in similarity_blocks(of_corpora, min_firings, threads):
            file.write(similarities[POOLED].astype("<f4").data)


def added_by_corpus(sums: Iterable[PairSums]) -> dict[str, list[PairSums]]:
    """Sort sums by corpus and, within each corpus, by the order of their tokens.

    Raises:
        InputError: if they cannot be added (`pair_sums.require_addable`).
    """
    in_order = sorted(sums, key=lambda of_shard: (of_shard.corpus, of_shard.covered))
    require_addable(in_order)
    of_corpora: dict[str, list[PairSums]] = {}
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
    def of(cls, sums: Sequence[PairSums]) -> "OneSided":
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


def similarity_blocks(
    of_corpora: Mapping[str, Sequence[PairSums]],
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
    first = next(iter(of_corpora.values()))[0]
    n_columns = first.shape[1]
    pooled = OneSided.of([of_shard for shards in of_corpora.values() for of_shard in shards])
    singles = {corpus: OneSided.of(shards) for corpus, shards in of_corpora.items()} if by_corpus else {}
    spreads = {
        name: tuple(sums.spread(side, min_firings) for side in range(2))
        for name, sums in {**singles, POOLED: pooled}.items()
    }
    tasks = (
        partial(of_shard.products, rows)
        for rows in first.blocks()
        for shards in of_corpora.values()
        for of_shard in shards
    )
    computed = ahead(tasks, threads)
    n_rows = len(first.blocks()[0])
    names = [*singles, POOLED, *([JACCARD] if jaccard else [])]
    buffers = {name: np.empty((n_rows, n_columns)) for name in names}
    all_together = np.empty((n_rows if jaccard else 0, n_columns), dtype=np.int64)
    for rows in first.blocks():
        block = {name: buffer[: len(rows)] for name, buffer in buffers.items()}
        together = all_together[: len(rows)]
        for array in (*block.values(), together):
            array.fill(0)
        for corpus, shards in of_corpora.items():
            products = block[corpus] if corpus in singles else block[POOLED]
            for _ in shards:
                _add(next(computed), products, together, threads)
            if corpus in singles:
                block[POOLED] += products
                _to_pearson(products, rows, singles[corpus], spreads[corpus], threads)
        _to_pearson(block[POOLED], rows, pooled, spreads[POOLED], threads)
        if jaccard:
            _to_jaccard(block[JACCARD], together, rows, pooled.firings, min_firings, threads)
        yield rows, block


def _correlate_arrays(a: Latents, b: Latents, block_features: int, settings: dict) -> Correlation:
    """Correlate arrays; `settings` are those of `correlate_sums`."""
    shape_a, shape_b = (tuple(getattr(latents, "shape", ())) for latents in (a, b))
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[0]:
        raise InputError(
            f"a and b must be [token, d_sae] arrays of the same tokens, but their shapes are {shape_a} and "
            f"{shape_b}; give the latents of both SAEs on the same tokens"
        )
    shards = FeatureShard.of_array(a, "a"), FeatureShard.of_array(b, "b")
    correlation = correlate_sums([ShardSums(*shards, block_features)], **settings)
    return correlation._replace(combined=combined_r(correlation, [shards]))


def _correlate_folders(a: Path, b: Path, block_features: int, settings: dict) -> Correlation:
    """Correlate folders of shards; `settings` are those of `correlate_sums`."""
    pairs = _shards_of_both(a, b)
    with TemporaryDirectory() as folder:
        sums: list[PairSums] = []
        for number, pair in enumerate(tqdm(pairs, unit="shard", disable=not settings["progress"])):
            path = Path(folder) / f"{number}.safetensors"
            computed = ShardSums(FeatureShard(pair[0]), FeatureShard(pair[1]), block_features)
            save_sums([computed], path, 1, len(computed.blocks()), settings["threads"])
            for saved in load_sums(path, computed.names[1]):
                saved.source = computed.source  # messages name the shards, not the temporary file
                sums.append(saved)
        correlation = correlate_sums(sums, **settings)
    shards = ((FeatureShard(shard_a), FeatureShard(shard_b)) for shard_a, shard_b in pairs)
    return correlation._replace(combined=combined_r(correlation, shards))


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


def _in_threads(n_rows: int, threads: int, work: Callable[[slice], None]) -> None:
    """Do work on parts of the rows in threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: work(slice(*part)), parts(n_rows, threads)))


def _add(block: Products, products: np.ndarray, together: np.ndarray, threads: int) -> None:
    """Add sparse rows to dense ones. Counts of tokens are added only if `together` has rows."""

    def work(part: slice) -> None:
        indptr = block.indptr[part.start : part.stop + 1]
        _add_rows(indptr, block.indices, block.products, products[part])
        if len(together):
            _add_rows(indptr, block.indices, block.together, together[part])

    _in_threads(len(products), threads, work)


def _to_pearson(products: np.ndarray, rows: range, sums: OneSided, spreads: tuple, threads: int) -> None:
    """Turn sums of products into Pearson r, in place."""

    def work(part: slice) -> None:
        latents = slice(rows.start + part.start, rows.start + part.stop)
        sides = (sums.totals[0][latents], spreads[0][latents], sums.totals[1], spreads[1])
        _pearson_rows(products[part], sums.n_tokens, *sides)

    _in_threads(len(rows), threads, work)


def _to_jaccard(
    out: np.ndarray, together: np.ndarray, rows: range, firings: tuple, min_firings: int, threads: int
) -> None:
    """Compute Jaccard indices into `out`."""

    def work(part: slice) -> None:
        latents = slice(rows.start + part.start, rows.start + part.stop)
        _jaccard_rows(out[part], together[part], firings[0][latents], firings[1], min_firings)

    _in_threads(len(rows), threads, work)


@njit(nogil=True, cache=True)
@no_type_check
def _add_rows(indptr, indices, values, rows):
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            rows[row, indices[entry]] += values[entry]


@njit(nogil=True, cache=True)
@no_type_check
def _pearson_rows(products, n_tokens, totals_a, spread_a, totals_b, spread_b):
    for row in range(products.shape[0]):
        for column in range(products.shape[1]):
            covariance = n_tokens * products[row, column] - totals_a[row] * totals_b[column]
            r = covariance / (spread_a[row] * spread_b[column])
            products[row, column] = min(1.0, max(-1.0, r)) if r == r else np.nan


@njit(nogil=True, cache=True)
@no_type_check
def _jaccard_rows(out, together, firings_a, firings_b, min_firings):
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            either = firings_a[row] + firings_b[column] - together[row, column]
            tested = firings_a[row] >= min_firings and firings_b[column] >= min_firings and either > 0
            out[row, column] = together[row, column] / either if tested else np.nan
