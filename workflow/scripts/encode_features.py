"""Encode one shard of the probe with one SAE."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from saelineage.activations import ActivationShard
from saelineage.features.shards import save_shard
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job
from saelineage.saes.sae import Sae, load_sae, rotated

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

CHUNK_TOKENS = 2048


def encode_features(
    model: str,
    sae_folder: Path,
    paths_to_activations: list[str],
    paths_to_shards: list[str],
    rotation_seed: int | None = None,
) -> None:
    """Write one shard of sparse rows for each shard of activations `{corpus}/probe/shard-*`, in the same order.

    With a `rotation_seed`, activations are first rotated at random around the SAE's b_dec. This null keeps the SAE and
    the norms of activations, but not their directions relative to the SAE's.
    """
    sae, name = load_sae(sae_folder), sae_folder.name
    if rotation_seed is not None:
        sae, name = rotated(sae, rotation_seed), f"{name}_rotated"
    for path_to_activations, path_to_shard in zip(paths_to_activations, paths_to_shards, strict=True):
        shard = ActivationShard(path_to_activations)
        corpus = Path(path_to_activations).parent.parent.name
        header: dict[str, str | int] = {"model": model, "sae": name, "corpus": corpus, "d_sae": sae.d_sae}
        header |= {key: shard.header[key] for key in ("ids_sha256", "first_row", "stop_row", "n_ctx")}
        compared = shard.norms() <= sae.max_norm
        rows = encode(sae, shard, compared)
        save_shard(path_to_shard, *rows, shard.positions().numpy(), compared.numpy(), header)


def encode(
    sae: Sae, shard: ActivationShard, compared: Bool[Tensor, " token"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode a shard a chunk at a time as compressed sparse rows. Rows of tokens that are not compared are empty."""
    counts, indices, values = torch.zeros(shard.n_tokens, dtype=torch.int64), [], []
    for start, acts in zip(range(0, shard.n_tokens, CHUNK_TOKENS), shard.chunks(CHUNK_TOKENS), strict=True):
        inside = compared[start : start + CHUNK_TOKENS]
        latents = sae.encode_sparse(acts[inside])
        counts[start : start + CHUNK_TOKENS][inside] = latents.indptr.diff()
        indices.append(latents.indices)
        values.append(latents.values)
    indptr = np.concatenate([[0], np.cumsum(counts.numpy())])
    return indptr, torch.cat(indices).numpy(), torch.cat(values).numpy()


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        encode_features(
            model=snakemake.wildcards.model,
            sae_folder=Path(snakemake.input.weights).parent,
            paths_to_activations=list(snakemake.input.activations),
            paths_to_shards=list(snakemake.output.shards),
            rotation_seed=snakemake.params.rotation_seed,
        )
