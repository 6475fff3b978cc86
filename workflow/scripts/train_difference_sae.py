"""Train one SAE on the difference of two models' activations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.crosscoders.differences import difference_metadata, require_difference
from saelineage.crosscoders.dumps import DifferenceDump
from saelineage.files.atomic import write_text
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.saes.sae import save_sae
from saelineage.saes.training import train_saes

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def train_difference_sae(
    parent: str,
    child: str,
    paths_to_parent: Sequence[str],
    paths_to_child: Sequence[str],
    settings: Mapping,
    source: Mapping,
    folder: Path,
    checkpoint: Path,
    gpus: int,
) -> None:
    """Write the SAE's folder and its training curve.

    Args:
        parent, child: names of the models.
        paths_to_parent, paths_to_child: their activations, in one order.
        settings: the SAE's settings (`plan.difference_saes.DifferenceSaes.settings`).
        source: `name` and `revision` by which others open the child.
        folder: the folder to write.
        checkpoint: the file from which an interrupted training resumes.
        gpus: the number of GPUs that the job was given; 0 trains on the CPU.
    """
    dump = DifferenceDump(paths_to_parent, paths_to_child, settings["max_norm_ratio"])
    require_difference(dump, parent, child)
    (trained,) = train_saes(dump, [settings], pick_device(gpus), checkpoint)
    save_sae(trained.sae, folder, difference_metadata(dump, settings, parent, child, source))
    write_text(folder / "training.csv", trained.curve.to_csv(index=False))


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        with checkpoint_folder(snakemake) as checkpoints:
            train_difference_sae(
                parent=snakemake.wildcards.parent,
                child=snakemake.wildcards.child,
                paths_to_parent=list(snakemake.input.parent),
                paths_to_child=list(snakemake.input.child),
                settings=snakemake.params.settings,
                source=snakemake.params.source,
                folder=Path(snakemake.output.weights).parent,
                checkpoint=checkpoints / "state.safetensors",
                gpus=snakemake.resources.get("gpu", 0),
            )
