"""Decide verdicts per edge with the evidence for them, trace features through the graph, and write the summary."""

from collections.abc import Mapping
from functools import lru_cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saelineage.correlations.bootstrap import load_replicates
from saelineage.correlations.matches import load_correlation
from saelineage.correlations.token_types import as_correlation, load_token_type_matches
from saelineage.files.atomic import write_json
from saelineage.files.tables import write_parquet
from saelineage.jobs.job import job
from saelineage.lineage import evidence
from saelineage.lineage.evidence import Compared, Load, named
from saelineage.lineage.stabilisation import anchoring_agreement, stabilisation
from saelineage.lineage.stages import add_stages, stage_counts
from saelineage.lineage.trajectories import add_details, edge_summary, feature_statistics, feature_table
from saelineage.lineage.verdicts import SIDES, absent, add_robust, edge_table, recurs
from saelineage.plan.comparisons import names_in_pair
from saelineage.saes.resets import reset_latents

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

SECOND_CHAIN = "anchored, from the second seed"
"""Name in `agreements` of the chain of anchored SAEs that begins with the root's second seed."""
PAIRS_AT_ONCE = 12
"""Most pairs in memory."""


def trace_lineage(
    run: str,
    plan: Mapping,
    load: Load,
    settings: Mapping,
    models: list[str],
    paths_to_readouts: Mapping[str, str],
    folder: Path,
) -> None:
    """Write `edges/*.parquet`, `features.parquet`, `curves.parquet`, `sources.parquet` and `summary.json`.

    Args:
        run: the run's name.
        plan: the comparisons, `Comparisons.as_data`.
        load: reads a pair's results by its name, `{model}.{sae}__{model}.{sae}`.
        settings: `threshold` (r at or above it is a match) and `missed_above`.
        models: the models, parents before children.
        paths_to_readouts: the readouts of edges that have them, by `{parent}__{child}`.
        folder: the folder to write.
    """
    threshold = settings["threshold"]
    comparisons = plan["comparisons"]
    tables = {}
    for comparison in comparisons:
        if comparison["instrument"] != plan["leading"]:
            continue
        edge = f"{comparison['parent']}__{comparison['child']}"
        compared = load(comparison["pair"])
        table = edge_table(compared.correlation, threshold)
        table = add_recurrence(table, plan["recurrence"][edge], comparison["pair"], load, threshold)
        readouts = pd.read_parquet(paths_to_readouts[edge]) if edge in paths_to_readouts else None
        table = add_details(table, compared.replicates, readouts, settings["missed_above"])
        table = add_steps(table, plan["stages"].get(edge), load, threshold)
        write_parquet(table, folder / "edges" / f"{edge}.parquet")
        tables[comparison["parent"], comparison["child"]] = table
    write_features(tables, plan, load, models, folder / "features.parquet")
    weighed = [
        evidence.weigh(comparison, load, threshold) | reset_control(comparison, load, threshold)
        for comparison in comparisons
    ]
    write_parquet(concat([evidence.curves(comparison, load) for comparison in comparisons]), folder / "curves.parquet")
    traced = {merge: trace_sources(sources, merge, load, threshold) for merge, sources in plan["sources"].items()}
    write_parquet(concat(list(traced.values())), folder / "sources.parquet")
    edges = [entry for entry in weighed if entry["instrument"] == plan["leading"]]
    summary = {
        "run": run,
        "threshold": threshold,
        "models": models,
        "leading": plan["leading"],
        "saes": plan["saes"],
        "edges": [edge_summary(tables[entry["parent"], entry["child"]], entry) for entry in edges],
        "instruments": weighed,
        "agreements": [*evidence.agreements(plan, load, threshold), *anchorings(plan, load, threshold)],
        "stages": [
            {"parent": parent, "child": child} | stage_counts(table)
            for (parent, child), table in tables.items()
            if "moved_by" in table
        ],
        "sources": {
            merge: evidence.source_shares(table, plan["sources"][merge]["pairs"]) for merge, table in traced.items()
        },
    }
    write_json(folder / "summary.json", summary)


