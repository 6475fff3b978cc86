"""Train one crosscoder of several models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.crosscoders.crosscoder import save_crosscoder
from saelineage.crosscoders.dumps import JointDump
from saelineage.crosscoders.training import train_crosscoders
from saelineage.files.atomic import write_text
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def train_crosscoder(
    paths_to_shards: Mapping[str, Sequence[str]], settings: Mapping, folder: Path, checkpoint: Path, gpus: int
) -> None:
    """Write a crosscoder's folder and its training curve.

    Args:
        paths_to_shards: activations of each model, in one order.
        settings: the crosscoder's settings (`plan.crosscoders.Crosscoders.settings`).
        folder: the folder to write.
        checkpoint: the file from which an interrupted training resumes.
        gpus: the number of GPUs that the job was given; 0 trains on the CPU.
    """
    dump = JointDump(paths_to_shards, settings["max_norm_ratio"])
    (trained,) = train_crosscoders(dump, [settings], pick_device(gpus), checkpoint)
    header = next(iter(dump.dumps.values())).shards[0].header
    metadata = {"hookpoint": header["hookpoint"], "settings": dict(settings), "n_tokens_left_out": dump.n_left_out}
    save_crosscoder(trained.crosscoder, folder, metadata)
    write_text(folder / "training.csv", trained.curve.to_csv(index=False))


def by_model(models: Sequence[str], paths: Sequence[str]) -> dict[str, list[str]]:
    """The shards of each model, from a list of those of one model after the other's."""
    n = len(paths) // len(models)
    return {model: list(paths[place * n : (place + 1) * n]) for place, model in enumerate(models)}


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        with checkpoint_folder(snakemake) as checkpoints:
            train_crosscoder(
                paths_to_shards=by_model(snakemake.params.crosscoder["models"], snakemake.input.shards),
                settings=snakemake.params.crosscoder["settings"],
                folder=Path(snakemake.output.weights).parent,
                checkpoint=checkpoints / "state.safetensors",
                gpus=snakemake.resources.get("gpu", 0),
            )
