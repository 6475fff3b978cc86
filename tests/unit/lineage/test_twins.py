"""An edge beside a model in the child's place: lost there too, new there too, and what is left."""

import numpy as np
import pandas as pd

from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import Correlation
from saelineage.lineage.shares import share
from saelineage.lineage.twins import Found, compare, found_in

NAN = float("nan")
VERDICTS = {"P": "persists", "D": "disappears", "I": "inherited", "E": "emerges", "U": "untestable"}


def edge(parent: str, child: str, identified: list[int], headline: list[int]) -> pd.DataFrame:
    """An edge's table: a letter for the study's verdict on each feature, and rows that are identified or headlines."""
    n = len(parent) + len(child)
    return pd.DataFrame(
        {
            "side": ["parent"] * len(parent) + ["child"] * len(child),
            "study_verdict": [VERDICTS[letter] for letter in parent + child],
            "identified": np.isin(np.arange(n), identified),
            "headline": np.isin(np.arange(n), headline),
        }
    )


def found(marks: str) -> Found:
    """`+` is found, `-` is not, `?` is untestable."""
    marked = np.array(list(marks))
    return Found(marked != "?", marked == "+")


EDGE = edge("PPDDDDU", "IEEEEU", identified=[0, 2, 3, 8, 9], headline=[2, 9])
#                 PPDDDDU: the twin keeps a persisting one and a lost one, and loses three; one is untestable in it
OF_PARENT = found("+---+-?")
#                IEEEEU: the twin has two of the new ones, and one is untestable in it
OF_CHILD = found("++--?+")


def test_what_is_lost_in_the_child_is_counted_among_features_that_are_testable_in_the_twin():
    figures = compare(EDGE, OF_PARENT, OF_CHILD)["all"]
    # Of six testable features the twin has two; of the child's four lost ones it lacks three.
    assert (figures["persist_share"], figures["persist_share_n"]) == (2 / 6, 6)
    assert (figures["lost_too"], figures["lost_too_n"], figures["lost_beyond"]) == (3 / 4, 4, 1)
    assert figures["lost_too_interval"] == list(share(3, 4).interval)


def test_what_is_new_in_the_child_is_counted_the_same_way():
    figures = compare(EDGE, OF_PARENT, OF_CHILD)["all"]
    # Three new features are testable in the twin, one of which it has.
    assert (figures["new_too"], figures["new_too_n"], figures["new_beyond"]) == (1 / 3, 3, 2)


def test_identified_features_and_headlines_have_figures_of_their_own():
    groups = compare(EDGE, OF_PARENT, OF_CHILD)
    assert list(groups) == ["identified", "headline", "all"]
    identified, headline = groups["identified"], groups["headline"]
    assert (identified["persist_share"], identified["persist_share_n"]) == (1 / 3, 3)
    assert (identified["lost_too"], identified["lost_too_n"], identified["lost_beyond"]) == (1.0, 2, 0)
    assert (identified["new_too"], identified["new_too_n"], identified["new_beyond"]) == (0.5, 2, 1)
    assert (headline["lost_too"], headline["lost_too_n"]) == (1.0, 1)
    assert (headline["new_too"], headline["new_too_n"], headline["new_beyond"]) == (0.0, 1, 1)


def test_a_twin_that_is_the_child_loses_the_same_and_has_all_that_is_new():
    figures = compare(EDGE, found("++----?"), found("+++++?"))["all"]
    assert (figures["lost_too"], figures["lost_beyond"]) == (1.0, 0)
    assert (figures["new_too"], figures["new_beyond"]) == (1.0, 0)
    assert figures["persist_share"] == 2 / 6


def test_without_lost_or_new_features_there_is_no_share():
    figures = compare(edge("PP", "II", [], []), found("+-"), found("+-"))
    assert (figures["all"]["lost_too"], figures["all"]["lost_too_n"], figures["all"]["lost_too_interval"]) == (
        None,
        0,
        None,
    )
    assert (figures["all"]["new_too"], figures["identified"]["persist_share"]) == (None, None)


def test_features_are_searched_for_in_the_other_sae_of_a_pair_on_whichever_side():
    r = np.array([[0.9, 0.95, 0.1], [0.1, 0.5, 0.1], [NAN, NAN, NAN]])  # the third of side 0 is untestable
    finder = MatchFinder(r.shape, top_matches=2, keep_above=0.3, n_bins=4)
    finder.offer(0, r)
    pair = Correlation(
        names=("lua.a", "twin.b"),
        n_tokens={"words": 1000},
        firings=(np.full((1, 3), 50), np.full((1, 3), 50)),
        testable=(np.array([True, True, False]), np.array([True, True, True])),
        pearson=finder.result(),
        by_corpus={},
        one_to_one=np.array([0, 1, -1]),
        jaccard=finder.result(),
    )
    assert found_in(pair, "lua.a", 0.8).found.tolist() == [True, False, False]
    assert found_in(pair, "lua.a", 0.8).testable.tolist() == [True, True, False]
    assert found_in(pair, "twin.b", 0.8).found.tolist() == [True, True, False]
    assert found_in(pair, "twin.b", 0.8).testable.tolist() == [True, True, True]
