"""Correlations: Pearson r between the features of two SAEs over all aligned tokens, zeros included.

Raw float64 sums per corpus are added shard by shard from sparse products; r falls out at the end. No tokens x features
array is ever made. In the order of a study: `PairSums.of_shard`, `PairSums.add`, `correlate`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from saelineage.errors import InputError
from saelineage.features import FeatureShard, require_aligned
from saelineage.files import atomic_path, decode_header, encode_header

SIDES = ("a", "b")
MIN_VARIANCE = 1e-12
"""Variances below this share of the mean square are rounding, not variation."""


@dataclass
class PairSums:
    """Raw sums over the aligned tokens of one corpus; `add` joins disjoint shards.

    Attributes:
        names: the two SAEs, as `{model}.{sae}`.
        corpus: the corpus.
        n_tokens: aligned tokens.
        totals: per side, [d_sae] sums of activations.
        squares: per side, [d_sae] sums of squared activations.
        firings: per side, [d_sae] tokens on which a feature fires.
        products: [d_sae of a, d_sae of b] sums of products, sparse.
        covered: the token ranges the sums are over.
    """

    names: tuple[str, str]
    corpus: str
    n_tokens: int
    totals: tuple[np.ndarray, np.ndarray]
    squares: tuple[np.ndarray, np.ndarray]
    firings: tuple[np.ndarray, np.ndarray]
    products: scipy.sparse.csr_array
    covered: frozenset[str]

    @classmethod
    def of_shard(cls, a: FeatureShard, b: FeatureShard) -> "PairSums":
        """The sums over one shard of each SAE: over the tokens that are to be compared in both.

        Raises:
            InputError: if the two shards are not of the same tokens.
        """
        require_aligned(a, b)
        compared = a.compared & b.compared
        sides = tuple(shard.latents if compared.all() else shard.latents[compared] for shard in (a, b))
        return cls(
            names=(f"{a.model}.{a.sae}", f"{b.model}.{b.sae}"),
            corpus=a.corpus,
            n_tokens=int(compared.sum()),
            totals=tuple(np.asarray(side.sum(axis=0)).ravel() for side in sides),
            squares=tuple(np.asarray(side.multiply(side).sum(axis=0)).ravel() for side in sides),
            firings=tuple(np.bincount(side.indices, minlength=side.shape[1]) for side in sides),
            products=(sides[0].T.tocsr() @ sides[1]).tocsr(),
            covered=frozenset({a.token_range}),
        )

    def add(self, other: "PairSums") -> "PairSums":
        """The sums over both sets of tokens.

        Raises:
            InputError: if they are of other SAEs or corpora, or share a shard.
        """
        if (self.names, self.corpus) != (other.names, other.corpus):
            raise InputError(
                f"sums of {self.names} on '{self.corpus}' cannot be added to those of {other.names} on '{other.corpus}'"
            )
        if self.covered & other.covered:
            raise InputError(
                f"sums of {self.names} on '{self.corpus}' would count {sorted(self.covered & other.covered)} twice"
            )
        return PairSums(
            self.names,
            self.corpus,
            self.n_tokens + other.n_tokens,
            tuple(mine + theirs for mine, theirs in zip(self.totals, other.totals, strict=True)),
            tuple(mine + theirs for mine, theirs in zip(self.squares, other.squares, strict=True)),
            tuple(mine + theirs for mine, theirs in zip(self.firings, other.firings, strict=True)),
            (self.products + other.products).tocsr(),
            self.covered | other.covered,
        )


def add_shards(shards: Iterable[Mapping[str, PairSums]]) -> dict[str, PairSums]:
    """The sums of all shards, by corpus; the order of shards does not matter beyond rounding in the last bit."""
    added: dict[str, PairSums] = {}
    for shard in shards:
        for corpus, sums in shard.items():
            added[corpus] = added[corpus].add(sums) if corpus in added else sums
    return added


def pool(sums: Sequence[PairSums]) -> PairSums:
    """Sums over several corpora taken as one."""
    pooled = sums[0]
    for other in sums[1:]:
        pooled = PairSums.add(_renamed(pooled, "pooled"), _renamed(other, "pooled"))
    return _renamed(pooled, "pooled")


def pearson_block(sums: PairSums, columns: range, min_firings: int) -> Float[np.ndarray, "d_sae_a column"]:
    """Pearson r of every feature of side a with a block of side b's, from raw sums.

    r = (n sum(ab) - sum(a) sum(b)) / sqrt((n sum(a^2) - sum(a)^2) (n sum(b^2) - sum(b)^2)), in [-1, 1]; NaN where a
    feature does not vary or fires on fewer than `min_firings` tokens.
    """
    n = sums.n_tokens
    block = slice(columns.start, columns.stop)
    spread = [_spread(sums, side, min_firings) for side in range(2)]
    covariance = n * sums.products[:, block].toarray() - np.outer(sums.totals[0], sums.totals[1][block])
    with np.errstate(invalid="ignore"):
        r = covariance / np.outer(spread[0], spread[1][block])
    return np.clip(r, -1.0, 1.0)


class Correlation(NamedTuple):
    """What is kept of all pairs of two SAEs' features."""

    names: tuple[str, str]
    n_tokens: int
    corpora: list[str]
    firings: tuple[Int[np.ndarray, "corpus d_sae_a"], Int[np.ndarray, "corpus d_sae_b"]]
    """Tokens on which each feature fires, by corpus."""
    testable: tuple[Bool[np.ndarray, " d_sae_a"], Bool[np.ndarray, " d_sae_b"]]
    """Features that vary and fire often enough to be compared at all."""
    best_r: tuple[Float[np.ndarray, "d_sae_a rank"], Float[np.ndarray, "d_sae_b rank"]]
    """Largest r first; NaN where the feature or every partner is untestable."""
    best: tuple[Int[np.ndarray, "d_sae_a rank"], Int[np.ndarray, "d_sae_b rank"]]
    """The partner of each `best_r`, a latent of the other side; -1 where there is none."""
    kept: scipy.sparse.csr_array
    """[d_sae_a, d_sae_b]: every r at or above the floor chosen."""
    histogram: Int[np.ndarray, " bin"]
    """All r that are not NaN, in equal bins from -1 to 1."""
    n_undefined: int
    """Pairs whose r is NaN."""


