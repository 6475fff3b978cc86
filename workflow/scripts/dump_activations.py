"""Read one shard of a model's activations on one or more corpora."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.activations import dump_shards, same_output
from saelineage.foreign.models import read_config
from saelineage.foreign.saelens_names import place_keys
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.loading import open_model
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO, dtype_name
from saelineage.tokens import TokenRows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def dump_activations(
    name: str,
    folder: Path,
    paths_to_tokens: list[str],
    paths_to_shards: list[str],
    shard: str,
    hookpoints: Sequence[str],
    dtype: str,
    max_tokens: int | None,
    batch_rows: int,
    gpus: int,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> dict:
    """Write one shard for each token array, in the same order.

    Args:
        name: of the model.
        folder: its folder.
        paths_to_tokens: token arrays.
        paths_to_shards: a shard for each, all of one hookpoint before those of the next.
        shard: the part of the tokens, as `00000-of-00004`.
        hookpoints: the places in the model.
        dtype, max_tokens, batch_rows: as in the config's `activations` block.
        gpus: the number of GPUs that the job was given.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.

    Returns:
        Facts for the manifest: how the model's vocabulary differs from the run's (`vocabularies.SharedRows`), and the
        number format that it was opened in.
    """
    number, n_shards = map(int, shard.split("-of-"))
    rows = {path: TokenRows(path) for path in paths_to_tokens}
    model = open_model(folder, pick_device(gpus), model_dtype)
    rows, facts = share_rows(model, folder, rows, name, unshared)
    config = read_config(folder)
    saelens = {name: place_keys(name, same_output(model, name), config) for name in hookpoints}
    for place, path_to_tokens in enumerate(paths_to_tokens):
        of_corpus, n_corpora = rows[path_to_tokens], len(paths_to_tokens)
        paths = dict(zip(hookpoints, paths_to_shards[place::n_corpora], strict=True))
        dump_shards(model, paths, of_corpus, of_corpus.shard(number, n_shards, max_tokens), batch_rows, dtype, saelens)
    return {"vocabulary": facts, "dtype": dtype_name(model)}


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        record |= dump_activations(
            name=snakemake.wildcards.model,
            folder=Path(snakemake.input.model[0]).parent,
            paths_to_tokens=list(snakemake.input.tokens),
            paths_to_shards=list(snakemake.output.shards),
            shard=snakemake.wildcards.shard,
            hookpoints=list(snakemake.params.hookpoints.values()),
            dtype=snakemake.params.dtype,
            max_tokens=snakemake.params.max_tokens,
            batch_rows=snakemake.params.batch_rows,
            gpus=snakemake.resources.get("gpu", 0),
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
