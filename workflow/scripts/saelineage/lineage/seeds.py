"""Shares over SAE seeds: how much a share depends on the random seed of an SAE's training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

LEAST_SEEDS = 3
"""Least number of seeds for an interval: the spread of two values says next to nothing (t is 12.7)."""


class OverSeeds(NamedTuple):
    """A share by several seeds."""

    n: int
    """Seeds for which the share is defined."""
    mean: float | None
    least: float | None
    largest: float | None
    interval: tuple[float, float] | None
    """For the mean over endless seeds, by Student's t; None for fewer than `LEAST_SEEDS`."""


def over_seeds(shares: Sequence[float | None], level: float = 0.95) -> OverSeeds:
    """The mean of a share over SAE seeds, its least and largest value, and an interval.

    The interval is mean +- t(n - 1) s / sqrt(n) (Student 1908, Biometrika 6, 1-25), cut at 0 and 1. It takes seeds as
    independent draws, so of pairs of SAEs those should be given that have no SAE in common. It covers neither documents
    nor the training of the models.

    Args:
        shares: one for each seed, in [0, 1]; None where it is undefined, which is left out.
        level: the share of intervals that should hold the truth.
    """
    values = np.array([share for share in shares if share is not None], dtype=np.float64)
    n = len(values)
    if n == 0:
        return OverSeeds(0, None, None, None, None)
    mean, interval = float(values.mean()), None
    if n >= LEAST_SEEDS:
        half = float(scipy.special.stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(n))
        interval = (max(0.0, mean - half), min(1.0, mean + half))
    return OverSeeds(n, mean, float(values.min()), float(values.max()), interval)
