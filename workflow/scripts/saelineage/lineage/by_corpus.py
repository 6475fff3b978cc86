"""Shares by corpus: of the features that fire most on a corpus, those that are found on the other side.

A feature belongs to the corpus with the largest share of its tokens on which it fires, so each counts once, the numbers
add up to those of all corpora, and a corpus with more tokens in the probe gets no more features for it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from saelineage.correlations.matches import Correlation
from saelineage.lineage.matching import is_found
from saelineage.lineage.shares import Share, pooled, share

CountedSide = tuple[Correlation, int, Bool[np.ndarray, " d_sae"] | None]
"""A pair of SAEs, one of its sides, and the features of that side that count (None for all)."""


def main_corpus(correlation: Correlation, side: int) -> Int[np.ndarray, " d_sae"]:
    """The place in `correlation.corpora` of the corpus on which each feature of a side is densest, the first of equals.

    -1 for a feature that never fires.
    """
    densities = densities_by_corpus(correlation, side)
    return np.where(densities.any(axis=0), densities.argmax(axis=0), -1)


def densities_by_corpus(correlation: Correlation, side: int) -> Float[np.ndarray, "corpus d_sae"]:
    """The share of each corpus's tokens on which each feature of a side fires; 0 for a corpus without tokens."""
    n_tokens = np.array(list(correlation.n_tokens.values()))[:, None]
    return correlation.firings[side] / np.maximum(n_tokens, 1)


def shares_by_corpus(sides: Sequence[CountedSide], threshold: float) -> dict[str, Share]:
    """By corpus, the share of the testable features that fire most on it and are found, over several sides together.

    Splits and merges are included, so that the shares add up to `matching.matched_share`.

    Args:
        sides: of pairs over the same corpora.
        threshold: r at or above this is a match.
    """
    by_corpus: dict[str, list[Share]] = {}
    for correlation, side, among in sides:
        counted = correlation.testable[side] if among is None else correlation.testable[side] & among
        found, place = is_found(correlation, side, threshold), main_corpus(correlation, side)
        for number, corpus in enumerate(correlation.corpora):
            here = counted & (place == number)
            by_corpus.setdefault(corpus, []).append(share(int((here & found).sum()), int(here.sum())))
    return {corpus: pooled(shares) for corpus, shares in by_corpus.items()}
