"""Take a model that was kept at a step of a training out of the archive of that training."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.archives import take_folder
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def keep_step(path_to_steps: str, step: int, folder: Path) -> None:
    """Write the model's folder.

    Args:
        path_to_steps: the archive, `models/{model}/steps.tar`.
        step: of the training.
        folder: the folder to write.
    """
    take_folder(path_to_steps, str(step), folder)


if __name__ == "__main__":
    with job(snakemake):
        keep_step(
            path_to_steps=snakemake.input.steps[0],
            step=snakemake.params.step,
            folder=Path(snakemake.output.weights).parent,
        )
