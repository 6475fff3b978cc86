"""Annotate every token of the probe with its properties."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.chat import Conversation, encode_conversations
from saelineage.corpora.documents import read_split
from saelineage.jobs.job import job
from saelineage.labels.annotations import annotate, save_annotations
from saelineage.tokens import TokenRows, load_tokenizer, read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def annotate_probe(
    paths_to_rows: Mapping[str, str],
    paths_to_documents: Mapping[str, str],
    tokenizer_folder: Path,
    syntax: Mapping[str, str],
    path_to_annotations: str,
) -> None:
    """Write the annotations of all corpora, with the digests of their tokens in the header (`ids_sha256`).

    Args:
        paths_to_rows: token rows by corpus, in the config's order.
        paths_to_documents: the documents they were made from, by corpus.
        tokenizer_folder: the run's tokenizer.
        syntax: the grammar of each corpus that has one.
        path_to_annotations: the file to write.
    """
    rows = read_token_rows(paths_to_rows)
    documents = {
        corpus: documents_of(path, rows[corpus], tokenizer_folder) for corpus, path in paths_to_documents.items()
    }
    annotations = annotate(documents, rows, load_tokenizer(tokenizer_folder), syntax)
    header = {"ids_sha256": {corpus: of_corpus.digest for corpus, of_corpus in rows.items()}}
    save_annotations(path_to_annotations, annotations, header)


def documents_of(path: str, rows: TokenRows, folder: Path) -> Iterator[str] | Iterator[Conversation]:
    """The documents of a corpus, conversations as the tokenizer's chat template writes them."""
    return read_split(path) if rows.classes is None else encode_conversations(read_split(path), folder)


if __name__ == "__main__":
    with job(snakemake):
        annotate_probe(
            paths_to_rows=dict(zip(snakemake.params.corpora, snakemake.input.rows, strict=True)),
            paths_to_documents=dict(zip(snakemake.params.corpora, snakemake.input.documents, strict=True)),
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            syntax=snakemake.params.syntax,
            path_to_annotations=snakemake.output.annotations,
        )
