"""Train the run's tokenizer, or take one from the hub or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.corpora import read_split, up_to_bytes
from saelineage.errors import InputError
from saelineage.hub import hub_commit
from saelineage.logs import job_log
from saelineage.manifests import record_job
from saelineage.tokens import load_tokenizer, save_tokenizer, special_ids, train_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def make_tokenizer(settings: dict, n_ctx: int, paths_to_corpora: list[str], folder: Path) -> dict:
    """Write a tokenizer folder; returns what was found out on the way."""
    found = {}
    if settings["source"] == "train":
        texts = (
            text
            for path in paths_to_corpora
            for text in up_to_bytes(read_split(path), settings["max_bytes_per_corpus"])
        )
        save_tokenizer(train_tokenizer(texts, settings["vocab_size"]), folder, n_ctx)
    else:
        found = take_tokenizer(settings, folder)
    special_ids(folder)
    load_tokenizer(folder)
    return found


def take_tokenizer(settings: dict, folder: Path) -> dict:
    """Save a tokenizer from the hub or a folder; returns the hub's commit."""
    from transformers import AutoTokenizer

    source, revision, found = settings.get("path") or settings["repo"], None, {}
    if settings["source"] == "hub":
        revision = hub_commit(source, settings["revision"], "model", "tokenizer")
        found["commit"] = revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer: '{source}' cannot be opened as a tokenizer: {' '.join(str(error).split())[:300]}"
        ) from error
    tokenizer.save_pretrained(folder)
    return found


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        found = make_tokenizer(
            settings=snakemake.params.tokenizer,
            n_ctx=snakemake.params.n_ctx,
            paths_to_corpora=list(snakemake.input.corpora),
            folder=Path(snakemake.output.tokenizer).parent,
        )
        record_job(snakemake, **found)
