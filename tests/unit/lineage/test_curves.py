"""Shares at every threshold."""

import numpy as np
import pandas as pd
import pytest

from saelineage.lineage.curves import auc, best_r, curve_table, false_match_threshold, share_curve
from tests.unit.lineage.test_matching import TOY, correlation

NAN = float("nan")
R = np.array([0.9, 0.5, NAN, -0.2, 0.5])


def test_only_testable_features_have_a_best_r_undefined_without_a_partner():
    assert best_r(correlation(TOY), 0).tolist() == [0.9, 0.79]
    assert best_r(correlation(TOY), 1).tolist() == [0.79, 0.9, 0.8]
    nothing = correlation([[NAN] * 3] * 3)._replace(testable=(np.ones(3, dtype=bool), np.zeros(3, dtype=bool)))
    np.testing.assert_array_equal(best_r(nothing, 0), [NAN] * 3)
    assert best_r(nothing, 1).tolist() == []


def test_a_share_counts_features_at_or_above_the_threshold():
    thresholds = np.array([0.91, 0.9, 0.5, 0.51, 0.0, -0.2, -1.0])
    assert share_curve(R, thresholds).tolist() == [0, 1 / 5, 3 / 5, 1 / 5, 3 / 5, 4 / 5, 4 / 5]


def test_shares_of_no_feature_are_undefined():
    np.testing.assert_array_equal(share_curve(np.array([]), np.array([0.0, 0.5])), [NAN, NAN])
    assert np.isnan(auc(np.array([])))
    assert np.isnan(false_match_threshold(np.array([]), 0.1))


def test_the_area_under_the_curve_is_the_mean_of_r_above_zero():
    # 0.9 + 0.5 + 0 + 0 + 0.5 = 1.9
    assert auc(R) == pytest.approx(1.9 / 5)
    assert auc(np.ones(4)) == 1.0
    assert auc(np.array([NAN, -1.0])) == 0.0
    values = np.random.default_rng(0).uniform(-0.3, 1, 50)
    thresholds = np.linspace(0, 1, 20_001)
    assert auc(values) == pytest.approx(np.trapezoid(share_curve(values, thresholds), thresholds), abs=1e-4)


def test_the_false_match_threshold_is_the_next_number_above_the_first_match_too_many():
    # Up to 0.19 no feature may match: just above the largest. From 0.2 one in five: just above the two of 0.5, which
    # drop out together.
    for rate, above in ((0.0, 0.9), (0.19, 0.9), (0.2, 0.5), (0.4, 0.5)):
        threshold = false_match_threshold(R, rate)
        assert threshold == np.nextafter(above, 1)
        share, share_below = share_curve(R, np.array([threshold, np.nextafter(threshold, 0)]))
        assert share <= rate < share_below
    # 0.29 * 100 is 28.999999999999996, but 29 in 100 is a rate of 0.29.
    assert false_match_threshold(np.arange(100) / 100, 0.29) == np.nextafter(0.7, 1)


def test_false_match_thresholds_at_the_ends():
    # Three in five are at or above 0.
    assert false_match_threshold(R, 0.6) == 0.0
    assert false_match_threshold(R, 1.0) == 0.0
    assert false_match_threshold(np.array([NAN, NAN]), 0.0) == 0.0
    assert false_match_threshold(np.array([1.0, 1.0]), 0.5) > 1


def test_curves_are_stacked_in_one_table():
    table = curve_table({"edge": R, "null": np.array([0.1])}, np.array([0.0, 0.5]))
    expected = pd.DataFrame(
        {
            "name": ["edge", "edge", "null", "null"],
            "threshold": [0.0, 0.5, 0.0, 0.5],
            "share": [0.6, 0.6, 1.0, 0.0],
            "n": [5, 5, 1, 1],
        }
    )
    pd.testing.assert_frame_equal(table, expected)
    assert curve_table({}, np.array([0.5])).columns.tolist() == table.columns.tolist()
