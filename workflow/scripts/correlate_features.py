"""Add up the sums of all shards of a pair and correlate its features."""

from typing import TYPE_CHECKING

from saelineage.correlations import correlate_sums
from saelineage.logs import job_log
from saelineage.manifests import record_job
from saelineage.matches import save_correlation
from saelineage.pair_sums import load_sums

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def correlate_features(paths_to_sums: list[str], settings: dict, threads: int, path_to_correlation: str) -> None:
    """Write the correlation of all pairs.

    Args:
        paths_to_sums: one file per shard.
        settings: `min_firings`, `top_matches`, `keep_above` and `n_bins` of the config's `correlations` block.
        threads: how many work at once.
        path_to_correlation: where to.
    """
    sums = [one for path in paths_to_sums for one in load_sums(path).values()]
    save_correlation(correlate_sums(sums, **settings, threads=threads), path_to_correlation)


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        correlate_features(
            list(snakemake.input.sums), snakemake.params.settings, snakemake.threads, snakemake.output.correlation
        )
        record_job(snakemake)
