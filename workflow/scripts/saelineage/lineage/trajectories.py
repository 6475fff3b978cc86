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
from saelineage.plan.sae_names import SaeName

LEAST_READOUT = 0.1
"""A feature with a smaller R2 on the parent's activations cannot be read out linearly at all."""
ABSENCES = ("gone", "missed", "undecided")


def add_intervals(table: pd.DataFrame, replicates: Replicates) -> pd.DataFrame:
    """Add to an edge's table `documents` in which a feature fires, `r_low` and `r_high`: 95 % over documents.

    The ends are NaN where there is no interval (`bootstrap.feature_intervals`).
    """
    r_of_side = [table.loc[table["side"] == side, "r"].to_numpy() for side in SIDES]
    low, high = zip(*map(feature_intervals, replicates.best, r_of_side, replicates.documents), strict=True)
    ends = {"r_low": np.concatenate(low), "r_high": np.concatenate(high)}
    return table.assign(documents=np.concatenate(replicates.documents), **ends)


def add_details(
    table: pd.DataFrame, replicates: Replicates, readouts: pd.DataFrame | None, missed_above: float
) -> pd.DataFrame:
    """Add to an edge's table intervals of r, and for features that disappear a reason: gone, or missed by the SAE.

    Args:
        table: from `verdicts.edge_table`.
        replicates: of the same pair.
        readouts: from `readouts.read_out`, one row per feature of the parent; None where there are none.
        missed_above: a feature is `missed` where its R2 on the child's activations is at least this share of its R2 on
            the parent's; otherwise it is `gone`.

    Returns:
        The table with the columns of `add_intervals` and, with readouts, `readout` and `readout_of_parent` (held-out R2, NaN on the child's side) and `absence`: `gone`,
        `missed`, `undecided` where R2 on the parent's activations is below `LEAST_READOUT`, empty where the feature
        does not disappear.
    """
    table = add_intervals(table, replicates)
    if readouts is None:
        return table
    of_parent = (table["side"] == SIDES[0]).to_numpy()
    child, parent = (_on_rows(of_parent, readouts[name]) for name in ("r2_child", "r2_parent"))
    readable = parent >= LEAST_READOUT
    absence = np.select([~readable, child >= missed_above * parent], ["undecided", "missed"], "gone")
    disappears = (table["verdict"] == DISAPPEARS).to_numpy()
    return table.assign(readout=child, readout_of_parent=parent, absence=np.where(disappears, absence, ""))


def edge_summary(table: pd.DataFrame, weighed: Mapping) -> dict:
    """Summarise one edge: counts of verdicts, and the shares weighed by `evidence`.

    Args:
        table: of the edge, after `add_details`.
        weighed: from `evidence.weigh`, of the leading instrument.
    """
    counts = table.groupby("side")["verdict"].value_counts()
    parents = table[table["side"] == SIDES[0]]

    def count(side: str, verdict: str) -> int:
        return int(counts.get((side, verdict), 0))

    robust = table[table["robust"]]["verdict"].value_counts() if "robust" in table else None
    summary = {
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
        summary["absences"] = {absence: int((parents["absence"] == absence).sum()) for absence in ABSENCES}
    return summary | {key: value for key, value in weighed.items() if key not in summary}


def _on_rows(of_parent: Bool[np.ndarray, " row"], values: pd.Series) -> Float[np.ndarray, " row"]:
    """Place values of the parent's features, in their order, on the rows of its side; NaN on the other rows."""
    column = np.full(len(of_parent), np.nan)
    column[of_parent] = values.to_numpy()
    return column


def feature_statistics(correlations: Iterable[Correlation], models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Tabulate features by model, of the SAE in its first pair: `sae`, `latent`, `firings`, `density` on the probe."""
    statistics: dict[str, pd.DataFrame] = {}
    for correlation in correlations:
        for side, name in enumerate(correlation.names):
            model, sae = SaeName.parse(name)
            if model not in statistics:
                firings = correlation.firings[side].sum(axis=0)
                columns = {
                    "sae": sae,
                    "latent": np.arange(len(firings)),
                    "firings": firings,
                    "density": correlation.density(side),
                }
                statistics[model] = pd.DataFrame(columns)
    return {model: statistics[model] for model in models if model in statistics}


def feature_table(
    edges: Mapping[tuple[str, str], pd.DataFrame], models: Iterable[str], statistics: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Trace every feature of every model through the whole graph.

    Args:
        edges: the table of each (parent, child).
        models: model names, parents before children.
        statistics: per model, from `feature_statistics`.

    Returns:
        One row per feature, with columns `model`, `sae`, `latent`, `firings`, `density`; `origin`, the farthest
        ancestor in which it is found by going from match to match; and per model M `in_M` (the latent there, -1 where
        it is not found) and `r_M` (the least r on the way).
    """
    models = [model for model in models if model in statistics]
    tables = {model: statistics[model].assign(model=model) for model in models}
    for model in models:
        n = len(tables[model])
        reached = {model: (np.arange(n), np.ones(n))}
        _walk(model, reached, edges, "parent", models[::-1])
        _walk(model, reached, edges, "child", models)
        lines = {name: reached.get(name, (np.full(n, -1), np.full(n, np.nan))) for name in models}
        upwards = [name for name in models if name in _related(model, edges, upwards=True)]
        tables[model]["origin"] = _origins(model, upwards, lines)
        for name in models:
            tables[model][f"in_{name}"], tables[model][f"r_{name}"] = lines[name]
    columns = ["model", "sae", "latent", "firings", "density", "origin"]
    if not tables:  # a lineage without edges
        return pd.DataFrame(columns=columns)
    return pd.concat(tables.values(), ignore_index=True)[
        columns + [f"{kind}_{name}" for name in models for kind in ("in", "r")]
    ]


def _walk(
    start: str, reached: dict, edges: Mapping[tuple[str, str], pd.DataFrame], towards: str, order: list[str]
) -> None:
    """Follow matches from `start` towards parents or children, adding to `reached`.

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
                earlier, earlier_r = reached[model]
                better = np.nan_to_num(least, nan=-2.0) > np.nan_to_num(earlier_r, nan=-2.0)
                here, least = np.where(better, here, earlier), np.where(better, least, earlier_r)
            reached[model] = (here, least)


def _related(model: str, edges: Iterable[tuple[str, str]], upwards: bool) -> set[str]:
    """All ancestors (or descendants) of a model along the edges."""
    pairs = list(edges)
    related: set[str] = set()
    left_to_visit = [model]
    while left_to_visit:
        current = left_to_visit.pop()
        for parent, child in pairs:
            source, target = (child, parent) if upwards else (parent, child)
            if source == current and target not in related:
                related.add(target)
                left_to_visit.append(target)
    return related


def _origins(model: str, upwards: list[str], lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The farthest ancestor in which each feature of a model is found; the model itself where there is none."""
    origin = np.full(len(lines[model][0]), model, dtype=object)
    for name in reversed(upwards):
        origin = np.where(lines[name][0] >= 0, name, origin)
    return origin
