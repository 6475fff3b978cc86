"""Figures: a table in, a picture out. Nothing is computed here; every table is saved next to the page.

A new figure is its function, an entry in `FIGURES`, and its place in `page.html.jinja`. Those of crosscoders are in
`crosscoder_figures`.
"""

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelineage.lineage.merge_curves import ALL, OF_IDENTIFIED
from saelineage.lineage.verdicts import NEW
from saelineage.report.crosscoder_figures import exclusivity_curves_figure, exclusivity_figure, norms_figure
from saelineage.report.drawing import Graph, arrange
from saelineage.report.style import DASHES, GREY, SERIES, VERDICT_COLOURS, plain, styled, visible

CURVE_DASHES = {"edge": "solid", "no change": "dash", "two seeds": "dashdot"}
CARD_WIDTH, CARD_GAP, LINE_HEIGHT, EDGE_HEIGHT = 236.0, 46.0, 15.0, 92.0
FLOW_HEIGHT, FLOW_HEIGHT_PER_NODE, FLOW_PAD = 590.0, 60.0, 14.0
LEGEND_LINE = 20
TIP = (
    '<defs><marker id="lineage-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>'
)


def lineage_svg(models: pd.DataFrame, edges: pd.DataFrame) -> str:
    """The lineage as cards joined by arrows, parents above children.

    Args:
        models: a row per model and corpus: `model`, `made` (how it was made), `corpus`, `loss`, `accuracy`.
        edges: a row per edge: `parent`, `child`, and the two lines written on its arrow, `label` and `control`.
    """
    names = list(dict.fromkeys(models["model"]))
    number = {name: index for index, name in enumerate(names)}
    arrows = [(number[parent], number[child]) for parent, child in zip(edges["parent"], edges["child"], strict=True)]
    layout = arrange(Graph([(name,) for name in names], arrows), CARD_WIDTH + CARD_GAP)
    height = 46 + LINE_HEIGHT * int(models.groupby("model")["corpus"].size().max())
    corners = [
        (place - CARD_WIDTH / 2, 6 + rank * (height + EDGE_HEIGHT))
        for place, rank in zip(layout.place, layout.rank, strict=True)
    ]
    parts = []
    for (first, then), lines in zip(arrows, zip(edges["label"], edges["control"], strict=True), strict=True):
        parts.append(_lineage_arrow(corners[first], corners[then], layout.bends[first, then], height, lines))
    for corner, name in zip(corners, names, strict=True):
        parts.append(_card(corner, height, models[models["model"] == name]))
    bottom = max(y for _, y in corners) + height + 6
    size = f'width="{layout.extent:g}" height="{bottom:g}" viewBox="0 0 {layout.extent:g} {bottom:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="lineage" role="img" aria-label="The lineage" {size}>'
    return "\n".join([head, TIP, *parts, "</svg>"])


def flows_figure(nodes: pd.DataFrame, flows: pd.DataFrame) -> go.Figure:
    """Sankey diagram of the verdicts on every edge.

    Args:
        nodes: `name`, `label`, `column` (0 is the leftmost), `size` (the number of features in it), `colour`.
        flows: `source` and `target` (names of nodes), `n_features`, `verdict`, `edge`, `parent`, `child`, `side`,
            `group`.
    """
    number = {name: index for index, name in enumerate(nodes["name"])}
    drawn = flows[flows["n_features"] > 0]
    n_stacked = int(nodes["column"].value_counts().max())
    height = max(FLOW_HEIGHT, FLOW_HEIGHT_PER_NODE * n_stacked)
    # Plotly scales nodes by its own columns, which may hold fewer nodes than ours; this margin makes room for the gaps.
    below = 15 + FLOW_PAD * (n_stacked - 1)
    sankey = go.Sankey(
        arrangement="snap",
        node={
            "label": [plain(label) for label in nodes["label"]],
            "x": (nodes["column"] / max(nodes["column"].max(), 1)).clip(0.01, 0.985).tolist(),
            "y": _stacked(nodes, FLOW_PAD / height),
            "color": nodes["colour"].tolist(),
            "pad": FLOW_PAD,
            "thickness": 14,
            "line": {"width": 0},
            "hovertemplate": "%{label}<extra></extra>",
        },
        link={
            "source": [number[name] for name in drawn["source"]],
            "target": [number[name] for name in drawn["target"]],
            "value": drawn["n_features"].tolist(),
            "color": [
                VERDICT_COLOURS[verdict] if verdict in ("persists", "inherited") else _faint(VERDICT_COLOURS[verdict])
                for verdict in drawn["verdict"]
            ],
            "customdata": [
                [plain(f"{row.verdict}, {row.edge}"), row.parent, row.child, row.side, row.verdict, row.group]
                for row in drawn.itertuples()
            ],
            "hovertemplate": "%{customdata[0]}: %{value:,} features<extra></extra>",
        },
    )
    return styled(go.Figure(sankey), height=int(height + 15 + below), margin={"l": 10, "r": 10, "t": 15, "b": below})


