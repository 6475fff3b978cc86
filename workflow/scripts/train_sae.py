"""Train one SAE of a model, or all of them in one pass over its activations."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.saes.batches import Dump
from saelineage.saes.boards import board
from saelineage.saes.records import Record, Start, save_trained
from saelineage.saes.training import ignore, train_saes

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def train_and_save(
    model: str,
    settings: dict[str, dict],
    paths_to_shards: list[str],
    folder: Path,
    checkpoint: Path,
    events: Path | None,
    gpus: int,
    starts: Sequence[str] = (),
    source: Mapping | None = None,
) -> None:
    """Write each SAE's folder and its training curve.

    Args:
        model: the model's name.
        settings: the settings of each SAE, by name.
        paths_to_shards: the model's activations.
        folder: the model's folder of SAEs.
        checkpoint: the file from which an interrupted training resumes.
        events: folder for TensorBoard's files, or None.
        gpus: the number of GPUs that the job was given; 0 trains on the CPU.
        starts: folders of the SAEs whose average is the start of training; none for random weights.
        source: `name` and `revision` by which others open the model; by default its name alone.
    """
    saes, start = list(settings), Start.at(starts)
    kept = {sae: start.kept(settings[sae], f"{model}.{sae}") for sae in saes}
    settings = {sae: of_sae | kept[sae] for sae, of_sae in settings.items()}
    dump = Dump(paths_to_shards, settings[saes[0]]["max_norm_ratio"], start.sae is not None and start.sae.centred)
    with ExitStack() as stack:
        watch = board(stack, [events / sae for sae in saes]) if events else ignore
        trained = train_saes(
            dump, list(settings.values()), pick_device(gpus), checkpoint, watch, [start.sae] * len(settings)
        )
    record = Record(model, source or {"name": model}, [shard.header for shard in dump.shards])
    for sae, result in zip(saes, trained, strict=True):
        save_trained(folder / sae, sae, result, record, start, settings[sae], kept[sae], dump.n_left_out)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        hookpoint, model = snakemake.wildcards.hookpoint, snakemake.wildcards.model
        watches = snakemake.config["saes"]["tensorboard"]  # no param, because watching changes no result
        events = Path(snakemake.log[0]).parents[1] / "tensorboard" / hookpoint / model if watches else None
        with checkpoint_folder(snakemake) as checkpoints:
            train_and_save(
                model=model,
                settings=snakemake.params.saes,
                paths_to_shards=list(snakemake.input.shards),
                starts=sorted({str(Path(path).parent) for path in snakemake.input.get("starts", [])}),
                folder=Path(snakemake.output.weights[0]).parent.parent,
                checkpoint=checkpoints / "state.safetensors",
                events=events,
                source=snakemake.params.source,
                gpus=snakemake.resources.get("gpu", 0),
            )
