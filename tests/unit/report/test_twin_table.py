"""The table of twins and continued models."""

import pandas as pd

from saelineage.report.tables import largest_random, twin_table


def figures(**changes: object) -> dict:
    """Figures of `lineage.twins.compare`: 40 of 100 features found, 9 of 10 lost too, 1 of 4 new too."""
    shares = {"persist_share": (0.4, 100), "lost_too": (0.9, 10), "new_too": (0.25, 4)}
    rows: dict[str, object] = {}
    for name, (value, n) in shares.items():
        rows |= {name: value, f"{name}_n": n, f"{name}_interval": [value - 0.1, value + 0.1]}
    return rows | {"lost_beyond": 1, "new_beyond": 3} | changes


def test_every_twin_and_continued_model_of_an_edge_is_a_row_for_each_group():
    nothing = figures(persist_share=None, persist_share_n=0, persist_share_interval=None)
    edge = {
        "parent": "base",
        "child": "lua",
        "twins": {"again": {"identified": nothing, "all": figures()}},
        "continued": {"more": {"all": figures(lost_beyond=7)}},
    }
    without = {"parent": "lua", "child": "merged", "twins": {}, "continued": {}}
    table = twin_table({"edges": [edge, without]})
    assert table[["parent", "child", "control", "kind", "group"]].to_numpy().tolist() == [
        ["base", "lua", "again", "twin", "identified"],
        ["base", "lua", "again", "twin", "all"],
        ["base", "lua", "more", "continued", "all"],
    ]
    assert pd.isna(table["persist_share"][0])
    row = table.iloc[1]
    assert (row["lost_too"], row["lost_too_n"], row["lost_too_low"], row["lost_too_high"]) == (0.9, 10, 0.8, 1.0)
    assert (row["new_too_n"], row["lost_beyond"], row["new_beyond"]) == (4, 1, 3)
    assert table["lost_beyond"].tolist() == [1, 1, 7]


def test_twins_and_continued_models_are_no_random_controls():
    shares = {"shifted": 0.01, "twin (again)": 0.9, "continued (more)": 0.8, "control (scratch)": 0.4}
    assert largest_random(shares) == ("shifted", 0.01)
