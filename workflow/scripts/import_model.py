"""Import a language model from the hub or a folder."""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.activations import require_causal
from saelineage.chat import written_by_template
from saelineage.files.atomic import read_json, sha256_file, write_json
from saelineage.files.links import links_followed
from saelineage.foreign.chat_templates import TEMPLATE_KEY, chat_template
from saelineage.foreign.gguf import check_gguf
from saelineage.foreign.models import adapter_notes, check_config
from saelineage.foreign.tokenizers import CONFIG_FILE, REFUSE, read_tokenizer, read_whole_tokenizer, require_readable
from saelineage.jobs.job import job, logger
from saelineage.jobs.manifests import recorded_sha256
from saelineage.models.gguf import load_gguf
from saelineage.models.loading import find_model, load_model
from saelineage.models.same_weights import same_as_other
from saelineage.models.training import save_model
from saelineage.models.vocabularies import n_embedding_rows
from saelineage.tokens import require_same_tokens, tokenizer_of_model

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def import_model(
    settings: dict,
    name: str,
    n_ctx: int,
    tokenizer_folder: Path,
    folder: Path,
    unshared: str = REFUSE,
    has_conversations: bool = False,
) -> dict:
    """Write the model's folder, and return its source for the manifest.

    The folder has the run's tokenizer, or the model's own if that has other tokens. It keeps the model's own chat
    template, if it has one, and its generation config.

    Args:
        settings: the model's block in the config.
        name: the model's name in the config.
        n_ctx: tokens of a row.
        tokenizer_folder: the run's tokenizer.
        folder: the folder to write.
        unshared: `tokens.unshared`, the treatment of tokens that the model does not share with the run's tokenizer.
        has_conversations: True if the tokenizer's chat template writes rows.

    Returns:
        The commit and the digests of a hub repository's files, and `warnings` if there are any.

    Raises:
        InputError: if the model cannot be opened whole (`load_model`), is not causal, has fewer positions than a row
            has tokens, was trained with another tokenizer, or cannot read what the run's makes of conversations.
    """
    readable = partial(
        require_readable,
        run=read_tokenizer(tokenizer_folder) or {},
        template=written_by_template(tokenizer_folder) if has_conversations else None,
        unshared=unshared,
        name=name,
    )
    with links_followed(settings.get("folder", "."), settings.get("follow_links", False)):
        return _take_over(settings, name, n_ctx, tokenizer_folder, folder, readable)


def _take_over(
    settings: dict, name: str, n_ctx: int, tokenizer_folder: Path, folder: Path, readable: Callable[..., list[str]]
) -> dict:
    """Import a model (`import_model`) whose links are those that may be followed."""
    source = find_model(settings, f"models.{name}", n_ctx)
    warnings = require_same_tokens(source.folder, tokenizer_folder, name)
    for warning in warnings:
        logger.warning("%s", warning)
    if "gguf" in settings:
        model = load_gguf(check_gguf(settings, f"models.{name}.path"))
    else:
        warnings += adapter_notes(source.folder)  # logged where the model is opened
        model = load_model(source.folder, dtype="auto")
    check_config(model.config.to_dict(), f"models.{name}", n_ctx)  # with what config.json leaves to its class
    require_causal(model, name)
    lacking = readable(model=read_whole_tokenizer(source.folder), n_rows=n_embedding_rows(model))
    for warning in lacking:
        logger.warning("%s", warning)
    warnings += lacking
    with tokenizer_of_model(source.folder, tokenizer_folder) as own_folder:
        save_model(model, own_folder, folder)
    template = chat_template(source.folder)
    if template is not None:  # the model's own; rows are written with the run's
        write_json(folder / CONFIG_FILE, read_json(folder / CONFIG_FILE) | {TEMPLATE_KEY: template})
    facts: dict[str, object] = {"warnings": warnings} if warnings else {}
    return facts | source.facts()


def warn_of_same_weights(name: str, weights: Path, imported: Iterable[str]) -> None:
    """Warn in the log and on the terminal if a model has the weights of another imported one.

    Most of what is made from such a model is made for nothing, so the page would tell too late. Only models that are
    there already are looked at: of two the one that is written later warns. They are no inputs of the job, because a
    model that is added would make all others stale.

    Args:
        name: the model's name in the config.
        weights: its file of weights, in a folder of its name.
        imported: the names of all imported models.
    """
    paths = {model: weights.parents[1] / model / weights.name for model in imported if model != name}
    digests = {
        model: recorded_sha256(path) or sha256_file(path) for model, path in sorted(paths.items()) if path.exists()
    }
    if digests and (warning := same_as_other(name, sha256_file(weights), digests)):
        logger.warning("%s", warning)
        print(f"warning: {warning}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with job(snakemake) as record:
        weights = Path(snakemake.output.weights)
        record |= import_model(
            settings=snakemake.params.model,
            name=snakemake.wildcards.model,
            n_ctx=snakemake.params.n_ctx,
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            folder=weights.parent,
            unshared=snakemake.params.unshared,
            has_conversations=snakemake.params.has_conversations,
        )
        models = snakemake.config["models"]  # no param, because it changes no result
        warn_of_same_weights(
            snakemake.wildcards.model, weights, [name for name, made in models.items() if {"hub", "path"} & made.keys()]
        )
