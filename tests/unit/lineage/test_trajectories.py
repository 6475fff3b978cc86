"""Summaries and trajectories."""

import numpy as np
import pandas as pd
import pytest

from saelineage.correlations.bootstrap import Replicates, widening
from saelineage.lineage.matching import edge_table
from saelineage.lineage.trajectories import (
    add_intervals,
    add_readouts,
    counts,
    edge_summary,
    feature_statistics,
    feature_table,
)
from tests.unit.lineage.test_matching import TOY, correlation


def replicates(parent: list[list[float]], child: list[list[float]]) -> Replicates:
    """Best r per replicate, of both sides."""
    best = (np.array(parent, dtype=np.float32), np.array(child, dtype=np.float32))
    documents = np.array([9, 3, 9]), np.array([9, 2, 9])
    return Replicates(("lua.seed0", "stories.seed0"), {"words": 9}, 0, best, documents)


def toy_table() -> pd.DataFrame:
    """Of the parent one persists, one is lost, one is untestable; of the child one drifted and two are inherited."""
    return edge_table(correlation(TOY), 0.8).assign(
        verdict=["persists", "gone", "untestable", "drifted", "inherited", "inherited"],
        change=["", "", "", "relocated", "", ""],
        cosine=[0.9, 0.1, np.nan, 0.1, 0.9, 0.8],
        parts_cosine=np.nan,
        strength_ratio=[1.1, 1.0, np.nan, 1.0, 1.1, 0.9],
        recurrence=[1.0, 1.0, np.nan, 0.5, 1.0, 0.0],
        identified=[True, True, False, False, True, False],
        headline=[False, True, False, False, False, False],
        all_agree=pd.array([pd.NA] * 6, dtype="boolean"),
        robust=[False, True, False, False, False, False],
    )


def test_intervals_of_r_by_hand():
    # Ten replicates with z rising by 1/90; the parent's third feature is untestable.
    rising = [[np.tanh(0.8 + step / 90), 0.5, 0.9] for step in range(10)]
    table = add_intervals(edge_table(correlation(TOY), 0.8), replicates(rising, rising))
    parents = table[table["side"] == "parent"]
    # 2.5 % and 97.5 % of ten are 4.275 steps of 1/90 on either side of the median, which is moved to r.
    z, half, flat = np.arctanh(parents["r"].iloc[0]), 4.275 / 90 * widening(9), parents["r"].iloc[1]
    assert parents["r_low"].tolist() == pytest.approx([np.tanh(z - half), flat, np.nan], abs=1e-6, nan_ok=True)
    assert parents["r_high"].tolist() == pytest.approx([np.tanh(z + half), flat, np.nan], abs=1e-6, nan_ok=True)
    # The child's second feature, of two documents, has no interval.
    assert table["documents"].tolist() == [9, 3, 9, 9, 2, 9]
    assert table["r_low"].isna().tolist() == [False, False, True, False, True, False]


def test_readouts_are_those_of_both_sides_in_their_order():
    table = edge_table(correlation(TOY), 0.8)
    r2 = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    readouts = pd.DataFrame({"r2_other": r2, "r2_own": [2 * value for value in r2]})
    with_readouts = add_readouts(table, readouts)
    assert with_readouts["readout"].tolist() == r2
    assert with_readouts["readout_of_own"].tolist() == [2 * value for value in r2]
    assert add_readouts(table, None)[["readout", "readout_of_own"]].isna().all(axis=None)


def test_counts_are_those_of_all_features_or_of_identified_ones():
    table = toy_table()
    of_side = {side: table[table["side"] == side] for side in ("parent", "child")}
    assert counts(of_side, only_identified=False) == {
        "parent": {"persists": 1, "drifted": 0, "gone": 1, "untestable": 1, "headline": 1, "robust": 1},
        "child": {"inherited": 2, "drifted": 1, "new": 0, "untestable": 0, "headline": 0, "robust": 0},
    }
    assert counts(of_side, only_identified=True) == {
        "parent": {"persists": 1, "drifted": 0, "gone": 1, "untestable": 0, "headline": 1, "robust": 1},
        "child": {"inherited": 1, "drifted": 0, "new": 0, "untestable": 0, "headline": 0, "robust": 0},
    }


