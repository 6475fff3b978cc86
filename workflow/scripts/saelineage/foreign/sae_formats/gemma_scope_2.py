"""Gemma Scope 2: JumpReLU SAEs of Gemma 3, `params.safetensors` and mostly `config.json`.

Repository `google/gemma-scope-2-{size}-{pt|it}`, folder
`{resid_post|attn_out|mlp_out}[_all]/layer_{n}_width_{w}_l0_{l0}`.
"""

from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json, tensor_shapes
from saelineage.foreign.places import Reading, read_hook_name
from saelineage.foreign.sae_formats.architectures import require_settings
from saelineage.foreign.sae_formats.names import layer_of, search, width_of
from saelineage.foreign.sae_formats.refusals import TRANSCODER, WAY_ROUND, require_sae_names
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY, storable, text
from saelineage.foreign.sae_inputs import SaeInput

MODULES = {
    "resid_post": "output",
    "attn_out": "self_attn.o_proj.input",
    "mlp_out": "post_feedforward_layernorm.output",
}
"""Names of places in a folder's name, as modules of a layer."""
D_MODEL = {"270m": 640, "1b": 1152, "4b": 2560, "12b": 3840, "27b": 5376}
D_HEADS = {"270m": 1024, "1b": 1024, "4b": 2048, "12b": 4096, "27b": 4096}


def read_config(path: Path) -> dict:
    """Read a config.

    Raises:
        InputError: if it is no such config, or a transcoder's.
    """
    config = read_foreign_json(path, REMEDY)
    require_settings(config, {"architecture": "jump_relu"}, path)
    place_in, place_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if place_out not in (None, place_in) or config.get("affine_connection"):
        raise InputError(
            f"'{path}': hf_hook_point_out must be none or hf_hook_point_in ({place_in!r:.80}), not {place_out!r:.80}, "
            f"because {TRANSCODER.replace('it is', 'that is')}; {WAY_ROUND}"
        )
    return config


def describe(config: Mapping, source: SaeSource) -> SaeInput:
    """What config, names and the header of the weights say.

    Raises:
        InputError: if it is a transcoder by its names, or the weights are no whole file.
    """
    require_sae_names(source.names, source.where)
    folder = search(r"^(resid_post|attn_out|mlp_out)(_all)?$", source.names)
    repository = search(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)(?![a-z])", source.names)
    hook = text(config.get("hf_hook_point_in"))
    reading = read_hook_name(hook) if hook else _reading(folder[1] if folder else None, layer_of(source.names))
    shape = tensor_shapes(source.local_weights, REMEDY).get("w_enc", ()) if source.local_weights else ()
    d_in, d_sae = shape if len(shape) == 2 else (None, width_of(source.names))
    if repository and folder and d_in is None:
        d_in = (D_HEADS if folder[1] == "attn_out" else D_MODEL)[repository[1]]
    model = text(config.get("model_name")) or (
        f"google/gemma-3-{repository[1]}-{repository[2]}" if repository else None
    )
    model = _hub_name(model) if model else None
    original = {"hf_hook_name": reading.name} if reading else {}
    return SaeInput(
        source.where,
        (reading,) if reading else (),
        d_in=d_in,
        d_sae=d_sae,
        model_name=model,
        context_size=1024,
        original=original
        | {"model_name": model, "context_size": 1024, "prepend_bos": True, "config": storable(dict(config))},
    )


def _hub_name(model: str) -> str:
    """The model's name on the hub; configs have `gemma-v3` for `gemma-3`, and the smallest has no `-pt` there."""
    model = model.replace("-v3", "-3")
    return model.removesuffix("-pt") if "270m" in model else model


def _reading(kind: str | None, layer: int | None) -> Reading | None:
    if layer is None:
        return None
    return read_hook_name(f"model.layers.{layer}.{MODULES[kind]}") if kind else Reading(f"layer {layer}", (), layer)
