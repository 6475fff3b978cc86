"""Train a language model from another one's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.archives import write_archive
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.freezing import freeze_weights, state_as_filed
from saelineage.models.kept_steps import KeepSteps
from saelineage.models.loading import load_model, require_vocabulary, weights_sha256
from saelineage.models.same_weights import unchanged
from saelineage.models.training import save_model, train_on, weights_dtype
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def finetune_model(
    settings: dict,
    paths_to_tokens: Mapping[str, str],
    parent_folder: Path,
    folder: Path,
    checkpoints: Path,
    gpus: int,
    name: str = "",
    path_to_steps: str | None = None,
) -> dict:
    """Train and write a model folder, and an archive of the models at `keep_steps`, if there are any.

    Args:
        settings: the model's block in the config; with `keep_steps`, the steps in order.
        paths_to_tokens: token rows by corpus.
        parent_folder: of the model that the training starts from.
        folder: the folder to write.
        checkpoints: folder for checkpoints.
        gpus: GPUs of the job.
        name: the model's name in the config, for messages.
        path_to_steps: the archive to write; each model's files are in a folder with the step as its name.

    Returns:
        Facts for the manifest: with `freeze` the names of the `frozen` tensors, and `trained`, the number of the
        other weights; `same_weights_as`, if training has changed nothing.

    Raises:
        InputError: if `freeze` or `keep_steps` do not fit the parent or the training.
    """
    rows = read_token_rows(paths_to_tokens)
    model = load_model(parent_folder, weights_dtype(settings))
    require_vocabulary(model, rows, settings["parent"])
    weights_before = weights_sha256(model)
    frozen = freeze_weights(model, settings.get("freeze"), f"models.{name}.finetune.freeze")
    n_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    def save(into: Path) -> None:
        save_model(model, parent_folder, into, state_as_filed(model, frozen, parent_folder))

    kept = KeepSteps(settings.get("keep_steps", []), name, checkpoints, save)
    train_on(model, rows, settings, checkpoints, pick_device(gpus, may_round=True), [kept])
    save(folder)
    if path_to_steps:
        write_archive(kept.folders(), path_to_steps)
    facts: dict[str, object] = {"frozen": frozen, "trained": n_trained} if frozen else {}
    weights_after = weights_sha256(model)
    return facts | unchanged(weights_before, weights_after, settings["parent"], "training has changed nothing")


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        with checkpoint_folder(snakemake) as checkpoints:
            record |= finetune_model(
                settings=snakemake.params.model,
                paths_to_tokens=dict(zip(snakemake.params.model["corpora"], snakemake.input.tokens, strict=True)),
                parent_folder=Path(snakemake.input.parent[0]).parent,
                folder=Path(snakemake.output.weights).parent,
                checkpoints=checkpoints,
                gpus=snakemake.resources.get("gpu", 0),
                name=snakemake.wildcards.model,
                path_to_steps=snakemake.output.get("steps"),
            )
