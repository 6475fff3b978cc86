"""Measure the effects of the features of every edge by ablating them, in groups and one matched pair at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch

from saelineage.files.folders import folders_of
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
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
from saelineage.lineage.matching import SIDES, sides_of
from saelineage.models.loading import open_model
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO
from saelineage.saes.sae import load_sae
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


class Edge(NamedTuple):
    """One edge and its files."""

    models: dict[str, str]
    """The names of the `parent` and the `child`."""
    path_to_verdicts: str
    path_to_groups: str
    """`ablations.group_effects` of both sides, with a column `side`."""
    path_to_features: str
    """`ablations.matched_effects`."""
    path_to_agreement: str
    """`ablations.agreements` of these."""


def ablate_groups(
    edges: Sequence[Edge],
    model_folders: Mapping[str, Path],
    sae_folders: Mapping[str, Path],
    paths_to_rows: Mapping[str, str],
    hookpoint: str,
    max_rows: int,
    n_matches: int,
    batch_rows: int,
    seed: int,
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Write the effects of each edge's groups, and those of its best matched features.

    One model is in memory at a time, and each is loaded once.

    Args:
        edges: the edges.
        model_folders, sae_folders: each model's folder, and that of the SAE that verdicts rest on.
        paths_to_rows: token rows, by corpus.
        hookpoint: where the SAEs read the models.
        max_rows: rows to read of each corpus.
        n_matches: matched pairs whose features are ablated one at a time.
        batch_rows: rows in a forward pass.
        seed: the seed of the random groups.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.
    """
    rows = read_token_rows(paths_to_rows)
    verdicts = [pd.read_parquet(edge.path_to_verdicts) for edge in edges]
    pairs = [top_matches(table, n_matches) for table in verdicts]
    groups: dict[tuple[int, str], pd.DataFrame] = {}
    singles: dict[tuple[int, str], pd.DataFrame] = {}
    for name, folder in model_folders.items():
        model = open_model(folder, device, model_dtype)
        sae = load_sae(sae_folders[name]).to(device)
        read = (model, sae, hookpoint, share_rows(model, folder, rows, name, unshared).rows)
        for place, side in sides_of(name, [edge.models for edge in edges]):
            effects = group_effects(*read, edge_groups(verdicts[place], side, seed), batch_rows, max_rows)
            groups[place, side] = effects.assign(side=side)[["side", *effects.columns]]
            singles[place, side] = feature_effects(*read, pairs[place][side].to_numpy(), batch_rows, max_rows)
        del model, read  # before the next one is opened
    for place, edge in enumerate(edges):
        both_sides = pd.concat([groups[place, side] for side in SIDES], ignore_index=True)
        write_parquet(both_sides, edge.path_to_groups)
        matched = matched_effects(pairs[place], *(singles[place, side] for side in SIDES))
        write_parquet(matched, edge.path_to_features)
        write_parquet(agreements(matched), edge.path_to_agreement)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        files, results = snakemake.input, snakemake.output
        written = zip(results.groups, results.features, results.agreement, strict=True)
        ablate_groups(
            edges=[
                Edge(dict(zip(SIDES, names, strict=True)), verdicts, *paths)
                for names, verdicts, paths in zip(snakemake.params.edges, files.edges, written, strict=True)
            ],
            model_folders=dict(zip(snakemake.params.models, folders_of(files.models), strict=True)),
            sae_folders=dict(zip(snakemake.params.models, folders_of(files.saes), strict=True)),
            paths_to_rows=dict(zip(snakemake.params.corpora, files.rows, strict=True)),
            hookpoint=snakemake.params.hookpoint,
            max_rows=snakemake.params.settings["ablated_rows"],
            n_matches=snakemake.params.settings["ablated_features"],
            batch_rows=snakemake.params.batch_rows,
            seed=snakemake.params.settings["seed"],
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
