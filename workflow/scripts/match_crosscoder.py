"""Find the latent of a crosscoder that each feature of the leading SAEs, or latent of the first seed, fires with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from saelineage.correlations.pair_sums import all_sums
from saelineage.correlations.partners import Partner, partners_of
from saelineage.correlations.pearson import correlate_sums
from saelineage.files.tables import write_parquet
from saelineage.jobs.job import job
from saelineage.lineage.crosstable import matches_of_features

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def match_crosscoder(partners: Sequence[Partner], settings: Mapping, threads: int, path_to_matches: str) -> None:
    """Write each feature's best match among a crosscoder's latents.

    Args:
        partners: the SAEs, and the first seed's crosscoder; side a is the crosscoder.
        settings: `correlate_sums`'s keywords.
        threads: the number of threads.
        path_to_matches: columns as in `crosstable.matches_of_features`.
    """
    correlations = (correlate_sums(all_sums(partner.shards()), **settings, threads=threads) for partner in partners)
    write_parquet(matches_of_features(correlations), path_to_matches)


if __name__ == "__main__":
    with job(snakemake):
        match_crosscoder(
            partners=partners_of(snakemake.input.a, snakemake.input.b, dict.fromkeys(snakemake.params.partners, False)),
            settings=snakemake.params.settings,
            threads=snakemake.threads,
            path_to_matches=snakemake.output.matches,
        )
