"""Take one SAE out of the archive of all that one job trained (activations.keep: stream)."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.archives import take_folder
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def unpack_sae(path_to_bundle: Path | str, name: str, folder: Path) -> None:
    """Write the SAE's folder.

    Args:
        path_to_bundle: the archive, `streams/{model}/{part}.tar`.
        name: `{hookpoint}/{sae}`, its folder there.
        folder: the folder to write.
    """
    take_folder(path_to_bundle, name, folder)


if __name__ == "__main__":
    with job(snakemake):
        unpack_sae(
            path_to_bundle=str(snakemake.input.bundle),
            name=f"{snakemake.wildcards.hookpoint}/{snakemake.wildcards.sae}",
            folder=Path(snakemake.output.config).parent,
        )
