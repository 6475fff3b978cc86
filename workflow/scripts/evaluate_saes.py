"""Measure the SAEs of one model on every corpus's validation split."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import write_json
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.loading import load_model
from saelineage.saes.metrics import measure_corpora
from saelineage.saes.sae import load_sae
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def evaluate_saes(
    model_folder: Path,
    sae_folders: Mapping[str, Path],
    hookpoint: str,
    paths_to_validation: list[str],
    batch_rows: int,
    path_to_metrics: str,
    gpus: int,
) -> None:
    """Write the metrics of a model's SAEs, per corpus and pooled.

    Args:
        model_folder: the model.
        sae_folders: its SAEs, by name.
        hookpoint: where the SAEs read the model.
        paths_to_validation: token rows.
        batch_rows: rows in a forward pass.
        path_to_metrics: the file to write.
        gpus: the number of GPUs that the job was given.
    """
    device = pick_device(gpus)
    model = load_model(model_folder).to(device)
    saes = {name: load_sae(folder).to(device) for name, folder in sae_folders.items()}
    metrics = measure_corpora(model, saes, hookpoint, read_token_rows(paths_to_validation), batch_rows)
    entries = [
        {"model": model_folder.name, "sae": name, "architecture": sae.architecture, "d_in": sae.d_in}
        | {"d_sae": sae.d_sae, "k": sae.k}
        | metrics[name]
        for name, sae in saes.items()
    ]
    write_json(path_to_metrics, {"saes": entries})


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        folders = dict.fromkeys(Path(path).parent for path in snakemake.input.saes)
        evaluate_saes(
            model_folder=Path(snakemake.input.model[0]).parent,
            sae_folders=dict(zip(snakemake.params.saes, folders, strict=True)),
            hookpoint=snakemake.params.hookpoint,
            paths_to_validation=snakemake.input.validation,
            batch_rows=snakemake.params.batch_rows,
            path_to_metrics=snakemake.output.metrics,
            gpus=snakemake.resources.get("gpu", 0),
        )
