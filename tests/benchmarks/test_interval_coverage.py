"""The benchmark of intervals over documents, in small."""

import numpy as np
from benchmarks import interval_coverage
from benchmarks.interval_coverage import coverage, drawn_sums

from saelineage.correlations.bootstrap import resampled_r


def test_drawn_documents_have_the_r_that_they_are_drawn_with():
    r = np.array([0.3, 0.8, 1.0])
    sums = drawn_sums(r, 4000, "unlike", np.random.default_rng(0))
    found = resampled_r(sums, np.ones((1, 4000), dtype=np.int64))[:, 0]
    # 24,000 firings: a standard error of about (1 - r^2) / sqrt(24,000 / 4), as documents are unlike.
    assert np.abs(found - r).max() < 0.03
    assert found[2] > 1 - 1e-9


def test_shares_near_the_threshold_are_within_their_intervals_which_hold_the_expected_share(monkeypatch):
    monkeypatch.setattr(interval_coverage, "N_PAIRS", 100)
    of_shares, of_r = coverage("all at 0.78", 20, "alike", 40)
    # 0.95 of 40 has a standard error of 0.034; half of the earlier intervals missed their own share.
    assert of_shares["before_own"] < 0.9
    assert of_shares["after_own"] == 1.0
    assert of_shares["after_expected"] >= 0.85
    assert of_shares["bounds_limit"] > of_shares["after_limit"]
    assert of_r["after_truth"] >= 0.92
    assert of_r["after_own"] == 1.0
