"""Curves: the share of features with a match, at every threshold instead of a single one.

The curves of an edge, of its controls and of seeds, drawn together, show at which thresholds a share is informative.
"""

from collections.abc import Mapping
from math import inf, nan

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelineage.correlations.matches import Correlation
from saelineage.lineage.matching import best_matches


def best_r(correlation: Correlation, side: int) -> Float[np.ndarray, " feature"]:
    """The largest r of each testable feature of a side; NaN where no partner is testable."""
    return best_matches(correlation, side)[0][correlation.testable[side]]


def share_curve(
    best_r: Float[np.ndarray, " feature"], thresholds: Float[np.ndarray, " threshold"]
) -> Float[np.ndarray, " threshold"]:
    """The share of features whose r is at or above each threshold; NaN without any feature.

    Args:
        best_r: of testable features; NaN (no partner) is no match at any threshold.
        thresholds: in any order.
    """
    if not len(best_r):
        return np.full(len(thresholds), np.nan)
    ascending = np.sort(best_r[~np.isnan(best_r)])
    return (len(ascending) - np.searchsorted(ascending, thresholds, side="left")) / len(best_r)


def auc(best_r: Float[np.ndarray, " feature"]) -> float:
    """Area under the share over thresholds from 0 to 1: the mean of max(r, 0), in [0, 1]; NaN without any feature.

    A feature adds 1 / n to the share at all thresholds up to its r, hence r / n to the area, and nothing where r is
    negative or NaN (no partner).
    """
    return float(np.fmax(best_r, 0.0).mean()) if len(best_r) else nan


def false_match_threshold(random_r: Float[np.ndarray, " feature"], rate: float) -> float:
    """The least threshold in [0, inf) at which at most a share `rate` of a control's features have a match.

    A match is r at or above the threshold, so the threshold is the next number above the r of the first feature too
    many. Features of equal r drop out together. The threshold is above 1 where none in [0, 1] suffices.

    Args:
        random_r: best r of each feature against a random control; NaN (no partner) is no match.
        rate: in [0, 1].

    Returns:
        The threshold; 0.0 where the share never exceeds the rate; NaN without any feature.
    """
    n = len(random_r)
    if n == 0:
        return nan
    n_allowed = int((np.arange(1, n + 1) / n <= rate).sum())
    if n_allowed == n:
        return 0.0
    descending = np.sort(np.where(np.isnan(random_r), -inf, random_r))[::-1]
    first_too_many = descending[n_allowed]
    return float(np.nextafter(first_too_many, inf)) if first_too_many >= 0 else 0.0


def curve_table(
    named: Mapping[str, Float[np.ndarray, " _"]], thresholds: Float[np.ndarray, " threshold"]
) -> pd.DataFrame:
    """Stack curves into one long table.

    Args:
        named: best r of testable features, by the curve's name.
        thresholds: the same for every curve.

    Returns:
        Columns `name`, `threshold`, `share` and `n`, the number of features that the share is taken over.
    """
    curves = [
        pd.DataFrame({"name": name, "threshold": thresholds, "share": share_curve(r, thresholds), "n": len(r)})
        for name, r in named.items()
    ]
    columns = ["name", "threshold", "share", "n"]
    return pd.concat(curves, ignore_index=True)[columns] if curves else pd.DataFrame(columns=columns)