def correlate(
    sums: Mapping[str, PairSums],
    *,
    min_firings: int,
    top_matches: int,
    keep_above: float,
    n_bins: int,
    block_features: int,
) -> Correlation:
    """Correlate all pairs over all corpora together.

    Args:
        sums: raw sums by corpus.
        min_firings: features firing on fewer tokens are untestable and are nobody's partner.
        top_matches: partners kept per feature.
        keep_above: every r at or above this is kept.
        n_bins: bins of the histogram.
        block_features: columns held at once; changes memory, not the result.
    """
    corpora = sorted(sums)
    pooled = pool([sums[corpus] for corpus in corpora])
    d_a, d_b = pooled.products.shape
    best_a, best_b = _Best(d_a, top_matches), _Best(d_b, top_matches)
    histogram, n_defined, kept = np.zeros(n_bins, dtype=np.int64), 0, []
    for start in range(0, d_b, block_features):
        columns = range(start, min(start + block_features, d_b))
        r = pearson_block(pooled, columns, min_firings)
        best_a.offer(r, np.arange(columns.start, columns.stop))
        best_b.offer_rows(columns, r.T)
        defined = r[~np.isnan(r)]
        n_defined += defined.size
        histogram += np.histogram(defined, bins=n_bins, range=(-1, 1))[0]
        kept.append(scipy.sparse.csr_array(np.where(r >= keep_above, r, 0.0)))
    return Correlation(
        names=pooled.names,
        n_tokens=pooled.n_tokens,
        corpora=corpora,
        firings=tuple(np.stack([sums[corpus].firings[side] for corpus in corpora]) for side in range(2)),
        testable=tuple(~np.isnan(_spread(pooled, side, min_firings)) for side in range(2)),
        best_r=(best_a.r, best_b.r),
        best=(best_a.partner, best_b.partner),
        kept=scipy.sparse.hstack(kept, format="csr"),
        histogram=histogram,
        n_undefined=d_a * d_b - n_defined,
    )


class _Best:
    """The best partners of each feature so far: larger r first, of equal ones the lower latent."""

    def __init__(self, d_sae: int, top_matches: int):
        self.r = np.full((d_sae, top_matches), np.nan)
        self.partner = np.full((d_sae, top_matches), -1, dtype=np.int64)

    def offer(
        self,
        r: Float[np.ndarray, "d_sae candidate"],
        candidates: Int[np.ndarray, " candidate"],
        rows: slice = slice(None),
    ) -> None:
        """Take in r of features `rows` with some candidates, whose latents ascend from call to call."""
        top_matches = self.r.shape[1]
        near = _nearest(r, min(top_matches, r.shape[1]))
        r = np.concatenate([self.r[rows], np.take_along_axis(r, near, axis=1)], axis=1)
        partner = np.concatenate([self.partner[rows], candidates[near]], axis=1)
        order = np.lexsort((partner, np.where(np.isnan(r), np.inf, -r)), axis=1)[:, :top_matches]
        self.r[rows] = np.take_along_axis(r, order, axis=1)
        self.partner[rows] = np.where(np.isnan(self.r[rows]), -1, np.take_along_axis(partner, order, axis=1))

    def offer_rows(self, rows: range, r: Float[np.ndarray, "row candidate"]) -> None:
        """Take in all candidates of some features at once."""
        self.offer(r, np.arange(r.shape[1]), slice(rows.start, rows.stop))


def _nearest(r: Float[np.ndarray, "row candidate"], n: int) -> Int[np.ndarray, "row n"]:
    """Columns of the n largest r of each row, ascending; of equal ones the lower columns, and NaN below everything."""
    below = np.where(np.isnan(r), np.inf, -r)
    last = np.partition(below, n - 1, axis=1)[:, n - 1 : n]
    nearer, level = below < last, below == last
    wanted = n - nearer.sum(axis=1, keepdims=True)
    return np.nonzero(nearer | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= wanted)))[1].reshape(len(r), n)


