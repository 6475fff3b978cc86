"""Gemma Scope (Lieberum et al., arXiv 2408.05147): JumpReLU SAEs of Gemma 2, `params.npz` without a config.

Repository `google/gemma-scope-{size}-{pt|it}-{res|mlp|att}`, folder `layer_{n}/width_{w}/average_l0_{l0}`.
"""

from collections.abc import Mapping

from saelineage.foreign.places import RESIDUAL, Place, Reading, read_hook_name
from saelineage.foreign.sae_formats.names import layer_of, search, width_of
from saelineage.foreign.sae_formats.npz import npz_shapes
from saelineage.foreign.sae_formats.refusals import require_sae_names
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_inputs import SaeInput

HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
"""TransformerLens's hooks of the places in a repository's name. Attention is read at the concatenated heads."""
D_MODEL = {"2b": 2304, "9b": 3584, "27b": 4608}
D_HEADS = {"2b": 2048, "9b": 4096, "27b": 4096}
"""Heads x their width, the input of the output projection."""
EMBEDDING = "embedding"
"""Folder of SAEs of the embeddings before they are scaled by the square root of d_model."""


def describe(config: Mapping, source: SaeSource) -> SaeInput:
    """What the names and the headers of the arrays say.

    Raises:
        InputError: if it is a transcoder by its names, or the file is no whole archive of arrays.
    """
    require_sae_names(source.names, source.where)
    repository = search(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att)(?![a-z])", source.names)
    layer = 0 if is_embedding(source) else layer_of(source.names)
    reading = _reading(repository[3] if repository else None, layer, is_embedding(source))
    shapes = npz_shapes(source.local_weights) if source.local_weights else {}
    shape = next((shape for name, shape in shapes.items() if name.lower() == "w_enc"), ())
    d_in, d_sae = shape if len(shape) == 2 else (None, width_of(source.names))
    if repository and d_in is None:
        d_in = (D_HEADS if repository[3] == "att" else D_MODEL)[repository[1]]
    model = f"google/gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "") if repository else None
    original = {"hook_name": reading.name} if reading else {}
    return SaeInput(
        source.where,
        (reading,) if reading else (),
        d_in=d_in,
        d_sae=d_sae,
        model_name=model,
        context_size=1024,
        is_transformer_lens=reading is not None and "hook_" in reading.name,
        original=original | {"model_name": model, "context_size": 1024, "prepend_bos": True},
    )


def is_embedding(source: SaeSource) -> bool:
    """True for an SAE of the embeddings."""
    return EMBEDDING in source.names


def _reading(kind: str | None, layer: int | None, is_embedding: bool) -> Reading | None:
    if is_embedding:
        return Reading("hook_embed", (Place(RESIDUAL, 0),), 0)
    if layer is None:
        return None
    return read_hook_name(f"blocks.{layer}.{HOOKS[kind]}") if kind else Reading(f"layer {layer}", (), layer)
