"""Sum activations, squares and products of two SAEs' features over one shard of the probe."""

from typing import TYPE_CHECKING

from saelineage.correlations.pair_sums import ShardSums, save_sums
from saelineage.features.shards import FeatureShard, shifted
from saelineage.jobs.job import job_log
from saelineage.jobs.manifests import record_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def sum_products(
    paths_to_a: list[str], paths_to_b: list[str], shift: bool, block_features: int, threads: int, path_to_sums: str
) -> None:
    """Write the raw sums, per corpus.

    Args:
        paths_to_a, paths_to_b: a feature shard per corpus.
        shift: whether side b's documents are shifted against side a's, for a null.
        block_features: features of side a whose products are held at once.
        threads: how many work at once.
        path_to_sums: where to.
    """
    shards = [(FeatureShard(a), FeatureShard(b)) for a, b in zip(paths_to_a, paths_to_b, strict=True)]
    sums = [ShardSums(a, shifted(b) if shift else b, block_features) for a, b in shards]
    save_sums(sums, path_to_sums, threads)


if __name__ == "__main__":
    with job_log(snakemake.log[0], snakemake.input):
        sum_products(
            list(snakemake.input.a),
            list(snakemake.input.b),
            snakemake.params.shift,
            snakemake.params.block_features,
            snakemake.threads,
            snakemake.output.sums,
        )
        record_job(snakemake)
