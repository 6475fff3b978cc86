"""Which features come first, with numbers worked by hand."""

import numpy as np
import pandas as pd
import pytest

from saelineage.lineage.importance import (
    Effects,
    add_exact,
    contrast_corpora,
    heads,
    importance_table,
    importances,
    own_share,
    per_thousand,
    reading_order,
)

NAN = float("nan")
CORPORA = ("lua", "stories")


def rows(side: str = "child", **columns: list) -> pd.DataFrame:
    """One side of an edge's table, of four latents."""
    given = {
        "verdict": ["new", "new", "inherited", "untestable"],
        "identified": [False] * 4,
        "headline": [False] * 4,
        "r": [0.6, NAN, 0.8, NAN],
        "match": [1, -1, 0, -1],
    }
    return pd.DataFrame({"side": side, "latent": range(4), **given, **columns})


EFFECTS = Effects(CORPORA, np.array([[10.0, -2.0, 50.0, 1.0], [3.0, 4.0, 0.0, 1.0]]), np.arange(8).reshape(2, 4))
DENSITY = np.array([[0.2, 0.1, 0.3, 0.0], [0.1, 0.3, 0.3, 0.0]])
OTHER = np.array([[0.5, 0.05], [0.4, 0.01]])


def test_effects_are_per_thousand_tokens_of_their_own_corpus():
    found = per_thousand(np.array([[2.0, -1.0], [3.0, 0.0], [1.0, 1.0]]), np.array([500, 3000, 0]))
    np.testing.assert_array_equal(found, [[4.0, -2.0], [1.0, 0.0], [NAN, NAN]])


def test_the_corpus_on_which_a_feature_fires_most_shows_it_and_on_a_tie_the_first():
    assert contrast_corpora(DENSITY).tolist() == [0, 1, 0, 0]


def test_what_is_not_followed_is_a_features_own_and_opposite_firings_follow_nothing():
    # 1 - 0.6^2 = 0.64; no match, or one of negative r, leaves all.
    assert own_share(np.array([0.6, NAN, -0.9, 1.0])).tolist() == [0.64, 1.0, 1.0, 0.0]


def test_importance_is_the_effect_where_a_feature_is_shown_times_its_own_share():
    found = importances(EFFECTS.per_thousand, DENSITY, np.array([0.6, NAN, 0.8, NAN]))
    assert found == pytest.approx([10 * 0.64, 4.0, 50 * 0.36, 1.0])


def test_the_table_ranks_features_within_their_verdict_and_leaves_out_untestable_ones():
    table = importance_table(rows(), EFFECTS, DENSITY, OTHER)
    assert table["latent"].tolist() == [0, 1, 2]
    assert table["contrast_corpus"].tolist() == ["lua", "stories", "lua"]
    assert table["effect"].tolist() == [10.0, 4.0, 50.0]
    assert table["rank"].tolist() == [1, 2, 1]  # 6.4 and 4 of the new ones; 18 of the only inherited one
    assert table["n_firings"].tolist() == [0, 5, 2]
    assert table["density"].tolist() == [0.2, 0.3, 0.3]
    np.testing.assert_array_equal(table["match_density"], [0.05, NAN, 0.5])
    assert table["effect_stories"].tolist() == [3.0, 4.0, 0.0]
    np.testing.assert_array_equal(table["match_density_stories"], [0.01, NAN, 0.4])


def test_a_feature_that_hurts_its_model_comes_last():
    table = importance_table(rows(verdict=["new"] * 4, r=[NAN] * 4), EFFECTS, DENSITY[::-1], OTHER)
    # Shown on: stories 3, lua -2, lua 50 (a tie), lua 1.
    assert table["importance"].tolist() == [3.0, -2.0, 50.0, 1.0]
    assert table["rank"].tolist() == [2, 4, 1, 3]


def test_features_that_are_new_for_sure_are_read_first_then_identified_ones_then_by_importance():
    verdicts = ["new", "new", "new", "new"]
    table = importance_table(
        rows(
            verdict=verdicts, r=[NAN] * 4, headline=[False, True, False, False], identified=[False, True, False, True]
        ),
        EFFECTS,
        DENSITY,
        OTHER,
    )
    assert reading_order(table)["latent"].tolist() == [1, 3, 2, 0]
    assert {corpus: found.tolist() for corpus, found in heads([table], 3).items()} == {"lua": [2, 3], "stories": [1]}
    assert heads([table, table], 0) == {}


def test_only_lost_and_new_features_are_read_each_on_its_own_side():
    both = [
        importance_table(rows(side, verdict=["new", "gone", "drifted", "gone"]), EFFECTS, DENSITY, OTHER)
        for side in ("parent", "child")
    ]
    order = reading_order(pd.concat(both))
    assert sorted(zip(order["side"], order["latent"], strict=True)) == [("child", 0), ("parent", 1), ("parent", 3)]


def test_measured_effects_stand_beside_the_estimated_ones():
    table = add_exact(importance_table(rows(), EFFECTS, DENSITY, OTHER), {1: 3.5})
    np.testing.assert_array_equal(table["exact_effect"], [NAN, 3.5, NAN])
