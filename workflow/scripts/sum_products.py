"""Sum activations, squares and products of one SAE's features with those of all partners over a probe shard."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from saelineage.correlations.pair_sums import ShardSums, save_sums
from saelineage.correlations.partners import Partner, partners_of
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def sum_products(partners: Sequence[Partner], block_features: int, threads: int, path_to_sums: str) -> None:
    """Write the raw sums with every partner, per corpus.

    Args:
        partners: the SAEs on side b, with one shard of each corpus.
        block_features: features of side a whose products are held at once.
        threads: the number of threads.
        path_to_sums: the file to write.
    """
    first = next(partners[0].shards())[0]
    n_sums, n_blocks = sum(len(partner.paths) for partner in partners), -(-first.d_sae // block_features)
    save_sums(all_sums(partners, block_features), path_to_sums, n_sums, n_blocks, threads)


def all_sums(partners: Sequence[Partner], block_features: int) -> Iterator[ShardSums]:
    """The sums with every partner on every corpus, one in memory at a time."""
    for partner in partners:
        for a, b in partner.shards():
            yield ShardSums(a, b, block_features)


if __name__ == "__main__":
    with job(snakemake):
        sum_products(
            partners_of(snakemake.input.a, snakemake.input.b, snakemake.params.partners),
            snakemake.params.block_features,
            snakemake.threads,
            snakemake.output.sums,
        )
