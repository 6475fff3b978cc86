"""Encoding: the rows of a feature shard, from the activations of its tokens."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelineage.saes.encoding import Encoder
from saelineage.transfers import to_device

CHUNK_TOKENS = 2048
"""Tokens that are encoded at once."""


def encode(
    encoder: Encoder,
    chunks: Iterable[Float[Tensor, "_token d_in"]],
    compared: Bool[Tensor, " token"],
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode a shard a chunk at a time as compressed sparse rows. Rows of tokens that are not compared are empty.

    Args:
        encoder: with its weights on the device.
        chunks: the activations of all tokens in order, `CHUNK_TOKENS` at a time.
        compared: False for tokens left out as outliers.
        device: the device to compute on.

    Returns:
        `indptr` [token + 1], `indices` and `values` [entry], as `shards.save_shard` writes them.
    """
    counts, indices, values = torch.zeros(len(compared), dtype=torch.int64), [], []
    for number, acts in enumerate(chunks):
        start = number * CHUNK_TOKENS
        inside = compared[start : start + CHUNK_TOKENS]
        latents = encoder.encode(to_device(acts[inside], device))
        counts[start : start + CHUNK_TOKENS][inside] = latents.indptr.diff().cpu()
        indices.append(latents.indices.cpu())
        values.append(latents.values.cpu())
    indptr = np.concatenate([[0], np.cumsum(counts.numpy())])
    return indptr, torch.cat(indices).numpy(), torch.cat(values).numpy()
