"""Cut one split of a corpus into rows of token ids."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.corpora.documents import read_split
from saelineage.jobs.job import job
from saelineage.tokens import write_rows, write_sidecar

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def tokenize_split(
    path_to_documents: str, tokenizer_folder: Path, n_ctx: int, max_tokens: int | None, path_to_rows: str
) -> None:
    """Write the rows and their sidecar."""
    info = write_rows(read_split(path_to_documents), tokenizer_folder, n_ctx, max_tokens, path_to_rows)
    write_sidecar(path_to_rows, info)


if __name__ == "__main__":
    with job(snakemake):
        tokenize_split(
            path_to_documents=snakemake.input.documents,
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            n_ctx=snakemake.params.n_ctx,
            max_tokens=snakemake.params.max_tokens,
            path_to_rows=snakemake.output.rows,
        )
