"""Shares by training budget, with the reset control: the table, the figure, and what the page says; and two steps."""

import pandas as pd
import pytest

from saelineage.report.figures import budgets_figure
from saelineage.report.sentences import stabilised
from saelineage.report.style import colours_of
from saelineage.report.tables import budget_table, stage_table

CURVES = {
    ("lua", "from_base"): pd.DataFrame({"tokens": [512, 2048]}),
    ("lua", "from_base@4096"): pd.DataFrame({"tokens": [4096]}),
    ("lua", "from_base@0"): pd.DataFrame({"tokens": []}),
}


def a_share(name: str, value: float | None, n: int = 8) -> dict:
    bounds = None if value is None else [value - 0.125, value + 0.125]
    return {name: value, f"{name}_n": 0 if value is None else n, f"{name}_interval": bounds}


def shares(persist: float, no_change: float | None = 0.75) -> dict:
    return a_share("persist_share", persist) | a_share("no_change_share", no_change)


def control(kept: float, reset: float | None) -> dict:
    return {"kept": a_share("share", kept), "reset": a_share("share", reset)}


def comparison(instrument: str, persist: float, at: str = "", **changes: object) -> dict:
    row = {"parent": "base", "child": "lua", "instrument": instrument, "pair": f"base.seed0__lua.from_base{at}"}
    row["groups"] = {"identified": shares(persist + 0.25), "all": shares(persist)}
    row["reset_control"] = {"identified": control(1.0, 0.875), "all": control(0.75, 0.125)}
    return row | a_share("two_seed_share", 0.375) | changes


def summary(*rows: dict, **changes: object) -> dict:
    return {"leading": "anchored", "instruments": list(rows)} | changes


ROWS = [
    comparison("anchored", 0.25),
    comparison("anchored@4096", 0.125, "@4096"),
    comparison("frozen", 0.5, "@0", reset_control=None),
    comparison("independent", 0.5),
    comparison("anchored to base alone", 0.5),
]


def test_every_anchored_budget_is_a_row_for_each_group_in_the_order_of_its_tokens():
    table = budget_table(summary(*ROWS), CURVES)
    assert table[["group", "instrument", "n_tokens", "persist_share", "leading"]].to_numpy().tolist() == [
        ["identified", "frozen", 0, 0.75, False],
        ["identified", "anchored", 2048, 0.5, True],
        ["identified", "anchored@4096", 4096, 0.375, False],
        ["all", "frozen", 0, 0.5, False],
        ["all", "anchored", 2048, 0.25, True],
        ["all", "anchored@4096", 4096, 0.125, False],
    ]
    row = table.iloc[4]
    assert row[["no_change_share", "kept_share", "reset_share", "two_seed_share"]].tolist() == [
        0.75,
        0.75,
        0.125,
        0.375,
    ]
    assert row[["reset_share_n", "reset_share_low", "reset_share_high"]].tolist() == [8, 0.0, 0.25]
    assert table.iloc[3][["kept_share", "reset_share"]].isna().all()
    assert pd.isna(table.iloc[1]["two_seed_share"])  # the seeds decide which features are identified


def test_without_other_seeds_there_are_rows_of_all_features_alone():
    row = comparison("anchored", 0.25) | {"groups": {"identified": None, "all": shares(0.25)}}
    row["reset_control"] = {"identified": None, "all": control(0.75, 0.125)}
    assert budget_table(summary(row), CURVES)["group"].tolist() == ["all"]
    assert budget_table(summary(), CURVES).empty


def test_the_page_says_what_training_finds_by_itself_and_what_is_stabilisation():
    identified, everything = stabilised(budget_table(summary(*ROWS), CURVES))
    assert identified.startswith("Of identified features of base, unchanged, 100.0\u00a0% of 8 are found again whose ")
    assert everything == (
        "Of all features of base, unchanged, 75.0\u00a0% of 8 are found again whose latent was kept, and 12.5\u00a0% "
        "of 8 whose latent was reset. In the no-change control 75.0\u00a0% are. The share of reset latents is what "
        "training finds by itself (two seeds agree on 37.5\u00a0%); what the no-change control has above it is "
        "stabilisation."
    )
    nothing = comparison("anchored", 0.25, reset_control=None)
    assert stabilised(budget_table(summary(nothing), CURVES)) == []


def test_budgets_have_a_panel_per_edge_and_a_dash_per_share_and_no_point_for_what_was_not_measured():
    other = comparison("anchored", 0.25, reset_control=None) | {"child": "<b>"}
    table = budget_table(summary(*ROWS, other), CURVES)
    colours = colours_of(["base", "lua", "<b>"], [])
    figure = budgets_figure(table, colours)
    assert [title.text for title in figure.layout.annotations] == ["base → &lt;b&gt;", "base → lua"]
    assert [(line.name, line.line.dash, list(line.x), list(line.y)) for line in figure.data[4:]] == [
        ("persist", "solid", [0, 2048, 4096], [0.75, 0.5, 0.375]),
        ("no change", "dash", [0, 2048, 4096], [0.75] * 3),
        ("no change, latent kept", "dashdot", [2048, 4096], [1.0] * 2),
        ("no change, latent reset", "dot", [2048, 4096], [0.875] * 2),
    ]
    assert [len(line.x) for line in figure.data[:4]] == [1, 1, 0, 0]
    assert {line.line.color for line in figure.data[:4]} == {colours.model("<b>")}


@pytest.mark.parametrize("groups", [("all",), ("identified", "all")])
def test_both_orders_of_the_steps_are_rows(groups):
    counts = {"data": 1, "model": 2, "both": 3, "neither": 4, "untestable": 0}
    edge = {"parent": "base", "child": "lua", "n": 10, "same": 6}
    edge |= {"data_model": counts, "model_data": counts | {"data": 3, "model": 0}}
    table = stage_table(summary(stages=[edge | {"group": group} for group in groups]))
    assert table["group"].tolist() == [group for group in groups for _ in range(2)]
    assert table[["first", "data", "model", "same_in_both_orders"]][:2].to_numpy().tolist() == [
        ["data", 1, 2, 6],
        ["model", 3, 0, 6],
    ]
