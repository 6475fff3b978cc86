"""Verdicts per edge, trajectories through the graph, and the summary."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saelineage.files import atomic_path, write_json
from saelineage.lineage import edge_summary, edge_table, feature_statistics, feature_table, matched_share, seed_floor
from saelineage.logs import job_log
from saelineage.manifests import record_job
from saelineage.matches import Correlation, load_correlation

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def trace_lineage(
    run: str,
    correlations: dict[str, Correlation],
    threshold: float,
    models: list[str],
    edge_pairs: dict[str, str],
    seed_pairs: dict[str, list[str]],
    null_pairs: dict[str, dict[str, str]],
    folder: Path,
) -> None:
    """Write `edges/*.parquet`, `features.parquet` and `summary.json`.

    Args:
        run: the run's name.
        correlations: by pair name, `{model}.{sae}__{model}.{sae}`.
        threshold: r at or above this is a match.
        models: parents before children.
        edge_pairs: the pair each edge `{parent}__{child}` rests on.
        seed_pairs: the seed pairs of each model.
        null_pairs: the pair of each null of each edge.
        folder: where to.
    """
    edges = {tuple(edge.split("__")): correlations[pair] for edge, pair in edge_pairs.items()}
    tables = {edge: edge_table(found, threshold) for edge, found in edges.items()}
    floors = {
        model: seed_floor([correlations[pair] for pair in pairs], threshold) for model, pairs in seed_pairs.items()
    }
    for (parent, child), table in tables.items():
        write_parquet(table, folder / "edges" / f"{parent}__{child}.parquet")
    statistics = feature_statistics(correlations.values(), models)
    write_parquet(feature_table(tables, models, statistics), folder / "features.parquet")
    summaries = []
    for (parent, child), table in tables.items():
        nulls = {
            null: matched_share(correlations[pair], 0, threshold)
            for null, pair in null_pairs[f"{parent}__{child}"].items()
        }
        summaries.append(edge_summary(parent, child, table, floors[parent], floors[child], nulls))
    summary = {"run": run, "threshold": threshold, "models": models, "edges": summaries}
    write_json(folder / "summary.json", summary)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        paths = {Path(path).parent.name: path for path in snakemake.input.correlations}
        trace_lineage(
            run=snakemake.wildcards.run,
            correlations={pair: load_correlation(path) for pair, path in paths.items()},
            threshold=snakemake.params.threshold,
            models=snakemake.params.models,
            edge_pairs=snakemake.params.edge_pairs,
            seed_pairs=snakemake.params.seed_pairs,
            null_pairs=snakemake.params.null_pairs,
            folder=Path(snakemake.output.summary).parent,
        )
        record_job(snakemake)
