"""Figures of crosscoders: verdicts on each edge, their curves over thresholds, and decoder norms in each model."""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelineage.lineage.exclusivity import DISAPPEARS, EMERGES, IN_LINEAGE, NEAR_0, OTHER_HALF, ROTATED
from saelineage.lineage.matching import PERSISTS, UNTESTABLE
from saelineage.plan.crosscoders import OF_EDGE
from saelineage.report.style import BLUE, GREY, GRID, VERDICT_COLOURS, plain, styled

COLOURS = {
    PERSISTS: VERDICT_COLOURS["persists"],
    ROTATED: VERDICT_COLOURS["drifted"],
    EMERGES: VERDICT_COLOURS["new"],
    DISAPPEARS: VERDICT_COLOURS["gone"],
    UNTESTABLE: VERDICT_COLOURS["untestable"],
}
"""Colours of verdicts: those of the verdicts of SAEs that say the same."""
WRITERS = {"child_only": ("child alone", COLOURS[EMERGES]), "parent_only": ("parent alone", COLOURS[DISAPPEARS])}
"""The counts that `exclusivity_curves_figure` draws, with their name and colour."""
FLOOR = "floor"
CONTROL_DASHES = ("dot", "dashdot", "9px,3px,2px,3px,2px,3px", "18px,3px")
BAR_HEIGHT, HEADER, BETWEEN = 24, 1.0, 0.5
"""Height of a bar in pixels; of the line above the bars of an edge, and of the gap between edges, in bars."""
BARS_END, COUNTS_FROM = 0.47, 0.57
"""Ends of the bars and of their first count, as shares of the figure's width."""
N_CURVE_COLUMNS, N_NORM_COLUMNS = 3, 4
CURVE_HEIGHT, NORM_HEIGHT, PANEL_GAP, TITLE, LEGEND, BELOW = 200, 110, 66, 40, 28, 60
"""Heights in pixels: of a panel, of the gap between two, of titles, of the legend, and of the margin below."""
LONGEST_NAME = 36
"""Characters of a name above a panel or beside a bar; longer ones are cut off."""


def exclusivity_figure(crosscoders: pd.DataFrame) -> go.Figure:
    """One bar per edge and per model in the child's place: its testable latents by verdict, with counts beside it.

    Args:
        crosscoders: of one seed, the rows of an edge together: `edge`, `parent`, `child`, `role` and the count of each
            verdict.
    """
    places, headers, bottom = _bar_places(crosscoders)
    figure = go.Figure()
    for verdict, colour in COLOURS.items():
        if verdict != UNTESTABLE:
            figure.add_bar(
                x=crosscoders[verdict],
                y=places,
                orientation="h",
                marker={"color": colour, "line": {"width": 0}},
                customdata=crosscoders[[verdict]],
                hovertemplate=f"{verdict}: %{{customdata[0]:,}} latents, %{{x:.1f}} %<extra></extra>",
                showlegend=False,
            )
    for edge, place in headers.items():
        _write(figure, 0.0, place, f"<b>{plain(edge)}</b>", "left")
    for number, (verdict, colour) in enumerate(COLOURS.items()):
        x = COUNTS_FROM + (1 - COUNTS_FROM) * number / (len(COLOURS) - 1)
        _write(figure, x, 0.0, f'<span style="color:{colour}">■</span> {verdict}', "right")
        for place, count in zip(places, crosscoders[verdict], strict=True):
            _write(figure, x, place, f"{count:,}", "right")
    styled(figure, int(BAR_HEIGHT * (bottom + 0.7) + 56), {"l": 20, "r": 16, "t": 4, "b": 52})
    figure.update_layout(barmode="stack", barnorm="percent", bargap=0.3)
    figure.update_xaxes(
        title={"text": "testable latents", "standoff": 8}, ticksuffix=" %", range=[0, 100], domain=[0, BARS_END]
    )
    labels = [_in_place(row) for row in crosscoders.to_dict("records")]
    axis = {"tickvals": places, "ticktext": labels, "range": [bottom, -0.7], "showgrid": False, "zeroline": False}
    return figure.update_yaxes(axis, ticks="outside", ticklen=5, tickcolor="rgba(0,0,0,0)")


def exclusivity_curves_figure(curves: pd.DataFrame) -> go.Figure:
    """Latents that one model alone writes, by the threshold on both nu: a panel per edge, a colour per writer.

    The edge is solid; its floor is dashed and its controls are thin. The two bounds of verdicts are marked. The axis of
    counts is logarithmic, because edges, floors and controls with random weights may differ by orders of magnitude.

    Args:
        curves: of one seed: `edge`, `parent`, `child`, `role`, `threshold`, the counts of `WRITERS`, `nu_error_below`
            and `nu_reconstruction_below`.
    """
    edges = list(dict.fromkeys(curves["edge"]))
    figure = _panels(
        [_short(_edge_name(edge)) for edge in edges],
        N_CURVE_COLUMNS,
        "threshold on both nu",
        CURVE_HEIGHT,
        LEGEND + TITLE,
    )
    dashes = _dashes(curves["role"])
    for number, edge in enumerate(edges):
        place = _place(number, N_CURVE_COLUMNS)
        of_edge = curves[curves["edge"] == edge]
        for (role, _), rows in reversed(list(of_edge.groupby(["role", "child"], sort=False))):  # the edge on top
            for column, (writer, colour) in WRITERS.items():
                figure.add_scatter(
                    x=rows["threshold"],
                    y=rows[column],
                    mode="lines",
                    line={"color": colour, "width": 2.25 if role == OF_EDGE else 1, "dash": dashes[role]},
                    showlegend=False,
                    hovertemplate=f"{_in_place(rows.iloc[0])}, {writer}: %{{y:,}} below %{{x}}<extra></extra>",
                    **place,
                )
        for name, words in (("nu_error_below", "error"), ("nu_reconstruction_below", "reconstruction")):
            figure.add_vline(
                x=of_edge[name].iloc[0],
                line={"color": GREY, "width": 1, "dash": "dot"},
                annotation={"text": words, "font": {"size": 10}, "yanchor": "top"},
                **place,
            )
    for name, colour in WRITERS.values():
        _explain(figure, name, {"color": colour, "width": 2.25})
    for role, dash in dashes.items():
        if role != OF_EDGE:
            _explain(figure, FLOOR if role == OTHER_HALF else plain(role), {"color": GREY, "width": 1, "dash": dash})
    most = max(curves[column].max() for column in WRITERS)
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.2, 0.5, 1])
    return figure.update_yaxes(type="log", dtick=1, range=[-0.1, math.log10(max(most, 10)) + 0.4])


