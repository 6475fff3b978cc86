"""Folding differences of formats into an SAE's weights, a few latents at a time, in float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

from saelineage.saes.sae import Sae

FOLDED_VALUES = 1 << 22
"""Weights that are folded at once, which bounds the memory."""


@torch.no_grad()
def fold_decoder_bias(sae: Sae) -> None:
    """Turn weights that encode acts into weights that encode acts - b_dec, with equal latents, by changing biases.

    acts W_enc + b = (acts - b_dec) W_enc + (b + b_dec W_enc).
    """
    b_dec = sae.b_dec.double()
    for block in _latent_blocks(sae):
        _shift_biases(sae, block, b_dec @ sae.W_enc[:, block].double())


@torch.no_grad()
def fold_centring(sae: Sae) -> None:
    """Turn weights that encode centred activations into weights that encode activations, with equal latents.

    Centred activations are acts P with P = I - 11^T / d_in: acts minus their mean over dimensions. Then
    (acts P - b_dec) W_enc + b = (acts - b_dec) (P W_enc) + (b + (b_dec P - b_dec) W_enc).

    The decoder is left as it is, so reconstructions are of centred activations (`Sae.centred`).
    """
    b_dec = sae.b_dec.double()
    for block in _latent_blocks(sae):
        W_enc = sae.W_enc[:, block].double()
        _shift_biases(sae, block, -b_dec.mean() * W_enc.sum(0))
        sae.W_enc[:, block] = (W_enc - W_enc.mean(0)).float()
    sae.centred = True


@torch.no_grad()
def fold_input_factor(sae: Sae, factor: float) -> None:
    """Turn weights that encode factor x acts into weights that encode acts, with equal latents.

    factor acts W_enc = acts (factor W_enc), and what decodes to factor x acts is divided by it.
    """
    sae.W_enc.mul_(factor)
    sae.W_dec.div_(factor)
    sae.b_dec.div_(factor)


@torch.no_grad()
def fold_output_scales(sae: Sae, scales: Tensor) -> None:
    """Multiply the decoder's rows by a scale [latent] that reconstructions have and latents do not."""
    sae.W_dec.mul_(scales[:, None])


@torch.no_grad()
def fold_decoder_norms(sae: Sae) -> None:
    """Scale latents by the norms of their decoder rows, and the rows to norm 1 (relu, topk, jumprelu).

    Reconstructions stay equal, for a jumprelu whose thresholds are those of the scaled latents. A latent whose row is
    zero becomes zero.
    """
    for block in _latent_blocks(sae):
        rows = sae.W_dec[block].double()
        norms = rows.norm(dim=1)
        sae.W_enc[:, block] = (sae.W_enc[:, block] * norms).float()
        sae.b_enc[block] = (sae.b_enc[block] * norms).float()
        sae.W_dec[block] = (rows / torch.where(norms > 0, norms, 1.0)[:, None]).float()


def _latent_blocks(sae: Sae) -> Iterator[slice]:
    """Consecutive latents, few enough that a copy of their weights in float64 is small."""
    n_latents = max(1, FOLDED_VALUES // sae.d_in)
    return (slice(start, start + n_latents) for start in range(0, sae.d_sae, n_latents))


def _shift_biases(sae: Sae, block: slice, shift: Tensor) -> None:
    """Add a float64 shift [latent] to the pre-activations of a block of latents."""
    if sae.architecture == "gated":
        sae.b_gate[block] = (sae.b_gate[block] + shift).float()
        sae.b_mag[block] = (sae.b_mag[block] + shift * sae.r_mag[block].double().exp()).float()
    else:
        sae.b_enc[block] = (sae.b_enc[block] + shift).float()
