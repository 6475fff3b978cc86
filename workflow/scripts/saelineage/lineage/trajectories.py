"""Lineage: details and the summary of each edge, and trajectories of features along the edges."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from saelineage.correlations.bootstrap import Replicates, feature_intervals
from saelineage.correlations.matches import Correlation
from saelineage.lineage.evidence import IDENTIFIED
from saelineage.lineage.matching import (
    INHERITED,
    MERGED,
    ONE_TO_ONE,
    PERSISTS,
    SIDES,
    SPLIT,
    STUDY_VERDICTS,
    UNTESTABLE,
)
from saelineage.lineage.verdicts import CHANGES, VERDICTS, in_other_parts, shares_basis, shares_scale
from saelineage.plan.sae_names import SaeName

OF_SEEDS = ("recurrence", "identified")
"""Columns that other seeds of a model's SAE decide."""


def add_intervals(table: pd.DataFrame, replicates: Replicates) -> pd.DataFrame:
    """Add to an edge's table `documents` in which a feature fires, `r_low` and `r_high`: 95 % over documents.

    The ends are NaN where there is no interval (`bootstrap.feature_intervals`).
    """
    r_of_side = [table.loc[table["side"] == side, "r"].to_numpy() for side in SIDES]
    low, high = zip(*map(feature_intervals, replicates.best, r_of_side, replicates.documents), strict=True)
    ends = {"r_low": np.concatenate(low), "r_high": np.concatenate(high)}
    return table.assign(documents=np.concatenate(replicates.documents), **ends)


def add_readouts(table: pd.DataFrame, readouts: pd.DataFrame | None) -> pd.DataFrame:
    """Add to an edge's table `readout` and `readout_of_own`: R2 from the other model's and its own activations.

    Args:
        table: from `matching.edge_table`.
        readouts: from `readouts.read_out`, of the parent's and then the child's features; None where there are none,
            and both columns are NaN.
    """
    if readouts is None:
        return table.assign(readout=np.nan, readout_of_own=np.nan)
    return table.assign(readout=readouts["r2_other"].to_numpy(), readout_of_own=readouts["r2_own"].to_numpy())


def edge_summary(table: pd.DataFrame, weighed: Mapping) -> dict:
    """Summarise one edge: counts of verdicts by group, and the shares weighed by `evidence`.

    Args:
        table: of the edge, after `verdicts.add_verdicts`.
        weighed: from `evidence.weigh`, of the leading instrument.
    """
    of_side = {side: table[table["side"] == side] for side in SIDES}
    groups = {
        group: shares and shares | counts(of_side, only_identified=group == IDENTIFIED)
        for group, shares in weighed["groups"].items()
    }
    parents = of_side[SIDES[0]]
    found = parents[~in_other_parts(table)[parents.index]]
    summary = {
        "parent": weighed["parent"],
        "child": weighed["child"],
        "n_parent": len(parents),
        "n_child": len(of_side[SIDES[1]]),
        "groups": groups,
        "study": {
            verdict: int((rows["study_verdict"] == verdict).sum())
            for rows, verdicts in zip(of_side.values(), STUDY_VERDICTS, strict=True)
            for verdict in verdicts
        },
        "kinds": {kind: int((found["kind"] == kind).sum()) for kind in (ONE_TO_ONE, SPLIT, MERGED)},
        **{change: int((parents["change"] == change).sum()) for change in CHANGES},
        "in_other_parts": int(in_other_parts(table)[table["side"] == SIDES[0]].sum()),
        "shares_basis": shares_basis(table) if table["cosine"].notna().any() else None,
        "shares_scale": shares_scale(table) if table["strength_ratio"].notna().any() else None,
    }
    return summary | {key: value for key, value in weighed.items() if key not in summary}


def counts(of_side: Mapping[str, pd.DataFrame], *, only_identified: bool) -> dict:
    """The number of features with each verdict, and of those on the lists of lost and new features, by side."""
    by_side: dict = {}
    for side, verdicts in zip(SIDES, VERDICTS, strict=True):
        rows = of_side[side][of_side[side]["identified"]] if only_identified else of_side[side]
        by_side[side] = {verdict: int((rows["verdict"] == verdict).sum()) for verdict in (*verdicts, UNTESTABLE)}
        by_side[side] |= {name: int(rows[name].sum()) for name in ("headline", "robust")}
    return by_side


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
        One row per feature, with columns `model`, `sae`, `latent`, `firings`, `density`, `recurrence` and
        `identified` (the model's own, as in the edges' tables); `all_agree`, true where all ways of comparing agree on
        every edge of which they can tell, missing where there is none; `origin`, the farthest ancestor in which it is
        found by going from match to match; and per model M `in_M` (the latent there, -1 where it is not found) and
        `r_M` (the least r on the way).
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
        of_model = _of_model(model, edges)
        tables[model] = tables[model].assign(**{name: of_model[name].to_numpy() for name in OF_SEEDS})
        tables[model]["all_agree"] = _agree_everywhere(model, n, edges)
        tables[model]["origin"] = _origins(model, upwards, lines)
        for name in models:
            tables[model][f"in_{name}"], tables[model][f"r_{name}"] = lines[name]
    columns = ["model", "sae", "latent", "firings", "density", *OF_SEEDS, "all_agree", "origin"]
    if not tables:  # a lineage without edges
        return pd.DataFrame(columns=columns)
    return pd.concat(tables.values(), ignore_index=True)[
        columns + [f"{kind}_{name}" for name in models for kind in ("in", "r")]
    ]


def _agree_everywhere(
    model: str, n_features: int, edges: Mapping[tuple[str, str], pd.DataFrame]
) -> pd.arrays.BooleanArray:
    """Mark features of a model on which all ways agree on every edge that they can tell of; missing where on none."""
    agree, known = np.ones(n_features, dtype=bool), np.zeros(n_features, dtype=bool)
    for edge, table in edges.items():
        for side, end in zip(SIDES, edge, strict=True):
            if end == model:
                marks = table.loc[table["side"] == side, "all_agree"]
                agree &= marks.to_numpy(dtype=bool, na_value=True)
                known |= marks.notna().to_numpy()
    return pd.arrays.BooleanArray(agree, ~known)


def _of_model(model: str, edges: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """The rows of a model's features in the first edge that it is part of."""
    edge, table = next((edge, table) for edge, table in edges.items() if model in edge)
    return table[table["side"] == SIDES[edge.index(model)]]


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
