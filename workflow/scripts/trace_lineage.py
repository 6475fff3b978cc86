"""Decide verdicts per edge with the evidence for them, trace features through the graph, and write the summary."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saelineage.correlations.bootstrap import load_replicates
from saelineage.correlations.few_documents import load_rests_on
from saelineage.correlations.matches import load_correlation
from saelineage.correlations.token_types import as_correlation, load_token_type_matches
from saelineage.files.atomic import write_json
from saelineage.files.tables import write_parquet
from saelineage.jobs.job import job
from saelineage.lineage import evidence
from saelineage.lineage.agreements import add_agreement, agreement_rows, ways
from saelineage.lineage.controls import anchorings, beside_trained, pw_mcc, reset_control
from saelineage.lineage.crosstable import cross_counts, crosscoder_verdicts, verdicts_on
from saelineage.lineage.edges import add_steps, judge
from saelineage.lineage.evidence import Compared, Load
from saelineage.lineage.revivals import revivals
from saelineage.lineage.stages import stage_rows
from saelineage.lineage.trajectories import edge_summary, feature_statistics, feature_table
from saelineage.lineage.verdicts import Rules
from saelineage.plan.comparisons import names_in_pair
from saelineage.plan.sae_names import SaeName

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

PAIRS_AT_ONCE = 12
"""Most pairs in memory."""


def trace_lineage(
    run: str,
    plan: Mapping,
    load: Load,
    rules: Rules,
    models: list[str],
    paths_to_readouts: Mapping[str, str],
    paths_to_weights: Mapping[str, str],
    paths_to_crosscoders: Mapping[str, tuple[str, str]],
    folder: Path,
) -> None:
    """Write `edges/*.parquet`, `features.parquet`, `curves.parquet`, `sources.parquet` and `summary.json`.

    Args:
        run: the run's name.
        plan: the comparisons, `Comparisons.as_data`.
        load: reads a pair's results by its name, `{model}.{sae}__{model}.{sae}`.
        rules: the bounds of verdicts.
        models: the models, parents before children.
        paths_to_readouts: the readouts of edges that have them, by `{parent}__{child}`.
        paths_to_weights: the weights of the SAEs that verdicts rest on and of all seeds, by `{model}.{sae}`.
        paths_to_crosscoders: the verdicts of a crosscoder's latents, and the matches of features among them, of edges
            that have a crosscoder.
        folder: the folder to write.
    """
    comparisons = plan["comparisons"]
    tables, agreements, returned = {}, [], []
    for comparison in comparisons:
        if comparison["instrument"] != plan["leading"]:
            continue
        edge = f"{comparison['parent']}__{comparison['child']}"
        readouts = pd.read_parquet(paths_to_readouts[edge]) if edge in paths_to_readouts else None
        weights = [paths_to_weights[name] for name in names_in_pair(comparison["pair"])]
        table = judge(comparison, plan["absence"][edge], load, readouts, weights, rules)
        table = add_steps(table, plan["stages"].get(edge), load, rules.threshold)
        if edge in plan["revivals"]:
            of_parent = names_in_pair(comparison["pair"])[0]
            table, rows = revivals(table, of_parent, plan["revivals"][edge], load, rules.threshold)
            returned += [{"parent": comparison["parent"], "child": comparison["child"]} | row for row in rows]
        if edge in paths_to_crosscoders:
            table = add_crosscoder(table, edge, comparison, *paths_to_crosscoders[edge], rules.threshold)
        found = [ways(comparison, table, comparisons, load, rules.threshold, side) for side in range(2)]
        table = add_agreement(table, found)
        agreements += [
            {"parent": comparison["parent"], "child": comparison["child"]} | row
            for side, of_side in enumerate(found)
            for row in agreement_rows(table, of_side, side)
        ]
        write_parquet(table, folder / "edges" / f"{edge}.parquet")
        tables[comparison["parent"], comparison["child"]] = table
    write_features(tables, plan, load, models, folder / "features.parquet")
    weighed = [
        evidence.weigh(comparison, load, rules) | {"reset_control": reset_control(comparison, load, rules)}
        for comparison in comparisons
    ]
    write_parquet(concat([evidence.curves(comparison, load) for comparison in comparisons]), folder / "curves.parquet")
    traced = {
        merge: evidence.trace_sources(sources, merge, load, rules.threshold)
        for merge, sources in plan["sources"].items()
    }
    write_parquet(concat(list(traced.values())), folder / "sources.parquet")
    edges = [entry for entry in weighed if entry["instrument"] == plan["leading"]]
    summary = {
        "run": run,
        **rules._asdict(),
        "models": models,
        "leading": plan["leading"],
        "saes": plan["saes"],
        "edges": [
            edge_summary(tables[entry["parent"], entry["child"]], entry)
            | beside_trained(tables[entry["parent"], entry["child"]], entry, plan["trained_controls"], load, rules)
            for entry in edges
        ],
        "instruments": weighed,
        "agreements": [*agreements, *anchorings(plan, load, rules.threshold)],
        "crosscoder": [
            {"parent": parent, "child": child} | row
            for (parent, child), table in tables.items()
            if "crosscoder" in table
            for row in cross_counts(table)
        ],
        "stages": stage_rows(tables),
        "revivals": returned,
        "pw_mcc": pw_mcc(comparisons, paths_to_weights),
        "sources": {
            merge: evidence.source_shares(table, plan["sources"][merge]["pairs"]) for merge, table in traced.items()
        },
    }
    write_json(folder / "summary.json", summary)


def add_crosscoder(
    table: pd.DataFrame,
    edge: str,
    comparison: Mapping,
    path_to_exclusivity: str,
    path_to_matches: str,
    threshold: float,
) -> pd.DataFrame:
    """Add to an edge's table `crosscoder`, the verdict of the crosscoder's latent that each feature fires with."""
    of_edge, matches = verdicts_on(edge, pd.read_parquet(path_to_exclusivity)), pd.read_parquet(path_to_matches)
    verdicts = []
    for name in names_in_pair(comparison["pair"]):
        model, sae = SaeName.parse(name)
        of_sae = matches[(matches["model"] == model) & (matches["sae"] == sae)]
        verdicts.append(crosscoder_verdicts(of_sae, of_edge, threshold))
    return table.assign(crosscoder=np.concatenate(verdicts))


def write_features(
    tables: Mapping[tuple[str, str], pd.DataFrame], plan: Mapping, load: Load, models: list[str], path: Path
) -> None:
    """Write the trajectories of the features of the SAEs that verdicts rest on."""
    pairs = [comparison["pair"] for comparison in plan["comparisons"] if comparison["instrument"] == plan["leading"]]
    statistics = feature_statistics((load(pair).correlation for pair in pairs), models)
    write_parquet(feature_table(tables, models, statistics), path)


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
            rests_on=load_rests_on(replicates[a], partner),
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
            rules=Rules.of(snakemake.params.rules),
            models=snakemake.params.models,
            paths_to_readouts=dict(zip(snakemake.params.read_out, snakemake.input.readouts, strict=True)),
            paths_to_weights=dict(zip(snakemake.params.saes, snakemake.input.weights, strict=True)),
            paths_to_crosscoders=dict(
                zip(
                    snakemake.params.in_crosscoders,
                    zip(snakemake.input.exclusivity, snakemake.input.matches, strict=True),
                    strict=True,
                )
            ),
            folder=Path(snakemake.output.summary).parent,
        )
