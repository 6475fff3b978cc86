"""Merge an adapter from the hub or a folder into another model's weights."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from saelineage.files.atomic import read_json, write_json
from saelineage.foreign.adapters import check_adapter_folder, other_base, read_adapter_config
from saelineage.foreign.chat_templates import TEMPLATE_KEY, chat_template
from saelineage.foreign.tokenizers import CONFIG_FILE, compare_tokenizers, read_tokenizer, require_same_ids
from saelineage.jobs.job import job, logger
from saelineage.models.adapters import find_adapter, merge_adapter
from saelineage.models.loading import load_model, weights_sha256
from saelineage.models.same_weights import unchanged
from saelineage.models.training import save_model
from saelineage.tokens import tokenizer_of_model

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def apply_adapter(settings: dict, name: str, parent_names: list[str], parent_folder: Path, folder: Path) -> dict:
    """Write the merged model's folder, with the parent's tokenizer, or the adapter's own if that has more tokens.

    Args:
        settings: the model's block in the config.
        name: the model's name in the config.
        parent_names: what the parent is called (`Graph.known_as`).
        parent_folder: its folder in the run.
        folder: the folder to write.

    Returns:
        Facts for the manifest: the commit and the digests of a hub repository's files; `adapted`, the number of
        modules; `warnings` and `same_weights_as` if there are any.

    Raises:
        InputError: if the adapter cannot be used, or does not fit the parent.
    """
    source = find_adapter(settings, f"models.{name}")
    adapter = check_adapter_folder(source.folder)
    model = load_model(parent_folder)
    weights_before = weights_sha256(model)
    merged = merge_adapter(model, adapter, source.folder)
    merged.model.to(getattr(torch, settings["dtype"]))
    warnings = other_base(read_adapter_config(source.folder), parent_names, settings["parent"]) + merged.warnings
    for warning in warnings:
        logger.warning("%s", warning)
    facts: dict[str, object] = {"adapted": len(adapter.modules)} | ({"warnings": warnings} if warnings else {})
    facts |= unchanged(weights_before, weights_sha256(merged.model), settings["parent"], "the adapter changes nothing")
    if has_own_tokens(source.folder, parent_folder, name):
        save_with_own_tokenizer(merged.model, source.folder, parent_folder, folder)
    else:
        save_model(merged.model, parent_folder, folder)
    return facts | source.facts()


def has_own_tokens(source: Path, parent_folder: Path, name: str) -> bool:
    """True if an adapter comes with a tokenizer that has other added tokens than its parent's.

    Raises:
        InputError: if the two differ in other ids.
    """
    own, of_parent = read_tokenizer(source), read_tokenizer(parent_folder)
    if own is None or of_parent is None:
        return False
    comparison = compare_tokenizers(own, of_parent)
    require_same_ids(comparison, name)
    return bool(comparison.only_model or comparison.renamed)


def save_with_own_tokenizer(model: PreTrainedModel, source: Path, parent_folder: Path, folder: Path) -> None:
    """Save a model with an adapter's tokenizer, and the chat template of the adapter, or else of its parent."""
    with tokenizer_of_model(source, parent_folder) as own_folder:
        save_model(model, own_folder, folder)
    template = chat_template(source) or chat_template(parent_folder)
    if template is not None:
        write_json(folder / CONFIG_FILE, read_json(folder / CONFIG_FILE) | {TEMPLATE_KEY: template})


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= apply_adapter(
            settings=snakemake.params.model,
            name=snakemake.wildcards.model,
            parent_names=snakemake.params.parent_names,
            parent_folder=Path(snakemake.input.parent[0]).parent,
            folder=Path(snakemake.output.weights).parent,
        )
