"""SAEs of dictionary-learning, in the folder of one trainer."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.dictionary_learning import read_config
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.folding import fold_decoder_bias, fold_decoder_norms
from saelineage.saes.formats.layouts import renamed, sizes_of
from saelineage.saes.formats.pickles import unpickled
from saelineage.saes.sae import Sae, is_size, sae_of

MOST_KS = 1000
"""Numbers in a tensor k that are read; more would make the error message too long."""


class DictionaryClass(NamedTuple):
    """Weights of a class of dictionary-learning."""

    architecture: str
    names: dict[str, str]
    """Its name for each of our tensors; those ending in `.weight` belong to a Linear and are transposed."""
    counters: tuple[str, ...] = ()
    """Optional further tensors."""
    subtracts_b_dec: bool = True
    """True if it encodes acts - b_dec, False if it encodes acts."""


LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
MATRICES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
OF_TOPK = LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec"}
ONE_THRESHOLD = {"threshold": "threshold"}
DICTIONARY_CLASSES = {
    "AutoEncoder": DictionaryClass("relu", LINEAR | {"b_enc": "encoder.bias", "b_dec": "bias"}),
    "AutoEncoderNew": DictionaryClass(
        "relu", LINEAR | {"b_enc": "encoder.bias", "b_dec": "decoder.bias"}, subtracts_b_dec=False
    ),
    "GatedAutoEncoder": DictionaryClass(
        "gated", LINEAR | {"b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    ),
    "JumpReluAutoEncoder": DictionaryClass("jumprelu", MATRICES | ONE_THRESHOLD, subtracts_b_dec=False),
    "AutoEncoderTopK": DictionaryClass("topk", OF_TOPK, ("k", "threshold")),
    "BatchTopKSAE": DictionaryClass("jumprelu", OF_TOPK | ONE_THRESHOLD, ("k",)),
    "MatryoshkaBatchTopKSAE": DictionaryClass("jumprelu", MATRICES | ONE_THRESHOLD, ("k", "group_sizes")),
}


def read(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """Read an SAE of dictionary-learning from a trainer's folder."""
    trainer = read_config(path_to_config)["trainer"]
    name = trainer["dict_class"]
    layout = DICTIONARY_CLASSES[name]
    weights, counters = renamed(
        unpickled(path_to_weights), layout.names, layout.counters, f"an SAE of class {name}", path_to_weights
    )
    d_in, d_sae = sizes_of(weights["W_enc"], path_to_weights)
    for key, size in {"activation_dim": d_in, "dict_size": d_sae}.items():
        if trainer.get(key, size) != size:
            raise InputError(
                f"'{path_to_config}': trainer.{key} must be {size}, as in '{path_to_weights.name}', "
                f"not {trainer[key]!r}; {REMEDY}"
            )
    k = kept_latents(trainer, counters, path_to_config) if "k" in layout.counters else None
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        weights["threshold"] = one_threshold(weights["threshold"], d_sae, path_to_weights)
    sae = sae_of(layout.architecture, d_in, d_sae, k, tensors=weights, where=path_to_weights)
    if not layout.subtracts_b_dec:
        fold_decoder_bias(sae)
    norms = sae.W_dec.norm(dim=1)
    if name == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        fold_decoder_norms(sae)  # as its `from_pretrained` does
    return sae, k


def kept_latents(trainer: dict, counters: dict[str, Tensor], path: Path) -> int:
    """k, from the config or the weights.

    Raises:
        InputError: if config and weights differ in k, or neither holds it.
    """
    in_weights = set(counters["k"].flatten()[:MOST_KS].tolist()) if "k" in counters else set()
    in_config = {trainer["k"]} if is_size(trainer.get("k")) else set()
    if len(in_weights | in_config) != 1 or not all(map(is_size, in_weights | in_config)):
        raise InputError(
            f"'{path}': trainer.k must be a whole number above 0 and equal k in the weights, but k is "
            f"{trainer.get('k')!r} there and {in_weights or 'missing'} in the weights; {REMEDY}"
        )
    return (in_weights | in_config).pop()


def one_threshold(threshold: Tensor, d_sae: int, path: Path) -> Tensor:
    """Repeat the threshold that all latents share for each latent.

    Raises:
        InputError: if it was never set.
    """
    if threshold.numel() != 1 or not threshold.item() >= 0:
        shown = threshold.tolist() if threshold.numel() == 1 else f"of shape {tuple(threshold.shape)}"
        raise InputError(
            f"'{path}': threshold must be one number, 0 or more, but is {shown} (-1 means that it was never "
            "set, and the SAE would be a plain ReLU); train it past threshold_start_step"
        )
    return threshold.reshape(1).repeat(d_sae)
