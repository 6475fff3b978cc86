"""Methods that keep some of the entries of the parents' differences from a base (task vectors), and add these up.

A method is a way of keeping entries and a way of adding up. All work on blocks of rows.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

LOW_BITS = 15
"""Bits of a magnitude that the first pass over a vector leaves out; 16 remain."""

Blocks = Callable[[], Iterable[Tensor]]
"""Yields the blocks of a vector in their order, as often as it is called."""


class Smallest(NamedTuple):
    """The smallest magnitude of the n largest entries of a vector."""

    bits: int
    """As the bits of a float32 number; magnitudes sort like these."""
    n_equal: int
    """Number of entries of just this magnitude that are among the n: the first ones."""


class Largest:
    """Finds the n largest entries by magnitude of a vector that comes in blocks; of equal ones the first are kept."""

    def __init__(self, blocks: Blocks, n: int):
        """Find the smallest of the n, in two passes over the vector.

        Args:
            blocks: the vector.
            n: number of entries to keep, at most as many as there are.
        """
        self._smallest = _smallest_of_largest(blocks, n) if n > 0 else Smallest((1 << 31) - 1, 0)
        self._n_equal = self._smallest.n_equal

    def next(self, block: Tensor) -> Bool[Tensor, " *block"]:
        """Mask of the entries of the next block that are kept. Blocks come in their order, each once."""
        bits = _magnitude_bits(block)
        kept = bits > self._smallest.bits
        if self._n_equal:
            equal = bits == self._smallest.bits
            if (n := int(equal.sum())) > self._n_equal:
                equal &= (equal.flatten().cumsum(0) <= self._n_equal).view(equal.shape)
                n = self._n_equal
            self._n_equal -= n
            kept |= equal
        return kept


def _magnitude_bits(block: Tensor) -> Tensor:
    return block.float().abs().contiguous().view(torch.int32)


def _smallest_of_largest(blocks: Blocks, n: int) -> Smallest:
    counts = torch.zeros(1 << 16, dtype=torch.int64)
    for block in blocks():
        counts += torch.bincount((_magnitude_bits(block) >> LOW_BITS).flatten(), minlength=1 << 16)
    high, n_of_bin = _bin_of(counts, n)
    low_counts = torch.zeros(1 << LOW_BITS, dtype=torch.int64)
    for block in blocks():
        bits = _magnitude_bits(block)
        inside = bits[(bits >> LOW_BITS) == high]
        low_counts += torch.bincount(inside & ((1 << LOW_BITS) - 1), minlength=1 << LOW_BITS)
    low, n_equal = _bin_of(low_counts, n_of_bin)
    return Smallest((high << LOW_BITS) | low, n_equal)


def _bin_of(counts: Tensor, n: int) -> tuple[int, int]:
    """The bin that holds the n-th entry from above, and how many of the n are in it."""
    from_above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, n))
    before = int(from_above[place - 1]) if place else 0
    return len(counts) - 1 - place, n - before


def generator_of(seed: int, parent: str, tensor: str) -> np.random.Generator:
    """Random numbers that follow from a seed and two names alone, so that no order of work changes them."""
    key = hashlib.sha256(f"{seed}\n{parent}\n{tensor}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))


def drawn(block: Tensor, density: float, random: np.random.Generator) -> Bool[Tensor, " *block"]:
    """Mask that keeps each entry with probability `density` (DARE, arXiv 2311.03099, equation 1)."""
    if density >= 1:
        return torch.ones(block.shape, dtype=torch.bool)
    return torch.from_numpy(random.random(block.numel(), np.float32) < density).view(block.shape)


def breadcrumbs(rows: Float[Tensor, "row entry"], density: float, gamma: float) -> Bool[Tensor, "row entry"]:
    """Mask that leaves out the largest entries of each row and keeps the next ones (arXiv 2312.06795, section 3).

    Args:
        rows: differences from the base.
        density: share of a row that is kept.
        gamma: share of a row, the largest by magnitude, that is left out. If `density` and `gamma` are more than all
            entries, fewer of the largest are left out.
    """
    n = rows.shape[1]
    n_kept, n_top = kept_and_left_out(n, density, gamma)
    order = rows.float().abs().argsort(dim=1, descending=True, stable=True)[:, n_top : n_top + n_kept]
    return torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, order, torch.ones(order.shape, dtype=torch.bool))


def kept_and_left_out(n: int, density: float, gamma: float) -> tuple[int, int]:
    """How many of n entries breadcrumbs keep, and how many of the largest they leave out."""
    n_kept = int(density * n)
    return n_kept, min(int(gamma * n), n - n_kept)


def n_of(n: int, density: float) -> int:
    """How many of n entries a share is: rounded down, but at least one of a share above zero."""
    return min(n, max(1, int(density * n))) if density > 0 and n else 0


def added(differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of weight x difference."""
    total = torch.zeros_like(differences[0])
    for difference, weight in zip(differences, weights, strict=True):
        total.add_(difference, alpha=weight)
    return total


def elected(differences: Sequence[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    """Add up the differences that have the sign of their sum, entry by entry (TIES, arXiv 2306.01708, section 3.1).

    Args:
        differences: of each parent, zero where they were left out.
        weights: of the parents.
        normalize: divide by the summed weights of those that were added, as TIES does.
    """
    positive = added(differences, weights) >= 0
    total, divisor = torch.zeros_like(differences[0]), torch.zeros_like(differences[0])
    for difference, weight in zip(differences, weights, strict=True):
        weighted = difference * weight
        agrees = torch.where(positive, weighted > 0, weighted < 0)
        total += weighted * agrees
        divisor.add_(agrees, alpha=weight)
    return total / torch.where(divisor == 0, 1.0, divisor) if normalize else total
