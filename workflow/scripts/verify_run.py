"""Compare every file of a run with the manifest that describes it."""

import logging
import time
from typing import TYPE_CHECKING

from saelineage.errors import InputError
from saelineage.jobs.commands import command
from saelineage.jobs.job import job
from saelineage.jobs.manifests import Check, check_run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def verify_run(folder: str, kept: list[str], threads: int) -> str:
    """Check all manifests under a run's folder, and return one sentence about the result.

    Args:
        folder: results/{run}.
        kept: manifests of the files that a plain run of Snakemake makes.
        threads: files read at a time.

    Raises:
        InputError: with a line for every file that is damaged, missing or another run's, and the files to delete.
    """
    started = time.monotonic()
    result = check_run(folder, threads)
    if result.problems:
        raise InputError("\n".join([f"{len(result.problems)} problems in '{folder}':", *advice(result, set(kept))]))
    seconds, gigabytes = time.monotonic() - started, result.n_bytes / 1e9
    left = "; left behind by killed processes, or being written on other hosts; delete them when no job runs"
    note = f"{left}: {', '.join(result.leftovers)}" if result.leftovers else ""
    return f"{result.n_manifests} manifests, {gigabytes:.2f} GB in {seconds:.1f} s, every file as recorded{note}"


def advice(result: Check, kept: set[str]) -> list[str]:
    """A line for each problem, and a last one with the next step."""
    manifests = {path for problem in result.problems for path in problem.remove if path.endswith("manifest.json")}
    again = f"delete the files named here and run again: {command('--cores', '2')}"
    if on_request := sorted(manifests - kept):
        ask = command("--cores", "2", *on_request)
        again = f"{again}\na plain run does not make files that are made on request, so ask for these: {ask}"
    return [*map(str, result.problems), again]


if __name__ == "__main__":
    with job(snakemake):
        sentence = verify_run(snakemake.params.folder, list(snakemake.params.kept), snakemake.threads)
        logger.info("%s", sentence)
        print(sentence)
