"""Figures: a table in, a picture out. Nothing is computed here; every table is saved next to the page.

A new figure is its function, an entry in `FIGURES`, and its place in `page.html.jinja`. Those of crosscoders are in
`crosscoder_figures`.
"""

from collections.abc import Callable, Mapping, Sequence
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
from saelineage.report.style import DASHES, GREY, VERDICT_COLOURS, Colours, Panels, plain, styled, visible

CURVE_DASHES = {"edge": "solid", "no change": "dash", "two seeds": "dashdot"}
CONTROL_COLOURS = ("#b0562c", "#4f86b8", "#8a8f98", "#6f8f3a")
"""Colours of curves of controls, whose models have none."""
SHARES = {"tickformat": ".0%", "range": [0, 1.03]}
MOST_FVU = 1.02
"""Largest fvu in the picture of training: a model with random weights begins far above the others."""
CARD_WIDTH, CARD_HEIGHT, CARD_GAP, EDGE_HEIGHT = 178.0, 46.0, 50.0, 66.0
FLOW_HEIGHT, FLOW_HEIGHT_PER_NODE, FLOW_PAD = 590.0, 60.0, 20.0
CHARACTER_WIDTH = 6.7
"""Of the words on an arrow, in pixels; a little wide, because the arrow must not show between them."""
LEGEND_LINE = 20
TIP = (
    '<defs><marker id="lineage-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>'
)


def lineage_svg(models: pd.DataFrame, edges: pd.DataFrame) -> str:
    """The lineage as cards joined by arrows, parents above children.

    Args:
        models: a row per model and corpus: `model`, `made` (how it was made), `colour`, `corpus`, `loss`, `accuracy`.
        edges: a row per edge: `parent`, `child`, and the two lines written on its arrow, `label` and `control`.
    """
    names = list(dict.fromkeys(models["model"]))
    number = {name: index for index, name in enumerate(names)}
    arrows = [(number[parent], number[child]) for parent, child in zip(edges["parent"], edges["child"], strict=True)]
    layout = arrange(Graph([(name,) for name in names], arrows), CARD_WIDTH + CARD_GAP)
    height = CARD_HEIGHT
    corners = [
        (place - CARD_WIDTH / 2, 6 + rank * (height + EDGE_HEIGHT))
        for place, rank in zip(layout.place, layout.rank, strict=True)
    ]
    ways, words = [], []
    for (first, then), lines in zip(arrows, zip(edges["label"], edges["control"], strict=True), strict=True):
        at = _own_end(arrows, first, then)
        way, text = _lineage_arrow(corners[first], corners[then], layout.bends[first, then], height, lines, at)
        ways.append(way)
        words.append(text)
    parts = [*ways, *words]  # no arrow covers the words of another
    for corner, name in zip(corners, names, strict=True):
        parts.append(_card(corner, height, models[models["model"] == name]))
    bottom = max(y for _, y in corners) + height + 6
    size = f'width="{layout.extent:g}" height="{bottom:g}" viewBox="0 0 {layout.extent:g} {bottom:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="lineage" role="img" aria-label="The lineage" {size}>'
    return "\n".join([head, TIP, *parts, "</svg>"])


def flows_figure(nodes: pd.DataFrame, flows: pd.DataFrame) -> go.Figure:
    """Sankey diagram of the verdicts on every edge.

    Args:
        nodes: `name`, `label`, `model` (of those that are models), `column` (0 is the leftmost), `size` (the number of
            features in it), `colour`.
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
            "customdata": [None if pd.isna(model) else model for model in nodes["model"]],
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


def sweep_accuracy_figure(sweep: pd.DataFrame, colours: Colours) -> go.Figure:
    """Next-token accuracy against the swept settings of a merge, see `_sweep_figure`."""
    return _sweep_figure(sweep, "accuracy", "next-token accuracy", colours)


def sweep_loss_figure(sweep: pd.DataFrame, colours: Colours) -> go.Figure:
    """Loss against the swept settings of a merge, see `_sweep_figure`."""
    return _sweep_figure(sweep, "loss", "loss (nats per token)", colours)


def _sweep_figure(table: pd.DataFrame, measure: str, title: str, colours: Colours) -> go.Figure:
    """A measure against one swept setting, or against two as a map for each corpus.

    Args:
        table: `model` (null for merges), `setting`, `value`, `second_setting`, `second_value`, `corpus`, `chosen` and
            `second_chosen` (the settings of the merged model), `is_parent` and the measure.
        measure: `accuracy` or `loss`.
        title: of the measure.
        colours: of corpora.
    """
    has_second = table["second_setting"].notna().any()
    return _sweep_maps(table, measure, title) if has_second else _sweep_lines(table, measure, title, colours)


def _sweep_lines(table: pd.DataFrame, measure: str, title: str, colours: Colours) -> go.Figure:
    """One line per corpus, the value of the parents' ancestor dashed, the chosen setting marked."""
    figure, chosen, setting = go.Figure(), table["chosen"].iloc[0], table["setting"].iloc[0]
    for corpus in dict.fromkeys(table["corpus"]):
        rows = table[table["corpus"] == corpus]
        swept, base = rows[rows["model"].isna()].sort_values("value"), rows[rows["model"].notna() & ~rows["is_parent"]]
        colour = colours.corpus(corpus)
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