def sweep_accuracy_figure(sweep: pd.DataFrame) -> go.Figure:
    """Next-token accuracy against the swept settings of a merge, see `_sweep_figure`."""
    return _sweep_figure(sweep, "accuracy", "next-token accuracy")


def sweep_loss_figure(sweep: pd.DataFrame) -> go.Figure:
    """Loss against the swept settings of a merge, see `_sweep_figure`."""
    return _sweep_figure(sweep, "loss", "loss (nats per token)")


def _sweep_figure(table: pd.DataFrame, measure: str, title: str) -> go.Figure:
    """A measure against one swept setting, or against two as a map for each corpus.

    Args:
        table: `model` (null for merges), `setting`, `value`, `second_setting`, `second_value`, `corpus`, `chosen` and
            `second_chosen` (the settings of the merged model), `is_parent` and the measure.
        measure: `accuracy` or `loss`.
        title: of the measure.
    """
    has_second = table["second_setting"].notna().any()
    return _sweep_maps(table, measure, title) if has_second else _sweep_lines(table, measure, title)


def _sweep_lines(table: pd.DataFrame, measure: str, title: str) -> go.Figure:
    """One line per corpus, the value of the parents' ancestor dashed, the chosen setting marked."""
    figure, chosen, setting = go.Figure(), table["chosen"].iloc[0], table["setting"].iloc[0]
    for index, corpus in enumerate(dict.fromkeys(table["corpus"])):
        rows = table[table["corpus"] == corpus]
        swept, base = rows[rows["model"].isna()].sort_values("value"), rows[rows["model"].notna() & ~rows["is_parent"]]
        colour = SERIES[index % len(SERIES)]
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=swept["value"], y=swept[measure], name=plain(corpus), mode="lines+markers", line=line)
        for value in base[measure]:
            figure.add_hline(y=value, line={"color": colour, "dash": "dash", "width": 1.5})
    if pd.notna(chosen):
        text = f"{setting} = {chosen:g}"
        figure.add_vline(x=chosen, line={"color": GREY, "width": 1, "dash": "dot"}, annotation_text=text)
    figure.update_xaxes(title=setting)
    figure.update_yaxes(title=title)
    return styled(figure, height=340)


def _sweep_maps(table: pd.DataFrame, measure: str, title: str) -> go.Figure:
    """A map for each corpus, with the chosen settings marked."""
    swept = table[table["model"].isna()]
    corpora = list(dict.fromkeys(swept["corpus"]))
    figure = make_subplots(rows=1, cols=len(corpora), subplot_titles=[plain(corpus) for corpus in corpora])
    for column, corpus in enumerate(corpora, start=1):
        grid = swept[swept["corpus"] == corpus].pivot(index="second_value", columns="value", values=measure)
        heat = go.Heatmap(x=grid.columns, y=grid.index, z=grid, coloraxis="coloraxis")
        figure.add_trace(heat, row=1, col=column)
        mark = {"symbol": "x", "color": "white", "size": 10}
        chosen = {"x": [table["chosen"].iloc[0]], "y": [table["second_chosen"].iloc[0]]}
        figure.add_scatter(**chosen, mode="markers", marker=mark, showlegend=False, row=1, col=column)
        figure.update_xaxes(title=table["setting"].iloc[0], row=1, col=column)
    figure.update_yaxes(title=swept["second_setting"].iloc[0], col=1)
    figure.update_layout(coloraxis={"colorbar": {"title": title}})
    return styled(figure, height=340)


