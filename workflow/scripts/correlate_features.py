"""Correlate the features of one SAE with those of all its partners, and bootstrap the documents for intervals."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.correlations.bootstrap import (
    ARRAYS,
    N_CANDIDATES,
    bootstrap,
    document_sums,
    documents_of,
    fires_in_enough,
    leading_candidates,
    replicates_group,
)
from saelineage.correlations.few_documents import RESTS_ON_ARRAYS, rests_on_tensors
from saelineage.correlations.matches import correlation_group, most_arrays
from saelineage.correlations.pair_sums import all_sums
from saelineage.correlations.partners import Partner, partners_of
from saelineage.correlations.parts import combined_r
from saelineage.correlations.pearson import correlate_sums
from saelineage.files.tensors import writing_groups
from saelineage.jobs.job import job
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def correlate_features(
    partners: Sequence[Partner],
    paths_to_probe: Mapping[str, str],
    settings: Mapping,
    resampled: Collection[str],
    draws: Mapping,
    threads: int,
    path_to_correlations: Path | str,
    path_to_replicates: Path | str,
) -> None:
    """Write the correlations with all partners, and each feature's best r in every replicate of the documents.

    Args:
        partners: the SAEs on side b.
        paths_to_probe: the probe's token rows.
        settings: `correlate_sums`'s keywords.
        resampled: the partners with which there are replicates; the others have none of theirs.
        draws: `n_replicates` and `seed` of the replicates.
        threads: the number of threads.
        path_to_correlations, path_to_replicates: the files to write, a group for each partner.
    """
    rows = read_token_rows(paths_to_probe)
    documents = {corpus: documents_of(of_corpus) for corpus, of_corpus in rows.items()}
    with (
        writing_groups(path_to_correlations, len(partners), most_arrays(len(rows))) as correlations,
        writing_groups(path_to_replicates, len(partners), ARRAYS + RESTS_ON_ARRAYS) as replicates,
    ):
        for partner in partners:
            correlation = correlate_sums(all_sums(partner.shards()), **settings, threads=threads)
            correlation = correlation._replace(combined=combined_r(correlation, partner.shards()))
            is_drawn = partner.name in resampled
            candidates = leading_candidates(correlation, N_CANDIDATES if is_drawn else 0)
            by_document = document_sums(partner.shards(), candidates, documents)
            enough = zip(correlation.testable, fires_in_enough(by_document), strict=True)
            a, b = (testable & in_documents for testable, in_documents in enough)
            correlations.add(partner.name, *correlation_group(correlation._replace(testable=(a, b))))
            n_replicates = draws["n_replicates"] if is_drawn else 0
            header, tensors = replicates_group(bootstrap(by_document, n_replicates, draws["seed"]))
            replicates.add(partner.name, header, tensors | rests_on_tensors(by_document))


if __name__ == "__main__":
    with job(snakemake):
        correlate_features(
            partners=partners_of(snakemake.input.a, snakemake.input.b, snakemake.params.partners),
            paths_to_probe=dict(zip(snakemake.params.corpora, snakemake.input.probe, strict=True)),
            settings=snakemake.params.settings,
            resampled=snakemake.params.resampled,
            draws=snakemake.params.draws,
            threads=snakemake.threads,
            path_to_correlations=snakemake.output.correlations,
            path_to_replicates=snakemake.output.replicates,
        )