def sweep_survival_figure(followed: pd.DataFrame, colours: Colours) -> go.Figure:
    """The share of each parent's features that are found along a sweep of one setting.

    Identified ones (solid), all (dashed), and those that are identified and new since its own parent (dotted).

    Args:
        followed: `model`, `kind`, `group`, `setting`, `value`, `share`, `share_low`, `share_high`.
        colours: of models.
    """
    figure = go.Figure()
    for model in dict.fromkeys(followed["model"]):
        colour = colours.model(model)
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


def fvu_figure(saes: pd.DataFrame, colours: Colours) -> go.Figure:
    """Fraction of variance unexplained, one point per SAE and corpus.

    Args:
        saes: `model`, `sae`, `corpus`, `fvu`.
        colours: of corpora.
    """
    figure = go.Figure()
    for corpus in dict.fromkeys(saes["corpus"]):
        rows = saes[saes["corpus"] == corpus]
        names = [plain(f"{row.model}.{row.sae}") for row in rows.itertuples()]
        pooled = corpus == "pooled"
        marker = {
            "color": colours.corpus(corpus),
            "size": 13 if pooled else 8,
            "symbol": "line-ew-open" if pooled else "circle",
        }
        figure.add_scatter(x=names, y=rows["fvu"], name=plain(corpus), mode="markers", marker=marker)
    figure.update_yaxes(title="fvu", rangemode="tozero")
    return styled(figure, height=320)


def density_figure(densities: pd.DataFrame, colours: Colours) -> go.Figure:
    """Histogram of firing densities: a panel per model, a line per SAE.

    Args:
        densities: `model`, `sae`, `log10_density` (left edge of a bin), `n_latents`.
        colours: of models.
    """
    panels = _panels_of_saes(densities, "log10_density", "n_latents", colours, shape="hv")
    return panels.drawn("log10 of the share of tokens", "latents")


def training_figure(training: pd.DataFrame, colours: Colours) -> go.Figure:
    """Fvu during training: a panel per model, a line per SAE. What is above `MOST_FVU` is cut off.

    Args:
        training: `model`, `sae`, `tokens`, `fvu`.
        colours: of models.
    """
    panels = _panels_of_saes(training, "tokens", "fvu", colours, shape="linear")
    return panels.drawn("tokens trained on", "fvu of the batch", y_axis={"range": [0, MOST_FVU]})


def _panels_of_saes(table: pd.DataFrame, x: str, y: str, colours: Colours, shape: str) -> Panels:
    """A panel for each model with a line for each of its SAEs, in the model's colour, in a dash of its kind."""
    models = list(dict.fromkeys(table["model"]))
    kinds = list(dict.fromkeys(sae.partition("_")[0] for sae in table["sae"]))
    panels = Panels(models)
    for (model, sae), rows in table.groupby(["model", "sae"], sort=False):
        kind = str(sae).partition("_")[0]
        dash = DASHES[kinds.index(kind) % len(DASHES)]
        line = {"color": colours.model(str(model)), "dash": dash, "width": 1.5, "shape": shape}
        hover = f"{plain(sae)}: %{{y:.3g}} at %{{x:.3g}}<extra></extra>"
        panels.add_line(models.index(model), kind, rows[x], rows[y], line, hovertemplate=hover)
    return panels


