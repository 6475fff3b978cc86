"""Train the run's tokenizer, or import one from the hub or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.corpora.documents import read_split, up_to_bytes
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_files, sha256_file
from saelineage.files.hub import hub_download, hub_repo
from saelineage.foreign.chat_templates import DEFAULT, chat_template
from saelineage.jobs.job import job, logger
from saelineage.tokens import (
    TOKENIZER_FILES,
    check_tokenizer,
    check_tokenizer_folder,
    copy_tokenizer,
    save_tokenizer,
    tokenizer_errors,
    train_tokenizer,
)

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def make_tokenizer(settings: dict, n_ctx: int, paths_to_corpora: list[str], folder: Path) -> dict:
    """Write a tokenizer folder, and return its source on the hub for the manifest."""
    record: dict = {}
    if settings["source"] == "train":
        texts = (
            text
            for path in paths_to_corpora
            for text in up_to_bytes(read_split(path), settings["max_bytes_per_corpus"])
        )
        save_tokenizer(train_tokenizer(texts, settings["vocab_size"]), folder, n_ctx)
    else:
        record = take_tokenizer(settings, folder)
    check_tokenizer(folder)
    return record


def take_tokenizer(settings: dict, folder: Path) -> dict:
    """Save a tokenizer from the hub or a folder, and return the hub's commit and the digests of its files.

    Its chat template is kept in tokenizer_config.json, so that it goes with the tokenizer into every model's folder.
    """
    record: dict = {}
    source = settings.get("path") or settings["repo"]
    folder_read = Path(source)
    if settings["source"] == "hub":
        folder_read, record = fetch_tokenizer(settings)
    check_tokenizer_folder(folder_read)
    template = chat_template(folder_read)
    with atomic_files(folder) as temporary, tokenizer_errors(source):
        copied = copy_tokenizer(folder_read, temporary, template)
    if copied.templates:
        logger.warning(
            "tokenizer: '%s' has the chat templates %s, of which %s is used",
            source,
            ", ".join(sorted({*copied.templates, *([DEFAULT] if template else [])})),
            DEFAULT if template else "none, because none is called 'default',",
        )
    if copied.replaced:
        logger.warning(
            "tokenizer: transformers makes '%s' anew as a %s with another %s; the run uses those of its tokenizer.json",
            source,
            copied.kind,
            ", ".join(copied.replaced),
        )
    return record


def fetch_tokenizer(settings: dict) -> tuple[Path, dict]:
    """Download only the tokenizer's files from the hub, and return their folder, commit and digests."""
    repo = hub_repo(settings["repo"], settings["revision"], "model", "tokenizer")
    names = [name for name in TOKENIZER_FILES if name in repo.files]
    if not names:
        raise InputError(
            f"tokenizer: '{settings['repo']}' cannot be opened as a tokenizer: it holds none of "
            f"{', '.join(TOKENIZER_FILES)}; correct tokenizer.repo"
        )
    files = [hub_download(settings["repo"], repo.commit, name, "tokenizer") for name in names]
    return files[0].parent, {"commit": repo.commit, "files": {path.name: sha256_file(path) for path in files}}


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= make_tokenizer(
            settings=snakemake.params.tokenizer,
            n_ctx=snakemake.params.n_ctx,
            paths_to_corpora=list(snakemake.input.corpora),
            folder=Path(snakemake.output.tokenizer).parent,
        )
