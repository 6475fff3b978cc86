"""The latents of an SAE that are re-initialised before it is trained on. Imports no torch."""

import numpy as np
from jaxtyping import Int


def reset_latents(d_sae: int, share: float, seed: int) -> Int[np.ndarray, " reset"]:
    """Draw the latents of an SAE that start afresh, sorted.

    Args:
        d_sae: number of latents.
        share: share of them, rounded to whole latents.
        seed: seed of the draw.
    """
    return np.sort(np.random.default_rng(seed).permutation(d_sae)[: round(share * d_sae)])
