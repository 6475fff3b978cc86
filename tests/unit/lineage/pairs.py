"""Small correlations of two SAEs of four latents each."""

import numpy as np

from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import Correlation

NAN = float("nan")


def correlation(r: list[list[float]], names: tuple[str, str]) -> Correlation:
    """A 4 x 4 matrix of r of features that fire 50 times; NaN rows and columns are untestable features."""
    r = np.array(r)
    finder = MatchFinder(r.shape, top_matches=2, keep_above=0.3, n_bins=4)
    finder.offer(0, r)
    return Correlation(
        names=names,
        n_tokens={"words": 1000},
        firings=(np.full((1, 4), 50), np.full((1, 4), 50)),
        testable=(~np.isnan(r).all(axis=1), ~np.isnan(r).all(axis=0)),
        pearson=finder.result(),
        by_corpus={},
        one_to_one=np.array([0, 1, 2, -1]),
    )


def diagonal(*values: float) -> list[list[float]]:
    """Features match those of equal number, and no others; NaN makes both untestable."""
    r = np.full((4, 4), 0.1)
    np.fill_diagonal(r, values)
    untestable = np.isnan(values)
    r[untestable], r[:, untestable] = NAN, NAN
    return r.tolist()
