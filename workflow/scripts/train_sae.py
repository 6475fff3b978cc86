"""Train one SAE on one model's activations."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.devices import pick_device, set_threads
from saelineage.files import write_text
from saelineage.logs import job_log
from saelineage.manifests import record_job
from saelineage.sae_training import Dump, train_sae
from saelineage.saes import save_sae

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def train_and_save(
    model: str, sae: str, settings: dict, paths_to_shards: list[str], folder: Path, path_to_curve: str, gpus: int
) -> None:
    """Write the SAE's folder and its training curve."""
    dump = Dump(paths_to_shards)
    trained, curve = train_sae(dump, settings, pick_device(gpus))
    header = dump.shards[0].header
    provenance = {"model_name": model, "hook_name": header["hookpoint"], "context_size": header["n_ctx"]}
    save_sae(trained, folder, provenance | {"saelineage": {"model": model, "sae": sae, "settings": settings}})
    write_text(path_to_curve, curve.to_csv(index=False))


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        set_threads(snakemake.threads)
        train_and_save(
            model=snakemake.wildcards.model,
            sae=snakemake.wildcards.sae,
            settings=snakemake.params.sae,
            paths_to_shards=list(snakemake.input.shards),
            folder=Path(snakemake.output.weights).parent,
            path_to_curve=snakemake.output.curve,
            gpus=snakemake.resources.get("gpu", 0),
        )
        record_job(snakemake)
