"""Add up the sums of all shards of a pair, correlate its features, and draw the documents again for intervals."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from saelineage.correlations.bootstrap import (
    bootstrap,
    document_numbers,
    document_sums,
    leading_candidates,
    save_replicates,
)
from saelineage.correlations.matches import Correlation, save_correlation
from saelineage.correlations.pair_sums import load_sums
from saelineage.correlations.parts import combined_r
from saelineage.correlations.pearson import correlate_sums
from saelineage.features.shards import FeatureShard, shifted
from saelineage.jobs.job import job_log
from saelineage.jobs.manifests import record_job
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def correlate_features(
    paths_to_sums: Sequence[str],
    paths_to_shards: tuple[Sequence[str], Sequence[str]],
    shift: bool,
    settings: dict,
    threads: int,
    path_to_correlation: str,
) -> Correlation:
    """Write the correlation of all pairs, with what is split and merged, and give it.

    Args:
        paths_to_sums: one file per shard.
        paths_to_shards: feature shards of both sides, in one order.
        shift: whether side b's documents are shifted against side a's, for a null.
        settings: `min_firings`, `top_matches`, `keep_above` and `n_bins` of the config's `correlations` block.
        threads: how many work at once.
        path_to_correlation: where to.
    """
    sums = [one for path in paths_to_sums for one in load_sums(path).values()]
    found = correlate_sums(sums, **settings, threads=threads)
    found = found._replace(combined=combined_r(found, read_shards(paths_to_shards, shift)))
    save_correlation(found, path_to_correlation)
    return found


def resample_documents(
    found: Correlation,
    paths_to_shards: tuple[Sequence[str], Sequence[str]],
    shift: bool,
    paths_to_probe: Sequence[str],
    draws: dict,
    path_to_replicates: str,
) -> None:
    """Write each feature's best r in every replicate of the documents.

    Args:
        found: the correlation of the pair.
        paths_to_shards: feature shards of both sides, in one order.
        shift: whether side b's documents are shifted against side a's, for a null.
        paths_to_probe: the probe's token rows.
        draws: `n_replicates` and `seed`.
        path_to_replicates: where to.
    """
    rows = read_token_rows(paths_to_probe)
    documents = {corpus: document_numbers(one.ids, one.info["eos_id"]) for corpus, one in rows.items()}
    sums = document_sums(read_shards(paths_to_shards, shift), leading_candidates(found), documents)
    save_replicates(bootstrap(sums, **draws), path_to_replicates)


def read_shards(paths: tuple[Sequence[str], Sequence[str]], shift: bool) -> Iterator[tuple[FeatureShard, FeatureShard]]:
    """Read the shards of both sides, one of each at a time."""
    for a, b in zip(*paths, strict=True):
        yield FeatureShard(a), shifted(FeatureShard(b)) if shift else FeatureShard(b)


if __name__ == "__main__":
    with job_log(snakemake.log[0], snakemake.input):
        paths_to_shards = (list(snakemake.input.a), list(snakemake.input.b))
        correlation = correlate_features(
            list(snakemake.input.sums),
            paths_to_shards,
            shift=snakemake.params.shift,
            settings=snakemake.params.settings,
            threads=snakemake.threads,
            path_to_correlation=snakemake.output.correlation,
        )
        resample_documents(
            correlation,
            paths_to_shards,
            shift=snakemake.params.shift,
            paths_to_probe=list(snakemake.input.probe),
            draws=snakemake.params.draws,
            path_to_replicates=snakemake.output.replicates,
        )
        record_job(snakemake)
