"""OpenAI's SAEs of GPT-2 small."""

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.openai import NORMED
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats.layouts import renamed, sizes_of
from saelineage.saes.formats.pickles import unpickled_beside
from saelineage.saes.sae import Sae, sae_of

NAMES = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "latent_bias", "b_dec": "pre_bias"}
COUNTERS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def read(source: SaeSource) -> tuple[Sae, int | None]:
    """Read a ReLU SAE of OpenAI.

    Raises:
        InputError: if it is a TopK SAE, whose inputs were normalised, or no such SAE.
    """
    tensors, plain = unpickled_beside(source.weights, ("activation", "activation_state_dict"))
    activation = plain.get("activation", "ReLU")
    if activation == "TopK":
        raise InputError(f"'{source.weights}' cannot be imported, because {NORMED}")
    if activation != "ReLU":
        raise InputError(f"'{source.weights}': activation must be 'ReLU', not {activation!r:.40}; use another SAE")
    weights, _ = renamed(tensors, NAMES, COUNTERS, "an SAE of OpenAI", source.weights, REMEDY)
    d_in, d_sae = sizes_of(weights["W_enc"], source.weights)
    return sae_of("relu", d_in, d_sae, tensors=weights, where=source.weights), None
