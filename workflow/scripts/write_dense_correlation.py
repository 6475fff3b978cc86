"""Write Pearson r of every pair of features of two SAEs as one dense array."""

from typing import TYPE_CHECKING

from saelineage.correlations.pair_sums import PairSums, ShardSums, load_sums
from saelineage.correlations.partners import Partner, partners_of
from saelineage.correlations.pearson import dense_pearson
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def write_dense_correlation(
    partner: Partner, paths_to_sums: list[str], block_features: int, min_firings: int, threads: int, path_to_r: str
) -> None:
    """Write r over all corpora; NaN where a feature is untestable.

    Args:
        partner: the SAE on side b.
        paths_to_sums: raw sums, one file per shard; none where they are computed here.
        block_features: rows of the array computed at once.
        min_firings: features firing on fewer tokens are untestable.
        threads: the number of threads.
        path_to_r: the file to write.
    """
    sums: list[PairSums] = [saved for path in paths_to_sums for saved in load_sums(path, partner.name)]
    if not paths_to_sums:
        sums = [ShardSums(a, b, block_features) for a, b in partner.shards()]
    dense_pearson(sums, path_to_r, min_firings, threads)


if __name__ == "__main__":
    with job(snakemake):
        shifts = {snakemake.wildcards.b: snakemake.params.shift}
        write_dense_correlation(
            partner=partners_of(snakemake.input.a, snakemake.input.b, shifts)[0],
            paths_to_sums=list(snakemake.input.sums),
            block_features=snakemake.params.block_features,
            min_firings=snakemake.params.min_firings,
            threads=snakemake.threads,
            path_to_r=snakemake.output.r,
        )
