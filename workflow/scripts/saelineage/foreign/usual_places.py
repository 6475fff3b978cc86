"""Short names of the usual places in a language model, and the modules of Hugging Face that they stand for.

`resid_pre.12` and `resid_post.12` are the residual stream before and after layer 12, `attn_out.12` and `mlp_out.12`
what its attention and its MLP add to the stream, and `mlp_act.12` the MLP's activations. Layers count from 0.
"""

import re
from collections.abc import Mapping

from saelineage.errors import InputError
from saelineage.foreign.models import LAYERS, n_layers
from saelineage.foreign.places import OUTPUT_NORMS

SHORT = re.compile(r"(?P<kind>resid_pre|resid_post|attn_out|mlp_out|mlp_act)\.(?P<layer>[0-9]{1,6})")

USUAL = {"attn_out": "self_attn.output", "mlp_out": "mlp.output", "mlp_act": "mlp.down_proj.input"}
"""Modules of most types."""
_GPT = {"attn_out": "attn.output", "mlp_act": "mlp.c_proj.input"}
_FC_OUT = {"attn_out": "attn.output", "mlp_act": "mlp.fc_out.input"}
_NORMED = {"attn_out": "post_attention_layernorm.output", "mlp_out": "post_feedforward_layernorm.output"}
_FC2 = {"mlp_out": "fc2.output", "mlp_act": "fc2.input"}
_EXPERTS: dict[str, str | None] = {"mlp_act": None}
_NO_PARTS: dict[str, str | None] = {"attn_out": None, "mlp_out": None, "mlp_act": None}
BY_TYPE: dict[str, Mapping[str, str | None]] = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_neo"), _GPT),
    **dict.fromkeys(("codegen", "gptj"), _FC_OUT),
    "gpt_neox": {"attn_out": "attention.output", "mlp_act": "mlp.dense_4h_to_h.input"},
    "falcon": {"attn_out": "self_attention.output", "mlp_act": "mlp.dense_4h_to_h.input"},
    # Its modules add the residual stream to their own output.
    "bloom": {
        "attn_out": "self_attention.dense.output",
        "mlp_out": "mlp.dense_4h_to_h.output",
        "mlp_act": "mlp.dense_4h_to_h.input",
    },
    "mpt": {"attn_out": "attn.output", "mlp_out": "ffn.down_proj.output", "mlp_act": "ffn.down_proj.input"},
    "persimmon": {"mlp_act": "mlp.dense_4h_to_h.input"},
    "phi": {"mlp_act": "mlp.fc2.input"},
    "starcoder2": {"mlp_act": "mlp.c_proj.input"},
    **dict.fromkeys(("opt", "xglm"), _FC2),
    **dict.fromkeys(OUTPUT_NORMS, _NORMED),
    "glm4": {"attn_out": "post_self_attn_layernorm.output", "mlp_out": "post_mlp_layernorm.output"},
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "gpt_oss", "mixtral", "olmoe"), _EXPERTS),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), _EXPERTS),
    "granitemoe": {"mlp_out": "block_sparse_moe.output", "mlp_act": None},
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2"), _NO_PARTS),
}
"""Modules of the other types, where they differ from `USUAL`; None where a type has no such place."""


def usual_place(name: str, config: Mapping, model: str) -> str:
    """The module and side that a short name stands for in a model.

    Args:
        name: such as `mlp_out.12`.
        config: the model's config.json.
        model: its name, for messages.

    Returns:
        Such as `model.layers.12.mlp.output`.

    Raises:
        InputError: if the model's type is not known here or has no such place, or the model has fewer layers.
    """
    short = SHORT.fullmatch(name)
    assert short is not None, name
    kind, count = config.get("model_type"), n_layers(config)
    layers = next((layers for layers, kinds in LAYERS.items() if kind in kinds), None)
    advice = "write the place as MODULE.output or MODULE.input, with a name that print(model) shows"
    if layers is None:
        raise InputError(
            f"activations.hookpoints: '{name}' must be at home in a type of model whose modules are known here, but "
            f"'{model}' is of type {kind!r:.60}; {advice}"
        )
    if count is not None and int(short["layer"]) >= count:
        raise InputError(
            f"activations.hookpoints: '{name}' needs layer {short['layer']}, but the layers of '{model}' are counted "
            f"from 0 to {count - 1}; the last is {short['kind']}.{count - 1}"
        )
    sides = {"resid_pre": "input", "resid_post": "output"}
    side = sides.get(short["kind"]) or {**USUAL, **BY_TYPE.get(str(kind), {})}[short["kind"]]
    if side is None:
        raise InputError(
            f"activations.hookpoints: '{name}' must be a place that the model has, but in models of type '{kind}', "
            f"such as '{model}', no one module reads or writes it for all tokens; take resid_post.{short['layer']}, or "
            f"{advice}"
        )
    return f"{layers}.{int(short['layer'])}.{side}"