def add_recurrence(
    table: pd.DataFrame, recurrence: Mapping, edge_pair: str, load: Load, threshold: float
) -> pd.DataFrame:
    """Add a column `robust` to an edge's table if both models have SAEs of other seeds."""
    if not all(names["recurs"] for names in recurrence.values()):
        return table
    sides = []
    for side, name in zip(SIDES, names_in_pair(edge_pair), strict=True):
        names = recurrence[side]
        correlations = {role: [load(pair).correlation for pair in names[role]] for role in ("recurs", "absent")}
        sides.append((recurs(correlations["recurs"], name, threshold), absent(correlations["absent"], name, threshold)))
    return add_robust(table, *sides)


def add_steps(table: pd.DataFrame, lines: Mapping | None, load: Load, threshold: float) -> pd.DataFrame:
    """Add to an edge's table what moved the parent's features, if it has two-step SAEs."""
    if lines is None:
        return table
    correlations = {order: [load(pair).correlation for pair in pairs] for order, pairs in lines.items()}
    return add_stages(table, correlations, threshold)


def reset_control(comparison: Mapping, load: Load, threshold: float) -> dict:
    """The shares of kept and reset latents where the model is unchanged: `reset_control`, None if it was not made."""
    control = comparison["reset"]
    if control is None:
        return {"reset_control": None}
    correlation = load(control["pair"]).correlation
    reset = reset_latents(len(correlation.testable[1]), control["share"], control["seed"])
    shares = stabilisation(correlation, reset, threshold)
    return {"reset_control": {name: named("share", found) for name, found in shares.items()}}


def anchorings(plan: Mapping, load: Load, threshold: float) -> list[dict]:
    """Per edge, the agreement of the anchored chains from two seeds, as rows of `agreements`."""
    rows = []
    for comparison in plan["comparisons"]:
        second = plan["second_anchor"].get(f"{comparison['parent']}__{comparison['child']}")
        if second and comparison["instrument"] == plan["leading"]:
            pairs = [load(pair).correlation for pair in (comparison["pair"], second["edge"], second["parents"])]
            edge = {key: comparison[key] for key in ("parent", "child")} | {"instrument": SECOND_CHAIN}
            figures = anchoring_agreement(*pairs, threshold)
            rows.append(edge | {name: None if isnan(value) else value for name, value in figures.items()})
    return rows


def write_features(
    tables: Mapping[tuple[str, str], pd.DataFrame], plan: Mapping, load: Load, models: list[str], path: Path
) -> None:
    """Write the trajectories of the features of the SAEs that verdicts rest on."""
    pairs = [comparison["pair"] for comparison in plan["comparisons"] if comparison["instrument"] == plan["leading"]]
    statistics = feature_statistics((load(pair).correlation for pair in pairs), models)
    write_parquet(feature_table(tables, models, statistics), path)


def trace_sources(sources: Mapping, merge: str, load: Load, threshold: float) -> pd.DataFrame:
    """Trace the features of a merged model to its parents."""
    correlations = {name: load(pair).correlation for name, pair in sources["pairs"].items()}
    return evidence.sources(merge, correlations, sources["parents"], threshold)


def concat(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables that have the same columns."""
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def loader(correlations: Mapping[str, str], replicates: Mapping[str, str], token_types: Mapping[str, str]) -> Load:
    """Make a function that reads a pair's results, with a cache of the last few.

    Args:
        correlations, replicates: files by the SAE on side a.
        token_types: files of the pairs that were also matched over token types.
    """

    @lru_cache(maxsize=PAIRS_AT_ONCE)
    def load(pair: str) -> Compared:
        a, partner = names_in_pair(pair)
        correlation = load_correlation(correlations[a], partner)
        matches = load_token_type_matches(token_types[pair]) if pair in token_types else None
        return Compared(
            correlation=correlation,
            replicates=load_replicates(replicates[a], partner),
            by_types=as_correlation(matches, correlation) if matches else None,
        )

    return load


if __name__ == "__main__":
    with job(snakemake):
        trace_lineage(
            run=snakemake.config["run"],
            plan=snakemake.params.comparisons,
            load=loader(
                dict(zip(snakemake.params.sides, snakemake.input.correlations, strict=True)),
                dict(zip(snakemake.params.sides, snakemake.input.replicates, strict=True)),
                dict(zip(snakemake.params.typed_pairs, snakemake.input.token_types, strict=True)),
            ),
            settings=snakemake.params.settings,
            models=snakemake.params.models,
            paths_to_readouts=dict(zip(snakemake.params.read_out, snakemake.input.readouts, strict=True)),
            folder=Path(snakemake.output.summary).parent,
        )
