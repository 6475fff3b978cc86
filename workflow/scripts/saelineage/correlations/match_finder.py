"""Find matches in one pass over the similarities of all pairs, a block of rows at a time.

The whole matrix is never in memory. The loops are compiled by numba (docs/decisions/0010).
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import no_type_check

import numpy as np
import scipy.sparse
from jaxtyping import Float
from numba import njit

from saelineage.correlations.matches import Matches


class MatchFinder:
    """Collects `Matches` from similarities whose rows come in ascending order."""

    def __init__(self, shape: tuple[int, int], *, top_matches: int, keep_above: float, n_bins: int, threads: int = 1):
        """Start without similarities.

        Args:
            shape: d_sae of both sides.
            top_matches: partners kept per feature.
            keep_above: every similarity at or above this is kept.
            n_bins: bins of the histogram.
            threads: the number of threads, which changes no bit of the result.
        """
        self.shape, self.keep_above, self.threads = shape, keep_above, threads
        best_shapes = [(d_sae, top_matches) for d_sae in shape]
        self._best = [np.full(best_shape, -np.inf) for best_shape in best_shapes]
        self._partners = (
            np.full(best_shapes[0], -1, dtype=np.int64),
            np.full(best_shapes[1], -1, dtype=np.int64),
        )
        self._edges = np.linspace(-1.0, 1.0, n_bins + 1)
        self._histogram, self._n_defined = np.zeros(n_bins, dtype=np.int64), 0
        self._kept: list[scipy.sparse.csr_array] = []

    def offer(self, first: int, similarities: Float[np.ndarray, "row d_sae_b"]) -> None:
        """Add the similarities of rows `first`, `first` + 1, ... with all columns; NaN where one is not defined."""
        n_rows, n_columns = similarities.shape
        rows, columns = parts(n_rows, self.threads), parts(n_columns, self.threads)
        with ThreadPoolExecutor(self.threads) as pool:
            for histogram, kept in pool.map(lambda part: self._scan_rows(first, similarities, *part), rows):
                self._histogram += histogram
                self._n_defined += int(histogram.sum())
                self._kept.append(kept)
            arguments = (similarities, first, self._best[1], self._partners[1])
            list(pool.map(lambda part: _scan_columns(*arguments, *part), columns))

    def result(self) -> Matches:
        """The matches in all rows offered."""
        a, b = (np.where(best == -np.inf, np.nan, best) for best in self._best)
        n_pairs = self.shape[0] * self.shape[1]
        kept = scipy.sparse.vstack(self._kept, format="csr")
        return Matches((a, b), self._partners, kept, self._histogram, n_pairs - self._n_defined)

    def _scan_rows(
        self, first: int, similarities: Float[np.ndarray, "row d_sae_b"], start: int, stop: int
    ) -> tuple[np.ndarray, scipy.sparse.csr_array]:
        rows = slice(first + start, first + stop)
        histogram, n_kept = np.zeros_like(self._histogram), np.zeros(stop - start + 1, dtype=np.int64)
        block = similarities[start:stop]
        _scan_rows(
            block, self._best[0][rows], self._partners[0][rows], self.keep_above, self._edges, histogram, n_kept[1:]
        )
        indptr = np.cumsum(n_kept)
        indices, values = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1])
        _copy_kept(block, self.keep_above, indptr, indices, values)
        return histogram, scipy.sparse.csr_array((values, indices, indptr), shape=block.shape)


def parts(n: int, threads: int) -> list[tuple[int, int]]:
    """Nonempty ranges of nearly equal length that cover `n` items, at most one per thread."""
    ends = np.linspace(0, n, min(threads, n) + 1).astype(int).tolist()
    return list(pairwise(ends))


@njit(nogil=True, cache=True)
@no_type_check
def _scan_rows(similarities, best, partners, keep_above, edges, histogram, n_kept):
    """Fill the histogram, the best partners of each row, and the number of similarities kept of each row."""
    n_bins, last = len(histogram), best.shape[1] - 1
    for row in range(similarities.shape[0]):
        for column in range(similarities.shape[1]):
            value = similarities[row, column]
            if np.isnan(value):
                continue
            place = min(int((value + 1.0) * n_bins / 2.0), n_bins - 1)
            if value < edges[place]:  # rounding may miss the bin by one; the edges decide, as in numpy.histogram
                place -= 1
            elif place < n_bins - 1 and value >= edges[place + 1]:
                place += 1
            histogram[place] += 1
            if value >= keep_above:
                n_kept[row] += 1
            if value > best[row, last]:
                _insert(best[row], partners[row], value, column)


@njit(nogil=True, cache=True)
@no_type_check
def _scan_columns(similarities, first, best, partners, start, stop):
    """Fill the best partners of columns `start` to `stop`."""
    last = best.shape[1] - 1
    for row in range(similarities.shape[0]):
        for column in range(start, stop):
            if similarities[row, column] > best[column, last]:
                _insert(best[column], partners[column], similarities[row, column], first + row)


@njit(nogil=True, cache=True)
@no_type_check
def _insert(best, partners, value, partner):
    """Insert a value into a descending list, behind its equals; the last value drops out."""
    place = len(best) - 1
    while place > 0 and value > best[place - 1]:
        best[place], partners[place] = best[place - 1], partners[place - 1]
        place -= 1
    best[place], partners[place] = value, partner


@njit(nogil=True, cache=True)
@no_type_check
def _copy_kept(similarities, keep_above, indptr, indices, values):
    """Copy the similarities at or above `keep_above` as compressed sparse rows."""
    for row in range(similarities.shape[0]):
        place = indptr[row]
        if indptr[row + 1] == place:
            continue
        for column in range(similarities.shape[1]):
            if similarities[row, column] >= keep_above:
                indices[place], values[place] = column, similarities[row, column]
                place += 1