def sweep_survival_figure(followed: pd.DataFrame) -> go.Figure:
    """The share of each parent's features that are found along a sweep of one setting.

    Identified ones (solid), all (dashed), and those that are identified and new since its own parent (dotted).

    Args:
        followed: `model`, `kind`, `group`, `setting`, `value`, `share`, `share_low`, `share_high`.
    """
    figure = go.Figure()
    for index, model in enumerate(dict.fromkeys(followed["model"])):
        colour = SERIES[index % len(SERIES)]
        of_model = followed[followed["model"] == model]
        new = of_model[(of_model["group"] == NEW) & of_model["kind"].str.endswith(OF_IDENTIFIED)]
        lines = [("identified", "solid", of_model[of_model["kind"] == "identified"])]
        lines.append(("all", "dash", of_model[of_model["kind"] == ALL]))
        lines += [(f"new {kind}", "dot", rows) for kind, rows in new.groupby("kind", sort=False)]
        for name, dash, found in lines:
            rows = found.sort_values("value")
            bars = {
                "type": "data",
                "symmetric": False,
                "array": rows["share_high"] - rows["share"],
                "arrayminus": rows["share"] - rows["share_low"],
                "thickness": 1,
            }
            if len(rows):
                figure.add_scatter(
                    x=rows["value"],
                    y=rows["share"],
                    error_y=bars,
                    name=plain(f"{model}, {name}"),
                    mode="lines+markers",
                    line={"color": colour, "width": 2, "dash": dash},
                )
    figure.update_xaxes(title=followed["setting"].iloc[0])
    figure.update_yaxes(title="share of features found", tickformat=".0%", range=[0, 1.02])
    return styled(figure, height=340)


def fvu_figure(saes: pd.DataFrame) -> go.Figure:
    """Fraction of variance unexplained, one point per SAE and corpus.

    Args:
        saes: `model`, `sae`, `corpus`, `fvu`.
    """
    figure = go.Figure()
    for index, corpus in enumerate(dict.fromkeys(saes["corpus"])):
        rows = saes[saes["corpus"] == corpus]
        names = [plain(f"{row.model}.{row.sae}") for row in rows.itertuples()]
        pooled = corpus == "pooled"
        marker = {
            "color": GREY if pooled else SERIES[index % len(SERIES)],
            "size": 13 if pooled else 8,
            "symbol": "line-ew-open" if pooled else "circle",
        }
        figure.add_scatter(x=names, y=rows["fvu"], name=plain(corpus), mode="markers", marker=marker)
    figure.update_yaxes(title="fvu", rangemode="tozero")
    return styled(figure, height=320)


def density_figure(densities: pd.DataFrame) -> go.Figure:
    """Histogram of firing densities, one line per SAE.

    Args:
        densities: `model`, `sae`, `log10_density` (left edge of a bin), `n_latents`.
    """
    figure = go.Figure()
    for name, style, rows in _by_sae(densities):
        line = style | {"shape": "hv"}
        figure.add_scatter(x=rows["log10_density"], y=rows["n_latents"], name=name, mode="lines", line=line)
    figure.update_xaxes(title="log10 of the share of tokens a latent fires on")
    figure.update_yaxes(title="latents")
    return styled(figure, height=320)


def training_figure(training: pd.DataFrame) -> go.Figure:
    """Fvu during training, one line per SAE.

    Args:
        training: `model`, `sae`, `tokens`, `fvu`.
    """
    figure = go.Figure()
    for name, style, rows in _by_sae(training):
        figure.add_scatter(x=rows["tokens"], y=rows["fvu"], name=name, mode="lines", line=style)
    figure.update_xaxes(title="tokens trained on")
    figure.update_yaxes(title="fvu of the batch", rangemode="tozero")
    return styled(figure, height=320)


