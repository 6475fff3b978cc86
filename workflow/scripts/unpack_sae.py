"""Take one SAE out of the archive of all that one job trained (activations.keep: stream)."""

import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import atomic_path
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def unpack_sae(path_to_bundle: Path | str, prefix: str, paths: list[str]) -> None:
    """Write files from an archive.

    Args:
        path_to_bundle: the archive.
        prefix: `{hookpoint}/{sae}`, the folder there.
        paths: of the files, which have the same names as there.
    """
    with tarfile.open(path_to_bundle) as archive:
        for path in paths:
            content = archive.extractfile(f"{prefix}/{Path(path).name}")
            assert content is not None  # a regular file, because `stream_saes.bundle` writes no others
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                shutil.copyfileobj(content, file)


if __name__ == "__main__":
    with job(snakemake):
        unpack_sae(
            path_to_bundle=str(snakemake.input.bundle),
            prefix=f"{snakemake.wildcards.hookpoint}/{snakemake.wildcards.sae}",
            paths=[snakemake.output.config, snakemake.output.weights, snakemake.output.curve],
        )
