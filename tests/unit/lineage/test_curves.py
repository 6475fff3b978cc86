"""Shares at every threshold."""

import numpy as np
import pandas as pd
import pytest

from saelineage.lineage.curves import auc, best_r, curve_table, false_match_threshold, share_curve
from tests.unit.lineage.test_verdicts import TOY, correlation

NAN = float("nan")
R = np.array([0.9, 0.5, NAN, -0.2, 0.5])


def test_only_testable_features_have_a_best_r():
    assert best_r(correlation(TOY), 0).tolist() == [0.9, 0.79]
    assert best_r(correlation(TOY), 1).tolist() == [0.79, 0.9, 0.8]


def test_a_testable_feature_without_a_partner_has_an_undefined_best_r():
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


def test_the_area_is_the_mean_of_what_is_above_zero():
    # 0.9 + 0.5 + 0 + 0 + 0.5 = 1.9
    assert auc(R) == pytest.approx(1.9 / 5)
    assert auc(np.ones(4)) == 1.0
    assert auc(np.array([NAN, -1.0])) == 0.0


def test_the_area_is_that_under_the_curve():
    values = np.random.default_rng(0).uniform(-0.3, 1, 50)
    thresholds = np.linspace(0, 1, 20_001)
    assert auc(values) == pytest.approx(np.trapezoid(share_curve(values, thresholds), thresholds), abs=1e-4)


@pytest.mark.parametrize(
    ("rate", "above"),
    [
        # Nobody may have a match: just above the largest.
        (0.0, 0.9),
        (0.19, 0.9),
        # One in five: just above the two of 0.5, which fall out together.
        (0.2, 0.5),
        (0.4, 0.5),
    ],
)
def test_the_false_match_threshold_is_the_next_number_above_the_first_match_too_many(rate, above):
    found = false_match_threshold(R, rate)
    assert found == np.nextafter(above, 1)
    share, below = share_curve(R, np.array([found, np.nextafter(found, 0)]))
    assert share <= rate < below


def test_a_share_that_is_never_above_the_rate_needs_no_threshold():
    # Three in five are at or above 0.
    assert false_match_threshold(R, 0.6) == 0.0
    assert false_match_threshold(R, 1.0) == 0.0
    assert false_match_threshold(np.array([NAN, NAN]), 0.0) == 0.0


def test_rates_are_counted_not_multiplied():
    # 0.29 * 100 is 28.999999999999996, but 29 in 100 is a rate of 0.29.
    values = np.arange(100) / 100
    assert false_match_threshold(values, 0.29) == np.nextafter(0.7, 1)


def test_perfect_false_matches_leave_no_threshold_up_to_one():
    assert false_match_threshold(np.array([1.0, 1.0]), 0.5) > 1


def test_curves_stand_one_below_the_other():
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
