"""Shares over SAE seeds."""

import numpy as np
import pytest

from saelineage.lineage.seeds import OverSeeds, over_seeds


def test_the_interval_over_three_seeds_by_hand():
    # Mean 0.5, standard deviation 0.1, t(0.975; 2) = 4.302653: 0.5 +- 4.302653 x 0.1 / sqrt(3).
    found = over_seeds([0.4, 0.5, 0.6])
    assert found[:4] == (3, pytest.approx(0.5), 0.4, 0.6)
    assert found.interval == pytest.approx((0.5 - 0.2484138, 0.5 + 0.2484138), abs=1e-6)


def test_two_seeds_have_a_least_and_a_largest_share_and_no_interval():
    assert over_seeds([0.5, None, 0.25]) == OverSeeds(2, 0.375, 0.25, 0.5, None)
    assert over_seeds([None, None]) == over_seeds([]) == OverSeeds(0, None, None, None, None)


def test_an_interval_of_shares_ends_at_0_and_1():
    assert over_seeds([0.0, 0.1, 0.02]).interval[0] == 0.0
    assert over_seeds([1.0, 0.9, 0.98]).interval[1] == 1.0
    assert over_seeds([0.5, 0.5, 0.5]).interval == (0.5, 0.5)


def test_intervals_over_seeds_hold_the_mean_as_often_as_they_say():
    drawn = np.random.default_rng(0).normal(0.5, 0.05, (2000, 4))
    held = [low <= 0.5 <= high for low, high in (over_seeds(list(shares)).interval for shares in drawn)]
    # The standard error of 0.95 over 2,000 draws is 0.005.
    assert abs(np.mean(held) - 0.95) < 0.02
