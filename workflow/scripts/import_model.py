"""Import a language model from the hub or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.activations import require_causal
from saelineage.files.atomic import read_json, write_json
from saelineage.files.links import links_followed
from saelineage.foreign.chat_templates import TEMPLATE_KEY, chat_template
from saelineage.foreign.gguf import check_gguf
from saelineage.foreign.models import adapter_notes, check_config
from saelineage.foreign.tokenizers import CONFIG_FILE
from saelineage.jobs.job import job, logger
from saelineage.models.gguf import load_gguf
from saelineage.models.loading import find_model, load_model
from saelineage.models.training import save_model
from saelineage.tokens import require_same_tokens

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def import_model(settings: dict, name: str, n_ctx: int, tokenizer_folder: Path, folder: Path) -> dict:
    """Write the model's folder with the run's tokenizer, and return its source for the manifest.

    The folder keeps the model's own chat template, if it has one, and its generation config.

    Args:
        settings: the model's block in the config.
        name: the model's name in the config.
        n_ctx: tokens of a row.
        tokenizer_folder: the run's tokenizer.
        folder: the folder to write.

    Returns:
        The commit and the digests of a hub repository's files, and `warnings` if there are any.

    Raises:
        InputError: if the model cannot be opened whole (`load_model`), is not causal, has fewer positions than a row
            has tokens, or was trained with another tokenizer.
    """
    with links_followed(settings.get("folder", "."), settings.get("follow_links", False)):
        return _take_over(settings, name, n_ctx, tokenizer_folder, folder)


def _take_over(settings: dict, name: str, n_ctx: int, tokenizer_folder: Path, folder: Path) -> dict:
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
    save_model(model, tokenizer_folder, folder)
    template = chat_template(source.folder)
    if template is not None:  # the model's own; rows are written with the run's
        write_json(folder / CONFIG_FILE, read_json(folder / CONFIG_FILE) | {TEMPLATE_KEY: template})
    facts: dict[str, object] = {"warnings": warnings} if warnings else {}
    return facts | source.facts()


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= import_model(
            settings=snakemake.params.model,
            name=snakemake.wildcards.model,
            n_ctx=snakemake.params.n_ctx,
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            folder=Path(snakemake.output.weights).parent,
        )
