"""Shares: a count over a number, with its interval."""

from collections.abc import Iterable
from math import sqrt
from typing import NamedTuple

Z_95 = 1.959963984540054


class Share(NamedTuple):
    """A share of features, their number, and its interval."""

    value: float | None
    """None where there are no features to take a share of."""
    n: int
    interval: tuple[float, float] | None
    """Wilson's 95 % interval.

    It takes features as independent draws, and does not cover the choice of corpus, model or SAE seed.
    """


def share(count: float | int, n: int) -> Share:
    """count / n with Wilson's score interval (Wilson 1927, JASA 22, 209-212).

    A count need not be whole: it may be a sum of shares, each of which counts as one draw.
    """
    if n == 0:
        return Share(None, 0, None)
    p, z2 = count / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Share(p, n, (max(0.0, centre - half), min(1.0, centre + half)))


def pooled(shares: Iterable[Share]) -> Share:
    """The share among the features of several groups together."""
    groups = list(shares)
    return share(round(sum(group.n * (group.value or 0) for group in groups)), sum(group.n for group in groups))
