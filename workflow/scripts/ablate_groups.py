"""Measure what the features of an edge do: take them out of their models, in groups and matched pair by pair."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saelineage.files.tables import write_parquet
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.ablations import (
    agreements,
    edge_groups,
    feature_effects,
    group_effects,
    matched_effects,
    top_matches,
)
from saelineage.lineage.verdicts import SIDES
from saelineage.models.loading import load_model
from saelineage.saes.sae import load_sae
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def ablate_groups(
    model_folders: dict[str, Path],
    sae_folders: dict[str, Path],
    path_to_edge: str,
    paths_to_rows: list[str],
    hookpoint: str,
    max_rows: int,
    n_matches: int,
    batch_rows: int,
    seed: int,
    gpus: int,
    path_to_groups: str,
    path_to_features: str,
    path_to_agreement: str,
) -> None:
    """Write the effects of an edge's groups, and those of its best matched features.

    Args:
        model_folders, sae_folders: of the `parent` and the `child`.
        path_to_edge: the table of the edge.
        paths_to_rows: token rows, by corpus.
        hookpoint: what the SAEs read.
        max_rows: rows to read of each corpus.
        n_matches: matched pairs whose features are taken out one at a time.
        batch_rows: rows in a forward pass.
        seed: of the random groups.
        gpus: how many the job was given.
        path_to_groups: `ablations.group_effects` of both sides, with a column `side`.
        path_to_features: `ablations.matched_effects`.
        path_to_agreement: `ablations.agreements` of these.
    """
    device, rows, edge = pick_device(gpus), read_token_rows(paths_to_rows), pd.read_parquet(path_to_edge)
    pairs = top_matches(edge, n_matches)
    groups, singles = [], {}
    for side in SIDES:  # one model in memory at a time
        model, sae = load_model(model_folders[side]).to(device), load_sae(sae_folders[side]).to(device)
        read = (model, sae, hookpoint, rows)
        own = group_effects(*read, edge_groups(edge, side, seed), batch_rows, max_rows)
        groups.append(own.assign(side=side)[["side", *own.columns]])
        singles[side] = feature_effects(*read, pairs[side].to_numpy(), batch_rows, max_rows)
    write_parquet(pd.concat(groups, ignore_index=True), path_to_groups)
    matched = matched_effects(pairs, singles["parent"], singles["child"])
    write_parquet(matched, path_to_features)
    write_parquet(agreements(matched), path_to_agreement)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        sources = snakemake.input
        ablate_groups(
            model_folders={
                "parent": Path(sources.parent_model[0]).parent,
                "child": Path(sources.child_model[0]).parent,
            },
            sae_folders={"parent": Path(sources.parent_sae[0]).parent, "child": Path(sources.child_sae[0]).parent},
            path_to_edge=sources.edge,
            paths_to_rows=sources.rows,
            hookpoint=snakemake.params.hookpoint,
            max_rows=snakemake.params.settings["ablated_rows"],
            n_matches=snakemake.params.settings["ablated_features"],
            batch_rows=snakemake.params.batch_rows,
            seed=snakemake.params.settings["seed"],
            gpus=snakemake.resources.get("gpu", 0),
            path_to_groups=snakemake.output.groups,
            path_to_features=snakemake.output.features,
            path_to_agreement=snakemake.output.agreement,
        )
