"""Figures draw what their table holds, and hostile labels stay labels."""

import xml.etree.ElementTree as ElementTree

import pandas as pd
import plotly.io
import pytest

from saelineage.report.figures import (
    correlation_figure,
    density_figure,
    flows_figure,
    fvu_figure,
    lineage_svg,
    scores_figure,
    share_curves_figure,
    sweep_accuracy_figure,
    sweep_loss_figure,
    training_figure,
)
from saelineage.report.style import MODEL_COLOURS, Panels, colours_of, plain, visible

EVIL = "</script><script>alert(1)</script>"
COLOURS = colours_of(["a", "b", "base", "lua", "tuned", "merged"], ["lua", "stories"])


def models(name: str = "base", child: str = "tuned") -> pd.DataFrame:
    rows = [(name, "pretrained here", "lua", 3.0, 0.25), (child, f"fine-tuned from {name}", "lua", 2.0, 0.5)]
    return pd.DataFrame(rows, columns=["model", "made", "corpus", "loss", "accuracy"]).assign(colour="#123456")


def edges(parent: str = "base", child: str = "tuned") -> pd.DataFrame:
    return pd.DataFrame(
        [(parent, child, "2.1 % of all", "unchanged 4.7 %")], columns=["parent", "child", "label", "control"]
    )


def sweep(corpus: str = "lua") -> pd.DataFrame:
    """Two merges, what their parents descend from, and a parent."""
    rows = [
        (None, 1.0, corpus, 4.0, 0.1),
        (None, 0.0, corpus, 2.0, 0.4),
        ("base", None, corpus, 3.0, 0.2),
        ("lua", None, corpus, 2.0, 0.4),
    ]
    table = pd.DataFrame(rows, columns=["model", "value", "corpus", "loss", "accuracy"])
    chosen = {"setting": "t", "second_setting": None, "second_value": None, "chosen": 0.58, "second_chosen": None}
    return table.assign(is_parent=table["model"] == "lua", **chosen)


def test_hidden_characters_are_shown_and_plotly_labels_have_no_markup():
    shown = {
        "a\nb\tc": "a↵b⇥c",
        "\x00\x1b": "␀␛",
        "\x85": "\\u0085",
        "\u202eabc\u2066": "\\u202eabc\\u2066",
        "\ud800": "\\ud800",
        "héllo 🎉 مرحبا": "héllo 🎉 مرحبا",
    }
    assert {text: visible(text) for text in shown} == shown
    assert plain("<b>&") == "&lt;b&gt;&amp;"


def test_the_lineage_shows_every_model_and_the_share_of_every_edge():
    svg = lineage_svg(models(), edges())
    ElementTree.fromstring(svg)  # noqa: S314
    assert all(
        text in svg for text in ("base", "tuned", "2.1 % of all", "unchanged 4.7 %", "accuracy 0.250", "#123456")
    )
    assert 'class="edge"' not in lineage_svg(models().head(1), edges().head(0))


def test_a_hostile_model_name_stays_text():
    svg = lineage_svg(models(EVIL, "\u202e\x00"), edges(EVIL, "\u202e\x00"))
    assert "<script" not in svg
    assert "\u202e" not in svg
    ElementTree.fromstring(svg)  # noqa: S314


def test_a_sweep_is_drawn_in_order_of_t_with_the_ancestor_dashed():
    figure = sweep_accuracy_figure(sweep(), COLOURS)
    assert list(figure.data[0].x) == [0.0, 1.0]
    assert list(figure.data[0].y) == [0.4, 0.1]
    ancestor, chosen = figure.layout.shapes
    assert (ancestor.y0, ancestor.line.dash) == (0.2, "dash")
    assert chosen.x0 == 0.58
    assert list(sweep_loss_figure(sweep(), COLOURS).data[0].y) == [2.0, 4.0]


