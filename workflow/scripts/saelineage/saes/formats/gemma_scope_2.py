"""SAEs of Gemma Scope 2."""

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.refusals import TRANSCODER, WAY_ROUND
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.formats.layouts import renamed, sae_without_subtraction
from saelineage.saes.sae import Sae, read_tensors

NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
SKIP = "affine_skip_connection"


def read(source: SaeSource) -> tuple[Sae, int | None]:
    """Read an SAE of Gemma Scope 2."""
    tensors = read_tensors(source.weights, REMEDY)
    if SKIP in tensors:
        raise InputError(f"'{source.weights}' cannot be imported, because {TRANSCODER} ({SKIP}); {WAY_ROUND}")
    weights, _ = renamed(tensors, NAMES, (), "a JumpReLU SAE", source.weights, REMEDY)
    return sae_without_subtraction("jumprelu", weights, source.weights), None
