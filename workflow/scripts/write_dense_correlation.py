"""Write Pearson r of every pair of features of two SAEs as one dense array."""

from typing import TYPE_CHECKING

from saelineage.correlations.pair_sums import all_sums
from saelineage.correlations.partners import Partner, partners_of
from saelineage.correlations.pearson import dense_pearson
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def write_dense_correlation(
    partner: Partner, block_features: int, min_firings: int, threads: int, path_to_r: str
) -> None:
    """Write r over all corpora; NaN where a feature is untestable.

    Args:
        partner: the SAE on side b.
        block_features: rows of the array computed at once.
        min_firings: features firing on fewer tokens are untestable.
        threads: the number of threads.
        path_to_r: the file to write.
    """
    dense_pearson(all_sums(partner.shards()), path_to_r, block_features, min_firings, threads)


if __name__ == "__main__":
    with job(snakemake):
        shifts = {snakemake.wildcards.b: snakemake.params.shift}
        write_dense_correlation(
            partner=partners_of(snakemake.input.a, snakemake.input.b, shifts)[0],
            block_features=snakemake.params.block_features,
            min_firings=snakemake.params.min_firings,
            threads=snakemake.threads,
            path_to_r=snakemake.output.r,
        )
