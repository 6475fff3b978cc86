"""Figures of crosscoders: verdicts, curves over thresholds, and norms; and the order of their tables."""

import pandas as pd

from saelineage.lineage.exclusivity import OTHER_HALF
from saelineage.report.crosscoder_figures import exclusivity_curves_figure, exclusivity_figure, norms_figure
from saelineage.report.style import BLUE, GREY, VERDICT_COLOURS
from saelineage.report.tables import crosscoder_norm_table, crosscoder_table

EVIL = "<b>x</b>"
ROLES = (("tuned", "edge"), ("base", OTHER_HALF), ("random", "reinitialised"))


def verdicts() -> pd.DataFrame:
    """Two edges with a floor, and a control of the first one."""
    counts = {"persists": 5, "rotated": 1, "emerges": 2, "disappears": 3, "untestable": 1234}
    rows = [{"edge": "base__tuned", "parent": "base", "child": child, "role": role} for child, role in ROLES]
    rows += [{"edge": f"tuned__{EVIL}", "parent": "tuned", "child": EVIL, "role": "edge"}]
    return pd.DataFrame([row | counts for row in rows])


def curves(*bounds: float) -> pd.DataFrame:
    """Two points of each curve of an edge."""
    counts = {"threshold": [0.02, 1.0], "parent_only": [0, 9], "child_only": [1, 800]}
    named = dict(zip(("nu_error_below", "nu_reconstruction_below"), bounds, strict=True))
    return pd.concat(
        pd.DataFrame({"edge": "base__tuned", "child": child, "role": role} | counts | named) for child, role in ROLES
    )


def texts(figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def test_each_bar_has_its_counts_beside_it_and_the_colours_of_the_page():
    figure = exclusivity_figure(verdicts())
    colours = [VERDICT_COLOURS[name] for name in ("persists", "drifted", "new", "gone")]
    assert [bar.marker.color for bar in figure.data] == colours  # untestable latents are no part of the bars
    assert [list(bar.x) for bar in figure.data] == [[5] * 4, [1] * 4, [2] * 4, [3] * 4]
    assert texts(figure).count("1,234") == 4
    assert list(figure.layout.yaxis.ticktext) == [
        "tuned",
        "floor: other documents",
        "reinitialised: random",
        "&lt;b&gt;x&lt;/b&gt;",
    ]


def test_names_of_edges_stand_above_their_bars_and_are_no_markup():
    figure = exclusivity_figure(verdicts())
    headers = {note.text: note.y for note in figure.layout.annotations if note.text.startswith("<b>")}
    assert headers == {"<b>base → tuned</b>": 0, "<b>tuned → &lt;b&gt;x&lt;/b&gt;</b>": 4.5}
    assert list(figure.data[0].y) == [1, 2, 3, 5.5]


def test_the_curve_of_an_edge_is_thick_and_in_front_and_both_bounds_are_marked():
    figure = exclusivity_curves_figure(curves(0.25, 0.5))
    lines = [trace for trace in figure.data if trace.x[0] is not None]
    assert [trace.line.width for trace in lines] == [1, 1, 1, 1, 2.25, 2.25]
    assert [(trace.line.color, list(trace.y)) for trace in lines[-2:]] == [
        (VERDICT_COLOURS["new"], [1, 800]),
        (VERDICT_COLOURS["gone"], [0, 9]),
    ]
    assert [shape.x0 for shape in figure.layout.shapes] == [0.25, 0.5]
    assert [trace.name for trace in figure.data if trace.x[0] is None] == [
        "child alone",
        "parent alone",
        "floor",
        "reinitialised",
    ]


def test_norms_have_a_panel_for_each_model_and_controls_are_grey():
    rows = [("base", "lineage", 1.0), ("tuned", "lineage", 0.5), ("random", "reinitialised", 0.24)]
    norms = pd.DataFrame(
        [
            {"model": model, "role": role, "latent": latent, "norm": norm, "fires": latent < 2}
            for model, role, norm in rows
            for latent in range(3)
        ]
    )
    table = crosscoder_norm_table({("lineage", "seed0"): norms})
    found = table[table["n_latents"] > 0]
    assert found[["model", "norm", "n", "n_latents"]].to_numpy().tolist() == [
        ["base", 0.95, 2, 2],
        ["tuned", 0.5, 2, 2],
        ["random", 0.2, 2, 2],
    ]
    figure = norms_figure(table)
    assert [bar.marker.color for bar in figure.data] == [BLUE, BLUE, GREY]
    assert "reinitialised, median 0.24, 0 below 0.1" in texts(figure)[2]


def test_tables_have_the_edge_before_its_floor_and_its_controls():
    # A role that comes before "edge" in the alphabet, and a floor at the end as jobs write it.
    roles = [("tuned", "edge"), ("longer", "continued"), ("base", OTHER_HALF)]
    rows = [{"edge": edge, "role": role, "child": child} for edge in ("z__a", "b__c") for child, role in roles]
    table = pd.DataFrame(rows).sort_values("role", key=lambda role: role == OTHER_HALF, kind="stable")
    table = table.reindex(columns=[*table.columns, *crosscoder_table({}).columns.difference(table.columns)])
    ordered = crosscoder_table({("lineage", seed): table for seed in ("seed0", "seed1")})
    assert ordered["edge"].tolist() == ["z__a"] * 6 + ["b__c"] * 6
    assert ordered["role"].tolist() == [role for role in ("edge", OTHER_HALF, "continued") for _ in range(2)] * 2
    assert ordered["seed"].tolist() == ["seed0", "seed1"] * 6