def correlation_figure(histograms: pd.DataFrame, threshold: float) -> go.Figure:
    """Histogram of r over all pairs of features, one line per edge, on a logarithmic axis.

    Args:
        histograms: `edge`, `r` (left edge of a bin), `n_pairs`.
        threshold: r at or above this is a match.
    """
    figure = go.Figure()
    for index, edge in enumerate(dict.fromkeys(histograms["edge"])):
        rows = histograms[(histograms["edge"] == edge) & (histograms["n_pairs"] > 0)]
        line = {"color": SERIES[index % len(SERIES)], "width": 1.5, "shape": "hv"}
        figure.add_scatter(x=rows["r"], y=rows["n_pairs"], name=plain(edge), mode="lines", line=line)
    line = {"color": GREY, "width": 1, "dash": "dot"}
    figure.add_vline(x=threshold, line=line, annotation_text=f"r = {threshold:g}")
    figure.update_xaxes(title="Pearson r")
    figure.update_yaxes(title="pairs of features", type="log", exponentformat="power")
    return styled(figure, height=340)


def scores_figure(scores: pd.DataFrame) -> go.Figure:
    """Histogram of the scores of descriptions: one colour per model, written explanations dashed.

    Args:
        scores: `model`, `source`, `r` (left edge of a bin), `n_features`, and over all bins `n` and `median`.
    """
    figure = go.Figure()
    models = list(dict.fromkeys(scores["model"]))
    for (model, source), rows in scores.groupby(["model", "source"], sort=False):
        dash = "solid" if source == "labels" else "dash"
        colour = SERIES[models.index(model) % len(SERIES)]
        n, median = rows["n"].iloc[0], rows["median"].iloc[0]
        counted = f"n {n:,}, median {median:.2f}" if n else "n 0"
        figure.add_scatter(
            x=rows["r"],
            y=rows["n_features"] / max(n, 1),
            name=f"{plain(model)}, {plain(source)} ({counted})",
            mode="lines",
            line={"color": colour, "width": 1.75, "dash": dash, "shape": "hv"},
        )
    figure.update_xaxes(title="Pearson r of described and true activations")
    figure.update_yaxes(title="share of features", tickformat=".0%", rangemode="tozero")
    return styled(figure, height=360)


def share_curves_figure(curves: pd.DataFrame, threshold: float) -> go.Figure:
    """The share of features with a match at every threshold: one colour per edge, one dash per kind of curve.

    The edge is solid, its no-change control dashed, two seeds of the parent dash-dotted; others are dotted. The number
    behind a name in the legend is the area under that curve.

    Args:
        curves: `parent`, `child`, `name` (`edge`, `no change`, `two seeds`, a control's), `threshold`, `share`, `auc`.
        threshold: r at or above this is a match.
    """
    figure = go.Figure()
    for index, ((parent, child), rows) in enumerate(curves.groupby(["parent", "child"], sort=False)):
        edge = plain(f"{parent} → {child}")
        for name, curve in rows.groupby("name", sort=False):
            line = {"color": SERIES[index % len(SERIES)], "width": 1.75, "dash": CURVE_DASHES.get(str(name), "dot")}
            figure.add_scatter(
                x=curve["threshold"],
                y=curve["share"],
                name=f"{plain(name)} {curve['auc'].iloc[0]:.2f}",
                mode="lines",
                line=line,
                legendgroup=str(index),
                legendgrouptitle={"text": edge},
                hovertemplate=f"{edge}, {plain(name)}: %{{y:.1%}} at r ≥ %{{x:.2f}}<extra></extra>",
            )
    line = {"color": GREY, "width": 1, "dash": "dot"}
    figure.add_vline(x=threshold, line=line, annotation_text=f"r = {threshold:g}")
    figure.update_xaxes(title="threshold of Pearson r")
    figure.update_yaxes(title="features with a match", tickformat=".0%", rangemode="tozero")
    n_lines = len(figure.data) + len({trace.legendgroup for trace in figure.data})
    height = min(max(440, 90 + LEGEND_LINE * n_lines), 1000)
    legend = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "groupclick": "toggleitem", "tracegroupgap": 6}
    return styled(figure, height).update_layout(legend=legend)


BUDGET_LINES = {
    "persist_share": ("persist", "solid"),
    "no_change_share": ("no change", "dash"),
    "kept_share": ("no change, latent kept", "dashdot"),
    "reset_share": ("no change, latent reset", "dot"),
}
"""The shares that `budgets_figure` draws, with their name and dash."""


