"""The workflow's own graph as a picture: layers by longest path, few crossings, drawn as SVG without graphviz.

In the order of a drawing: `read_dot`, `without_shortcuts`, `arrange`, then `jobs_svg` or `rules_svg`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

NODE = re.compile(r'^\s*(\d+)\[label = "((?:[^"\\]|\\.)*)"')
ARROW = re.compile(r"^\s*(\d+) -> (\d+)")
STAGE_COLOURS = (  # Paul Tol's muted scheme, made for colour-blind eyes, and two more; names always stand beside them
    *("#6650c8", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#a8326f", "#AA4499"),
    *("#6699CC", "#888888"),
)
SWEEPS = 12
BEND_SIZE = 7.0
MARGIN, LEGEND = 8.0, 34.0
HANDED_ON = ("model", "sae", "corpus", "a", "b")
MAX_JOBS = 1000
STYLE = """
.dag text{font:11px system-ui,sans-serif;fill:#1c2430}
.dag .small{font-size:9.5px;fill:#566070}
.dag .box{fill:#fff;stroke-width:2}
.dag .arrow{fill:none;stroke:#8a94a3;stroke-opacity:.55;stroke-width:1}
.dag g:hover>.box{stroke-width:3.5}
@media (prefers-color-scheme:dark){
.dag text{fill:#e6e9ee}.dag .small{fill:#a9b3c1}.dag .box{fill:#1b212b}.dag .arrow{stroke:#7c8798}}
"""


class Graph(NamedTuple):
    """Nodes by number, and arrows from what comes first to what needs it."""

    labels: list[tuple[str, ...]]
    """Per node the rule, then what tells its jobs apart, such as `corpus: lua`."""
    arrows: list[tuple[int, int]]


class Arrangement(NamedTuple):
    """Where nodes stand."""

    rank: list[int]
    """Layer of each node: the most arrows on any way to it."""
    place: list[float]
    """Centre of each node across its layer, in pixels."""
    bends: dict[tuple[int, int], list[float]]
    """Where an arrow that passes over layers crosses each of them."""
    extent: float
    """Size of the whole across its layers."""


def read_dot(text: str) -> Graph:
    """The graph that `snakemake --dag` prints.

    Raises:
        ValueError: if the text holds no graph.
    """
    nodes = {int(found[1]): found[2] for line in text.splitlines() if (found := NODE.match(line))}
    arrows = {(int(found[1]), int(found[2])) for line in text.splitlines() if (found := ARROW.match(line))}
    if not nodes or sorted(nodes) != list(range(len(nodes))):
        raise ValueError(f"this is no graph of jobs as Snakemake prints it: {text[:200]!r}")
    labels = [tuple(_unquote(part) for part in nodes[number].split("\\n")) for number in sorted(nodes)]
    return Graph(labels, sorted(arrows))


def without_shortcuts(graph: Graph) -> Graph:
    """The graph without arrows that a longer way already implies (its transitive reduction)."""
    after = _successors(len(graph.labels), graph.arrows)
    beyond: dict[int, set[int]] = {}
    for node in reversed(_in_order(len(graph.labels), graph.arrows)):
        beyond[node] = set(after[node]).union(*(beyond[other] for other in after[node]))
    implied = {
        (node, other)
        for node, others in enumerate(after)
        for other in others
        if any(other in beyond[between] for between in others)
    }
    return Graph(graph.labels, [arrow for arrow in graph.arrows if arrow not in implied])


def rule_graph(graph: Graph) -> tuple[Graph, list[int]]:
    """The graph of rules behind a graph of jobs, and the number of jobs of each."""
    rules = list(dict.fromkeys(label[0] for label in graph.labels))
    number = {rule: index for index, rule in enumerate(rules)}
    counts = Counter(label[0] for label in graph.labels)
    arrows = {(number[graph.labels[first][0]], number[graph.labels[then][0]]) for first, then in graph.arrows}
    forwards = sorted(arrow for arrow in arrows if arrow[0] != arrow[1])
    return Graph([(rule,) for rule in rules], _without_circles(len(rules), forwards)), [counts[rule] for rule in rules]


def arrange(graph: Graph, size: float) -> Arrangement:
    """Put nodes into layers and order each layer by the mean place of its neighbours.

    Arrows of one node that pass over the same layer share a bend there, so that they run as one line until they part.

    Args:
        graph: an acyclic graph.
        size: room that a node takes up across its layer, in pixels.
    """
    n = len(graph.labels)
    level = _ranks(n, graph.arrows)
    ways, bend_at, steps = {}, {}, set()
    for first, then in graph.arrows:
        depths = range(level[first] + 1, level[then])
        for depth in depths:
            if (first, depth) not in bend_at:
                bend_at[first, depth] = len(level)
                level.append(depth)
        ways[first, then] = [bend_at[first, depth] for depth in depths]
        way = [first, *ways[first, then], then]
        steps.update(pairwise(way))
    sizes = [size] * n + [BEND_SIZE] * (len(level) - n)
    layers = [[node for node in range(len(level)) if level[node] == depth] for depth in range(max(level) + 1)]
    place = _places(layers, sorted(steps), sizes)
    edge = min(centre - half / 2 for centre, half in zip(place, sizes, strict=True))
    place = [round(centre - edge, 2) for centre in place]
    extent = max(centre + half / 2 for centre, half in zip(place, sizes, strict=True))
    bends = {arrow: [place[bend] for bend in found] for arrow, found in ways.items()}
    return Arrangement(level[:n], place[:n], bends, extent)


def jobs_svg(graph: Graph, stages: Mapping[str, str]) -> str:
    """Every job as a box, from left to right, coloured by stage.

    Args:
        graph: the jobs.
        stages: the stage of each rule.
    """
    if len(graph.labels) > MAX_JOBS:
        text = f"{len(graph.labels)} jobs are too many to draw one by one; the graph of rules shows them together."
        return _svg(720.0, 40.0, [f'<text x="8" y="24">{escape(text)}</text>'], "The jobs of this run")
    details, graph = _details(graph), without_shortcuts(graph)
    width, height, gap = 146.0, 28.0, 40.0
    found = arrange(graph, height + 6)
    lefts = [MARGIN + rank * (width + gap) for rank in range(max(found.rank) + 1)]
    corners = [(lefts[rank], LEGEND + place - height / 2) for rank, place in zip(found.rank, found.place, strict=True)]
    pieces = []
    for (first, then), bends in found.bends.items():
        points = [(corners[first][0] + width, corners[first][1] + height / 2)]
        for left, bend in zip(lefts[found.rank[first] + 1 :], bends, strict=False):
            points += [(left, LEGEND + bend), (left + width, LEGEND + bend)]
        points.append((corners[then][0], corners[then][1] + height / 2))
        pieces += _curves(points, along_x=True)
    before = _predecessors(graph)
    boxes = [
        _box(corner, (width, height), label[0], detail, _colour(stages, label[0]), _title(graph, before, node))
        for node, (corner, label, detail) in enumerate(zip(corners, graph.labels, details, strict=True))
    ]
    legend = _legend(stages, [label[0] for label in graph.labels])
    size = (lefts[-1] + width + MARGIN, LEGEND + found.extent + MARGIN)
    return _svg(*size, [*legend, _arrows(pieces), *boxes], f"The {len(graph.labels)} jobs of this run")


def rules_svg(graph: Graph, stages: Mapping[str, str]) -> str:
    """Every rule as a box with its number of jobs, from top to bottom, coloured by stage."""
    rules, counts = rule_graph(graph)
    rules = without_shortcuts(rules)
    width, height, gap = 148.0, 34.0, 26.0
    found = arrange(rules, width + 16)
    tops = [LEGEND + rank * (height + gap) for rank in range(max(found.rank) + 1)]
    corners = [(MARGIN + place - width / 2, tops[rank]) for rank, place in zip(found.rank, found.place, strict=True)]
    pieces = []
    for (first, then), bends in found.bends.items():
        points = [(corners[first][0] + width / 2, corners[first][1] + height)]
        for top, bend in zip(tops[found.rank[first] + 1 :], bends, strict=False):
            points += [(MARGIN + bend, top), (MARGIN + bend, top + height)]
        points.append((corners[then][0] + width / 2, corners[then][1]))
        pieces += _curves(points, along_x=False)
    boxes = []
    for corner, (rule,), count in zip(corners, rules.labels, counts, strict=True):
        jobs = f"{count} job{'s' if count != 1 else ''}"
        boxes.append(_box(corner, (width, height), rule, jobs, _colour(stages, rule), f"{rule}: {jobs}"))
    names = [label[0] for label in rules.labels]
    size = (max(found.extent + 2 * MARGIN, _legend_width(stages, names)), tops[-1] + height + MARGIN)
    return _svg(*size, [*_legend(stages, names), _arrows(pieces), *boxes], "The rules of this run")


def _places(layers: list[list[int]], steps: list[tuple[int, int]], sizes: list[float]) -> list[float]:
    """Centres of all nodes: swept down and up, each drawn to the mean of its neighbours, none over another."""
    neighbours = {-1: [[] for _ in sizes], 1: [[] for _ in sizes]}
    for first, then in steps:
        neighbours[-1][then].append(first)
        neighbours[1][first].append(then)
    place = [0.0] * len(sizes)
    for layer in layers:
        _settle(layer, [float(index) for index in range(len(layer))], sizes, place)
    for sweep in range(SWEEPS):
        side = -1 if sweep % 2 == 0 else 1
        for layer in layers if side == -1 else reversed(layers):
            wished = [
                sum(place[other] for other in near) / len(near) if (near := neighbours[side][node]) else place[node]
                for node in layer
            ]
            order = sorted(range(len(layer)), key=lambda index: wished[index])
            layer[:] = [layer[index] for index in order]
            _settle(layer, [wished[index] for index in order], sizes, place)
    return place


def _settle(layer: list[int], wished: list[float], sizes: list[float], place: list[float]) -> None:
    """Place a layer's nodes in order, near where they wish to be: the mean of pushing all down and pushing all up."""
    down, up = list(wished), list(wished)
    for index in range(1, len(layer)):
        down[index] = max(down[index], down[index - 1] + (sizes[layer[index]] + sizes[layer[index - 1]]) / 2)
    for index in range(len(layer) - 2, -1, -1):
        up[index] = min(up[index], up[index + 1] - (sizes[layer[index]] + sizes[layer[index + 1]]) / 2)
    for node, low, high in zip(layer, down, up, strict=True):
        place[node] = round((low + high) / 2, 3)


def _ranks(n: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """The longest way to each node, in arrows."""
    rank, after = [0] * n, _successors(n, arrows)
    for node in _in_order(n, arrows):
        for other in after[node]:
            rank[other] = max(rank[other], rank[node] + 1)
    return rank


def _in_order(n: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """Nodes with every arrow pointing forwards.

    Raises:
        ValueError: if the arrows form a circle.
    """
    waiting_for, after = [0] * n, _successors(n, arrows)
    for _, then in arrows:
        waiting_for[then] += 1
    ready = [node for node in range(n) if waiting_for[node] == 0]
    for node in ready:
        for other in after[node]:
            waiting_for[other] -= 1
            if waiting_for[other] == 0:
                ready.append(other)
    if len(ready) < n:
        raise ValueError("the arrows of the graph form a circle")
    return ready


def _without_circles(n: int, arrows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The arrows, but for those that would close a circle: rules may follow each other where jobs do not."""
    kept: list[tuple[int, int]] = []
    for first, then in arrows:
        after, reached, waiting = _successors(n, kept), {then}, [then]
        while waiting:
            fresh = [other for other in after[waiting.pop()] if other not in reached]
            reached.update(fresh)
            waiting.extend(fresh)
        if first not in reached:
            kept.append((first, then))
    return kept


def _successors(n: int, arrows: Sequence[tuple[int, int]]) -> list[list[int]]:
    after: list[list[int]] = [[] for _ in range(n)]
    for first, then in arrows:
        after[first].append(then)
    return after


def _predecessors(graph: Graph) -> list[list[int]]:
    return _successors(len(graph.labels), [(then, first) for first, then in graph.arrows])


def _unquote(text: str) -> str:
    return text.replace('\\"', '"').replace("\\\\", "\\")


def _title(graph: Graph, before: list[list[int]], node: int) -> str:
    """What hovering over a job tells: itself, and the jobs it waits for."""
    lines = [", ".join(graph.labels[node])]
    lines += [f"needs {', '.join(graph.labels[other])}" for other in before[node][:12]]
    more = len(before[node]) - 12
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)


def _details(graph: Graph) -> list[str]:
    """What tells each job apart.

    Snakemake names a wildcard where it first comes up. It is handed on: from the labels of the jobs that one needs,
    otherwise from what was handed to them, as long as they agree.
    """
    before = _predecessors(graph)
    own = [dict(part.split(": ", 1) for part in label[1:] if ": " in part) for label in graph.labels]
    found = [dict[str, str | None]() for _ in graph.labels]
    for node in _in_order(len(graph.labels), graph.arrows):
        for key in HANDED_ON:
            named = {own[other][key] for other in before[node] if key in own[other]}
            values = named or {found[other][key] for other in before[node] if key in found[other]}
            if values:
                found[node][key] = values.pop() if len(values) == 1 else None
        found[node] |= own[node]
    return [_joined([value for key, value in wildcards.items() if value and key != "run"]) for wildcards in found]


def _joined(values: list[str]) -> str:
    """Values side by side, without models and SAEs that stand in a `{model}.{sae}` as well."""
    values = list(dict.fromkeys(values))
    return " · ".join(
        value for value in values if not any(value in other.split(".")[:2] for other in values if "." in other)
    )


def _colour(stages: Mapping[str, str], rule: str) -> str:
    known = list(dict.fromkeys(stages.values()))
    return STAGE_COLOURS[known.index(stages[rule]) % len(STAGE_COLOURS)] if rule in stages else "#888888"


def _used_stages(stages: Mapping[str, str], rules: Sequence[str]) -> list[str]:
    return [stage for stage in dict.fromkeys(stages.values()) if any(stages.get(rule) == stage for rule in rules)]


def _legend(stages: Mapping[str, str], rules: Sequence[str]) -> list[str]:
    """A row of coloured squares with the stages' names."""
    parts, x = [], MARGIN
    for stage in _used_stages(stages, rules):
        rule = next(rule for rule in rules if stages.get(rule) == stage)
        parts.append(f'<rect x="{x:g}" y="6" width="10" height="10" rx="2" fill="{_colour(stages, rule)}"/>')
        parts.append(f'<text x="{x + 14:g}" y="15">{escape(stage)}</text>')
        x += 30 + 6.6 * len(stage)
    return parts


def _legend_width(stages: Mapping[str, str], rules: Sequence[str]) -> float:
    return MARGIN + sum(30 + 6.6 * len(stage) for stage in _used_stages(stages, rules))


def _box(
    corner: tuple[float, float], size: tuple[float, float], name: str, detail: str, colour: str, title: str
) -> str:
    """A rounded box with the rule's name and, smaller, what tells its job apart."""
    (x, y), (width, height) = corner, size
    most = int(width / 5.4)
    detail = detail if len(detail) <= most else f"{detail[: most - 1]}…"
    middle = y + height / 2 + (-1.5 if detail else 4)
    lines = [
        f"<g><title>{escape(title)}</title>",
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" stroke="{colour}"/>',
        f'<text x="{x + 7:g}" y="{middle:g}">{escape(name)}</text>',
    ]
    if detail:
        lines.append(f'<text class="small" x="{x + 7:g}" y="{middle + 11:g}">{escape(detail)}</text>')
    return "".join([*lines, "</g>"])


def _curves(points: Sequence[tuple[float, float]], along_x: bool) -> list[str]:
    """Path pieces between points, each leaving and arriving along one axis."""
    pieces = []
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (x0 + x1) / 2 if along_x else (y0 + y1) / 2
        bends = f"{middle:g} {y0:g} {middle:g} {y1:g}" if along_x else f"{x0:g} {middle:g} {x1:g} {middle:g}"
        pieces.append(f"M{x0:g} {y0:g}C{bends} {x1:g} {y1:g}")
    return pieces


def _arrows(pieces: Sequence[str]) -> str:
    """All lines as one path, in which pieces that arrows share are drawn once."""
    return f'<path class="arrow" d="{"".join(dict.fromkeys(pieces))}"/>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """A whole SVG file that may also stand inside a page."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="dag" role="img" aria-label="{escape(title)}" {size}>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"
