"""Merge language models tensor by tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.models.merging.merge import merge_folders
from saelineage.models.merging.parents import folders_of

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def merge_models(settings: Mapping, parent_folders: list[Path], base_folder: Path | None, folder: Path) -> dict:
    """Write the merged model's folder with a parent's tokenizer and config.

    Returns:
        Facts for the manifest: `same_weights_as`, if the merge has the weights of a parent or the base, and `warnings`,
        if the models' vocabularies differ.
    """
    facts = merge_folders(settings, parent_folders, base_folder, folder)
    if "same_weights_as" in facts:
        logger.warning(
            "the merged model has exactly the weights of '%s': by its settings, or because the parents are the same",
            facts["same_weights_as"],
        )
    return facts


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        record |= merge_models(
            settings=snakemake.params.merge,
            parent_folders=folders_of(snakemake.input.parents),
            base_folder=next(iter(folders_of(snakemake.input.base)), None),
            folder=Path(snakemake.output.weights).parent,
        )
