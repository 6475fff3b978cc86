"""Measure a model's loss on every token of the probe, which `compare_losses` compares between models."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saelineage.files.tensors import write_tensors
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.gains import losses_by_token
from saelineage.models.loading import open_model
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO, dtype_name
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def measure_losses(
    name: str,
    folder: Path,
    paths_to_rows: Mapping[str, str],
    batch_rows: int,
    path_to_losses: str,
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> dict:
    """Write the loss of every token of the probe in nats; NaN for the first of a row and where none counts.

    Args:
        name: of the model.
        folder: its folder.
        paths_to_rows: token rows of the probe, by corpus, in the config's order.
        batch_rows: rows in a forward pass.
        path_to_losses: the file to write.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.

    Returns:
        Facts for the manifest: `dtype`, the number format that the model was opened in.
    """
    model, rows = open_model(folder, device, model_dtype), read_token_rows(paths_to_rows)
    read = share_rows(model, folder, rows, name, unshared).rows
    losses = losses_by_token(model, [read[corpus] for corpus in paths_to_rows], batch_rows)
    header = {"model": name, "ids_sha256": {corpus: of_corpus.digest for corpus, of_corpus in rows.items()}}
    write_tensors(path_to_losses, header, {"losses": losses})
    return {"dtype": dtype_name(model)}


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        record |= measure_losses(
            name=snakemake.wildcards.model,
            folder=Path(snakemake.input.model[0]).parent,
            paths_to_rows=dict(zip(snakemake.params.corpora, snakemake.input.rows, strict=True)),
            batch_rows=snakemake.params.batch_rows,
            path_to_losses=snakemake.output.losses,
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
