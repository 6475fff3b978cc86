"""Choose the settings of a merge that depend on what merged models do on validation text."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import write_json
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.models.merging.choosing import Measuring, greedy_weights, least_changing, mean_divergence, mean_loss
from saelineage.models.merging.parents import folders_of, open_parents
from saelineage.plan.merges import GREEDY, with_choice
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def choose_merge(
    settings: Mapping,
    parent_folders: list[Path],
    base_folder: Path | None,
    measuring: Measuring,
    path_to_choice: str,
) -> None:
    """Write the settings that are chosen, and what they were chosen by.

    Args:
        settings: of the merge (`plan.merges.merge_settings`).
        parent_folders, base_folder: of the models.
        measuring: how merged models are measured.
        path_to_choice: to write: `settings`, and `losses` by parent, or `changes` by divisor.
    """
    if settings["method"] == GREEDY:
        parents = open_parents(parent_folders, base_folder, settings["dtype"], settings["vocabulary"])
        weights, losses = greedy_weights(
            len(parent_folders),
            lambda weights: mean_loss(parents, with_choice(settings, {"weights": weights}), measuring),
        )
        logger.info("chosen: %s", [name for name, weight in zip(parents.names, weights, strict=True) if weight])
        write_json(
            path_to_choice,
            {"settings": {"weights": weights}, "losses": dict(zip(parents.names, losses, strict=True))},
        )
        return
    assert base_folder is not None  # methods with a divisor have a base
    base = base_folder
    divisor, changes = least_changing(
        float(settings["density"]),
        lambda q: mean_divergence(parent_folders, base, with_choice(settings, {"q": q}), measuring),
    )
    logger.info("chosen: q = %g, by KL divergences %s", divisor, changes)
    write_json(path_to_choice, {"settings": {"q": divisor}, "changes": {f"{q:g}": kl for q, kl in changes.items()}})


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        choose_merge(
            settings=snakemake.params.merge,
            parent_folders=folders_of(snakemake.input.parents),
            base_folder=next(iter(folders_of(snakemake.input.base)), None),
            measuring=Measuring(
                rows=read_token_rows(dict(zip(snakemake.params.corpora, snakemake.input.validation, strict=True))),
                batch_rows=snakemake.params.batch_rows,
                device=pick_device(snakemake.resources.get("gpu", 0)),
                model_dtype=snakemake.params.model_dtype,
                unshared=snakemake.params.unshared,
            ),
            path_to_choice=snakemake.output.choice,
        )
