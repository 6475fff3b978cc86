"""Verdicts, shares and trajectories."""

import numpy as np
import pandas as pd
import pytest

from saelineage.correlations import correlate
from saelineage.lineage import (
    Share,
    edge_summary,
    edge_table,
    feature_statistics,
    feature_table,
    matched_share,
    seed_floor,
    share,
    verdicts,
)
from saelineage.match_finder import MatchFinder
from saelineage.matches import Correlation


def correlation(r: list[list[float]], names=("lua.seed0", "stories.seed0"), firings=((50, 50, 50), (50, 50, 50))):
    """What `correlate` would find for a 3 x 3 matrix of r; NaN rows and columns are untestable features."""
    r = np.array(r)
    finder = MatchFinder(r.shape, top_matches=1, keep_above=0.3, n_bins=4)
    finder.offer(0, r)
    return Correlation(
        names=names,
        n_tokens={"words": 1000},
        firings=tuple(np.array([side]) for side in firings),
        testable=(~np.isnan(r).all(axis=1), ~np.isnan(r).all(axis=0)),
        pearson=finder.result(),
        by_corpus={},
        one_to_one=np.full(len(r), -1),
        jaccard=finder.result(),
    )


NAN = float("nan")
# Parent 0 is child 1 (0.9); parent 1 has 0.79 at most; parent 2 is untestable. Child 0's best is parent 1, child 2's
# parent 0 (0.8).
TOY = [[0.1, 0.9, 0.8], [0.79, 0.2, 0.3], [NAN, NAN, NAN]]


