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

PIECE = 64
"""Similarities of a row that are looked at together: few enough that most pieces hold none that stands out."""


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
        rows, n_columns = slice(first + start, first + stop), similarities.shape[1]
        histogram, indptr = np.zeros_like(self._histogram), np.zeros(stop - start + 1, dtype=np.int64)
        best, partners = self._best[0][rows], self._partners[0][rows]
        block = similarities[start:stop]
        indices, values = _scan_rows(block, best, partners, self.keep_above, self._edges, histogram, indptr)
        return histogram, scipy.sparse.csr_array((values, indices, indptr), shape=(stop - start, n_columns))


def parts(n: int, threads: int) -> list[tuple[int, int]]:
    """Nonempty ranges of nearly equal length that cover `n` items, at most one per thread."""
    ends = np.linspace(0, n, min(threads, n) + 1).astype(int).tolist()
    return list(pairwise(ends))


@njit(nogil=True, cache=True)
@no_type_check
def _scan_rows(similarities, best, partners, keep_above, edges, histogram, indptr):
    """Fill the histogram and the best partners of each row, and return the similarities kept as sparse rows.

    Most similarities lie in the two bins around 0, are not kept and are nobody's best. Those of a piece of a row are
    counted without branches, which processors do several at a time; only pieces with others are looked at one by one.
    """
    n_columns, last, n_kept = similarities.shape[1], best.shape[1] - 1, 0
    below = max(len(histogram) // 2 - 1, 0)
    above = min(below + 1, len(histogram) - 1)
    low, middle, high = edges[below], edges[below + 1], edges[above + 1]
    indices, values = np.empty(n_columns, np.int32), np.empty(n_columns)
    for row in range(similarities.shape[0]):
        if n_kept + n_columns > len(values):
            indices, values = _grown(indices, n_kept, n_columns), _grown(values, n_kept, n_columns)
        bound = min(np.nextafter(best[row, last], np.inf), keep_above)
        for start in range(0, n_columns, PIECE):
            piece = similarities[row, start : start + PIECE]
            n_low, n_middle, n_high, n_undefined, n_large = 0, 0, 0, 0, 0
            for place in range(len(piece)):
                value = piece[place]
                n_low += value >= low
                n_middle += value >= middle
                n_high += value >= high
                n_undefined += value != value
                n_large += value >= bound
            if n_large == 0 and n_high == 0 and n_low + n_undefined == len(piece):
                histogram[below] += n_low - n_middle
                histogram[above] += n_middle
                continue
            for place in range(len(piece)):
                value = piece[place]
                if value != value:
                    continue
                histogram[_bin(value, edges)] += 1
                if value > best[row, last]:
                    _insert(best[row], partners[row], value, start + place)
                if value >= keep_above:
                    indices[n_kept], values[n_kept] = start + place, value
                    n_kept += 1
            bound = min(np.nextafter(best[row, last], np.inf), keep_above)
        indptr[row + 1] = n_kept
    return indices[:n_kept].copy(), values[:n_kept].copy()


@njit(nogil=True, cache=True)
@no_type_check
def _bin(value, edges):
    """The bin of a similarity, as in numpy.histogram."""
    n_bins = len(edges) - 1
    place = min(int((value + 1.0) * n_bins / 2.0), n_bins - 1)
    if value < edges[place]:  # rounding may miss the bin by one; the edges decide
        return place - 1
    if place < n_bins - 1 and value >= edges[place + 1]:
        return place + 1
    return place


@njit(nogil=True, cache=True)
@no_type_check
def _grown(array, n_used, n_more):
    """A longer array with the same first items."""
    longer = np.empty(2 * (n_used + n_more), array.dtype)
    longer[:n_used] = array[:n_used]
    return longer


@njit(nogil=True, cache=True)
@no_type_check
def _scan_columns(similarities, first, best, partners, start, stop):
    """Fill the best partners of columns `start` to `stop`, piece by piece as in `_scan_rows`."""
    last = best.shape[1] - 1
    bounds = best[:, last].copy()
    for row in range(similarities.shape[0]):
        for first_of_piece in range(start, stop, PIECE):
            n_larger = 0
            for column in range(first_of_piece, min(first_of_piece + PIECE, stop)):
                n_larger += similarities[row, column] > bounds[column]
            if n_larger == 0:
                continue
            for column in range(first_of_piece, min(first_of_piece + PIECE, stop)):
                if similarities[row, column] > bounds[column]:
                    _insert(best[column], partners[column], similarities[row, column], first + row)
                    bounds[column] = best[column, last]


@njit(nogil=True, cache=True)
@no_type_check
def _insert(best, partners, value, partner):
    """Insert a value into a descending list, behind its equals; the last value drops out."""
    place = len(best) - 1
    while place > 0 and value > best[place - 1]:
        best[place], partners[place] = best[place - 1], partners[place - 1]
        place -= 1
    best[place], partners[place] = value, partner
