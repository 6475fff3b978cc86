"""Sparse coders of sparsify, in the folder of one hookpoint."""

from pathlib import Path

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.sparsify import read_config
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats.layouts import renamed
from saelineage.saes.sae import Sae, is_size, read_tensors, sae_of


def read(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """Read a sparse coder of sparsify from the folder of one hookpoint."""
    config = read_config(path_to_config)
    tensors = read_tensors(path_to_weights, REMEDY)
    if "W_skip" in tensors:
        raise InputError(
            f"'{path_to_weights}': W_skip, a linear path around the latents, cannot be imported; use another SAE"
        )
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    weights, _ = renamed(tensors, names, (), "a sparse coder", path_to_weights)
    d_in, k = config.get("d_in"), config.get("k")
    factor = config.get("expansion_factor")
    d_sae = config.get("num_latents") or (d_in * factor if is_size(d_in) and is_size(factor) else None)
    if not (is_size(d_in) and is_size(d_sae) and is_size(k)):
        raise InputError(
            f"'{path_to_config}': d_in, k and num_latents (or else expansion_factor) must be whole numbers above 0, "
            f"got {d_in!r:.40}, {k!r:.40} and {config.get('num_latents')!r:.40} ({factor!r:.40}); {REMEDY}"
        )
    return sae_of("topk", d_in, d_sae, k, tensors=weights, where=path_to_weights), k
