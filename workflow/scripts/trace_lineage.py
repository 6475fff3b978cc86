"""Decide verdicts per edge with the evidence for them, trace features through the graph, and write the summary."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saelineage.correlations.bootstrap import load_replicates
from saelineage.correlations.decoders import PairwiseMcc, load_decoder, seeds_pw_mcc
from saelineage.correlations.few_documents import load_rests_on
from saelineage.correlations.matches import load_correlation
from saelineage.correlations.token_types import as_correlation, load_token_type_matches
from saelineage.files.atomic import write_json
from saelineage.files.tables import write_parquet
from saelineage.jobs.job import job
from saelineage.lineage import evidence
from saelineage.lineage.directions import decoder_directions, match_cosines
from saelineage.lineage.evidence import ALL, IDENTIFIED, Compared, Load, named
from saelineage.lineage.identified import Recurrence, absent, add_recurrence, recurrence
from saelineage.lineage.matching import SIDES, edge_table
from saelineage.lineage.stabilisation import anchoring_agreement, stabilisation
from saelineage.lineage.stages import add_stages, stage_counts
from saelineage.lineage.trajectories import (
    add_intervals,
    add_readouts,
    edge_summary,
    feature_statistics,
    feature_table,
)
from saelineage.lineage.twins import compare, found_in
from saelineage.lineage.verdicts import Rules, add_verdicts
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
    rules: Rules,
    models: list[str],
    paths_to_readouts: Mapping[str, str],
    paths_to_weights: Mapping[str, str],
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
        folder: the folder to write.
    """
    comparisons = plan["comparisons"]
    tables = {}
    for comparison in comparisons:
        if comparison["instrument"] != plan["leading"]:
            continue
        edge = f"{comparison['parent']}__{comparison['child']}"
        readouts = pd.read_parquet(paths_to_readouts[edge]) if edge in paths_to_readouts else None
        weights = [paths_to_weights[name] for name in names_in_pair(comparison["pair"])]
        table = judge(comparison, plan["absence"][edge], load, readouts, weights, rules)
        table = add_steps(table, plan["stages"].get(edge), load, rules.threshold)
        write_parquet(table, folder / "edges" / f"{edge}.parquet")
        tables[comparison["parent"], comparison["child"]] = table
    write_features(tables, plan, load, models, folder / "features.parquet")
    weighed = [
        evidence.weigh(comparison, load, rules) | {"reset_control": reset_control(comparison, load, rules)}
        for comparison in comparisons
    ]
    write_parquet(concat([evidence.curves(comparison, load) for comparison in comparisons]), folder / "curves.parquet")
    traced = {merge: trace_sources(sources, merge, load, rules) for merge, sources in plan["sources"].items()}
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
        "agreements": [*evidence.agreements(plan, load, rules), *anchorings(plan, load, rules.threshold)],
        "stages": [
            {"parent": parent, "child": child, "group": group} | stage_counts(rows)
            for (parent, child), table in tables.items()
            if "moved_by" in table
            for group, rows in ((IDENTIFIED, table[table["identified"]]), (ALL, table))
        ],
        "pw_mcc": pw_mcc(comparisons, paths_to_weights),
        "sources": {
            merge: evidence.source_shares(table, plan["sources"][merge]["pairs"]) for merge, table in traced.items()
        },
    }
    write_json(folder / "summary.json", summary)


def judge(
    comparison: Mapping,
    absence: Mapping[str, list[str]],
    load: Load,
    readouts: pd.DataFrame | None,
    paths_to_weights: Sequence[str],
    rules: Rules,
) -> pd.DataFrame:
    """Make the table of one edge: the matches of both sides' features, what is known of them, and the verdicts.

    Args:
        comparison: of the leading instrument.
        absence: per side, the pairs of its SAE with all SAEs of the other model.
        load: as for `trace_lineage`.
        readouts: of the edge, if there are any.
        paths_to_weights: the weights of the two SAEs.
        rules: the bounds of verdicts.
    """
    compared = load(comparison["pair"])
    table = add_intervals(edge_table(compared.correlation, rules.threshold), compared.replicates)
    of_parent, of_child = (
        of_seeds(name, comparison["recurs"][side], absence[side], load, rules)
        for side, name in zip(SIDES, names_in_pair(comparison["pair"]), strict=True)
    )
    table = add_readouts(add_recurrence(table, of_parent, of_child, rules.identified_from), readouts)
    parent, child = map(decoder_directions, paths_to_weights)
    match = [table.loc[table["side"] == side, "match"].to_numpy() for side in SIDES]
    cosines = [match_cosines(parent, child, match[0]), match_cosines(child, parent, match[1])]
    table = table.assign(cosine=np.concatenate(cosines), rests_on=np.concatenate(compared.rests_on))
    return add_verdicts(table, rules)


