"""Take over a language model from the hub or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.hub import hub_commit
from saelineage.logs import job_log
from saelineage.manifests import record_job
from saelineage.models import load_model
from saelineage.training import save_model

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def import_model(settings: dict, key: str, tokenizer_folder: Path, folder: Path) -> dict:
    """Write the model's folder, with the run's tokenizer; returns what was found out on the way."""
    found, revision = {}, None
    if "repo" in settings:
        revision = hub_commit(settings["repo"], settings["revision"], "model", key)
        found["commit"] = revision
    model = load_model(settings.get("folder") or settings["repo"], revision, dtype="auto")
    save_model(model, tokenizer_folder, folder)
    return found


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        found = import_model(
            settings=snakemake.params.model,
            key=f"models.{snakemake.wildcards.model}",
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            folder=Path(snakemake.output.weights).parent,
        )
        record_job(snakemake, **found)
