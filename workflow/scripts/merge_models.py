"""Merge two language models tensor by tensor."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.jobs.job import job
from saelineage.models.merging import merge_folders

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def merge_models(parent_folders: list[Path], t: float, dtype: str | None, folder: Path, method: str = "slerp") -> None:
    """Write the merged model's folder with the first parent's tokenizer and config."""
    merge_folders(parent_folders[0], parent_folders[1], t, dtype, folder, method)


if __name__ == "__main__":
    with job(snakemake):
        merge_models(
            parent_folders=list(dict.fromkeys(Path(path).parent for path in snakemake.input.parents)),
            t=snakemake.params.model["t"],
            dtype=snakemake.params.model["dtype"],
            folder=Path(snakemake.output.weights).parent,
            method=snakemake.params.model["method"],
        )
