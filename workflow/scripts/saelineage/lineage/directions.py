"""Directions: whether a feature and its best match are written in the same direction.

Decoder directions of two models can be compared where their activations have one basis, as those of a model and its
fine-tune do (`verdicts.shares_basis` tells).
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from saelineage.correlations.decoders import load_decoder


def decoder_directions(path: Path | str) -> Float[np.ndarray, "d_sae d_in"]:
    """The rows of W_dec in an SAE's `sae_weights.safetensors`, scaled to length 1; NaN for rows of zeros.

    Raises:
        InputError: if the file is damaged or holds no W_dec.
    """
    rows = load_decoder(path).astype(np.float32)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, np.nan).astype(np.float32)


def match_cosines(
    own: Float[np.ndarray, "d_sae d_in"],
    other: Float[np.ndarray, "d_sae_other d_in_other"],
    match: Int[np.ndarray, " d_sae"],
) -> Float[np.ndarray, " d_sae"]:
    """The cosine of each feature's direction and that of its best match, in [-1, 1].

    NaN where there is no match (-1) or no direction, and everywhere if the models have different widths.

    Args:
        own, other: from `decoder_directions`.
        match: latents of the other SAE.
    """
    if own.shape[1] != other.shape[1]:
        return np.full(len(own), np.nan)
    cosines = np.einsum("ij,ij->i", own, other[np.maximum(match, 0)], dtype=np.float64)
    return np.where(match >= 0, np.clip(cosines, -1.0, 1.0), np.nan)
