"""The workflow's graph as SVG, without graphviz: layers by longest path, few crossings.

The steps of a drawing are `job_graph`, `without_shortcuts` and `arrange`; `jobs_svg` and `rules_svg` take all of them.
Jobs are dicts, as `listing.planned` and `listing.collect` return them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

STAGE_COLOURS = (  # Paul Tol's colour-blind-safe muted scheme and two more colours; every colour also has a name
    *("#6650c8", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#a8326f", "#AA4499"),
    *("#6699CC", "#888888"),
)
SWEEPS = 12
BEND_SIZE = 7.0
MARGIN, LEGEND, LEGEND_ROW = 8.0, 34.0, 20.0
MAX_JOBS = 1000
BADGES = {  # by state: its description and a 10 x 10 pixel sign, so that the state does not depend on colour alone
    "fresh": ("up to date", "M1 5.5L4 8.5L9 2"),
    "stale": ("stale: would run again", "M5 .5L9.6 9.5H.4Z"),
    "missing": ("missing: would run", "M1.5 1.5L8.5 8.5M8.5 1.5L1.5 8.5"),
    "running": ("running", "M1.5 .5L9.5 5L1.5 9.5Z"),
}
STYLE = """
.dag text{font:11px system-ui,sans-serif;fill:#1c2430}
.dag .small{font-size:9.5px;fill:#566070}
.dag .box{fill:#fff;stroke-width:2}
.dag .arrow{fill:none;stroke:#8a94a3;stroke-opacity:.55;stroke-width:1}
.dag g:hover>.box,.dag .job:focus-visible>.box,.dag .chosen>.box{stroke-width:3.5}
.dag .job{cursor:pointer;outline-offset:2px}
.dag .badge{fill:none;stroke:#117733;stroke-width:2}
.dag .stale>.box{fill:#fdeedd;stroke-dasharray:7 3}.dag .stale>.badge{fill:#b85c00;stroke:#b85c00;stroke-width:0}
.dag .missing>.box{fill:#fbe8f0;stroke-dasharray:2 3}.dag .missing>.badge{stroke:#a8326f}
.dag .running>.box{fill:#e4f0fa}.dag .running>.badge{fill:#0060a0;stroke:#0060a0;stroke-width:0}
@media (prefers-color-scheme:dark){
.dag text{fill:#e6e9ee}.dag .small{fill:#a9b3c1}.dag .box{fill:#1b212b}.dag .arrow{stroke:#7c8798}
.dag .badge{stroke:#6fd09a}
.dag .stale>.box{fill:#3a2814}.dag .stale>.badge{fill:#ffb366}
.dag .missing>.box{fill:#3a1a29}.dag .missing>.badge{stroke:#ff8ab8}
.dag .running>.box{fill:#14293a}.dag .running>.badge{fill:#7cc0f4}}
"""


class Graph(NamedTuple):
    """Nodes by number, and arrows from each node to those that depend on it."""

    labels: list[tuple[str, ...]]
    """Per node: the rule, then the job's name within the rule, such as `lua · seed0`, which may be empty."""
    arrows: list[tuple[int, int]]


class Arrangement(NamedTuple):
    """The positions of nodes."""

    rank: list[int]
    """Layer of each node: the number of arrows on the longest path to it."""
    place: list[float]
    """Centre of each node across its layer, in pixels."""
    bends: dict[tuple[int, int], list[float]]
    """Per arrow, the places where it crosses the layers between its ends."""
    extent: float
    """Size of the drawing across its layers."""


def job_graph(jobs: Sequence[Mapping]) -> Graph:
    """The graph of jobs.

    Args:
        jobs: with `id` (the place in the list), `rule`, `name`, and `needs` (ids of jobs).
    """
    arrows = sorted((needed, job["id"]) for job in jobs for needed in job["needs"])
    return Graph([(job["rule"], job["name"]) for job in jobs], arrows)


def without_shortcuts(graph: Graph) -> Graph:
    """The transitive reduction of a graph: without arrows that a longer path implies."""
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
    """The graph of rules behind a graph of jobs, and the number of jobs of each rule."""
    rules = list(dict.fromkeys(label[0] for label in graph.labels))
    number = {rule: index for index, rule in enumerate(rules)}
    counts = Counter(label[0] for label in graph.labels)
    arrows = {(number[graph.labels[first][0]], number[graph.labels[then][0]]) for first, then in graph.arrows}
    forwards = sorted(arrow for arrow in arrows if arrow[0] != arrow[1])
    return Graph([(rule,) for rule in rules], _without_cycles(len(rules), forwards)), [counts[rule] for rule in rules]


def arrange(graph: Graph, size: float) -> Arrangement:
    """Put nodes into layers and order each layer by the mean place of its nodes' neighbours.

    Arrows from one node that cross the same layer share a bend there, so they run as one line until they part.

    Args:
        graph: an acyclic graph.
        size: space that a node takes up across its layer, in pixels.
    """
    n = len(graph.labels)
    level = _ranks(n, graph.arrows)
    paths: dict[tuple[int, int], list[int]] = {}
    bend_at: dict[tuple[int, int], int] = {}
    steps: set[tuple[int, int]] = set()
    for first, then in graph.arrows:
        depths = range(level[first] + 1, level[then])
        for depth in depths:
            if (first, depth) not in bend_at:
                bend_at[first, depth] = len(level)
                level.append(depth)
        paths[first, then] = [bend_at[first, depth] for depth in depths]
        steps.update(pairwise([first, *paths[first, then], then]))
    sizes = [size] * n + [BEND_SIZE] * (len(level) - n)
    layers = [[node for node in range(len(level)) if level[node] == depth] for depth in range(max(level) + 1)]
    place = _places(layers, sorted(steps), sizes)
    edge = min(centre - half / 2 for centre, half in zip(place, sizes, strict=True))
    place = [round(centre - edge, 2) for centre in place]
    extent = max(centre + half / 2 for centre, half in zip(place, sizes, strict=True))
    bends = {arrow: [place[bend] for bend in path] for arrow, path in paths.items()}
    return Arrangement(level[:n], place[:n], bends, extent)


def jobs_svg(jobs: Sequence[Mapping]) -> str:
    """Every job as a box, from left to right, coloured by stage. Its id is in `data-job`, for the page's script.

    A job with a `state` shows it by a sign, an outline and a colour, and can be reached by keyboard.

    Args:
        jobs: as `listing.planned` or `listing.collect` returns them; more than 1,000 become a sentence.
    """
    if len(jobs) > MAX_JOBS:
        text = f"{len(jobs)} jobs are too many to draw one by one; the graph of rules shows them together."
        return _svg(720.0, 40.0, [f'<text x="8" y="24">{escape(text)}</text>'], "The jobs of this run")
    graph, colours = job_graph(jobs), _colours(jobs)
    states = Counter(job["state"] for job in jobs if "state" in job)
    width, height, gap, top = 178.0, 28.0, 40.0, LEGEND + (LEGEND_ROW if states else 0.0)
    layout = arrange(without_shortcuts(graph), height + 6)
    lefts = [MARGIN + rank * (width + gap) for rank in range(max(layout.rank) + 1)]
    corners = [(lefts[rank], top + place - height / 2) for rank, place in zip(layout.rank, layout.place, strict=True)]
    pieces = []
    for (first, then), bends in layout.bends.items():
        points = [(corners[first][0] + width, corners[first][1] + height / 2)]
        for left, bend in zip(lefts[layout.rank[first] + 1 :], bends, strict=False):
            points += [(left, top + bend), (left + width, top + bend)]
        points.append((corners[then][0], corners[then][1] + height / 2))
        pieces += _curves(points, along_x=True)
    boxes = [
        _job(job, corner, (width, height), colours[job["stage"]]) for job, corner in zip(jobs, corners, strict=True)
    ]
    legend = [*_legend(colours), *_state_legend(states)]
    size = (max(lefts[-1] + width + MARGIN, _legend_width(colours)), top + layout.extent + MARGIN)
    title = f"The {len(jobs)} jobs of this run"
    return _svg(*size, [*legend, _arrows(pieces), *boxes], title, role="group" if states else "img")


def rules_svg(jobs: Sequence[Mapping]) -> str:
    """Every rule as a box with its number of jobs, from top to bottom, coloured by stage."""
    rules, counts = rule_graph(job_graph(jobs))
    rules, colours = without_shortcuts(rules), _colours(jobs)
    stages = {job["rule"]: job["stage"] for job in jobs}
    width, height, gap = 148.0, 34.0, 26.0
    layout = arrange(rules, width + 16)
    tops = [LEGEND + rank * (height + gap) for rank in range(max(layout.rank) + 1)]
    corners = [(MARGIN + place - width / 2, tops[rank]) for rank, place in zip(layout.rank, layout.place, strict=True)]
    pieces = []
    for (first, then), bends in layout.bends.items():
        points = [(corners[first][0] + width / 2, corners[first][1] + height)]
        for top, bend in zip(tops[layout.rank[first] + 1 :], bends, strict=False):
            points += [(MARGIN + bend, top), (MARGIN + bend, top + height)]
        points.append((corners[then][0] + width / 2, corners[then][1]))
        pieces += _curves(points, along_x=False)
    boxes = []
    for corner, (rule,), count in zip(corners, rules.labels, counts, strict=True):
        detail = f"{count} job{'s' if count != 1 else ''}"
        drawn = _box(corner, (width, height), rule, detail, colours[stages[rule]])
        boxes.append(f"<g><title>{escape(f'{rule}: {detail}')}</title>{drawn}</g>")
    size = (max(layout.extent + 2 * MARGIN, _legend_width(colours)), tops[-1] + height + MARGIN)
    return _svg(*size, [*_legend(colours), _arrows(pieces), *boxes], "The rules of this run")


def _places(layers: list[list[int]], steps: list[tuple[int, int]], sizes: list[float]) -> list[float]:
    """Centres of all nodes. Sweeps down and up pull each node to the mean of its neighbours, without overlaps."""
    before, after = _successors(len(sizes), [(then, first) for first, then in steps]), _successors(len(sizes), steps)
    place = [0.0] * len(sizes)
    for layer in layers:
        _settle(layer, [float(index) for index in range(len(layer))], sizes, place)
    for sweep in range(SWEEPS):
        goes_down = sweep % 2 == 0
        neighbours = before if goes_down else after
        for layer in layers if goes_down else reversed(layers):
            targets = [
                sum(place[other] for other in near) / len(near) if (near := neighbours[node]) else place[node]
                for node in layer
            ]
            order = sorted(range(len(layer)), key=targets.__getitem__)
            layer[:] = [layer[index] for index in order]
            _settle(layer, [targets[index] for index in order], sizes, place)
    return place


def _settle(layer: list[int], targets: list[float], sizes: list[float], place: list[float]) -> None:
    """Place a layer's nodes in order and near their targets: the mean of pushing all down and pushing all up."""
    down, up = list(targets), list(targets)
    for index in range(1, len(layer)):
        down[index] = max(down[index], down[index - 1] + (sizes[layer[index]] + sizes[layer[index - 1]]) / 2)
    for index in range(len(layer) - 2, -1, -1):
        up[index] = min(up[index], up[index + 1] - (sizes[layer[index]] + sizes[layer[index + 1]]) / 2)
    for node, low, high in zip(layer, down, up, strict=True):
        place[node] = round((low + high) / 2, 3)


def _ranks(n: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """The length of the longest path to each node, in arrows."""
    rank, after = [0] * n, _successors(n, arrows)
    for node in _in_order(n, arrows):
        for other in after[node]:
            rank[other] = max(rank[other], rank[node] + 1)
    return rank


def _in_order(n: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """Nodes in topological order.

    Raises:
        ValueError: if the arrows form a cycle.
    """
    n_missing, after = [0] * n, _successors(n, arrows)
    for _, then in arrows:
        n_missing[then] += 1
    ready = [node for node in range(n) if n_missing[node] == 0]
    for node in ready:
        for other in after[node]:
            n_missing[other] -= 1
            if n_missing[other] == 0:
                ready.append(other)
    if len(ready) < n:
        raise ValueError("the arrows of the graph form a cycle")
    return ready


def _without_cycles(n: int, arrows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The arrows without those that would close a cycle: rules can form one although jobs do not."""
    kept: list[tuple[int, int]] = []
    for first, then in arrows:
        after, reached, left = _successors(n, kept), {then}, [then]
        while left:
            fresh = [other for other in after[left.pop()] if other not in reached]
            reached.update(fresh)
            left.extend(fresh)
        if first not in reached:
            kept.append((first, then))
    return kept


def _successors(n: int, arrows: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Per node, the nodes that its arrows point to."""
    after: list[list[int]] = [[] for _ in range(n)]
    for first, then in arrows:
        after[first].append(then)
    return after


def _colours(jobs: Sequence[Mapping]) -> dict[str, str]:
    """A colour for each stage, in the jobs' order."""
    stages = dict.fromkeys(job["stage"] for job in jobs)
    return {stage: STAGE_COLOURS[index % len(STAGE_COLOURS)] for index, stage in enumerate(stages)}


def _legend(colours: Mapping[str, str]) -> list[str]:
    """A row of coloured squares with the names of the stages."""
    parts, x = [], MARGIN
    for stage, colour in colours.items():
        parts.append(f'<rect x="{x:g}" y="6" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:g}" y="15">{escape(stage)}</text>')
        x += 30 + 6.6 * len(stage)
    return parts


def _legend_width(colours: Mapping[str, str]) -> float:
    return MARGIN + sum(30 + 6.6 * len(stage) for stage in colours)


def _state_legend(states: Mapping[str, int]) -> list[str]:
    """A row of signs with the states that occur, and the number of jobs in each."""
    parts, x = [], MARGIN
    for state, (words, _) in BADGES.items():
        if states.get(state):
            text = f"{words} ({states[state]})"
            parts.append(f'<g class="{state}">{_badge(state, x, 6 + LEGEND_ROW)}</g>')
            parts.append(f'<text x="{x + 14:g}" y="{15 + LEGEND_ROW:g}">{escape(text)}</text>')
            x += 30 + 6.6 * len(text)
    return parts


def _badge(state: str, x: float, y: float) -> str:
    """The sign of a state; the page's styles colour it by the class of its parent element."""
    return f'<path class="badge" transform="translate({x:g} {y:g})" d="{BADGES[state][1]}"/>'


def _job(job: Mapping, corner: tuple[float, float], size: tuple[float, float], colour: str) -> str:
    """A job's box; if its state is known, a button for the page's script."""
    drawn = _box(corner, size, job["rule"], job["name"], colour)
    words = ", ".join(part for part in (job["rule"], job["name"]) if part)
    state = job.get("state")
    if state is None:
        return f'<g data-job="{job["id"]}"><title>{escape(words)}</title>{drawn}</g>'
    title = escape("\n".join([f"{words}: {BADGES[state][0]}", *job["why"]]))
    label = escape(f"{words}: {BADGES[state][0]}")
    drawn += _badge(state, corner[0] + size[0] - 15, corner[1] + 4)
    button = f'data-job="{job["id"]}" class="job {state}" tabindex="0" role="button" aria-label="{label}"'
    return f"<g {button}><title>{title}</title>{drawn}</g>"


def _box(corner: tuple[float, float], size: tuple[float, float], name: str, detail: str, colour: str) -> str:
    """A rounded box with the rule's name and, in small type, the job's name, cut off if it is too long."""
    (x, y), (width, height) = corner, size
    most = int((width - 12) / 5)
    detail = detail if len(detail) <= most else f"{detail[: most - 1]}…"
    middle = y + height / 2 + (-1.5 if detail else 4)
    lines = [
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" stroke="{colour}"/>',
        f'<text x="{x + 7:g}" y="{middle:g}">{escape(name)}</text>',
    ]
    if detail:
        lines.append(f'<text class="small" x="{x + 7:g}" y="{middle + 11:g}">{escape(detail)}</text>')
    return "".join(lines)


def _curves(points: Sequence[tuple[float, float]], along_x: bool) -> list[str]:
    """Path pieces between points; each starts and ends parallel to one axis."""
    pieces = []
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (x0 + x1) / 2 if along_x else (y0 + y1) / 2
        bends = f"{middle:g} {y0:g} {middle:g} {y1:g}" if along_x else f"{x0:g} {middle:g} {x1:g} {middle:g}"
        pieces.append(f"M{x0:g} {y0:g}C{bends} {x1:g} {y1:g}")
    return pieces


def _arrows(pieces: Sequence[str]) -> str:
    """All lines as one path; pieces that arrows share are drawn once."""
    return f'<path class="arrow" d="{"".join(dict.fromkeys(pieces))}"/>'


def _svg(width: float, height: float, parts: Sequence[str], title: str, role: str = "img") -> str:
    """A whole SVG file, which can also be embedded in a page."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="dag" role="{role}" aria-label="{escape(title)}" {size}>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"
