"""SAEs of Goodfire, and of qresearch."""

from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats.layouts import renamed, sae_without_subtraction
from saelineage.saes.formats.pickles import unpickled
from saelineage.saes.sae import Sae


def read(source: SaeSource) -> tuple[Sae, int | None]:
    """Read a ReLU SAE of two linear layers, which Goodfire calls `encoder_linear` and qresearch `encoder`."""
    tensors = unpickled(source.weights)
    suffix = "" if "encoder.weight" in tensors else "_linear"
    names = {"W_enc": f"encoder{suffix}.weight", "W_dec": f"decoder{suffix}.weight"}
    names |= {"b_enc": f"encoder{suffix}.bias", "b_dec": f"decoder{suffix}.bias"}
    weights, _ = renamed(tensors, names, (), "a ReLU SAE", source.weights, REMEDY)
    return sae_without_subtraction("relu", weights, source.weights), None
