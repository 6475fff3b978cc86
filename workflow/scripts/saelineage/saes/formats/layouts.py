"""Tensors of other libraries under our names and in our orientation."""

from pathlib import Path

from torch import Tensor

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.folding import fold_decoder_bias
from saelineage.saes.sae import Sae, sae_of


def renamed(
    tensors: dict[str, Tensor],
    names: dict[str, str],
    optional: tuple[str, ...],
    kind: str,
    path: Path,
    remedy: str = f"name the class that it is in the config, or {REMEDY}",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under our names and in our orientation, and the optional tensors.

    Args:
        tensors: the tensors of the file.
        names: their name for each of our tensors; those ending in `.weight` belong to a Linear and are transposed.
        optional: names of further tensors that may be there.
        kind: what the file is meant to be, for messages.
        path: the file.
        remedy: the next step, for messages.

    Raises:
        InputError: if these are not the tensors of the kind.
    """
    needed = set(names.values())
    if not needed <= set(tensors) <= needed | set(optional):
        raise InputError(
            f"'{path}': {kind} must hold {sorted(needed)}, but this holds "
            f"{[name[:40] for name in sorted(tensors)[:20]]}; {remedy}"
        )
    weights = {}
    for ours, theirs in names.items():
        tensor = tensors[theirs]
        weights[ours] = tensor.mT if tensor.ndim == 2 and theirs.endswith(".weight") else tensor
    return weights, {name: tensors[name] for name in optional if name in tensors}


def sizes_of(W_enc: Tensor, path: Path) -> tuple[int, int]:
    """d_in and d_sae.

    Raises:
        InputError: if the encoder is not a matrix.
    """
    if W_enc.ndim != 2 or not W_enc.numel():
        raise InputError(f"'{path}': the encoder must be a matrix, not of shape {tuple(W_enc.shape)}; {REMEDY}")
    return W_enc.shape[0], W_enc.shape[1]


def sae_without_subtraction(architecture: str, weights: dict[str, Tensor], path: Path, k: int | None = None) -> Sae:
    """Make an SAE from weights under our names that encode acts, not acts - b_dec, with equal latents.

    Raises:
        InputError: if the shapes do not fit each other, or a weight is infinite or NaN.
    """
    d_in, d_sae = sizes_of(weights["W_enc"], path)
    sae = sae_of(architecture, d_in, d_sae, k, tensors=weights, where=path)
    fold_decoder_bias(sae)
    return sae
