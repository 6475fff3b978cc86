"""SAEs of Llama Scope and of its successor for R1-Distill."""

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.llama_scope import input_factor, read_config
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY, number
from saelineage.saes.formats.layouts import renamed, sae_without_subtraction, sizes_of
from saelineage.saes.sae import Sae, read_tensors

NAMES = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "decoder.bias"}
LOG_THRESHOLD = "log_jumprelu_threshold"
OTHERS = ("dataset_average_activation_norm",)
"""Beginnings of names of tensors that change no latent."""


def read(source: SaeSource) -> tuple[Sae, int | None]:
    """Read an SAE that was trained on inputs times a factor (`input_factor`), and fold the factor into its weights.

    One threshold for all latents in the config is that of inputs without the factor, so it is multiplied by it, as
    SAELens does. Thresholds in the weights are those of the scaled input already.
    """
    config, path = read_config(source.config), source.weights
    factor = input_factor(config, source)
    tensors = read_tensors(path, REMEDY)
    names = NAMES | ({"threshold": LOG_THRESHOLD} if LOG_THRESHOLD in tensors else {})
    optional = tuple(name for name in tensors if name.startswith(OTHERS))
    weights, _ = renamed(tensors, names, optional, "an SAE of Llama Scope", path, REMEDY)
    _, d_sae = sizes_of(weights["W_enc"], path)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].exp()
    else:
        threshold = number(config.get("jump_relu_threshold"))
        if threshold is None:
            raise InputError(
                f"'{source.config}': jump_relu_threshold must be a number of 0 or more, not "
                f"{config.get('jump_relu_threshold')!r:.40}; {REMEDY}"
            )
        weights["threshold"] = weights["W_enc"].new_full((d_sae,), threshold * factor)
    weights["W_enc"] = weights["W_enc"] * factor
    weights |= {name: weights[name] / factor for name in ("W_dec", "b_dec")}
    return sae_without_subtraction("jumprelu", weights, path), None
