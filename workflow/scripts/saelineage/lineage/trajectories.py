"""Lineage: the summary of each edge, and trajectories of features along the edges."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from saelineage.correlations.bootstrap import Replicates, feature_intervals
from saelineage.correlations.matches import Correlation
from saelineage.lineage.verdicts import (
    DISAPPEARS,
    EMERGES,
    INHERITED,
    MERGED,
    ONE_TO_ONE,
    PERSISTS,
    SIDES,
    SPLIT,
    UNTESTABLE,
)

LEAST_READOUT = 0.1
"""Features that the parent's own activations give with a smaller R2 cannot be read out linearly at all."""
ABSENCES = ("gone", "missed", "undecided")


def add_details(
    table: pd.DataFrame, replicates: Replicates, readouts: pd.DataFrame | None, missed_above: float
) -> pd.DataFrame:
    """An edge's table with intervals of r, and for what disappeared whether it is gone or was missed.

    Args:
        table: from `verdicts.edge_table`.
        replicates: of the same pair.
        readouts: from `readouts`, one row per feature of the parent; None where there are none.
        missed_above: a feature is `missed` where the child's activations give at least this share of the R2 that the
            parent's own give; else it is `gone`.

    Returns:
        Also `r_low` and `r_high` (95 % over documents; NaN where there is no interval), and, with readouts, `readout`
        and `readout_of_parent` (held-out R2, NaN on the child's side) and `absence`: `gone`, `missed`, `undecided`
        where not even the parent's own activations give `LEAST_READOUT`, and empty for what did not disappear.
    """
    low, high = (np.concatenate(ends) for ends in zip(*map(feature_intervals, replicates.best), strict=True))
    defined = table["r"].notna().to_numpy()
    table = table.assign(r_low=np.where(defined, low, np.nan), r_high=np.where(defined, high, np.nan))
    if readouts is None:
        return table
    own = (table["side"] == SIDES[0]).to_numpy()
    child, parent = (_of_parents(own, readouts[name]) for name in ("r2_child", "r2_parent"))
    known = parent >= LEAST_READOUT
    absence = np.select([~known, child >= missed_above * parent], ["undecided", "missed"], "gone")
    gone = (table["verdict"] == DISAPPEARS).to_numpy()
    return table.assign(readout=child, readout_of_parent=parent, absence=np.where(gone, absence, ""))


def edge_summary(table: pd.DataFrame, weighed: Mapping) -> dict:
    """Counts of one edge beside its shares.

    Args:
        table: of the edge, after `add_details`.
        weighed: from `evidence.weigh`, of the leading instrument.
    """
    counts = table.groupby("side")["verdict"].value_counts()
    parents = table[table["side"] == SIDES[0]]

    def count(side: str, verdict: str) -> int:
        return int(counts.get((side, verdict), 0))

    robust = table[table["robust"]]["verdict"].value_counts() if "robust" in table else None
    found = {
        "parent": weighed["parent"],
        "child": weighed["child"],
        "n_parent": len(parents),
        "n_child": len(table) - len(parents),
        "persists": count("parent", PERSISTS),
        "disappears": count("parent", DISAPPEARS),
        "untestable_parent": count("parent", UNTESTABLE),
        "inherited": count("child", INHERITED),
        "emerges": count("child", EMERGES),
        "untestable_child": count("child", UNTESTABLE),
        "kinds": {kind: int((parents["kind"] == kind).sum()) for kind in (ONE_TO_ONE, SPLIT, MERGED)},
        "robustly_disappears": None if robust is None else int(robust.get(DISAPPEARS, 0)),
        "robustly_emerges": None if robust is None else int(robust.get(EMERGES, 0)),
    }
    if "absence" in table:
        found["absences"] = {absence: int((parents["absence"] == absence).sum()) for absence in ABSENCES}
    return found | {key: value for key, value in weighed.items() if key not in found}


def _of_parents(own: Bool[np.ndarray, " row"], values: pd.Series) -> Float[np.ndarray, " row"]:
    """Values of the parent's features, in their order, on the rows of its side; NaN on the others."""
    found = np.full(len(own), np.nan)
    found[own] = values.to_numpy()
    return found


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
    if not found:  # a lineage without edges
        return pd.DataFrame(columns=columns)
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
