"""Train one SAE of a model, or all of them in one pass over its activations."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.errors import InputError
from saelineage.files.atomic import write_text
from saelineage.foreign.saelens_names import input_keys
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.saes.batches import Dump
from saelineage.saes.sae import average, load_sae, recorded_l0, save_sae
from saelineage.saes.trainer import settings_kept
from saelineage.saes.training import train_saes

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


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
    saes = list(settings)
    start = average([load_sae(path) for path in starts]) if starts else None
    l0 = mean_l0(starts)
    kept = {sae: settings_kept(settings[sae], start, l0) if start is not None else {} for sae in saes}
    settings = {sae: of_sae | kept[sae] for sae, of_sae in settings.items()}
    dump = Dump(paths_to_shards, settings[saes[0]]["max_norm_ratio"], start is not None and start.centred)
    header = dump.shards[0].header
    for sae in saes:
        if kept[sae]:
            logger.info("%s.%s keeps settings of the SAE that it starts from: %s", model, sae, kept[sae])
    with ExitStack() as stack:
        watch = board(stack, [events / sae for sae in saes]) if events else lambda number, point: None
        trained = train_saes(
            dump, list(settings.values()), pick_device(gpus), checkpoint, watch, [start] * len(settings)
        )
    for sae, result in zip(saes, trained, strict=True):
        provenance = input_keys([shard.header for shard in dump.shards], source or {"name": model})
        named = {"model": model, "sae": sae, "hookpoint": header["hookpoint"]}
        training = {"settings": settings[sae], "n_tokens_left_out": dump.n_left_out, "starts": list(starts)}
        if l0 is not None:  # an SAE that starts from this one keeps it too
            provenance["l0"], training["kept"] = l0, kept[sae]
        save_sae(result.sae, folder / sae, provenance | {"saelineage": named | training})
        write_text(folder / sae / "training.csv", result.curve.to_csv(index=False))


def mean_l0(folders: Sequence[str]) -> float | None:
    """Mean l0 that SAEs record; None unless all do (`recorded_l0`)."""
    recorded = [l0 for folder in folders if (l0 := recorded_l0(folder)) is not None]
    return sum(recorded) / len(recorded) if recorded and len(recorded) == len(folders) else None


def board(stack: ExitStack, folders: list[Path]) -> Callable[[int, dict], None]:
    """Make a function that writes points of training curves for TensorBoard, into one folder per SAE.

    Raises:
        InputError: if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "saes.tensorboard needs the package tensorboard, which is not installed; "
            "install the version in requirements-dev.txt, or set saes.tensorboard to false"
        ) from error
    writers = [stack.enter_context(SummaryWriter(str(folder), purge_step=0)) for folder in folders]

    def write(number: int, point: dict) -> None:
        for name, value in point.items():
            writers[number].add_scalar(name, value, point["tokens"])

    return write


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
