"""Encode one shard of the probe with one crosscoder."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saelineage.activations import ActivationShard, require_same_tokens
from saelineage.crosscoders.crosscoder import Crosscoder, load_crosscoder
from saelineage.features.encoding import CHUNK_TOKENS, encode
from saelineage.features.shards import save_shard
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def encode_crosscoder(
    group: str,
    seed: str,
    folder: Path,
    paths: Mapping[str, tuple[Mapping[str, str], str]],
    device: torch.device,
) -> None:
    """Write one shard of sparse rows for each corpus.

    A token that is an outlier of one model is not compared, and its row is empty.

    Args:
        group, seed: the crosscoder's names, in place of a model and its SAE.
        folder: the crosscoder's.
        paths: for each corpus, each model's activations, and the shard to write.
        device: the device to compute on.
    """
    crosscoder = load_crosscoder(folder)
    crosscoder.sae.to(device)
    encoder = crosscoder.encoder()
    for corpus, (activations, path_to_shard) in paths.items():
        shards = {model: ActivationShard(path) for model, path in activations.items()}
        first = next(iter(shards.values()))
        for shard in shards.values():
            require_same_tokens(first, shard)
        header: dict[str, str | int] = {"model": group, "sae": seed, "corpus": corpus, "d_sae": crosscoder.d_sae}
        header |= {key: first.header[key] for key in ("ids_sha256", "first_row", "stop_row", "n_ctx")}
        inside = [shard.norms() <= crosscoder.max_norms[model] for model, shard in shards.items()]
        compared = reduce(torch.logical_and, inside)
        rows = encode(encoder, _joint_chunks(crosscoder, shards), compared, device)
        save_shard(path_to_shard, *rows, first.positions().numpy(), compared.numpy(), header)


def _joint_chunks(crosscoder: Crosscoder, shards: Mapping[str, ActivationShard]) -> Iterator[Tensor]:
    """The models' activations side by side, a chunk of tokens at a time."""
    for chunks in zip(*(shard.chunks(CHUNK_TOKENS) for shard in shards.values()), strict=True):
        yield crosscoder.joint(dict(zip(shards, chunks, strict=True)))


def by_corpus(
    corpora: Sequence[str], models: Sequence[str], activations: Sequence[str], shards: Sequence[str]
) -> dict[str, tuple[dict[str, str], str]]:
    """The files of each corpus: activations by model, of which those of all corpora of a model come first."""
    n = len(corpora)
    return {
        corpus: (dict(zip(models, activations[place::n], strict=True)), shards[place])
        for place, corpus in enumerate(corpora)
    }


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        encode_crosscoder(
            group=snakemake.wildcards.group,
            seed=snakemake.wildcards.seed,
            folder=Path(snakemake.input.weights).parent,
            paths=by_corpus(
                snakemake.params.corpora,
                snakemake.params.models,
                snakemake.input.activations,
                snakemake.output.shards,
            ),
            device=pick_device(snakemake.resources.get("gpu", 0)),
        )
