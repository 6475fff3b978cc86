"""Cut one split of a corpus into rows of token ids."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.chat import write_conversations
from saelineage.corpora.counts import few_documents
from saelineage.corpora.documents import count_documents, holds_conversations, read_split
from saelineage.jobs.job import job, logger
from saelineage.tokens import TEXT, limit_of_document, write_rows, write_sidecar

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

PROBE = "probe"


def tokenize_split(
    path_to_documents: str,
    tokenizer_folder: Path,
    n_ctx: int,
    max_tokens: int | None,
    path_to_rows: str,
    special: str = TEXT,
    max_document_share: float | None = None,
) -> dict:
    """Write the rows and their sidecar, and the classes of the tokens of conversations.

    Returns:
        The counts of documents, for the manifest.
    """
    documents = read_split(path_to_documents)
    if holds_conversations(path_to_documents):
        info = write_conversations(documents, tokenizer_folder, n_ctx, max_tokens, path_to_rows)
    else:
        most = None
        if max_document_share is not None:
            read, n_documents = read_split(path_to_documents), count_documents(path_to_documents)
            most = limit_of_document(read, n_documents, max_document_share, tokenizer_folder, max_tokens, special)
        info = write_rows(documents, tokenizer_folder, n_ctx, max_tokens, path_to_rows, special, most)
    counts = {key: info[key] for key in ("n_documents", "largest_document_share")}
    logger.info("%s: %d tokens of %d documents, the largest %.1f %% of them", *described(path_to_rows, info))
    for note in notes_on(info, path_to_rows) + notes_on_documents(counts, path_to_rows):
        logger.warning("%s", note)
    write_sidecar(path_to_rows, info)
    return counts


def described(path: str, info: dict) -> tuple[str, int, int, float]:
    """The rows, their tokens and documents, and the share of the largest document in percent."""
    return path, info["n_tokens"], info["n_documents"], 100 * info["largest_document_share"]


def notes_on(info: dict, path_to_rows: str) -> list[str]:
    """Sentences about what is unusual about some rows."""
    notes = []
    if info["n_control_strings"]:
        in_messages = "become the ids of these tokens, as the chat template's own do, because they are in messages"
        became = {"text": "are spelled out (tokens.special: text)", "ids": "become their ids (tokens.special: ids)"}
        notes.append(
            f"'{path_to_rows}': the text holds {info['n_control_strings']} strings of control tokens, which "
            f"{became.get(info.get('special', ''), in_messages)}"
        )
    if info.get("n_cut"):
        notes.append(
            f"'{path_to_rows}': {info['n_cut']} of {info['n_rows']} conversations have more than {info['n_ctx']} "
            "tokens and are cut there; raise tokens.n_ctx to keep them whole"
        )
    return notes


def notes_on_documents(counts: dict, path_to_rows: str) -> list[str]:
    """A sentence where the probe has few documents."""
    path = Path(path_to_rows)
    note = few_documents(path.parent.name, counts) if path.stem == PROBE else None
    return [note] if note else []


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= tokenize_split(
            path_to_documents=snakemake.input.documents,
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            n_ctx=snakemake.params.n_ctx,
            max_tokens=snakemake.params.max_tokens,
            path_to_rows=snakemake.output.rows,
            special=snakemake.params.special,
            max_document_share=snakemake.params.max_document_share,
        )
