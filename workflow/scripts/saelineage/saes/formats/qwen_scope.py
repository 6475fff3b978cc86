"""SAEs of Qwen-Scope."""

from saelineage.foreign.sae_formats.qwen_scope import kept_latents
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats.layouts import renamed, sae_without_subtraction
from saelineage.saes.formats.pickles import unpickled
from saelineage.saes.sae import Sae

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def read(source: SaeSource) -> tuple[Sae, int | None]:
    """Read an SAE of Qwen-Scope, whose matrices are transposed: W_enc [d_sae, d_in], W_dec [d_in, d_sae]."""
    k = kept_latents(source)
    names = {name: name for name in TENSORS}
    weights, _ = renamed(unpickled(source.weights), names, (), "a TopK SAE", source.weights, REMEDY)
    weights |= {name: weights[name].mT for name in ("W_enc", "W_dec") if weights[name].ndim == 2}
    return sae_without_subtraction("topk", weights, source.weights, k), k
