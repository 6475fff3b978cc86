"""The look that all figures share, and text that is safe to show.

The page sets the colours of text and grid, because they depend on the reader's colour scheme.
"""

import re
from html import escape

import plotly.graph_objects as go

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
SERIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, GREY)
DASHES = ("solid", "dash", "dot", "dashdot")
GRID = {"gridcolor": "rgba(128,138,150,.25)", "zerolinecolor": "rgba(128,138,150,.45)", "automargin": True}
# Control characters, zero-width spaces, direction marks, line separators, half surrogates, non-characters.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
PICTURES = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}


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
