"""Measure one SAE on every corpus's validation split."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import write_json
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job_log
from saelineage.jobs.manifests import record_job
from saelineage.models.loading import load_model
from saelineage.saes.metrics import measure_corpora
from saelineage.saes.sae import load_sae
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def evaluate_sae(
    model_folder: Path,
    sae_folder: Path,
    hookpoint: str,
    paths_to_validation: list[str],
    batch_rows: int,
    path_to_metrics: str,
    gpus: int,
) -> None:
    """Write the SAE's metrics, per corpus and pooled."""
    device = pick_device(gpus)
    model, sae = load_model(model_folder).to(device), load_sae(sae_folder).to(device)
    metrics = measure_corpora(model, sae, hookpoint, read_token_rows(paths_to_validation), batch_rows)
    shape = {"architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k}
    write_json(path_to_metrics, {"model": model_folder.name, "sae": sae_folder.name} | shape | metrics)


if __name__ == "__main__":
    with job_log(snakemake.log[0], snakemake.input):
        prepare_cpu(snakemake.threads)
        evaluate_sae(
            model_folder=Path(snakemake.input.model[0]).parent,
            sae_folder=Path(snakemake.input.weights).parent,
            hookpoint=snakemake.params.hookpoint,
            paths_to_validation=snakemake.input.validation,
            batch_rows=snakemake.params.batch_rows,
            path_to_metrics=snakemake.output.metrics,
            gpus=snakemake.resources.get("gpu", 0),
        )
        record_job(snakemake)
