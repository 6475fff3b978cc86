"""Annotate every token of the probe with its properties."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.corpora.documents import read_split
from saelineage.jobs.job import job
from saelineage.labels.annotations import annotate, save_annotations
from saelineage.tokens import load_tokenizer, read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def annotate_probe(
    paths_to_rows: list[str],
    paths_to_documents: list[str],
    tokenizer_folder: Path,
    syntax: Mapping[str, str],
    path_to_annotations: str,
) -> None:
    """Write the annotations of all corpora, with the digests of their tokens in the header (`ids_sha256`).

    Args:
        paths_to_rows: token rows `tokens/{corpus}/probe.npy`, in the config's order.
        paths_to_documents: the documents they were made from, `corpora/{corpus}/probe.parquet`.
        tokenizer_folder: the run's tokenizer.
        syntax: the grammar of each corpus that has one.
        path_to_annotations: the file to write.
    """
    rows = read_token_rows(paths_to_rows)
    documents = {Path(path).parent.name: read_split(path) for path in paths_to_documents}
    annotations = annotate(documents, rows, load_tokenizer(tokenizer_folder), syntax)
    header = {"ids_sha256": {corpus: of_corpus.digest for corpus, of_corpus in rows.items()}}
    save_annotations(path_to_annotations, annotations, header)


if __name__ == "__main__":
    with job(snakemake):
        annotate_probe(
            paths_to_rows=list(snakemake.input.rows),
            paths_to_documents=list(snakemake.input.documents),
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            syntax=snakemake.params.syntax,
            path_to_annotations=snakemake.output.annotations,
        )