def correlation_figure(histograms: pd.DataFrame, threshold: float, colours: Colours) -> go.Figure:
    """Histogram of r over all pairs of features, a panel per edge, on a logarithmic axis.

    Args:
        histograms: `edge`, `r` (left edge of a bin), `n_pairs`.
        threshold: r at or above this is a match.
        colours: of models; an edge has its child's.
    """
    edges = list(dict.fromkeys(histograms["edge"]))
    panels = Panels(edges)
    for place, edge in enumerate(edges):
        rows = histograms[(histograms["edge"] == edge) & (histograms["n_pairs"] > 0)]
        line = {"color": colours.model(edge.rpartition(" → ")[2]), "width": 1.5, "shape": "hv"}
        panels.add_line(place, "pairs of features", rows["r"], rows["n_pairs"], line)
    panels.figure.add_vline(x=threshold, line={"color": GREY, "width": 1, "dash": "dot"})
    figure = panels.drawn("Pearson r", "pairs of features", y_axis={"type": "log", "exponentformat": "power"})
    return figure.update_layout(showlegend=False)


def scores_figure(scores: pd.DataFrame, colours: Colours) -> go.Figure:
    """Histogram of the scores of descriptions: one colour per model, written explanations dashed.

    Args:
        scores: `model`, `source`, `r` (left edge of a bin), `n_features`, and over all bins `n` and `median`.
        colours: of models.
    """
    figure = go.Figure()
    for (model, source), rows in scores.groupby(["model", "source"], sort=False):
        dash = "solid" if source == "labels" else "dash"
        colour = colours.model(str(model))
        n, median = rows["n"].iloc[0], rows["median"].iloc[0]
        counted = f"n {n:,}, median {median:.2f}" if n else "n 0"
        figure.add_scatter(
            x=rows["r"],
            y=rows["n_features"] / max(n, 1),
            name=f"{plain(model)}, {plain(source)} ({counted})",
            mode="lines",
            line={"color": colour, "width": 1.75, "dash": dash, "shape": "hv"},
        )
    lowest = scores.loc[scores["n_features"] > 0, "r"].min()
    figure.update_xaxes(title="Pearson r of described and true activations", range=[min(0.0, lowest) - 0.02, 1.0])
    figure.update_yaxes(title="share of features", tickformat=".0%", rangemode="tozero")
    return styled(figure, height=360)


def share_curves_figure(curves: pd.DataFrame, threshold: float, colours: Colours) -> go.Figure:
    """The share of features with a match at every threshold: a panel per edge, a dash per kind of curve.

    The edge is solid, its no-change control dashed, two seeds of the parent dash-dotted; others are dotted.

    Args:
        curves: `parent`, `child`, `name` (`edge`, `no change`, `two seeds`, a control's), `threshold`, `share`, `auc`.
        threshold: r at or above this is a match.
        colours: of models; an edge has its child's.
    """
    by_edge = list(curves.groupby(["parent", "child"], sort=False))
    panels = Panels([f"{parent} → {child}" for (parent, child), _ in by_edge])
    names = [name for name in dict.fromkeys(curves["name"]) if name not in CURVE_DASHES]
    for place, ((_, child), rows) in enumerate(by_edge):
        for name, curve in rows.groupby("name", sort=False):
            own = name == "edge"
            others = CONTROL_COLOURS[names.index(name) % len(CONTROL_COLOURS)] if name in names else GREY
            line = {"color": colours.model(str(child)) if own else others, "width": 2.25 if own else 1.5}
            line["dash"] = CURVE_DASHES.get(str(name), "dot")
            hover = f"{plain(name)} (AUC {curve['auc'].iloc[0]:.2f}): %{{y:.1%}} at r ≥ %{{x:.2f}}<extra></extra>"
            panels.add_line(place, str(name), curve["threshold"], curve["share"], line, hovertemplate=hover)
    panels.figure.add_vline(x=threshold, line={"color": GREY, "width": 1, "dash": "dot"})
    return panels.drawn("threshold of Pearson r", "features with a match", y_axis=SHARES)


BUDGET_LINES = {
    "persist_share": ("persist", "solid"),
    "no_change_share": ("no change", "dash"),
    "kept_share": ("no change, latent kept", "dashdot"),
    "reset_share": ("no change, latent reset", "dot"),
}
"""The shares that `budgets_figure` draws, with their name and dash."""