def budgets_figure(budgets: pd.DataFrame) -> go.Figure:
    """Shares against the training budget of anchored SAEs: one colour per edge, one dash per share.

    Lines of all features are hidden until their legend is clicked if there are lines of identified ones.

    Args:
        budgets: `parent`, `child`, `group`, `n_tokens` and the shares of `BUDGET_LINES`.
    """
    figure = go.Figure()
    edges = list(budgets.groupby(["parent", "child"], sort=False).groups)
    first = budgets["group"].iloc[0]
    for (parent, child, group), rows in budgets.groupby(["parent", "child", "group"], sort=False):
        edge = plain(f"{parent} → {child}, {group}")
        colour = SERIES[edges.index((parent, child)) % len(SERIES)]
        for column, (name, dash) in BUDGET_LINES.items():
            measured = rows[rows[column].notna()]
            if measured.empty:
                continue
            figure.add_scatter(
                x=measured["n_tokens"],
                y=measured[column],
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 1.75, "dash": dash},
                visible=True if group == first else "legendonly",
                legendgroup=edge,
                legendgrouptitle={"text": edge},
                hovertemplate=f"{edge}, {name}: %{{y:.1%}} at %{{x:,}} tokens<extra></extra>",
            )
    figure.update_xaxes(title="tokens that the child's SAE is trained on", rangemode="tozero")
    return _of_shares(figure, 380)


def _of_shares(figure: go.Figure, least_height: int) -> go.Figure:
    """A figure of shares with its legend beside it, as high as that needs."""
    figure.update_yaxes(title="share of features with a match", tickformat=".0%", range=[0, 1.02])
    legend = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "groupclick": "toggleitem", "tracegroupgap": 6}
    height = min(max(least_height, 60 + LEGEND_LINE * len(figure.data)), 1000)
    return styled(figure, height).update_layout(legend=legend)


HOOKPOINT_LINES = {
    "persist_share": ("persist", "solid"),
    "no_change_share": ("no change", "dash"),
    "largest_random_share": ("random", "dot"),
}
"""The shares that `hookpoints_figure` draws, with their name and dash."""


def hookpoints_figure(hookpoints: pd.DataFrame) -> go.Figure:
    """Shares at every hookpoint: one colour per edge, one dash per share, of identified features where they are known.

    Args:
        hookpoints: `hookpoint`, `parent`, `child`, `group` and the shares of `HOOKPOINT_LINES`.
    """
    figure = go.Figure()
    shown = hookpoints[hookpoints["group"] == hookpoints["group"].iloc[0]]
    for place, ((parent, child), rows) in enumerate(shown.groupby(["parent", "child"], sort=False)):
        edge, colour = plain(f"{parent} → {child}"), SERIES[place % len(SERIES)]
        for column, (name, dash) in HOOKPOINT_LINES.items():
            figure.add_scatter(
                x=rows["hookpoint"],
                y=rows[column],
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 1.75, "dash": dash},
                legendgroup=edge,
                legendgrouptitle={"text": edge},
                hovertemplate=f"{edge}, {name}: %{{y:.1%}} at %{{x}}<extra></extra>",
            )
    figure.update_xaxes(title="hookpoint", type="category")
    return _of_shares(figure, 320)


SURVIVAL_LINES = {
    "share": ("found", "solid"),
    "unchanged_most": ("no change, at most", "dash"),
    "unchanged_least": ("no change, at least", "dot"),
}
"""The shares that `survival_figure` draws, with their name and dash."""


def survival_figure(survival: pd.DataFrame) -> go.Figure:
    """The share of features that is still found, by the model at which they are born: one colour each.

    Dashed and dotted are the bounds of the share that would be left if no step changed anything.

    Args:
        survival: of one line: `group`, `born`, `model`, `share_n` and the shares of `SURVIVAL_LINES`.
    """
    figure = go.Figure()
    shown = survival[survival["group"] == survival["group"].iloc[0]]
    models = list(dict.fromkeys([*shown["born"], *shown["model"]]))
    for place, (born, rows) in enumerate(shown.groupby("born", sort=False)):
        label = plain(f"{'born at' if place else 'of'} {born}, n = {rows['share_n'].iloc[0]:,}")
        for column, (name, dash) in SURVIVAL_LINES.items():
            if rows[column].isna().all():
                continue
            figure.add_scatter(
                x=[born, *rows["model"]],
                y=[1.0, *rows[column]],
                name=name,
                mode="lines+markers",
                line={"color": SERIES[place % len(SERIES)], "width": 1.75, "dash": dash},
                legendgroup=label,
                legendgrouptitle={"text": label},
                hovertemplate=f"{label}, {name}: %{{y:.1%}} at %{{x}}<extra></extra>",
            )
    figure.update_xaxes(title="model", type="category", categoryorder="array", categoryarray=models)
    return _of_shares(figure, 320).update_yaxes(title="share of the features that is still found")


