"""Choose the settings of a merge that depend on what merged models do on validation text."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import read_json, write_json
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.models.merging.choosing import Measuring, greedy_weights, least_changing, mean_divergence, mean_loss
from saelineage.models.merging.parents import folders_of, open_parents
from saelineage.plan.merges import GREEDY, as_mean
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def choose_merge(
    settings: Mapping,
    parent_folders: list[Path],
    base_folder: Path | None,
    paths_to_metrics: Mapping[str, str],
    measuring: Measuring,
    path_to_choice: str,
) -> None:
    """Write the settings that are chosen, and what they were chosen by.

    Args:
        settings: of the merge (`plan.merges.merge_settings`).
        parent_folders, base_folder: of the models.
        paths_to_metrics: `models/{model}/metrics.json` of the parents, for a greedy soup.
        measuring: how merged models are measured.
        path_to_choice: to write: `settings`, and `losses` by parent, or `changes` by divisor.
    """
    parents = open_parents(parent_folders, base_folder, settings["dtype"], settings["vocabulary"])
    if settings["method"] == GREEDY:
        metrics = {model: read_json(path)["corpora"] for model, path in paths_to_metrics.items()}
        losses = {
            model: sum(metrics[model][corpus]["loss"] for corpus in measuring.rows) / len(measuring.rows)
            for model in parents.names
        }
        weights = greedy_weights(
            list(losses.values()), lambda weights: mean_loss(parents, as_mean(settings, weights), measuring)
        )
        logger.info("chosen: %s", [name for name, weight in zip(parents.names, weights, strict=True) if weight])
        write_json(path_to_choice, {"settings": {"weights": weights}, "losses": losses})
        return
    density = float(settings["density"])
    divisor, changes = least_changing(density, lambda q: mean_divergence(parents, dict(settings) | {"q": q}, measuring))
    logger.info("chosen: q = %g, by KL divergences %s", divisor, changes)
    write_json(path_to_choice, {"settings": {"q": divisor}, "changes": {f"{q:g}": kl for q, kl in changes.items()}})


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        choose_merge(
            settings=snakemake.params.merge,
            parent_folders=folders_of(snakemake.input.parents),
            base_folder=next(iter(folders_of(snakemake.input.base)), None),
            paths_to_metrics={Path(path).parent.name: path for path in snakemake.input.metrics},
            measuring=Measuring(
                rows=read_token_rows(dict(zip(snakemake.params.corpora, snakemake.input.validation, strict=True))),
                batch_rows=snakemake.params.batch_rows,
                device=pick_device(snakemake.resources.get("gpu", 0)),
                model_dtype=snakemake.params.model_dtype,
                unshared=snakemake.params.unshared,
            ),
            path_to_choice=snakemake.output.choice,
        )
