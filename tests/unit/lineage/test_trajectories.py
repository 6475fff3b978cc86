"""Summaries and trajectories."""

import numpy as np
import pandas as pd
import pytest

from saelineage.correlations.bootstrap import Replicates
from saelineage.lineage.trajectories import add_details, edge_summary, feature_statistics, feature_table
from saelineage.lineage.verdicts import edge_table
from tests.unit.lineage.test_verdicts import TOY, correlation


def replicates(parent: list[list[float]], child: list[list[float]]) -> Replicates:
    """Best r per replicate, of both sides."""
    best = (np.array(parent, dtype=np.float32), np.array(child, dtype=np.float32))
    return Replicates(("lua.seed0", "stories.seed0"), {"words": 9}, 0, best)


def toy_table() -> pd.DataFrame:
    """Of the parent one persists, one disappears, one is untestable; of the child two are inherited, one emerges."""
    return edge_table(correlation(TOY), 0.8).assign(robust=[False, True, False, False, False, False])


def test_details_of_an_edge_by_hand():
    # Ten replicates, of which 2.5 % and 97.5 % are at the ends; the untestable feature has no interval.
    rising = [[0.8 + step / 90, 0.5, 0.9] for step in range(10)]
    readouts = pd.DataFrame({"r2_child": [0.9, 0.75, 0.1], "r2_parent": [0.9, 0.9, 0.9]})
    table = add_details(toy_table(), replicates(rising, rising), readouts, missed_above=0.8)
    parents = table[table["side"] == "parent"]
    # Linear between order statistics: 0.025 x 9 = 0.225 steps of 1/90 above the least.
    assert parents["r_low"].tolist() == pytest.approx([0.8 + 0.225 / 90, 0.5, np.nan], abs=1e-6, nan_ok=True)
    assert parents["r_high"].tolist() == pytest.approx([0.8 + 8.775 / 90, 0.5, np.nan], abs=1e-6, nan_ok=True)
    assert parents["readout"].tolist() == [0.9, 0.75, 0.1]
    # 0.75 is at least 0.8 x 0.9 = 0.72; a feature that persists is not absent.
    assert parents["absence"].tolist() == ["", "missed", ""]
    children = table[table["side"] == "child"]
    assert children["readout"].isna().all()
    assert (children["absence"] == "").all()


def test_a_lost_feature_is_missed_where_the_child_s_readout_is_nearly_as_good():
    flat = replicates([[0.5] * 3], [[0.5] * 3])
    for child, parent, absence in [
        (0.73, 0.9, "missed"),
        (0.71, 0.9, "gone"),
        (0.09, 0.09, "undecided"),
        (np.nan, np.nan, "undecided"),
    ]:
        readouts = pd.DataFrame({"r2_child": [child] * 3, "r2_parent": [parent] * 3})
        table = add_details(toy_table(), flat, readouts, missed_above=0.8)
        assert table["absence"].tolist()[1] == absence
    assert "absence" not in add_details(toy_table(), flat, None, 0.8)


def test_the_summary_of_an_edge_by_hand():
    weighed = {"parent": "lua", "child": "stories", "instrument": "anchored", "persist_share": 0.5}
    table = toy_table().assign(absence=["", "missed", "", "", "", ""])
    assert edge_summary(table, weighed) == {
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
        "kinds": {"1:1": 1, "split": 0, "merged": 0},
        "robustly_disappears": 1,
        "robustly_emerges": 0,
        "absences": {"gone": 0, "missed": 1, "undecided": 0},
        "instrument": "anchored",
        "persist_share": 0.5,
    }
    without_seeds = edge_summary(table.drop(columns="robust"), weighed)
    assert (without_seeds["robustly_disappears"], without_seeds["robustly_emerges"]) == (None, None)


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
        *("model", "sae", "latent", "firings", "density", "origin"),
        *("in_base", "r_base", "in_lua", "r_lua", "in_stories", "r_stories", "in_merged", "r_merged"),
    ]
    absent = table["in_merged"] == -1
    assert table.loc[absent, "r_merged"].isna().all()
    assert table.loc[~absent, "r_merged"].notna().all()
    assert absent.sum() == 5


def test_models_without_a_correlation_and_lineages_without_edges_have_no_features():
    table = feature_table(
        {}, ["base", "other"], {"base": pd.DataFrame({"sae": ["s"], "latent": [0], "firings": [1], "density": [0.1]})}
    )
    assert table["model"].tolist() == ["base"]
    assert (table["origin"].tolist(), table["in_base"].tolist()) == (["base"], [0])
    table = feature_table({}, ["base"], {})
    assert (len(table), list(table.columns)) == (0, ["model", "sae", "latent", "firings", "density", "origin"])