def budgets_figure(budgets: pd.DataFrame, colours: Colours) -> go.Figure:
    """Shares against the training budget of anchored SAEs: a panel per edge, a dash per share.

    Args:
        budgets: `parent`, `child`, `group`, `n_tokens` and the shares of `BUDGET_LINES`; the first group is drawn.
        colours: of models; an edge has its child's.
    """
    shown = budgets[budgets["group"] == budgets["group"].iloc[0]]
    return _panels_of_shares(shown, "n_tokens", BUDGET_LINES, colours).drawn(
        "tokens that the child's SAE is trained on", "share with a match", x_axis={"rangemode": "tozero"}, y_axis=SHARES
    )


def _panels_of_shares(table: pd.DataFrame, x: str, shares: Mapping[str, tuple[str, str]], colours: Colours) -> Panels:
    """A panel per edge in its child's colour, with a line for each share: its column, name and dash."""
    by_edge = list(table.groupby(["parent", "child"], sort=False))
    panels = Panels([f"{parent} → {child}" for (parent, child), _ in by_edge])
    for place, ((_, child), rows) in enumerate(by_edge):
        for column, (name, dash) in shares.items():
            measured = rows[rows[column].notna()]
            line = {"color": colours.model(str(child)), "width": 1.75, "dash": dash}
            hover = f"{name}: %{{y:.1%}} at %{{x}}<extra></extra>"
            panels.add_line(place, name, measured[x], measured[column], line, mode="lines+markers", hovertemplate=hover)
    return panels


HOOKPOINT_LINES = {
    "persist_share": ("persist", "solid"),
    "no_change_share": ("no change", "dash"),
    "largest_random_share": ("random", "dot"),
}
"""The shares that `hookpoints_figure` draws, with their name and dash."""


def hookpoints_figure(hookpoints: pd.DataFrame, colours: Colours) -> go.Figure:
    """Shares at every hookpoint: a panel per edge, a dash per share, of identified features where they are known.

    Args:
        hookpoints: `hookpoint`, `parent`, `child`, `group` and the shares of `HOOKPOINT_LINES`.
        colours: of models; an edge has its child's.
    """
    shown = hookpoints[hookpoints["group"] == hookpoints["group"].iloc[0]]
    return _panels_of_shares(shown, "hookpoint", HOOKPOINT_LINES, colours).drawn(
        "hookpoint", "share with a match", x_axis={"type": "category"}, y_axis=SHARES
    )


SURVIVAL_LINES = {
    "share": ("found", "solid"),
    "unchanged_most": ("no change, at most", "dash"),
    "unchanged_least": ("no change, at least", "dot"),
}
"""The shares that `survival_figure` draws, with their name and dash."""