def test_two_swept_settings_are_a_map_for_each_corpus_with_the_merge_marked():
    grid = [(t, density, t + 10 * density) for t in (0.0, 1.0) for density in (0.1, 0.2, 0.3)]
    table = pd.DataFrame(grid, columns=["value", "second_value", "loss"]).assign(
        model=None, setting="lambda", second_setting="density", chosen=1.0, second_chosen=0.2, is_parent=False
    )
    figure = sweep_loss_figure(pd.concat([table.assign(corpus=corpus) for corpus in ("lua", "stories")]), COLOURS)
    heat, mark, _, _ = figure.data
    assert [list(row) for row in heat.z] == [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]
    assert (list(heat.x), list(heat.y)) == ([0.0, 1.0], [0.1, 0.2, 0.3])
    assert (list(mark.x), list(mark.y)) == ([1.0], [0.2])
    assert [title.text for title in figure.layout.annotations] == ["lua", "stories"]


def flows(parent: str = "a", child: str = "b") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two nodes, and two flows between them, of which one is empty."""
    nodes = pd.DataFrame({"name": [parent, child], "label": [parent, child], "column": [0.0, 1.0], "size": [3, 3]})
    edge = {"source": parent, "target": child, "parent": parent, "child": child, "edge": f"{parent} → {child}"}
    edge |= {"group": "identified"}
    links = pd.DataFrame({"n_features": [3, 0], "verdict": ["persists", "untestable"], "side": ["parent", "child"]})
    return nodes.assign(colour="#000000", model=[parent, None]), links.assign(**edge)


def test_a_flow_names_its_features_and_empty_flows_are_not_drawn():
    link = flows_figure(*flows("<b>", "\u202e")).data[0].link
    assert list(link.value) == [3]
    # A label without markup, and what the table of features is filtered by: edge, side, verdict, group.
    label = "persists, &lt;b&gt; → \\u202e"
    assert [list(row) for row in link.customdata] == [[label, "<b>", "\u202e", "parent", "persists", "identified"]]
    assert "%{customdata[0]}" in link.hovertemplate


def test_nodes_of_a_column_are_stacked_within_the_picture():
    nodes = pd.DataFrame({"name": list("abcd"), "label": list("abcd"), "column": [0.0, 1.0, 1.0, 1.0]})
    nodes = nodes.assign(size=[10, 5, 0.1, 5], colour="#000000", model=None)
    flows = pd.DataFrame(columns=["source", "target", "n_features", "verdict", "edge"])
    sankey = flows_figure(nodes, flows).data[0]
    pad = sankey.node.pad / 590
    # the second column is the fullest: 10.1 features and two pads fill the height
    height = (1 - 2 * pad) / 10.1
    expected = [5 * height / 2, 5 * height + pad + 0.1 * height / 2, 1 - 5 * height / 2]
    assert list(sankey.node.y)[1:] == pytest.approx(expected, abs=1e-3)
    assert sankey.node.y[0] == 0.5


def test_models_are_panels_saes_are_lines_and_corpora_are_rows_of_points():
    saes = {"model": ["a", "a", "b"], "sae": ["seed0", "seed1", "seed0"]}
    densities = pd.DataFrame(saes | {"log10_density": [-2.0] * 3, "n_latents": [3, 4, 5]})
    figure = density_figure(densities, COLOURS)
    assert [title.text for title in figure.layout.annotations] == ["a", "b"]
    assert [(line.name, line.showlegend, line.line.dash) for line in figure.data] == [
        ("seed0", True, "solid"),
        ("seed1", True, "dash"),
        ("seed0", False, "solid"),  # the legend names each once
    ]
    assert [line.line.color for line in figure.data] == [MODEL_COLOURS[0], MODEL_COLOURS[0], MODEL_COLOURS[1]]
    training = pd.DataFrame({"model": ["a", "a"], "sae": ["seed0", "seed0"], "tokens": [1, 2], "fvu": [0.9, 0.3]})
    assert list(training_figure(training, COLOURS).data[0].y) == [0.9, 0.3]
    quality = pd.DataFrame({"model": ["a", "a"], "sae": ["seed0"] * 2, "corpus": ["pooled", "lua"], "fvu": [0.2, 0.3]})
    points = fvu_figure(quality, COLOURS).data
    assert [(trace.name, trace.marker.color) for trace in points] == [
        ("pooled", COLOURS.corpus("pooled")),
        ("lua", COLOURS.corpus("lua")),
    ]


def test_empty_bins_are_left_out_of_the_logarithmic_axis():
    table = pd.DataFrame({"edge": ["a → b"] * 3, "r": [-1.0, 0.0, 0.5], "n_pairs": [0, 5, 1]})
    (line,) = correlation_figure(table, 0.8, COLOURS).data
    assert list(line.y) == [5, 1]
    assert line.line.color == COLOURS.model("b")


def test_models_and_corpora_have_colours_of_their_own_in_every_figure():
    colours = colours_of(map(str, range(9)), ["lua"])
    assert colours.model("8") == colours.model("0") != colours.model("1")
    assert colours.model("another") == colours.corpus("pooled")
    assert {*colours.models.values()}.isdisjoint(colours.corpora.values())


def test_panels_fill_rows_of_three_with_axes_named_once():
    panels = Panels(["a", "b", "c", "<b>"])
    figure = panels.drawn("x of all", "y of all")
    assert [title.text for title in figure.layout.annotations] == ["a", "b", "c", "&lt;b&gt;"]
    assert figure.layout.height > Panels(["a"]).drawn("x", "y").layout.height
    assert [figure.layout[f"yaxis{n}"].title.text for n in ("", "2", "4")] == ["y of all", None, "y of all"]


def scores(model: str = "base", source: str = "labels", n: int = 4, median: float = 0.5) -> pd.DataFrame:
    """Three of four features in the upper of two bins."""
    table = pd.DataFrame({"r": [-1.0, 0.0], "n_features": [1, 3]})
    return table.assign(model=model, source=source, n=n, median=median)


def test_scores_are_shares_of_the_features_that_have_a_description():
    (line,) = scores_figure(scores("<b>"), COLOURS).data
    assert (list(line.x), list(line.y)) == ([-1.0, 0.0], [0.25, 0.75])
    assert line.name == "&lt;b&gt;, labels (n 4, median 0.50)"
    (line,) = scores_figure(scores(n=0, median=float("nan")).assign(n_features=0), COLOURS).data
    assert list(line.y) == [0.0, 0.0]
    assert line.name == "base, labels (n 0)"


def test_written_explanations_are_dashed_in_the_colour_of_their_model():
    lines = scores_figure(pd.concat([scores(), scores("lua"), scores(source="explanations")]), COLOURS).data
    assert [line.line.dash for line in lines] == ["solid", "solid", "dash"]
    assert lines[0].line.color == lines[2].line.color != lines[1].line.color


def curves(parent: str = "base", names: tuple[str, ...] = ("edge", "no change", "shifted")) -> pd.DataFrame:
    """Two points of each curve of an edge."""
    rows = [(parent, "tuned", name, r, 1 - r, 0.5) for name in names for r in (0.0, 1.0)]
    return pd.DataFrame(rows, columns=["parent", "child", "name", "threshold", "share", "auc"])


def test_each_edge_is_a_panel_in_its_child_s_colour_and_each_kind_of_curve_has_a_dash():
    names = ("edge", "no change", "two seeds", "shifted", "control (twin)")
    figure = share_curves_figure(pd.concat([curves("base", names), curves("<b>", names)]), 0.75, COLOURS)
    lines = figure.data
    assert [line.line.dash for line in lines] == ["solid", "dash", "dashdot", "dot", "dot"] * 2
    assert [(line.name, line.showlegend) for line in lines[:5]] == [(name, True) for name in names]
    assert not any(line.showlegend for line in lines[5:])
    assert list(lines[0].y) == [1.0, 0.0]
    assert lines[0].line.color == lines[5].line.color == COLOURS.model("tuned")
    assert lines[3].line.color != lines[4].line.color
    assert "AUC 0.50" in lines[0].hovertemplate
    assert [title.text for title in figure.layout.annotations] == ["base → tuned", "&lt;b&gt; → tuned"]
    assert {shape.x0 for shape in figure.layout.shapes} == {0.75}


def test_a_label_cannot_end_the_script_it_is_in():
    html = plotly.io.to_html(
        sweep_loss_figure(sweep(EVIL), COLOURS), full_html=False, include_plotlyjs=False, div_id="x"
    )
    assert html.count("</script>") == 1
    assert "<script>alert" not in html
