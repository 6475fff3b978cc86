"""Write Pearson r of every pair of features as one dense array."""

from typing import TYPE_CHECKING

from saelineage.correlations.pair_sums import load_sums
from saelineage.correlations.pearson import dense_pearson
from saelineage.jobs.job import job_log
from saelineage.jobs.manifests import record_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def write_dense_correlation(paths_to_sums: list[str], min_firings: int, threads: int, path_to_r: str) -> None:
    """Write r over all corpora; NaN where a feature is untestable."""
    sums = [one for path in paths_to_sums for one in load_sums(path).values()]
    dense_pearson(sums, path_to_r, min_firings, threads)


if __name__ == "__main__":
    with job_log(snakemake.log[0], snakemake.input):
        write_dense_correlation(
            list(snakemake.input.sums), snakemake.params.min_firings, snakemake.threads, snakemake.output.r
        )
        record_job(snakemake)
