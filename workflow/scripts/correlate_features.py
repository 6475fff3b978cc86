"""Add up the sums of all shards of a pair and correlate its features."""

from typing import TYPE_CHECKING

from saelineage.correlations import add_shards, correlate, load_sums, save_correlation
from saelineage.logs import job_log
from saelineage.manifests import record_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def correlate_features(paths_to_sums: list[str], settings: dict, path_to_correlation: str) -> None:
    """Write the correlation of all pairs.

    Args:
        paths_to_sums: one file per shard.
        settings: the config's `correlations` block.
        path_to_correlation: where to.
    """
    save_correlation(correlate(add_shards(map(load_sums, paths_to_sums)), **settings), path_to_correlation)


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        correlate_features(list(snakemake.input.sums), snakemake.params.correlations, snakemake.output.correlation)
        record_job(snakemake)
