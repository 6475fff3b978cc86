"""Lineage: which features persist, disappear and emerge along the edges.

Beside every share stands the seed floor: the share that two SAE seeds of one model agree on.
"""

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd

from saelineage.matches import Correlation

PERSISTS, DISAPPEARS, INHERITED, EMERGES, UNTESTABLE = "persists", "disappears", "inherited", "emerges", "untestable"
Z_95 = 1.959963984540054


class Share(NamedTuple):
    """A share with what it rests on."""

    value: float | None
    """None where there is nothing to take a share of."""
    n: int
    interval: tuple[float, float] | None
    """Wilson's 95 % interval.

    It takes features as independent draws, and does not cover the choice of corpus, model or SAE seed.
    """


def share(count: int, n: int) -> Share:
    """count / n with Wilson's score interval (Wilson 1927, JASA 22, 209-212)."""
    if n == 0:
        return Share(None, 0, None)
    p, z2 = count / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Share(p, n, (max(0.0, centre - half), min(1.0, centre + half)))


def verdicts(found: Correlation, side: int, threshold: float, yes: str, no: str) -> pd.DataFrame:
    """One row per feature of a side: its best match on the other side and what follows.

    Args:
        found: the correlation of a parent's (side 0) and a child's (side 1) features.
        side: whose features.
        threshold: r at or above this is a match.
        yes, no: the verdicts for a match and for none (`persists`, `disappears`; `inherited`, `emerges`).

    Returns:
        Columns `latent`, `verdict`, `r` (NaN where untestable), `match` (-1 where there is none), `firings`, `density`.
    """
    r, match = found.pearson.best[side][:, 0], found.pearson.partners[side][:, 0]
    testable = found.testable[side]
    verdict = np.where(testable, np.where(np.nan_to_num(r, nan=-1.0) >= threshold, yes, no), UNTESTABLE)
    return pd.DataFrame(
        {
            "latent": np.arange(len(r)),
            "verdict": verdict,
            "r": np.where(testable, r, np.nan),
            "match": np.where(testable, match, -1),
            "firings": found.firings[side].sum(axis=0),
            "density": found.density(side),
        }
    )


def edge_table(found: Correlation, threshold: float) -> pd.DataFrame:
    """Verdicts of both sides of an edge, with a column `side` (`parent` or `child`)."""
    parent = verdicts(found, 0, threshold, PERSISTS, DISAPPEARS).assign(side="parent")
    child = verdicts(found, 1, threshold, INHERITED, EMERGES).assign(side="child")
    return pd.concat([parent, child], ignore_index=True)[
        ["side", "latent", "verdict", "r", "match", "firings", "density"]
    ]


def matched_share(found: Correlation, side: int, threshold: float) -> Share:
    """The share of a side's testable features that have a match on the other side."""
    table = verdicts(found, side, threshold, PERSISTS, DISAPPEARS)
    counts = table["verdict"].value_counts()
    return share(int(counts.get(PERSISTS, 0)), int(counts.get(PERSISTS, 0) + counts.get(DISAPPEARS, 0)))


def seed_floor(pairs: Iterable[Correlation], threshold: float) -> Share:
    """The share that seeds of one model agree on, over all its seed pairs and both directions."""
    shares = [matched_share(found, side, threshold) for found in pairs for side in range(2)]
    return share(round(sum(found.n * (found.value or 0) for found in shares)), sum(found.n for found in shares))


def edge_summary(
    parent: str,
    child: str,
    table: pd.DataFrame,
    parent_floor: Share,
    child_floor: Share,
    nulls: Mapping[str, Share],
) -> dict:
    """Counts and shares of one edge, with the seed floors and the share under each null beside them."""
    counts = table.groupby("side")["verdict"].value_counts()

    def count(side: str, verdict: str) -> int:
        return int(counts.get((side, verdict), 0))

    persists, disappears = count("parent", PERSISTS), count("parent", DISAPPEARS)
    inherited, emerges = count("child", INHERITED), count("child", EMERGES)
    return {
        "parent": parent,
        "child": child,
        "n_parent": int((table["side"] == "parent").sum()),
        "n_child": int((table["side"] == "child").sum()),
        "persists": persists,
        "disappears": disappears,
        "untestable_parent": count("parent", UNTESTABLE),
        "inherited": inherited,
        "emerges": emerges,
        "untestable_child": count("child", UNTESTABLE),
        **_named("persist_share", share(persists, persists + disappears)),
        **_named("seed_floor_share", parent_floor),
        **_named("inherited_share", share(inherited, inherited + emerges)),
        **_named("child_seed_floor_share", child_floor),
        "null_shares": {null: _named("persist_share", found) for null, found in sorted(nulls.items())},
    }


