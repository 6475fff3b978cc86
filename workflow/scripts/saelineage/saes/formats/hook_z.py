"""Kissane and Conmy's SAEs of attention heads."""

from pathlib import Path

from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats.layouts import renamed, sizes_of
from saelineage.saes.formats.pickles import unpickled
from saelineage.saes.sae import Sae, sae_of

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def read(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """Read a ReLU SAE of the concatenated heads, which subtracts b_dec."""
    names = {name: name for name in TENSORS}
    weights, _ = renamed(unpickled(path_to_weights), names, (), "a ReLU SAE", path_to_weights, REMEDY)
    d_in, d_sae = sizes_of(weights["W_enc"], path_to_weights)
    return sae_of("relu", d_in, d_sae, tensors=weights, where=path_to_weights), None
