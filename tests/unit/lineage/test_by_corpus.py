"""Shares by corpus."""

import numpy as np
import pytest

from saelineage.correlations.matches import Correlation
from saelineage.lineage.by_corpus import main_corpus, shares_by_corpus
from saelineage.lineage.matching import matched_share
from tests.unit.lineage.pairs import NAN, correlation, diagonal


def of_two_corpora(*r: float) -> Correlation:
    """Features match those of equal number; 1,000 tokens of Lua and 100 of stories."""
    pair = correlation(diagonal(*r), ("a", "b"))
    firings = np.array([[50, 9, 0, 20], [4, 2, 7, 2]])
    return pair._replace(n_tokens={"lua": 1000, "stories": 100}, firings=(firings, firings[:, ::-1]))


def test_a_feature_belongs_to_the_corpus_on_which_it_is_densest():
    pair = of_two_corpora(0.9, 0.9, 0.5, NAN)
    # 5 % and 4 %; 0.9 % and 2 %, though more of its firings are on Lua; none and 7 %; 2 % and 2 %, the first.
    assert main_corpus(pair, 0).tolist() == [0, 1, 1, 0]
    silent = pair._replace(firings=(np.zeros((2, 4), dtype=int), pair.firings[1]))
    assert main_corpus(silent, 0).tolist() == [-1] * 4


def test_shares_by_corpus_add_up_to_that_of_all():
    pair = of_two_corpora(0.9, 0.9, 0.5, NAN)
    shares = shares_by_corpus([(pair, 0, None)], 0.8)
    # Of Lua's two features one is testable, and found; of two of stories one is.
    assert {corpus: (found.value, found.n) for corpus, found in shares.items()} == {
        "lua": (1.0, 1),
        "stories": (0.5, 2),
    }
    together = matched_share(pair, 0, 0.8)
    assert sum(found.n for found in shares.values()) == together.n
    assert sum(found.n * found.value for found in shares.values()) == pytest.approx(together.n * together.value)


def test_only_features_that_count_are_counted_over_all_sides():
    pair = of_two_corpora(0.9, 0.9, 0.5, NAN)
    first, all_but_first = np.arange(4) == 0, np.arange(4) > 0
    # On side 1 the firings are in reverse: features 1 and 2 are of stories, 0 of Lua.
    shares = shares_by_corpus([(pair, 0, first), (pair, 1, all_but_first)], 0.8)
    assert {corpus: (found.value, found.n) for corpus, found in shares.items()} == {
        "lua": (1.0, 1),
        "stories": (0.5, 2),
    }
    assert shares_by_corpus([], 0.8) == {}