def feature_statistics(correlations: Iterable[Correlation], models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Per model, of the SAE that comes first among its pairs: `sae`, `latent`, `firings`, `density` on the probe."""
    found: dict[str, pd.DataFrame] = {}
    for correlation in correlations:
        for side, name in enumerate(correlation.names):
            model, sae = name.split(".")
            if model not in found:
                firings = correlation.firings[side].sum(axis=0)
                columns = {
                    "sae": sae,
                    "latent": np.arange(len(firings)),
                    "firings": firings,
                    "density": correlation.density(side),
                }
                found[model] = pd.DataFrame(columns)
    return {model: found[model] for model in models if model in found}


def feature_table(
    edges: Mapping[tuple[str, str], pd.DataFrame], models: Iterable[str], statistics: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """One row per feature of every model, with its trajectory through the whole graph.

    Args:
        edges: the table of each (parent, child).
        models: model names, parents before children.
        statistics: per model, from `feature_statistics`.

    Returns:
        Columns `model`, `sae`, `latent`, `firings`, `density`; `origin`, the farthest ancestor in which it is found by
        going from match to match; and per model M `in_M` (the latent there, -1 where it is not found) and `r_M` (the
        least r on the way).
    """
    models = [model for model in models if model in statistics]
    found = {model: statistics[model].assign(model=model) for model in models}
    for model in models:
        n = len(found[model])
        reached = {model: (np.arange(n), np.ones(n))}
        _walk(model, reached, edges, "parent", models[::-1])
        _walk(model, reached, edges, "child", models)
        lines = {name: reached.get(name, (np.full(n, -1), np.full(n, np.nan))) for name in models}
        upwards = [name for name in models if name in _related(model, edges, upwards=True)]
        found[model]["origin"] = _first_found(model, upwards, lines)
        for name in models:
            found[model][f"in_{name}"], found[model][f"r_{name}"] = lines[name]
    columns = ["model", "sae", "latent", "firings", "density", "origin"]
    return pd.concat(found.values(), ignore_index=True)[
        columns + [f"{kind}_{name}" for name in models for kind in ("in", "r")]
    ]


def _walk(
    start: str, reached: dict, edges: Mapping[tuple[str, str], pd.DataFrame], towards: str, order: list[str]
) -> None:
    """Follow matches from `start` towards parents or children.

    Where several lines lead to a model, the one with the largest least r is kept.
    """
    upwards = towards == "parent"
    allowed = _related(start, edges, upwards)
    for model in order:
        if model not in allowed:
            continue
        for (parent, child), table in edges.items():
            source, target = (child, parent) if upwards else (parent, child)
            if target != model or source not in reached or (source != start and source not in allowed):
                continue
            side = table[table["side"] == ("child" if upwards else "parent")].set_index("latent")
            latents, r = reached[source]
            matched = side["verdict"].isin([PERSISTS, INHERITED]).reindex(latents, fill_value=False).to_numpy() & (
                latents >= 0
            )
            here = np.where(matched, side["match"].reindex(latents).fillna(-1).to_numpy(), -1).astype(np.int64)
            least = np.where(matched, np.fmin(r, side["r"].reindex(latents).to_numpy()), np.nan)
            if model in reached:
                old, old_r = reached[model]
                better = np.nan_to_num(least, nan=-2.0) > np.nan_to_num(old_r, nan=-2.0)
                here, least = np.where(better, here, old), np.where(better, least, old_r)
            reached[model] = (here, least)


def _related(model: str, edges: Iterable[tuple[str, str]], upwards: bool) -> set[str]:
    """All ancestors (or descendants) of a model along the edges."""
    pairs = list(edges)
    found, waiting = set(), [model]
    while waiting:
        current = waiting.pop()
        for parent, child in pairs:
            source, target = (child, parent) if upwards else (parent, child)
            if source == current and target not in found:
                found.add(target)
                waiting.append(target)
    return found


def _first_found(model: str, upwards: list[str], lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    origin = np.full(len(lines[model][0]), model, dtype=object)
    for name in reversed(upwards):
        origin = np.where(lines[name][0] >= 0, name, origin)
    return origin


def _named(name: str, found: Share) -> dict:
    return {
        name: found.value,
        f"{name}_n": found.n,
        f"{name}_interval": list(found.interval) if found.interval else None,
    }