def save_sums(sums: Mapping[str, PairSums], path: Path | str) -> None:
    """Write the sums of one shard, all corpora, as one safetensors file."""
    tensors, corpora = {}, {}
    for corpus, found in sorted(sums.items()):
        for index, side in enumerate(SIDES):
            tensors[f"{corpus}/totals_{side}"] = found.totals[index]
            tensors[f"{corpus}/squares_{side}"] = found.squares[index]
            tensors[f"{corpus}/firings_{side}"] = found.firings[index].astype(np.int64)
        tensors |= _sparse_tensors(f"{corpus}/products", found.products)
        corpora[corpus] = {"n_tokens": found.n_tokens, "covered": sorted(found.covered)}
        names = found.names
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=encode_header({"names": names, "corpora": corpora}))


def load_sums(path: Path | str) -> dict[str, PairSums]:
    """Read what `save_sums` wrote.

    Raises:
        InputError: if the file is damaged.
    """
    header, tensors = _read(path, "file of correlation sums")
    return {
        corpus: PairSums(
            names=tuple(header["names"]),
            corpus=corpus,
            n_tokens=entry["n_tokens"],
            totals=tuple(tensors[f"{corpus}/totals_{side}"] for side in SIDES),
            squares=tuple(tensors[f"{corpus}/squares_{side}"] for side in SIDES),
            firings=tuple(tensors[f"{corpus}/firings_{side}"] for side in SIDES),
            products=_sparse_array(tensors, f"{corpus}/products"),
            covered=frozenset(entry["covered"]),
        )
        for corpus, entry in sorted(header["corpora"].items())
    }


def save_correlation(found: Correlation, path: Path | str) -> None:
    """Write a correlation as one safetensors file (docs/artifacts.md lists its tensors)."""
    tensors = {"histogram": found.histogram} | _sparse_tensors("kept", found.kept)
    for index, side in enumerate(SIDES):
        tensors |= {
            f"firings_{side}": found.firings[index],
            f"testable_{side}": found.testable[index],
            f"best_r_{side}": found.best_r[index],
            f"best_{side}": found.best[index],
        }
    header = {
        "names": found.names,
        "n_tokens": found.n_tokens,
        "corpora": found.corpora,
        "n_undefined": found.n_undefined,
    }
    with atomic_path(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
            temporary,
            metadata=encode_header(header),
        )


def load_correlation(path: Path | str) -> Correlation:
    """Read what `save_correlation` wrote.

    Raises:
        InputError: if the file is damaged.
    """
    header, tensors = _read(path, "correlation file")
    return Correlation(
        names=tuple(header["names"]),
        n_tokens=header["n_tokens"],
        corpora=header["corpora"],
        firings=tuple(tensors[f"firings_{side}"] for side in SIDES),
        testable=tuple(tensors[f"testable_{side}"] for side in SIDES),
        best_r=tuple(tensors[f"best_r_{side}"] for side in SIDES),
        best=tuple(tensors[f"best_{side}"] for side in SIDES),
        kept=_sparse_array(tensors, "kept"),
        histogram=tensors["histogram"],
        n_undefined=header["n_undefined"],
    )


def _read(path: Path | str, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and tensors of one of the files here."""
    try:
        with safe_open(path, framework="np") as file:
            return decode_header(file.metadata()), {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"'{path}' is not a whole {kind} ({error}); delete it and run again") from error


def _spread(sums: PairSums, side: int, min_firings: int) -> np.ndarray:
    """sqrt(n sum(x^2) - sum(x)^2) for each feature of a side; NaN where it does not vary or hardly fires."""
    total, square = sums.totals[side], sums.squares[side]
    variance = sums.n_tokens * square - total**2
    testable = (variance > MIN_VARIANCE * sums.n_tokens * square) & (sums.firings[side] >= min_firings)
    return np.sqrt(np.where(testable, variance, np.nan))


def _renamed(sums: PairSums, corpus: str) -> PairSums:
    return PairSums(**{**vars(sums), "corpus": corpus})


def _sparse_tensors(name: str, array: scipy.sparse.csr_array) -> dict[str, np.ndarray]:
    array.sort_indices()
    return {
        f"{name}/indptr": array.indptr.astype(np.int64),
        f"{name}/indices": array.indices.astype(np.int32),
        f"{name}/values": array.data.astype(np.float64),
        f"{name}/shape": np.array(array.shape, dtype=np.int64),
    }


def _sparse_array(tensors: Mapping[str, np.ndarray], name: str) -> scipy.sparse.csr_array:
    indptr, indices, values, shape = (tensors[f"{name}/{part}"] for part in ("indptr", "indices", "values", "shape"))
    return scipy.sparse.csr_array((values, indices, indptr), shape=tuple(shape))
