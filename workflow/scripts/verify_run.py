"""Compare every file of a run with the manifest that describes it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.errors import InputError
from saelineage.logs import job_log
from saelineage.manifests import check_manifest

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def verify_run(folder: str) -> int:
    """Check all manifests under a run's folder; returns how many there are.

    Raises:
        InputError: naming every file that is missing or differs.
    """
    manifests = sorted(Path(folder).rglob("*manifest.json"))
    problems = [problem for path in manifests for problem in check_manifest(path)]
    if problems:
        raise InputError("; ".join(problems) + "; delete what is named here and run again")
    return len(manifests)


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        count = verify_run(snakemake.params.folder)
        logger.info("%d manifests, every file as recorded", count)
        print(f"{count} manifests, every file as recorded")