def test_verdicts_of_parents_by_hand():
    table = verdicts(correlation(TOY, firings=((50, 20, 3), (50, 50, 50))), 0, 0.8, "persists", "disappears")
    expected = pd.DataFrame(
        {
            "latent": [0, 1, 2],
            "verdict": ["persists", "disappears", "untestable"],
            "r": [0.9, 0.79, NAN],
            "match": [1, 0, -1],
            "firings": [50, 20, 3],
            "density": [0.05, 0.02, 0.003],
        }
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


def test_verdicts_of_children_by_hand():
    table = verdicts(correlation(TOY), 1, 0.8, "inherited", "emerges")
    # r = 0.8 is a match.
    assert table["verdict"].tolist() == ["emerges", "inherited", "inherited"]
    assert table["match"].tolist() == [1, 0, 0]
    assert table["r"].tolist() == [0.79, 0.9, 0.8]


def test_a_testable_feature_without_any_testable_partner_disappears():
    nothing = correlation([[NAN] * 3] * 3)._replace(testable=(np.ones(3, dtype=bool), np.zeros(3, dtype=bool)))
    table = edge_table(nothing, 0.8)
    assert table["verdict"].tolist() == ["disappears"] * 3 + ["untestable"] * 3
    assert (table["match"] == -1).all()


def test_an_edge_s_table_has_both_sides():
    table = edge_table(correlation(TOY), 0.8)
    assert table.columns.tolist() == ["side", "latent", "verdict", "r", "match", "firings", "density"]
    assert table["side"].tolist() == ["parent"] * 3 + ["child"] * 3
    assert table["verdict"].tolist() == [
        "persists",
        "disappears",
        "untestable",
        "emerges",
        "inherited",
        "inherited",
    ]


def test_an_sae_paired_with_itself_persists_to_the_last_feature():
    random = np.random.default_rng(0)
    dense = np.where(random.random((500, 12)) < 0.2, random.random((500, 12)), 0)
    dense[:, 7] = 0
    found = correlate(dense, dense, top_matches=2, block_features=5, progress=False)
    table = edge_table(found, 0.8)
    latents = [latent for latent in range(12) if latent != 7]
    for side, yes in (("parent", "persists"), ("child", "inherited")):
        mine = table[table["side"] == side]
        assert mine[mine["verdict"] == yes]["latent"].tolist() == latents
        assert mine[mine["verdict"] == yes]["match"].tolist() == latents
        assert mine[mine["verdict"] == "untestable"]["latent"].tolist() == [7]
    assert matched_share(found, 0, 0.8)[:2] == (1.0, 11)


def test_wilson_s_interval_of_eight_in_ten():
    found = share(8, 10)
    assert found.value == 0.8
    assert found.interval == pytest.approx((0.490, 0.943), abs=5e-4)


def test_wilson_s_interval_at_the_ends_stays_within_zero_and_one():
    # At 0 of n the upper bound is z^2 / (n + z^2) = 3.8415 / 13.8415.
    assert share(0, 10).interval == pytest.approx((0, 0.27753), abs=1e-5)
    assert share(10, 10).interval == pytest.approx((0.72247, 1), abs=1e-5)
    assert share(0, 10).interval[0] >= 0
    assert share(10, 10).interval[1] <= 1


def test_a_share_of_nothing_is_undefined():
    assert share(0, 0) == Share(None, 0, None)


def test_untestable_features_are_in_no_share():
    assert matched_share(correlation(TOY), 0, 0.8)[:2] == (1 / 2, 2)
    assert matched_share(correlation(TOY), 1, 0.8)[:2] == (2 / 3, 3)


def test_the_seed_floor_runs_over_both_directions_and_all_pairs():
    # TOY: 1 of 2 and 2 of 3. The other: 3 of 3 and 3 of 3.
    other = correlation([[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]])
    floor = seed_floor([correlation(TOY), other], 0.8)
    assert (floor.value, floor.n) == (9 / 11, 11)
    assert floor.interval == share(9, 11).interval


def test_without_seed_pairs_there_is_no_floor():
    assert seed_floor([], 0.8) == Share(None, 0, None)


def test_the_summary_of_an_edge_by_hand():
    summary = edge_summary(
        "lua", "stories", edge_table(correlation(TOY), 0.8), share(3, 4), share(0, 0), {"shifted": share(1, 50)}
    )
    assert summary == {
        "parent": "lua",
        "child": "stories",
        "n_parent": 3,
        "n_child": 3,
        "persists": 1,
        "disappears": 1,
        "untestable_parent": 1,
        "inherited": 2,
        "emerges": 1,
        "untestable_child": 0,
        "persist_share": 0.5,
        "persist_share_n": 2,
        "persist_share_interval": list(share(1, 2).interval),
        "seed_floor_share": 0.75,
        "seed_floor_share_n": 4,
        "seed_floor_share_interval": list(share(3, 4).interval),
        "inherited_share": 2 / 3,
        "inherited_share_n": 3,
        "inherited_share_interval": list(share(2, 3).interval),
        "child_seed_floor_share": None,
        "child_seed_floor_share_n": 0,
        "child_seed_floor_share_interval": None,
        "null_shares": {
            "shifted": {
                "persist_share": 0.02,
                "persist_share_n": 50,
                "persist_share_interval": list(share(1, 50).interval),
            }
        },
    }


def test_statistics_are_those_of_each_model_s_first_sae():
    firings = ((10, 20, 30), (1, 2, 3))
    found = feature_statistics(
        [
            correlation(TOY, ("base.seed0", "lua.seed0"), firings),
            correlation(TOY, ("lua.seed1", "base.seed1"), firings),
        ],
        ["base", "lua", "never_compared"],
    )
    assert list(found) == ["base", "lua"]
    assert found["base"]["sae"].tolist() == ["seed0"] * 3
    assert found["base"]["firings"].tolist() == [10, 20, 30]
    assert found["base"]["density"].tolist() == [0.01, 0.02, 0.03]
    assert found["lua"]["firings"].tolist() == [1, 2, 3]


def diamond() -> pd.DataFrame:
    """base -> lua, stories -> merged, four features each.

    Matches, both ways: base 0 = lua 1 (0.9) = merged 2 (0.95) and base 0 = stories 0 (0.85) = merged 2 (0.99).
    base 1 = stories 2 (0.81), which is lost in the merge. lua 0 = merged 0 (0.88) is not in base. merged 1 is new.
    base 2 is lost in both. base 3 = lua 3 (0.82) = merged 3 (0.9) and base 3 = stories 3 (0.93) = merged 3 (0.97).
    """
    weak = 0.1

    def edge(parent: str, child: str, matches: dict[tuple[int, int], float]) -> pd.DataFrame:
        r = np.full((4, 4), weak)
        for pair, value in matches.items():
            r[pair] = value
        return edge_table(correlation(r.tolist(), (f"{parent}.seed0", f"{child}.seed0"), ([50] * 4, [50] * 4)), 0.8)

    matches = {
        ("base", "lua"): {(0, 1): 0.9, (3, 3): 0.82},
        ("base", "stories"): {(0, 0): 0.85, (1, 2): 0.81, (3, 3): 0.93},
        ("lua", "merged"): {(1, 2): 0.95, (0, 0): 0.88, (3, 3): 0.9},
        ("stories", "merged"): {(0, 2): 0.99, (3, 3): 0.97},
    }
    models = ["base", "lua", "stories", "merged"]
    statistics = {
        model: pd.DataFrame({"sae": "seed0", "latent": range(4), "firings": 50, "density": 0.05}) for model in models
    }
    return feature_table({key: edge(*key, value) for key, value in matches.items()}, models, statistics)


def trajectory(table: pd.DataFrame, model: str, latent: int) -> dict:
    """Where a feature is found, and the least r on the way, leaving out where it is not."""
    row = table[(table["model"] == model) & (table["latent"] == latent)].iloc[0]
    models = ["base", "lua", "stories", "merged"]
    return {
        name: (int(row[f"in_{name}"]), round(float(row[f"r_{name}"]), 6)) for name in models if row[f"in_{name}"] >= 0
    }


def test_trajectories_through_a_diamond_by_hand():
    table = diamond()
    assert trajectory(table, "base", 0) == {
        "base": (0, 1),
        "lua": (1, 0.9),
        "stories": (0, 0.85),
        # Through lua the least r is 0.9, through stories 0.85: the better line is kept.
        "merged": (2, 0.9),
    }
    # Here the line through stories, 0.93, is better than 0.82 through lua.
    assert trajectory(table, "base", 3) == {"base": (3, 1), "lua": (3, 0.82), "stories": (3, 0.93), "merged": (3, 0.93)}
    assert trajectory(table, "merged", 3)["base"] == (3, 0.93)
    assert trajectory(table, "base", 1) == {"base": (1, 1), "stories": (2, 0.81)}
    assert trajectory(table, "base", 2) == {"base": (2, 1)}
    # Brothers are not compared: what lua's feature is in stories nobody measured.
    assert trajectory(table, "lua", 1) == {"base": (0, 0.9), "lua": (1, 1), "merged": (2, 0.95)}
    assert trajectory(table, "merged", 2) == {
        "base": (0, 0.9),
        "lua": (1, 0.95),
        "stories": (0, 0.99),
        "merged": (2, 1),
    }
    assert trajectory(table, "merged", 0) == {"lua": (0, 0.88), "merged": (0, 1)}


def test_the_origin_is_the_farthest_ancestor_that_has_the_feature():
    table = diamond()
    assert table.groupby("model", sort=False)["origin"].apply(list).to_dict() == {
        "base": ["base", "base", "base", "base"],
        "lua": ["lua", "base", "lua", "base"],
        "stories": ["base", "stories", "base", "base"],
        "merged": ["lua", "merged", "base", "base"],
    }


def test_the_table_has_a_row_for_every_feature_and_two_columns_for_every_model():
    table = diamond()
    assert len(table) == 16
    assert table.columns.tolist() == [
        *("model", "sae", "latent", "firings", "density", "origin"),
        *("in_base", "r_base", "in_lua", "r_lua", "in_stories", "r_stories", "in_merged", "r_merged"),
    ]
    absent = table["in_merged"] == -1
    assert table.loc[absent, "r_merged"].isna().all()
    assert table.loc[~absent, "r_merged"].notna().all()
    assert absent.sum() == 5


def test_models_without_a_correlation_are_left_out():
    table = feature_table(
        {}, ["base", "other"], {"base": pd.DataFrame({"sae": ["s"], "latent": [0], "firings": [1], "density": [0.1]})}
    )
    assert table["model"].tolist() == ["base"]
    assert (table["origin"].tolist(), table["in_base"].tolist()) == (["base"], [0])
