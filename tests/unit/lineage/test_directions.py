"""Directions and strengths of features and of their matches."""

import numpy as np
import pandas as pd
import pytest

from saelineage.correlations.matches import Combined
from saelineage.correlations.pearson import correlate
from saelineage.lineage.directions import (
    add_directions,
    match_cosines,
    parts_cosines,
    spreads,
    strengths,
    unit_directions,
)
from saelineage.lineage.matching import edge_table
from tests.unit.lineage.pairs import correlation, diagonal

SUMS = {
    "totals": (np.array([100.0, 50.0, 100.0, 0.0]), np.array([300.0, 100.0, 25.0, 50.0])),
    "squares": (np.array([200.0, 50.0, 100.0, 0.0]), np.array([1800.0, 200.0, 12.5, 100.0])),
}
"""Of four features of each side, over 1,000 tokens."""


def test_cosines_are_those_of_a_feature_and_its_match():
    own = unit_directions(np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=np.float32))
    other = unit_directions(np.array([[3.0, 4.0], [0.0, -1.0]], dtype=np.float32))
    # (2, 0) and (3, 4): 0.6. (0, 3) and (0, -1): -1. A row of zeros has no direction.
    np.testing.assert_allclose(match_cosines(own, other, np.array([0, 1, 0])), [0.6, -1.0, np.nan], atol=1e-7)
    assert np.isnan(match_cosines(own, other, np.array([-1, -1, -1]))).all()


def test_models_of_different_widths_have_no_cosines():
    assert np.isnan(match_cosines(np.ones((2, 3)), np.ones((2, 4)), np.array([0, 1]))).all()
    assert match_cosines(np.eye(2), np.eye(2), np.array([0, 0])) == pytest.approx([1.0, 0.0])


def test_strengths_and_spreads_by_hand():
    pair = correlation(diagonal(0.9, 0.9, 0.9, 0.9), ("a", "b"))
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert np.isnan([strengths(pair, 0, rows), spreads(pair, 0, rows)]).all()
    summed = pair._replace(**SUMS)
    # 200 / 100 times 5; 50 / 50; no direction; no activation.
    assert strengths(summed, 0, rows) == pytest.approx([10, 1, np.nan, np.nan], nan_ok=True)
    # sqrt(0.2 - 0.1^2) times 5; sqrt(0.05 - 0.05^2).
    expected = [5 * np.sqrt(0.19), np.sqrt(0.0475), np.nan, np.nan]
    assert spreads(summed, 0, rows) == pytest.approx(expected, nan_ok=True)


def test_weak_firings_leave_a_strength_as_it_is():
    # 10 tokens of 2, and 90 of 0.01: a mean of 0.209 where it fires, and 40.009 / 20.9 = 1.914 over what it writes.
    latents = np.concatenate([np.full(10, 2.0), np.full(90, 0.01), np.zeros(900)])[:, None]
    pair = correlate(latents, 3 * latents, progress=False)
    assert strengths(pair, 0, np.ones((1, 1))) == pytest.approx([40.009 / 20.9], rel=1e-6)
    ratios = add_directions(edge_table(pair, 0.8), pair, [np.ones((1, 1)), 2 * np.ones((1, 1))])
    assert ratios[["strength_ratio", "spread_ratio"]].to_numpy() == pytest.approx(np.full((2, 2), 6.0))


def test_strength_ratios_are_the_child_s_over_the_parent_s_on_both_sides():
    pair = correlation(diagonal(0.9, 0.9, 0.9, np.nan), ("a", "b"))._replace(**SUMS)
    table = add_directions(edge_table(pair, 0.8), pair, [np.eye(4), 2 * np.eye(4)])
    # 2 x 6 / 2, 2 x 2 / 1, 2 x 0.5 / 1; the last is untestable.
    ratios = [6, 4, 1, np.nan]
    assert table["strength_ratio"].tolist() == pytest.approx([*ratios, *ratios], nan_ok=True)
    assert table["cosine"].tolist() == pytest.approx([1, 1, 1, np.nan] * 2, nan_ok=True)
    assert table["parts_cosine"].isna().all()


def test_a_whole_is_compared_with_all_that_its_parts_write():
    whole_of = (np.full(4, -1), np.array([2, 2, -1, -1]))
    pair = correlation(diagonal(0.9, 0.9, 0.9, 0.9), ("a", "b"))
    pair = pair._replace(combined=Combined((np.full(4, np.nan),) * 2, whole_of), **SUMS)
    own = unit_directions(np.array([[1.0, 0], [1, 0], [0, 5], [1, 0]]))
    rows = np.array([[1.0, 0.0], [0.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    # 300 (1, 0) + 100 (0, 4) = (300, 400): a cosine of 0.8 with (0, 1).
    found = parts_cosines(pair, 0, own, rows)
    assert found.tolist() == pytest.approx([np.nan, np.nan, 0.8, np.nan], nan_ok=True)
    assert np.isnan(parts_cosines(pair, 1, own, rows)).all()
    for missing in (pair._replace(totals=None), pair._replace(combined=None)):
        assert np.isnan(parts_cosines(missing, 0, own, rows)).all()
    assert np.isnan(parts_cosines(pair, 0, own, np.ones((4, 3)))).all()
    assert isinstance(add_directions(edge_table(pair, 0.8), pair, [own, rows]), pd.DataFrame)
