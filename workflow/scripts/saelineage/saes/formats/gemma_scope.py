"""SAEs of Gemma Scope."""

from saelineage.foreign.sae_formats.gemma_scope import is_embedding
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats.layouts import renamed, sae_without_subtraction
from saelineage.saes.formats.npz import read_npz
from saelineage.saes.sae import Sae

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def read(source: SaeSource) -> tuple[Sae, int | None]:
    """Read an SAE of Gemma Scope. Inputs of SAEs of the embeddings were not scaled by the root of d_in as models do."""
    arrays = read_npz(source.weights)
    arrays = {f"W_{name[2:]}" if name.startswith("w_") else name: array for name, array in arrays.items()}
    weights, _ = renamed(arrays, {name: name for name in TENSORS}, (), "a JumpReLU SAE", source.weights, REMEDY)
    if is_embedding(source) and weights["W_enc"].ndim:
        root = weights["W_enc"].shape[0] ** 0.5
        weights["W_enc"] = weights["W_enc"] / root
        weights |= {name: weights[name] * root for name in ("W_dec", "b_dec")}
    return sae_without_subtraction("jumprelu", weights, source.weights), None
