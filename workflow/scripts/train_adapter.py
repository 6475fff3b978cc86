"""Train a LoRA adapter on another model, and merge it into that model's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.foreign.adapters import check_adapter_folder
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.models.adapters import merge_adapter
from saelineage.models.loading import load_model, n_parameters, require_vocabulary, weights_sha256
from saelineage.models.lora import add_adapter, idle_layers, load_frozen, save_adapter
from saelineage.models.same_weights import unchanged
from saelineage.models.training import ROUNDED, save_model, train_on
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def train_adapter(
    settings: dict,
    name: str,
    base: Mapping,
    paths_to_tokens: Mapping[str, str],
    parent_folder: Path,
    folder: Path,
    adapter_folder: Path,
    checkpoints: Path,
    gpus: int,
) -> dict:
    """Train an adapter, write its folder, and write the merged model's folder, with the parent's tokenizer.

    Args:
        settings: the model's block in the config, with `lora`.
        name: the model's name in the config.
        base: what the adapter's config says of the parent (`Params.adapter_base`).
        paths_to_tokens: token rows by corpus.
        parent_folder: the parent's folder in the run.
        folder: of the merged model.
        adapter_folder: of the adapter.
        checkpoints: folder for checkpoints, which hold the adapter and the optimizer's state.
        gpus: GPUs of the job.

    Returns:
        Facts for the manifest: `adapted`, the number of layers; `trained`, the number of weights that were trained;
        `warnings` and `same_weights_as` if there are any.

    Raises:
        InputError: if the adapter's settings do not fit the parent.
    """
    facts = _train(settings, name, base, paths_to_tokens, parent_folder, adapter_folder, checkpoints, gpus)
    model = load_model(parent_folder)
    weights_before = weights_sha256(model)
    merged = merge_adapter(model, check_adapter_folder(adapter_folder), adapter_folder)
    save_model(merged.model, parent_folder, folder)
    weights_after = weights_sha256(merged.model)
    return facts | unchanged(weights_before, weights_after, settings["parent"], "training has changed nothing")


def _train(
    settings: dict,
    name: str,
    base: Mapping,
    paths_to_tokens: Mapping[str, str],
    parent_folder: Path,
    adapter_folder: Path,
    checkpoints: Path,
    gpus: int,
) -> dict:
    """Train an adapter and write its folder; the frozen model is freed at the end."""
    rows = read_token_rows(paths_to_tokens)
    model = load_frozen(parent_folder, settings["precision"] == ROUNDED)
    require_vocabulary(model, rows, settings["parent"])
    n_frozen = n_parameters(model)
    adapted = add_adapter(model, settings["lora"], settings["seed"], f"models.{name}.finetune.lora")
    n_trained = n_parameters(model) - n_frozen
    logger.info("training %d weights of %d layers beside %d frozen ones", n_trained, len(adapted.modules), n_frozen)
    train_on(adapted.model, rows, settings, checkpoints, pick_device(gpus, may_round=True))
    save_adapter(adapted, base, adapter_folder)
    warnings = adapted.warnings + idle_layers(adapted)
    for warning in warnings:
        logger.warning("%s", warning)
    return {"adapted": len(adapted.modules), "trained": n_trained} | ({"warnings": warnings} if warnings else {})


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        with checkpoint_folder(snakemake) as checkpoints:
            record |= train_adapter(
                settings=snakemake.params.model,
                name=snakemake.wildcards.model,
                base=snakemake.params.base,
                paths_to_tokens=dict(zip(snakemake.params.model["corpora"], snakemake.input.tokens, strict=True)),
                parent_folder=Path(snakemake.input.parent[0]).parent,
                folder=Path(snakemake.output.weights).parent,
                adapter_folder=Path(snakemake.output.adapter_weights).parent,
                checkpoints=checkpoints,
                gpus=snakemake.resources.get("gpu", 0),
            )
