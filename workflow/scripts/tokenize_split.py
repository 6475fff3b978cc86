"""Cut one split of a corpus into rows of token ids."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.chat import write_conversations
from saelineage.corpora.documents import holds_conversations, read_split
from saelineage.jobs.job import job, logger
from saelineage.tokens import TEXT, write_rows, write_sidecar

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def tokenize_split(
    path_to_documents: str,
    tokenizer_folder: Path,
    n_ctx: int,
    max_tokens: int | None,
    path_to_rows: str,
    special: str = TEXT,
) -> None:
    """Write the rows and their sidecar, and the classes of the tokens of conversations."""
    documents = read_split(path_to_documents)
    if holds_conversations(path_to_documents):
        info = write_conversations(documents, tokenizer_folder, n_ctx, max_tokens, path_to_rows)
    else:
        info = write_rows(documents, tokenizer_folder, n_ctx, max_tokens, path_to_rows, special)
    for note in notes_on(info, path_to_rows):
        logger.warning("%s", note)
    write_sidecar(path_to_rows, info)


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


if __name__ == "__main__":
    with job(snakemake):
        tokenize_split(
            path_to_documents=snakemake.input.documents,
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            n_ctx=snakemake.params.n_ctx,
            max_tokens=snakemake.params.max_tokens,
            path_to_rows=snakemake.output.rows,
            special=snakemake.params.special,
        )
