"""Encode one shard of the probe with one SAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from saelineage.activations import ActivationShard
from saelineage.features.shards import save_shard
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.saes.sae import Sae, load_sae, rotated
from saelineage.transfers import CPU, to_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

CHUNK_TOKENS = 2048


def encode_features(
    model: str,
    sae_name: str,
    sae_folder: Path,
    paths: Mapping[str, tuple[str, str]],
    rotation_seed: int | None = None,
    device: torch.device = CPU,
) -> None:
    """Write one shard of sparse rows for each shard of activations.

    With a `rotation_seed`, activations are first rotated at random around the SAE's b_dec. This random
    control keeps the SAE and the norms of activations, but not their directions relative to the SAE's.

    Args:
        model, sae_name: the names of the model and of its SAE.
        sae_folder: the SAE.
        paths: for each corpus, the activations to read and the shard to write.
        rotation_seed: rotate the activations first.
        device: the device to compute on.
    """
    sae = load_sae(sae_folder)
    if rotation_seed is not None:
        sae, sae_name = rotated(sae, rotation_seed), f"{sae_name}_rotated"
    sae = sae.to(device)
    for corpus, (path_to_activations, path_to_shard) in paths.items():
        shard = ActivationShard(path_to_activations)
        header: dict[str, str | int] = {"model": model, "sae": sae_name, "corpus": corpus, "d_sae": sae.d_sae}
        header |= {key: shard.header[key] for key in ("ids_sha256", "first_row", "stop_row", "n_ctx")}
        compared = shard.norms() <= sae.max_norm
        rows = encode(sae, shard, compared)
        save_shard(path_to_shard, *rows, shard.positions().numpy(), compared.numpy(), header)


def encode(
    sae: Sae, shard: ActivationShard, compared: Bool[Tensor, " token"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode a shard a chunk at a time as compressed sparse rows. Rows of tokens that are not compared are empty."""
    counts, indices, values = torch.zeros(shard.n_tokens, dtype=torch.int64), [], []
    encoder, device = sae.encoder(), sae.b_dec.device
    for start, acts in zip(range(0, shard.n_tokens, CHUNK_TOKENS), shard.chunks(CHUNK_TOKENS), strict=True):
        inside = compared[start : start + CHUNK_TOKENS]
        latents = encoder.encode(to_device(acts[inside], device))
        counts[start : start + CHUNK_TOKENS][inside] = latents.indptr.diff().cpu()
        indices.append(latents.indices.cpu())
        values.append(latents.values.cpu())
    indptr = np.concatenate([[0], np.cumsum(counts.numpy())])
    return indptr, torch.cat(indices).numpy(), torch.cat(values).numpy()


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        shards = (snakemake.input.activations, snakemake.output.shards)
        encode_features(
            model=snakemake.wildcards.model,
            sae_name=snakemake.wildcards.sae,
            sae_folder=Path(snakemake.input.weights).parent,
            paths=dict(zip(snakemake.params.corpora, zip(*shards, strict=True), strict=True)),
            rotation_seed=snakemake.params.rotation_seed,
            device=pick_device(snakemake.resources.get("gpu", 0)),
        )
