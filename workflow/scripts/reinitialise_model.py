"""Make a model of another one's architecture with new random weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.jobs.job import job
from saelineage.models.loading import reinitialised
from saelineage.models.training import save_model

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def reinitialise_model(like: Path, seed: int, folder: Path) -> None:
    """Write the model's folder with the tokenizer of the model that it is like."""
    save_model(reinitialised(like, seed), like, folder)


if __name__ == "__main__":
    with job(snakemake):
        reinitialise_model(
            like=Path(snakemake.input.like[0]).parent,
            seed=snakemake.params.seed,
            folder=Path(snakemake.output.weights).parent,
        )
