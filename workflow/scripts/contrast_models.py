"""Sample from a child where it differs from its parent, and count the child's features in the samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from saelineage.behaviour.contrasts import enrichment, firings, sample_sets, sample_table
from saelineage.behaviour.edges import open_edge
from saelineage.files.folders import folders_of
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.matching import SIDES
from saelineage.models.vocabularies import end_ids
from saelineage.precision import AUTO
from saelineage.saes.sae import load_sae
from saelineage.tokens import load_tokenizer, read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def contrast_models(
    models: Mapping[str, str],
    model_folders: Mapping[str, Path],
    sae_folder: Path,
    path_to_verdicts: str,
    paths_to_rows: Mapping[str, str],
    tokenizer_folder: Path,
    hookpoint: str,
    n_samples: int,
    n_tokens: int,
    batch_rows: int,
    seed: int,
    path_to_samples: str,
    path_to_enriched: str,
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Write the samples of an edge, and how much more often the child's features fire in the contrast's.

    Args:
        models, model_folders: names and folders of the `parent` and the `child`.
        sae_folder: of the child's SAE that verdicts rest on.
        path_to_verdicts: the edge's table.
        paths_to_rows: token rows of the probe, by corpus.
        tokenizer_folder: of the run's tokenizer.
        hookpoint: where the SAEs read the models.
        n_samples: samples of each set.
        n_tokens: tokens of a sample.
        batch_rows: rows in a forward pass.
        seed: of the draws.
        path_to_samples, path_to_enriched: the tables.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.
    """
    rows, verdicts = read_token_rows(paths_to_rows), pd.read_parquet(path_to_verdicts)
    readers, ids = open_edge(models, model_folders, rows, device, unshared, model_dtype)
    sae = load_sae(sae_folder).to(device)
    goes_on = sorted({*ids} - end_ids(rows))  # no sample ends, so that all are as long
    sets = sample_sets(readers, goes_on, n_samples, n_tokens, seed)
    counts = {name: firings(readers[SIDES[1]], sae, hookpoint, of_set, batch_rows) for name, of_set in sets.items()}
    write_parquet(sample_table(sets, load_tokenizer(tokenizer_folder)), path_to_samples)
    write_parquet(enrichment(counts, verdicts, n_samples), path_to_enriched)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        files, params = snakemake.input, snakemake.params
        (sae,) = folders_of(files.sae)
        contrast_models(
            models={side: getattr(snakemake.wildcards, side) for side in SIDES},
            model_folders={side: Path(getattr(files, side)[0]).parent for side in SIDES},
            sae_folder=sae,
            path_to_verdicts=str(files.verdicts),
            paths_to_rows=dict(zip(params.corpora, files.rows, strict=True)),
            tokenizer_folder=Path(str(files.tokenizer)).parent,
            hookpoint=params.hookpoint,
            n_samples=params.settings["samples"],
            n_tokens=params.settings["sample_tokens"],
            batch_rows=params.batch_rows,
            seed=params.seed,
            path_to_samples=snakemake.output.samples,
            path_to_enriched=snakemake.output.enriched,
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=params.unshared,
            model_dtype=params.model_dtype,
        )
