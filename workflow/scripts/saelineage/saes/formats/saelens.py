"""SAEs of SAELens, as it saves them for inference and in checkpoints of its training."""

import math
from pathlib import Path

import torch
from torch import Tensor

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.saelens import BATCH_TOPK, check_tensors, input_factor, read_config, trained_k
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.folding import fold_decoder_bias, fold_decoder_norms, fold_input_factor, fold_output_scales
from saelineage.saes.sae import Sae, read_tensors, sae_of_saelens


def read(
    path_to_config: Path, path_to_weights: Path, norm_scaling_factor: float | None = None
) -> tuple[Sae, int | None]:
    """Read an SAE of SAELens, versions 1 to 6.

    Args:
        path_to_config, path_to_weights: its files.
        norm_scaling_factor: the factor of its inputs, if its files do not have it.

    Raises:
        InputError: if it cannot be imported.
    """
    config = read_config(path_to_config)
    factor = input_factor(config, path_to_config, norm_scaling_factor)
    tensors = read_tensors(path_to_weights, REMEDY)
    check_tensors(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, path_to_weights)
    rescales = config.get("rescale_acts_by_decoder_norm", False)
    scales = _pop_output_scales(config, tensors, path_to_weights)
    is_batch_topk = config["architecture"] in BATCH_TOPK
    if is_batch_topk:  # SAELens turns it into this when it saves it for inference
        # In training the threshold is that of latents that are scaled as those here are after folding.
        threshold = _pop_threshold(tensors, path_to_weights) / (factor if factor and rescales else 1)
        tensors["threshold"] = torch.full_like(tensors["b_enc"], threshold, dtype=torch.float32)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").double().exp()
    sae = sae_of_saelens(
        config | ({"architecture": "jumprelu"} if is_batch_topk else {}), tensors, path_to_config.parent
    )
    if factor is not None:
        fold_input_factor(sae, factor)
    if not config.get("apply_b_dec_to_input", True):
        fold_decoder_bias(sae)
    if rescales and (is_batch_topk or sae.architecture == "topk"):
        fold_decoder_norms(sae)
    if scales is not None:
        fold_output_scales(sae, scales)
    return sae, trained_k(config) if is_batch_topk else sae.k


def _pop_threshold(tensors: dict[str, Tensor], path: Path) -> float:
    """The one threshold of all latents, which BatchTopK measures in training."""
    threshold = tensors.pop("topk_threshold")
    value = float(threshold) if threshold.numel() == 1 else math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(
            f"'{path}': topk_threshold must be one number above 0, not {str(threshold.tolist())[:80]}; it is 0 before "
            "the first step of training, so use a later checkpoint"
        )
    return value


def _pop_output_scales(config: dict, tensors: dict[str, Tensor], path: Path) -> Tensor | None:
    """Factors of latents before the decoder, which SAELens fine-tuned after training until version 5."""
    names = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors]
    found = [tensors.pop(name) for name in names]
    if not found or bool((found[0] == 1).all()):
        return None  # older versions wrote it even if there was no scaling
    if config.get("finetuning_scaling_factor") is not True or found[0].shape != (len(tensors["W_dec"]),):
        raise InputError(
            f"'{path}' holds a {names[0]} that is not 1, although its config does not have finetuning_scaling_factor "
            "true, so what it scales cannot be told (SAELens refuses it too); if latents are multiplied by it before "
            "the decoder, set that to true in a copy"
        )
    return found[0].float()
