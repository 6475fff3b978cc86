"""Merge language models tensor by tensor."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import read_json
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.models.merging.merge import merge_folders
from saelineage.models.merging.parents import folders_of
from saelineage.models.merging.sweeps import best_settings
from saelineage.plan.merges import sweeps_behind, with_best, with_choice

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


def best_of_sweeps(settings: Mapping, paths: Iterable[str]) -> dict[str, dict[str, float]]:
    """The settings of the best merge of each sweep that a merge takes settings from."""
    taken = sweeps_behind(settings)
    by_sweep = {Path(path).stem: path for path in paths}
    return {
        sweep: best_settings(path, [setting for setting, of in taken.items() if of == sweep])
        for sweep, path in by_sweep.items()
    }


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        settings = snakemake.params.merge
        settings = with_best(settings, best_of_sweeps(settings, snakemake.input.sweeps))
        for path in snakemake.input.choice:
            settings = with_choice(settings, read_json(path)["settings"])
        record |= merge_models(
            settings=settings,
            parent_folders=folders_of(snakemake.input.parents),
            base_folder=next(iter(folders_of(snakemake.input.base)), None),
            folder=Path(snakemake.output.weights).parent,
        )
