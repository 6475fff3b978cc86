"""Train SAEs of a model at all hookpoints while the model is read, without a dump (activations.keep: stream)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from saelineage.activations import same_output
from saelineage.files.archives import write_archive
from saelineage.foreign.models import read_config
from saelineage.foreign.saelens_names import place_keys
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.checkpoints import checkpoint_folder
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.loading import open_model
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO, dtype_name
from saelineage.saes.boards import board
from saelineage.saes.records import Record, Start, save_trained
from saelineage.saes.streams import Group, Stream, batch_key, train_streams
from saelineage.saes.training import ignore
from saelineage.tokens import TokenRows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


class Reading(NamedTuple):
    """How the model is read."""

    max_tokens: int | None
    """Of each corpus."""
    buffer_tokens: int
    batch_rows: int
    dtype: str
    """Of the buffer."""
    seed: int
    unshared: str = REFUSE
    model_dtype: str = AUTO


def stream_saes(
    name: str,
    folder: Path,
    paths_to_tokens: Sequence[str],
    hookpoints: Mapping[str, str],
    settings: Mapping[str, Mapping[str, Mapping]],
    starts: Mapping[str, Mapping[str, Sequence[str]]],
    reading: Reading,
    path_to_bundle: Path,
    checkpoint: Path,
    events: Path | None,
    gpus: int,
    source: Mapping | None = None,
) -> dict:
    """Write the folders of all SAEs into one archive.

    Args:
        name: of the model.
        folder: its folder.
        paths_to_tokens: token arrays, one for each corpus.
        hookpoints: places in the model, by name.
        settings: the settings of each SAE, by hookpoint and name.
        starts: likewise the folders of the SAEs whose average is the start of its training.
        reading: how the model is read.
        path_to_bundle: the archive, with `{hookpoint}/{sae}/{file}`.
        checkpoint: the file from which an interrupted training resumes.
        events: folder for TensorBoard's files, or None.
        gpus: the number of GPUs that the job was given.
        source: `name` and `revision` by which others open the model; by default its name alone.

    Returns:
        Facts for the manifest: how the model's vocabulary differs from the run's (`vocabularies.SharedRows`), and the
        number format that it was opened in.
    """
    device = pick_device(gpus)
    model = open_model(folder, device, reading.model_dtype)
    rows, facts = share_rows(model, folder, {path: TokenRows(path) for path in paths_to_tokens}, name, reading.unshared)
    of_corpora = [rows[path] for path in paths_to_tokens]
    read = (reading.max_tokens, reading.buffer_tokens, reading.batch_rows, reading.dtype, reading.seed)
    stream = Stream(model, hookpoints, of_corpora, *read)
    begun = {place: {sae: Start.at(starts[place][sae]) for sae in of_place} for place, of_place in settings.items()}
    kept = {
        place: {sae: begun[place][sae].kept(of_sae, f"{place}.{name}.{sae}") for sae, of_sae in of_place.items()}
        for place, of_place in settings.items()
    }
    settings = {
        place: {sae: dict(of_sae) | kept[place][sae] for sae, of_sae in of_place.items()}
        for place, of_place in settings.items()
    }
    steps = min(of_sae["checkpoint_steps"] for of_place in settings.values() for of_sae in of_place.values())
    config = read_config(folder)
    folders = checkpoint.parent / "saes"  # removed with the checkpoint
    with ExitStack() as stack:
        groups = []
        for place, of_place in settings.items():
            of_starts = {sae: start.sae for sae, start in begun[place].items()}
            for saes in grouped(of_place, of_starts):
                watch = board(stack, [events / place / name / sae for sae in saes]) if events else ignore
                chosen = {sae: of_place[sae] for sae in saes}
                groups.append(Group(place, chosen, {sae: of_starts[sae] for sae in saes}, device, watch))
        train_streams(stream, groups, checkpoint, steps)
        for group in groups:
            place = group.hookpoint
            keys = place_keys(hookpoints[place], same_output(model, hookpoints[place]), config)
            record = Record(name, source or {"name": name}, [header(of, hookpoints[place], keys) for of in of_corpora])
            for sae, trained in group.finished().items():
                given = (record, begun[place][sae], settings[place][sae], kept[place][sae], group.n_left_out)
                save_trained(folders / place / sae, sae, trained, *given)
    names = [f"{place}/{sae}" for place, of_place in settings.items() for sae in of_place]
    write_archive({name: folders / name for name in sorted(names)}, path_to_bundle)
    return {"vocabulary": facts, "dtype": dtype_name(model)}


def grouped(settings: Mapping[str, Mapping], starts: Mapping) -> list[list[str]]:
    """Names of the SAEs of a hookpoint that see the same batches, group by group."""
    groups: dict[tuple, list[str]] = {}
    for sae, of_sae in settings.items():
        groups.setdefault(batch_key(of_sae, starts[sae]), []).append(sae)
    return list(groups.values())


def header(rows: TokenRows, hookpoint: str, saelens: Mapping) -> dict:
    """What the header of a shard would say of these rows."""
    return {
        "hookpoint": hookpoint,
        "n_ctx": rows.info["n_ctx"],
        "left_out_ids": rows.left_out_ids,
        "saelens": dict(saelens),
    }


if __name__ == "__main__":
    with job(snakemake) as record, checkpoint_folder(snakemake) as checkpoints:
        prepare_cpu(snakemake.threads)
        watches = snakemake.config["saes"]["tensorboard"]  # no param, because watching changes no result
        record |= stream_saes(
            name=snakemake.wildcards.model,
            folder=Path(snakemake.input.model[0]).parent,
            paths_to_tokens=list(snakemake.input.tokens),
            hookpoints=snakemake.params.hookpoints,
            settings=snakemake.params.saes,
            starts=snakemake.params.starts,
            reading=Reading(**snakemake.params.reading),
            path_to_bundle=Path(snakemake.output.bundle),
            checkpoint=checkpoints / "state.safetensors",
            events=Path(snakemake.log[0]).parents[1] / "tensorboard" if watches else None,
            gpus=snakemake.resources.get("gpu", 0),
            source=snakemake.params.source,
        )