def test_the_summary_of_an_edge_by_hand():
    groups = {"identified": {"persist_share": 0.5}, "all": {"persist_share": 0.5}}
    weighed = {"parent": "lua", "child": "stories", "instrument": "anchored", "groups": groups, "auc": 0.7}
    summary = edge_summary(toy_table(), weighed)
    of_groups = summary.pop("groups")
    assert of_groups["all"]["persist_share"] == 0.5
    assert (of_groups["all"]["child"]["inherited"], of_groups["identified"]["child"]["inherited"]) == (2, 1)
    assert summary == {
        "parent": "lua",
        "child": "stories",
        "n_parent": 3,
        "n_child": 3,
        "study": {"persists": 1, "disappears": 1, "inherited": 2, "emerges": 1},
        "kinds": {"1:1": 1, "split": 0, "merged": 0},
        "relocated": 0,
        "rescaled": 0,
        "partial": 0,
        "in_other_parts": 0,
        "shares_basis": True,
        "shares_scale": True,
        "instrument": "anchored",
        "auc": 0.7,
    }
    without_seeds = edge_summary(toy_table(), weighed | {"groups": groups | {"identified": None}})
    assert without_seeds["groups"]["identified"] is None


def test_statistics_are_those_of_each_model_s_first_sae():
    firings = ((10, 20, 30), (1, 2, 3))
    statistics = feature_statistics(
        [
            correlation(TOY, ("base.seed0", "lua.seed0"), firings),
            correlation(TOY, ("lua.seed1", "base.seed1"), firings),
        ],
        ["base", "lua", "never_compared"],
    )
    assert list(statistics) == ["base", "lua"]
    assert statistics["base"]["sae"].tolist() == ["seed0"] * 3
    assert statistics["base"]["firings"].tolist() == [10, 20, 30]
    assert statistics["base"]["density"].tolist() == [0.01, 0.02, 0.03]
    assert statistics["lua"]["firings"].tolist() == [1, 2, 3]


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
        names = (f"{parent}.seed0", f"{child}.seed0")
        table = edge_table(correlation(r.tolist(), names, ([50] * 4, [50] * 4)), 0.8)
        recurrence = np.tile([1.0, 0.5, 0.0, np.nan], 2)
        marks = pd.array([pd.NA] * len(table), dtype="boolean")
        of_seeds = {"recurrence": recurrence, "identified": recurrence == 1}
        return table.assign(all_agree=marks, verdict=table["study_verdict"], **of_seeds)

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
    """The latent of a feature in each model that has it, and the least r on the way."""
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
    # Siblings are not compared, so lua's feature has no latent in stories.
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
        *("model", "sae", "latent", "firings", "density", "recurrence", "identified", "all_agree", "origin"),
        *("in_base", "r_base", "in_lua", "r_lua", "in_stories", "r_stories", "in_merged", "r_merged"),
    ]
    absent = table["in_merged"] == -1
    assert table.loc[absent, "r_merged"].isna().all()
    assert table.loc[~absent, "r_merged"].notna().all()
    assert absent.sum() == 5
    np.testing.assert_array_equal(table["recurrence"], [1, 0.5, 0, np.nan] * 4)
    assert table["identified"].tolist() == [True, False, False, False] * 4


def test_a_lineage_without_edges_has_no_features():
    columns = ["model", "sae", "latent", "firings", "density", "recurrence", "identified", "all_agree", "origin"]
    table = feature_table({}, ["base"], {})
    assert (len(table), list(table.columns)) == (0, columns)