def norms_figure(norms: pd.DataFrame) -> go.Figure:
    """A histogram per model of decoder norms as shares of each latent's largest; controls are grey.

    Args:
        norms: of one crosscoder: `model`, `role`, `median`, `n_near_0`, `norm` (left edge of a bin), `n_latents`.
    """
    models = norms.drop_duplicates("model").to_dict("records")
    width = norms["norm"].drop_duplicates().nsmallest(2).diff().iloc[1]
    titles = [_model_title(model) for model in models]
    figure = _panels(
        titles, N_NORM_COLUMNS, "decoder norm, as a share of the largest of all models", NORM_HEIGHT, TITLE
    )
    for number, model in enumerate(models):
        rows = norms[norms["model"] == model["model"]]
        figure.add_bar(
            x=rows["norm"],
            y=rows["n_latents"],
            width=width,
            offset=0,
            marker={"color": BLUE if model["role"] == IN_LINEAGE else GREY, "line": {"width": 0}},
            showlegend=False,
            hovertemplate=f"{plain(model['model'])}: %{{y:,}} latents from %{{x:.2f}} on<extra></extra>",
            **_place(number, N_NORM_COLUMNS),
        )
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.5, 1])
    return figure.update_yaxes(range=[0, 1.05 * norms["n_latents"].max()])


def _bar_places(crosscoders: pd.DataFrame) -> tuple[list[float], dict[str, float], float]:
    """The place of each bar, that of the name of each edge above its bars, and the end, counted downwards in bars."""
    places: list[float] = []
    headers: dict[str, float] = {}
    at = 0.0
    for edge in crosscoders["edge"]:
        name = _edge_name(edge)
        if name not in headers:
            at += BETWEEN * bool(headers)
            headers[name] = at
            at += HEADER
        places.append(at)
        at += 1
    return places, headers, at


def _write(figure: go.Figure, x: float, y: float, text: str, anchor: str) -> None:
    """Write text at a share of the width and at a bar."""
    figure.add_annotation(x=x, y=y, text=text, xref="paper", yref="y", xanchor=anchor, showarrow=False)


def _edge_name(edge: str) -> str:
    return edge.replace("__", " → ")


def _in_place(row: pd.Series | dict) -> str:
    """Words for the model in the child's place."""
    if row["role"] == OF_EDGE:
        return _short(row["child"])
    return f"{FLOOR}: other documents" if row["role"] == OTHER_HALF else _short(f"{row['role']}: {row['child']}")


def _dashes(roles: pd.Series) -> dict[str, str]:
    """The dash of each role."""
    fixed = {OF_EDGE: "solid", OTHER_HALF: "dash"}
    controls = [role for role in dict.fromkeys(roles) if role not in fixed]
    return fixed | {role: CONTROL_DASHES[number % len(CONTROL_DASHES)] for number, role in enumerate(controls)}


def _explain(figure: go.Figure, name: str, line: dict) -> None:
    """Add a line to the legend."""
    figure.add_scatter(x=[None], y=[None], name=name, mode="lines", line=line)


def _model_title(model: dict) -> str:
    role = "" if model["role"] == IN_LINEAGE else f"{plain(model['role'])}, "
    words = f"{role}median {model['median']:.2f}, {model['n_near_0']:,} below {NEAR_0:g}"
    return f'{_short(model["model"])}<br><span style="font-size:10px">{words}</span>'


def _short(name: str) -> str:
    return plain(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…")


def _place(number: int, n_columns: int) -> dict[str, int]:
    row, column = divmod(number, n_columns)
    return {"row": row + 1, "col": column + 1}


def _panels(titles: Sequence[str], n_columns: int, x_title: str, panel_height: int, top: int) -> go.Figure:
    """Empty panels of latents with one scale."""
    n_rows = -(-len(titles) // n_columns)
    inner = n_rows * panel_height + (n_rows - 1) * PANEL_GAP
    figure = make_subplots(
        n_rows,
        min(n_columns, len(titles)),
        shared_xaxes="all",
        shared_yaxes="all",
        vertical_spacing=PANEL_GAP / inner,
        horizontal_spacing=0.03,
        subplot_titles=titles,
        x_title=x_title,
        y_title="latents",
    )
    figure.update_annotations(font_size=12)
    styled(figure, inner + top + BELOW, {"l": 60, "r": 16, "t": top, "b": BELOW})
    figure.update_layout(legend={"yref": "container", "y": 1, "yanchor": "top", "itemwidth": 44})
    return figure.update_xaxes(**GRID, showticklabels=True).update_yaxes(GRID)