class Figure(NamedTuple):
    """How a figure of the page is drawn."""

    draw: Callable[..., go.Figure | str]
    """Returns a Plotly figure, or SVG."""
    inputs: tuple[str, ...]
    """Its arguments in order: tables and views of the page, or `threshold`. Drawn only if the first has rows."""
    label: str = ""
    """What the figure shows, for screen readers; SVG has its own."""
    by: str = ""
    """Draw one figure for each value of this column of the first argument. The figure's name holds the column's."""


FIGURES = {
    "hookpoints": Figure(
        hookpoints_figure,
        ("hookpoints",),
        "Persisting share at every hookpoint, for each edge beside its controls; hookpoints.csv has the numbers",
    ),
    "lineage": Figure(lineage_svg, ("lineage_models", "lineage_edges")),
    "curves": Figure(
        share_curves_figure,
        ("leading_curves", "threshold"),
        "Share of features with a match at every threshold, for each edge and its controls. The file curves.csv has "
        "the curves; instruments.csv has the areas under the curves of edges and no-change controls.",
    ),
    "budgets": Figure(
        budgets_figure,
        ("budgets",),
        "Shares under each training budget of anchored SAEs, for each edge and its no-change controls; the file "
        "budgets.csv has the numbers",
    ),
    "crosscoder-verdicts": Figure(
        exclusivity_figure,
        ("first_crosscoders",),
        "Shares of a crosscoder's latents by verdict, for each edge beside its floor and controls; the table above "
        "and crosscoders.csv have the numbers",
    ),
    "crosscoder-curves": Figure(
        exclusivity_curves_figure,
        ("first_crosscoder_curves",),
        "Numbers of latents that one model alone writes at every threshold, for each edge beside its floor and "
        "controls; the file crosscoder_curves.csv has the numbers",
    ),
    "crosscoder-norms-{group}": Figure(
        norms_figure,
        ("first_crosscoder_norms",),
        "Histograms of a crosscoder's decoder norms in each model as shares of the largest; the file "
        "crosscoder_norms.csv has the numbers",
        by="group",
    ),
    "flows": Figure(
        flows_figure,
        ("flow_nodes", "flow_links"),
        "Sankey diagram of feature classes over the lineage; the table below has the same numbers",
    ),
    "survival-{line}": Figure(
        survival_figure,
        ("survival",),
        "Share of the features born at each model that is still found at later ones, beside what no change would "
        "leave; the file survival.csv has the numbers",
        by="line",
    ),
    "sweep-{sweep}-accuracy": Figure(
        sweep_accuracy_figure, ("chosen_sweeps",), "Accuracy against the swept settings of the merge", by="sweep"
    ),
    "sweep-{sweep}-survival": Figure(
        sweep_survival_figure, ("followed_lines",), "Features of the parents that are found on the merge", by="sweep"
    ),
    "sweep-{sweep}-loss": Figure(
        sweep_loss_figure, ("chosen_sweeps",), "Loss against the swept settings of the merge", by="sweep"
    ),
    "scores": Figure(
        scores_figure,
        ("scores",),
        "Histogram of the correlation between described and true activations, by model; the file scores.csv has its "
        "numbers",
    ),
    "saes": Figure(fvu_figure, ("saes",), "Fvu of each SAE on each corpus"),
    "densities": Figure(density_figure, ("densities",), "Histogram of firing densities of each SAE"),
    "training": Figure(training_figure, ("training",), "Fvu during training of each SAE"),
    "correlations": Figure(
        correlation_figure, ("correlations", "threshold"), "Histogram of all correlations of each edge"
    ),
}
"""The figures of the page by name, in its order."""


