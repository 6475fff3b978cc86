"""Measure a language model, and its SAEs, on every corpus's validation split."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saelineage.files.atomic import write_json
from saelineage.files.folders import folders_of
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.loading import (
    n_parameters,
    open_model,
    unigram_loss,
    weights_sha256,
)
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO, dtype_name
from saelineage.saes.metrics import measure_clean, measure_corpora
from saelineage.saes.sae import load_sae
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def measure_model(
    name: str,
    folder: Path,
    sae_folders: Mapping[str, Mapping[str, Path]],
    hookpoints: Mapping[str, str],
    paths_to_train: Mapping[str, str],
    paths_to_validation: Mapping[str, str],
    batch_rows: int,
    path_to_metrics: str,
    paths_to_sae_metrics: Mapping[str, str],
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> dict:
    """Write loss and accuracy per corpus with a unigram model's loss, and the metrics of the model's SAEs.

    Args:
        name: of the model.
        folder: its folder.
        sae_folders: its SAEs at each hookpoint, by name.
        hookpoints: where these read the model, by the hookpoint's name.
        paths_to_train: token rows of the train splits by corpus, for the unigram model.
        paths_to_validation: token rows of the validation splits by corpus.
        batch_rows: rows in a forward pass.
        path_to_metrics: the model's file to write.
        paths_to_sae_metrics: that of its SAEs at each hookpoint.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.

    Returns:
        Facts for the manifest: `dtype`, the number format that the model was opened in.
    """
    train, validation = read_token_rows(paths_to_train), read_token_rows(paths_to_validation)
    model = open_model(folder, device, model_dtype)
    splits = {f"{corpus}.train": of for corpus, of in train.items()}
    splits |= {f"{corpus}.validation": of for corpus, of in validation.items()}
    shared, vocabulary = share_rows(model, folder, splits, name, unshared)
    train = {corpus: shared[f"{corpus}.train"] for corpus in train}
    validation = {corpus: shared[f"{corpus}.validation"] for corpus in validation}
    d_vocab = min(vocabulary["n_ids"], vocabulary["n_rows"])
    limits = {
        place: [load_sae(sae_folder).max_norm for sae_folder in sae_folders[hookpoint].values()]
        for hookpoint, place in hookpoints.items()
    }
    clean = {corpus: measure_clean(model, limits, rows, batch_rows) for corpus, rows in validation.items()}
    corpora = {
        corpus: clean[corpus].losses.means() | {"unigram_loss": unigram_loss(train[corpus], rows, d_vocab)}
        for corpus, rows in validation.items()
    }
    sizes = {"n_parameters": n_parameters(model), "weights_sha256": weights_sha256(model)}
    write_json(path_to_metrics, {"model": name, "corpora": corpora, "vocabulary": vocabulary} | sizes)
    for hookpoint, place in hookpoints.items():
        saes = {sae: load_sae(sae_folder).to(device) for sae, sae_folder in sae_folders[hookpoint].items()}
        metrics = measure_corpora(model, saes, place, validation, batch_rows, clean)
        entries = [
            {"model": name, "sae": sae_name, "architecture": sae.architecture, "d_in": sae.d_in}
            | {"d_sae": sae.d_sae, "k": sae.k}
            | metrics[sae_name]
            for sae_name, sae in saes.items()
        ]
        write_json(paths_to_sae_metrics[hookpoint], {"saes": entries})
    return {"dtype": dtype_name(model)}


def by_hookpoint(
    hookpoints: Iterable[str], names: Sequence[str], folders: Sequence[Path]
) -> dict[str, dict[str, Path]]:
    """Folders of SAEs by hookpoint and name, from those of one hookpoint after the other."""
    return {
        hookpoint: dict(zip(names, folders[number * len(names) : (number + 1) * len(names)], strict=True))
        for number, hookpoint in enumerate(hookpoints)
    }


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        hookpoints = snakemake.params.hookpoints
        record |= measure_model(
            name=snakemake.wildcards.model,
            folder=Path(snakemake.input.model[0]).parent,
            sae_folders=by_hookpoint(hookpoints, snakemake.params.saes, folders_of(snakemake.input.saes)),
            hookpoints=hookpoints,
            paths_to_train=dict(zip(snakemake.params.corpora, snakemake.input.train, strict=True)),
            paths_to_validation=dict(zip(snakemake.params.corpora, snakemake.input.validation, strict=True)),
            batch_rows=snakemake.params.batch_rows,
            path_to_metrics=snakemake.output.metrics,
            paths_to_sae_metrics=dict(zip(hookpoints, snakemake.output.sae_metrics, strict=True)),
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
