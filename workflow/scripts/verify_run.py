"""Compare every file of a run with the manifest that describes it."""

import logging
import time
from typing import TYPE_CHECKING

from saelineage.errors import InputError
from saelineage.jobs.job import job
from saelineage.jobs.manifests import Check, check_run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def verify_run(folder: str, kept: list[str], threads: int) -> str:
    """Check all manifests under a run's folder; returns in a sentence what was read.

    Args:
        folder: results/{run}.
        kept: manifests of what a plain run of Snakemake makes.
        threads: files read at a time.

    Raises:
        InputError: naming every file that is damaged, missing or another run's, a line each, and what to delete.
    """
    started = time.monotonic()
    found = check_run(folder, threads)
    if found.problems:
        raise InputError("\n".join([f"{len(found.problems)} problems in '{folder}':", *advice(found, set(kept))]))
    seconds, gigabytes = time.monotonic() - started, found.n_bytes / 1e9
    left = "; left behind by killed processes, or being written on other hosts; delete them when no job runs"
    note = f"{left}: {', '.join(found.leftovers)}" if found.leftovers else ""
    return f"{found.n_manifests} manifests, {gigabytes:.2f} GB in {seconds:.1f} s, every file as recorded{note}"


def advice(found: Check, kept: set[str]) -> list[str]:
    """A line for each problem, and what to do when all that they name is deleted."""
    others = sorted(
        {path for problem in found.problems for path in problem.remove if path.endswith("manifest.json")} - kept
    )
    ask = f"; a plain run leaves out what is made only when asked for, so ask for these: {' '.join(others)}"
    return [*map(str, found.problems), f"delete what is named here and run again{ask if others else ''}"]


if __name__ == "__main__":
    with job(snakemake):
        said = verify_run(snakemake.params.folder, list(snakemake.params.kept), snakemake.threads)
        logger.info("%s", said)
        print(said)
