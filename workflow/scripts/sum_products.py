"""Sum activations, squares and products of two SAEs' features over one shard of the probe."""

from typing import TYPE_CHECKING

from saelineage.correlations import PairSums, save_sums
from saelineage.features import FeatureShard
from saelineage.logs import job_log
from saelineage.manifests import record_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def sum_products(paths_to_a: list[str], paths_to_b: list[str], path_to_sums: str) -> None:
    """Write the raw sums, per corpus."""
    pairs = ((FeatureShard(a), FeatureShard(b)) for a, b in zip(paths_to_a, paths_to_b, strict=True))
    save_sums({a.corpus: PairSums.of_shard(a, b) for a, b in pairs}, path_to_sums)


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        sum_products(list(snakemake.input.a), list(snakemake.input.b), snakemake.output.sums)
        record_job(snakemake)
