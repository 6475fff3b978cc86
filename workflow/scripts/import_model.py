"""Import a language model from the hub or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import sha256_file
from saelineage.jobs.job import job
from saelineage.models.loading import find_model, load_model
from saelineage.models.training import save_model

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def import_model(settings: dict, key: str, tokenizer_folder: Path, folder: Path) -> dict:
    """Write the model's folder with the run's tokenizer, and return its source for the manifest."""
    source = find_model(settings, key)
    save_model(load_model(source.folder, dtype="auto"), tokenizer_folder, folder)
    if source.commit is None:
        return {}
    return {"commit": source.commit, "files": {path.name: sha256_file(path) for path in source.files}}


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= import_model(
            settings=snakemake.params.model,
            key=f"models.{snakemake.wildcards.model}",
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            folder=Path(snakemake.output.weights).parent,
        )
