"""Measure what the latents of a crosscoder that one model of an edge writes alone do to the loss of both models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from saelineage.crosscoders.crosscoder import load_crosscoder
from saelineage.features.shards import shards_by_sae
from saelineage.files.folders import folders_of
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.crosscoder_ablations import crosscoder_effects, latent_groups
from saelineage.models.loading import open_model
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def ablate_crosscoder(
    folder: Path,
    path_to_verdicts: str,
    paths_to_latents: Mapping[str, Sequence[str]],
    model_folders: Mapping[str, Path],
    paths_to_rows: Mapping[str, str],
    hookpoint: str,
    max_rows: int,
    batch_rows: int,
    n_replicates: int,
    seed: int,
    path_to_effects: str,
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Write the losses of the models of all edges (`lineage.crosscoder_ablations.crosscoder_effects`).

    One model is in memory at a time, and each is loaded once.

    Args:
        folder: the crosscoder's folder.
        path_to_verdicts: its verdicts by latent and pair (`measure_crosscoder`).
        paths_to_latents: its latents on the probe, by corpus.
        model_folders: the folders of the models with an edge.
        paths_to_rows: token rows of the probe, by corpus.
        hookpoint: where the crosscoder reads the models.
        max_rows: rows to read of each corpus.
        batch_rows: rows in a forward pass.
        n_replicates: replicates of the documents, for intervals.
        seed: of these and of the random groups.
        path_to_effects: to write; rows of an edge lie together, first those of its parent.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.
    """
    crosscoder = load_crosscoder(folder)
    crosscoder.sae.to(device)
    rows, verdicts = read_token_rows(paths_to_rows), pd.read_parquet(path_to_verdicts)
    limits = (batch_rows, max_rows, n_replicates, seed)
    tables = []
    for name, model_folder in model_folders.items():
        model = open_model(model_folder, device, model_dtype)
        shared = share_rows(model, model_folder, rows, name, unshared).rows
        groups = latent_groups(verdicts, name, seed)
        read = (crosscoder, hookpoint, shared, paths_to_latents)
        tables.append(crosscoder_effects(model, name, *read, groups, *limits))
        del model  # before the next one is opened
    effects = pd.concat(tables, ignore_index=True)
    write_parquet(effects.sort_values("edge", kind="stable", ignore_index=True), path_to_effects)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        files, params = snakemake.input, snakemake.params
        ablate_crosscoder(
            folder=Path(files.weights).parent,
            path_to_verdicts=str(files.verdicts),
            paths_to_latents=shards_by_sae(files.latents, params.corpora),
            model_folders=dict(zip(params.models, folders_of(files.models), strict=True)),
            paths_to_rows=dict(zip(params.corpora, files.rows, strict=True)),
            hookpoint=params.hookpoint,
            max_rows=params.max_rows,
            batch_rows=params.batch_rows,
            n_replicates=params.replicates["n_replicates"],
            seed=params.replicates["seed"],
            path_to_effects=snakemake.output.ablations,
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=params.unshared,
            model_dtype=params.model_dtype,
        )