def of_seeds(name: str, recurs: list[str], absence: list[str], load: Load, rules: Rules) -> Recurrence:
    """What other seeds say of the features of one SAE; its recurrence is NaN if its model has no other seeds."""
    missing = absent([load(pair).correlation for pair in absence], name, rules.threshold)
    if not recurs:
        return Recurrence(np.full(len(missing), np.nan), missing)
    return Recurrence(recurrence([load(pair).correlation for pair in recurs], name, rules.threshold), missing)


def add_steps(table: pd.DataFrame, lines: Mapping | None, load: Load, threshold: float) -> pd.DataFrame:
    """Add to an edge's table what moved the parent's features, if it has two-step SAEs."""
    if lines is None:
        return table
    correlations = {order: [load(pair).correlation for pair in pairs] for order, pairs in lines.items()}
    return add_stages(table, correlations, threshold)


def reset_control(comparison: Mapping, load: Load, rules: Rules) -> dict | None:
    """The shares of kept and reset latents where the model is unchanged, by group; None if there is no such control."""
    control = comparison["reset"]
    if control is None:
        return None
    correlation, marked = load(control["pair"]).correlation, evidence.identified(comparison, load, rules)
    reset = reset_latents(len(correlation.testable[1]), control["share"], control["seed"])
    groups = {IDENTIFIED: marked and marked[0], ALL: np.ones(len(correlation.testable[0]), dtype=bool)}
    shares = {
        group: None if among is None else stabilisation(correlation, reset, rules.threshold, among)
        for group, among in groups.items()
    }
    return {
        group: of_group and {name: named("share", found) for name, found in of_group.items()}
        for group, of_group in shares.items()
    }


def anchorings(plan: Mapping, load: Load, threshold: float) -> list[dict]:
    """Per edge, the agreement of the anchored chains from two seeds, as rows of `agreements`."""
    rows = []
    for comparison in plan["comparisons"]:
        second = plan["second_anchor"].get(f"{comparison['parent']}__{comparison['child']}")
        if second and comparison["instrument"] == plan["leading"]:
            names = (comparison["pair"], second["edge"], second["parents"])
            one, other, parents = (load(name).correlation for name in names)
            edge = {key: comparison[key] for key in ("parent", "child")} | {
                "instrument": SECOND_CHAIN,
                "group": "of both seeds",
            }
            figures = anchoring_agreement(one, other, parents, threshold)
            rows.append(edge | {name: None if isnan(value) else value for name, value in figures.items()})
    return rows


def beside_trained(table: pd.DataFrame, entry: Mapping, controls: Mapping, load: Load, rules: Rules) -> dict:
    """Compare an edge's losses and gains with those of its twins and continued models.

    Args:
        table: of the edge, with verdicts.
        entry: the edge, from `evidence.weigh`.
        controls: the pairs of such models, `Comparisons.trained_control_pairs` of every edge.
        load, rules: as for `trace_lineage`.

    Returns:
        Under `twins` and `continued`, the figures of `twins.compare` by model.
    """
    names = names_in_pair(entry["pair"])
    return {
        kind: {
            model: compare(
                table,
                *(
                    found_in(load(pairs[side]).correlation, name, rules.threshold)
                    for side, name in zip(SIDES, names, strict=True)
                ),
            )
            for model, pairs in models.items()
        }
        for kind, models in controls[f"{entry['parent']}__{entry['child']}"].items()
    }


def pw_mcc(comparisons: Sequence[Mapping], paths_to_weights: Mapping[str, str]) -> dict[str, PairwiseMcc]:
    """PW-MCC between the SAEs of several seeds of each model, from their decoders (arXiv 2505.20254)."""
    pairs = {model: names for comparison in comparisons for model, names in comparison["seeds"].items() if names}
    return {model: seeds_pw_mcc(pairs[model], lambda name: load_decoder(paths_to_weights[name])) for model in pairs}


def write_features(
    tables: Mapping[tuple[str, str], pd.DataFrame], plan: Mapping, load: Load, models: list[str], path: Path
) -> None:
    """Write the trajectories of the features of the SAEs that verdicts rest on."""
    pairs = [comparison["pair"] for comparison in plan["comparisons"] if comparison["instrument"] == plan["leading"]]
    statistics = feature_statistics((load(pair).correlation for pair in pairs), models)
    write_parquet(feature_table(tables, models, statistics), path)


def trace_sources(sources: Mapping, merge: str, load: Load, rules: Rules) -> pd.DataFrame:
    """Trace the features of a merged model to its parents."""
    correlations = {name: load(pair).correlation for name, pair in sources["pairs"].items()}
    return evidence.sources(merge, correlations, sources["parents"], rules.threshold)


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
            folder=Path(snakemake.output.summary).parent,
        )