def _by_sae(table: pd.DataFrame) -> list[tuple[str, dict, pd.DataFrame]]:
    """The name, line style (a colour per model, a dash per seed) and rows of each SAE."""
    models, saes = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["sae"]))
    return [
        (
            plain(f"{model}.{sae}"),
            {
                "color": SERIES[models.index(model) % len(SERIES)],
                "dash": DASHES[saes.index(sae) % len(DASHES)],
                "width": 1.75,
            },
            rows,
        )
        for (model, sae), rows in table.groupby(["model", "sae"], sort=False)
    ]


def _stacked(nodes: pd.DataFrame, pad: float) -> list[float]:
    """Centres of the nodes in (0, 1), stacked in their columns: Plotly's own heights, spare room shared out evenly.

    Args:
        nodes: `column` and `size`.
        pad: the gap that Plotly keeps between two nodes, as a share of the height.
    """
    columns = nodes.groupby("column")["size"]
    n, total = columns.transform("size"), columns.transform("sum")
    heights = nodes["size"] * ((1 - (n - 1) * pad) / total).min()
    spare = 1 - heights.groupby(nodes["column"]).transform("sum") - (n - 1) * pad
    number = columns.cumcount()
    ends = heights.groupby(nodes["column"]).cumsum() + number * pad + spare * (number + 1) / (n + 1)
    return (ends - heights / 2).round(4).clip(0.001, 0.999).tolist()


def _faint(colour: str) -> str:
    """The colour, half transparent."""
    red, green, blue = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.5)"


def _card(corner: tuple[float, float], height: float, rows: pd.DataFrame) -> str:
    """A model's card: its name, how it was made, and one line per corpus."""
    x, y = corner
    name, made = rows["model"].iloc[0], rows["made"].iloc[0]
    figures = "\n".join(f"{row.corpus}: loss {row.loss:.3f}, accuracy {row.accuracy:.3f}" for row in rows.itertuples())
    parts = [
        f"<g><title>{_safe(f'{name} ({made})')}\n{_safe(figures)}</title>",
        f'<rect class="card" x="{x:g}" y="{y:g}" width="{CARD_WIDTH:g}" height="{height:g}" rx="8"/>',
        f'<text class="name" x="{x + 12:g}" y="{y + 20:g}">{_safe(_short(name, 30))}</text>',
        f'<text class="made" x="{x + 12:g}" y="{y + 35:g}">{_safe(_short(made, 40))}</text>',
    ]
    for index, row in enumerate(rows.itertuples()):
        line = y + 52 + index * LINE_HEIGHT
        parts.append(f'<text class="number" x="{x + 12:g}" y="{line:g}">{_safe(_short(str(row.corpus), 15))}</text>')
        parts.append(f'<text class="number end" x="{x + 162:g}" y="{line:g}">loss {row.loss:.2f}</text>')
        parts.append(f'<text class="number end" x="{x + 224:g}" y="{line:g}">{row.accuracy:.1%}</text>')
    return "".join([*parts, "</g>"])


def _lineage_arrow(
    start: tuple[float, float], end: tuple[float, float], bends: Sequence[float], height: float, lines: tuple[str, str]
) -> str:
    """An arrow between two cards, with two lines of text halfway down its last stretch."""
    points = [(start[0] + CARD_WIDTH / 2, start[1] + height)]
    for step, bend in enumerate(bends, start=1):
        top = start[1] + step * (height + EDGE_HEIGHT)
        points += [(bend, top), (bend, top + height)]
    points.append((end[0] + CARD_WIDTH / 2, end[1] - 2))
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += f"C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}"
    (x0, y0), (x1, y1) = points[-2:]
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return (
        f'<path class="edge" d="{path}" marker-end="url(#lineage-tip)"/>'
        f'<text class="share" x="{x:g}" y="{y - 2:g}">{_safe(lines[0])}</text>'
        f'<text class="control" x="{x:g}" y="{y + 13:g}">{_safe(lines[1])}</text>'
    )


def _safe(text: str) -> str:
    """Escape text for an SVG."""
    return "\n".join(escape(visible(line)) for line in text.split("\n"))


def _short(text: str, most: int) -> str:
    """Text cut off at some characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