def survival_figure(survival: pd.DataFrame, colours: Colours) -> go.Figure:
    """The share of features that is still found, by the model at which they are born: one colour each.

    Dashed and dotted are the bounds of the share that would be left if no step changed anything.

    Args:
        survival: of one line: `group`, `born`, `model`, `share_n` and the shares of `SURVIVAL_LINES`.
        colours: of models.
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
                line={"color": colours.model(str(born)), "width": 1.75, "dash": dash},
                legendgroup=label,
                legendgrouptitle={"text": label},
                hovertemplate=f"{label}, {name}: %{{y:.1%}} at %{{x}}<extra></extra>",
            )
    figure.update_xaxes(title="model", type="category", categoryorder="array", categoryarray=models)
    figure.update_yaxes(title="share of the features that is still found", **SHARES)
    legend = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "groupclick": "toggleitem", "tracegroupgap": 6}
    height = min(max(320, 60 + LEGEND_LINE * len(figure.data)), 1000)
    return styled(figure, height).update_layout(legend=legend)


class Figure(NamedTuple):
    """How a figure of the page is drawn."""

    draw: Callable[..., go.Figure | str]
    """Returns a Plotly figure, or SVG."""
    inputs: tuple[str, ...]
    """Its arguments in order: tables and views of the page, `threshold` or `colours`. Drawn only if the first has
    rows."""
    label: str = ""
    """What the figure shows, for screen readers; SVG has its own."""
    by: str = ""
    """Draw one figure for each value of this column of the first argument. The figure's name holds the column's."""


FIGURES = {
    "hookpoints": Figure(
        hookpoints_figure,
        ("hookpoints", "colours"),
        "Persisting share at every hookpoint, for each edge beside its controls; hookpoints.csv has the numbers",
    ),
    "lineage": Figure(lineage_svg, ("lineage_models", "lineage_edges")),
    "curves": Figure(
        share_curves_figure,
        ("leading_curves", "threshold", "colours"),
        "Share of features with a match at every threshold, for each edge and its controls. The file curves.csv has "
        "the curves; instruments.csv has the areas under the curves of edges and no-change controls.",
    ),
    "budgets": Figure(
        budgets_figure,
        ("budget_lines", "colours"),
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
        ("survival", "colours"),
        "Share of the features born at each model that is still found at later ones, beside what no change would "
        "leave; the file survival.csv has the numbers",
        by="line",
    ),
    "sweep-{sweep}-accuracy": Figure(
        sweep_accuracy_figure,
        ("chosen_sweeps", "colours"),
        "Accuracy against the swept settings of the merge",
        by="sweep",
    ),
    "sweep-{sweep}-survival": Figure(
        sweep_survival_figure,
        ("followed_lines", "colours"),
        "Features of the parents that are found on the merge",
        by="sweep",
    ),
    "sweep-{sweep}-loss": Figure(
        sweep_loss_figure, ("chosen_sweeps", "colours"), "Loss against the swept settings of the merge", by="sweep"
    ),
    "scores": Figure(
        scores_figure,
        ("scores", "colours"),
        "Histogram of the correlation between described and true activations, by model; the file scores.csv has its "
        "numbers",
    ),
    "saes": Figure(fvu_figure, ("saes", "colours"), "Fvu of each SAE on each corpus"),
    "densities": Figure(density_figure, ("densities", "colours"), "Histogram of firing densities of each SAE"),
    "training": Figure(training_figure, ("training", "colours"), "Fvu during training of each SAE"),
    "correlations": Figure(
        correlation_figure, ("correlations", "threshold", "colours"), "Histogram of all correlations of each edge"
    ),
}
"""The figures of the page by name, in its order."""


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
    """A model's card: its name and how it was made; its loss on each corpus is told when pointed at."""
    x, y = corner
    name, made, colour = (rows[column].iloc[0] for column in ("model", "made", "colour"))
    figures = "\n".join(f"{row.corpus}: loss {row.loss:.3f}, accuracy {row.accuracy:.3f}" for row in rows.itertuples())
    parts = [
        f"<g><title>{_safe(f'{name} ({made})')}\n{_safe(figures)}</title>",
        f'<rect class="card" x="{x:g}" y="{y:g}" width="{CARD_WIDTH:g}" height="{height:g}" rx="8"/>',
        f'<rect x="{x:g}" y="{y + 8:g}" width="5" height="{height - 16:g}" rx="2" fill="{colour}"/>',
        f'<text class="name" x="{x + 14:g}" y="{y + 20:g}">{_safe(_short(name, 20))}</text>',
        f'<text class="made" x="{x + 14:g}" y="{y + 36:g}">{_safe(_short(made, 25))}</text>',
    ]
    return "".join([*parts, "</g>"])


def _own_end(arrows: Sequence[tuple[int, int]], first: int, then: int) -> float:
    """How far down its last stretch an arrow's text stands: towards the end that it shares with no other arrow."""
    n_to, n_from = (sum(arrow[side] == number for arrow in arrows) for side, number in ((1, then), (0, first)))
    return 0.35 if n_to > 1 else 0.65 if n_from > 1 else 0.5


def _lineage_arrow(
    start: tuple[float, float],
    end: tuple[float, float],
    bends: Sequence[float],
    height: float,
    lines: tuple[str, str],
    at: float,
) -> tuple[str, str]:
    """An arrow between two cards, and two lines of text for a place on its last stretch (0 is its beginning)."""
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
    x, y = x0 + (x1 - x0) * at**2 * (3 - 2 * at), y0 + (y1 - y0) * (1.5 * at * (1 - at) + at**3)
    width = CHARACTER_WIDTH * max(map(len, lines))
    return (
        f'<path class="edge" d="{path}" marker-end="url(#lineage-tip)"/>',
        f'<rect class="behind" x="{x - width / 2:g}" y="{y - 14:g}" width="{width:g}" height="30"/>'
        f'<text class="share" x="{x:g}" y="{y - 2:g}">{_safe(lines[0])}</text>'
        f'<text class="control" x="{x:g}" y="{y + 13:g}">{_safe(lines[1])}</text>',
    )


def _safe(text: str) -> str:
    """Escape text for an SVG."""
    return "\n".join(escape(visible(line)) for line in text.split("\n"))


def _short(text: str, most: int) -> str:
    """Text cut off at some characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
