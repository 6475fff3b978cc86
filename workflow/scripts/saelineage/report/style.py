"""The look that all figures share, and text that is safe to show.

The page sets the colours of text and grid, because they depend on the reader's colour scheme.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's palette, made for colour-blind eyes.
BLUE, SKY, GREEN, ORANGE, VERMILLION, PURPLE, GREY = (
    *("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"),
    "#8a8f98",
)
VERDICT_COLOURS = {
    "persists": BLUE,
    "inherited": SKY,
    "drifted": ORANGE,
    "gone": VERMILLION,
    "new": GREEN,
    "untestable": GREY,
}
CORPUS_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY)
# Models have other colours than corpora and verdicts: those of Paul Tol's muted scheme that are seen on light and dark.
MODEL_COLOURS = ("#7a66d6", "#CC6677", "#44AA99", "#999933", "#AA4499", "#6699CC", "#b8860b", "#2d8a4e")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
GRID = {"gridcolor": "rgba(128,138,150,.25)", "zerolinecolor": "rgba(128,138,150,.45)", "automargin": True}
# Control characters, zero-width spaces, direction marks, line separators, half surrogates, non-characters.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
PICTURES = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}


class Colours(NamedTuple):
    """The colour of each model and of each corpus: one on the whole page."""

    models: Mapping[str, str]
    corpora: Mapping[str, str]

    def model(self, name: str) -> str:
        """A model's colour; grey for one that is not of the lineage."""
        return self.models.get(name, GREY)

    def corpus(self, name: str) -> str:
        """A corpus's colour; grey for all of them together."""
        return self.corpora.get(name, GREY)


def colours_of(models: Iterable[str], corpora: Iterable[str]) -> Colours:
    """Give models and corpora their colours, in order; after the last colour they start again."""
    return Colours(dict(zip(models, cycle(MODEL_COLOURS))), dict(zip(corpora, cycle(CORPUS_COLOURS))))


def visible(text: str) -> str:
    """Replace every character that is invisible, changes the direction of text or cannot be encoded.

    Line breaks, tabs and other control characters become pictures of themselves; direction marks, separators and half
    surrogates become escapes.
    """
    return UNSEEN.sub(_sign, text)


def plain(text: object) -> str:
    """Text for a Plotly label, where Plotly would read some HTML tags."""
    return escape(visible(str(text)), quote=False)


def _sign(match: re.Match) -> str:
    character = match[0]
    if character in PICTURES:
        return PICTURES[character]
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"\\u{ord(character):04x}"


def styled(figure: go.Figure, height: int, margin: dict | None = None) -> go.Figure:
    """Give a figure the look that all figures share."""
    figure.update_layout(
        template="none",
        height=height,
        margin=margin or {"l": 60, "r": 16, "t": 24, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#5b6675"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis=GRID,
        yaxis=GRID,
    )
    return figure


N_PANEL_COLUMNS, PANEL_HEIGHT, PANEL_GAP = 3, 190, 62
"""Panels beside one another; the height of one, and the gap to the one below with its axis and title, in pixels."""


class Panels:
    """Small multiples: one panel for each of several things, with common axes and one legend above them."""

    def __init__(self, titles: Sequence[str]):
        """Lay the panels out.

        Args:
            titles: of the panels, as plain text.
        """
        self._columns = min(len(titles), N_PANEL_COLUMNS)
        self._rows = -(-len(titles) // self._columns)
        height = self._rows * PANEL_HEIGHT + (self._rows - 1) * PANEL_GAP
        self.figure = make_subplots(
            rows=self._rows,
            cols=self._columns,
            subplot_titles=[plain(title) for title in titles],
            shared_yaxes="all",
            vertical_spacing=PANEL_GAP / height,
            horizontal_spacing=0.04,
        )
        self._height = height
        self._named: set[str] = set()

    def add_line(self, panel: int, name: str, x: Iterable, y: Iterable, line: dict, **trace: object) -> None:
        """Draw a line in a panel. The legend holds each name once, in the line's style where it is first drawn."""
        row, column = divmod(panel, self._columns)
        is_first = name not in self._named
        self._named.add(name)
        legend = {"name": plain(name), "legendgroup": name, "showlegend": is_first}
        self.figure.add_scatter(x=x, y=y, line=line, **{"mode": "lines"} | trace, **legend, row=row + 1, col=column + 1)

    def drawn(self, x_title: str, y_title: str, x_axis: dict | None = None, y_axis: dict | None = None) -> go.Figure:
        """The figure with its look, titles below the lowest panels and beside the first ones."""
        margin = {"l": 62, "r": 12, "t": 66, "b": 56}
        styled(self.figure, int(self._height + margin["t"] + margin["b"]), margin)
        self.figure.update_layout(legend={"y": 1.0, "yref": "container", "yanchor": "top"})
        self.figure.update_xaxes(**GRID, **(x_axis or {}))
        self.figure.update_yaxes(**GRID, **(y_axis or {}))
        for column in range(1, self._columns + 1):
            self.figure.update_xaxes(title={"text": x_title, "standoff": 6}, row=self._rows, col=column)
        return self.figure.update_yaxes(title={"text": y_title, "standoff": 4}, col=1)
