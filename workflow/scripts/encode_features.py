"""Encode one shard of the probe with one SAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saelineage.activations import ActivationShard
from saelineage.features.encoding import CHUNK_TOKENS, encode
from saelineage.features.shards import save_shard
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.saes.sae import load_sae, rotated
from saelineage.transfers import CPU

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


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
    encoder = sae.encoder()
    for corpus, (path_to_activations, path_to_shard) in paths.items():
        shard = ActivationShard(path_to_activations)
        header: dict[str, str | int] = {"model": model, "sae": sae_name, "corpus": corpus, "d_sae": sae.d_sae}
        header |= {key: shard.header[key] for key in ("ids_sha256", "first_row", "stop_row", "n_ctx")}
        compared = shard.norms() <= sae.max_norm
        rows = encode(encoder, shard.chunks(CHUNK_TOKENS), compared, device)
        save_shard(path_to_shard, *rows, shard.positions().numpy(), compared.numpy(), header)


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
