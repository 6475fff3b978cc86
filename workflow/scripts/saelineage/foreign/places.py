"""Places in language models, whatever a library calls them, and the layouts of models that decide what a name means.

TransformerLens has hooks (`blocks.3.hook_resid_post`), Hugging Face modules whose inputs or outputs are read
(`model.layers.3.output`). Both become a `Place`, and so does a run's hookpoint.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from saelineage.foreign.models import text_config

RESIDUAL, MIDDLE = "the residual stream", "the residual stream between attention and MLP"
ATTN_IN, ATTN_OUT, HEADS = "the input of attention", "the output of attention", "the concatenated heads"
MLP_IN, MLP_OUT = "the input of the MLP", "the output of the MLP"
MLP_ACTS, MLP_GATES = "the MLP's activations", "the MLP's values before its activation function"
NORMED_ATTN_OUT, NORMED_MLP_OUT = "the normalised output of attention", "the normalised output of the MLP"
CENTRED = (RESIDUAL, MIDDLE, ATTN_OUT, MLP_OUT)
"""Kinds of places whose activations TransformerLens's `center_writing_weights` centres."""


class Place(NamedTuple):
    """A place in a language model, whatever a library calls it."""

    kind: str
    layer: int
    """The layer it lies in. The residual stream of layer n is the input of layer n and the output of layer n - 1."""

    def __str__(self) -> str:
        if self.kind == RESIDUAL:
            return f"{RESIDUAL} before layer {self.layer}"
        return f"{self.kind} in layer {self.layer}"


class Kinds(NamedTuple):
    """Kinds of place that one name has in models of different layouts."""

    usual: str
    """In models whose MLP reads what attention wrote, with norms before both."""
    normed_outputs: str | None = None
    """In models that normalise the outputs of attention and MLP (`OUTPUT_NORMS`); None if it is the usual one."""
    parallel: tuple[str, ...] = ()
    """In models whose attention and MLP both read the layer's input (`PARALLEL`), several if one norm may serve both;
    none if it is the usual one."""

    def of_model(self, norms_outputs: bool | None, parallel: bool | None) -> tuple[str, ...]:
        """The kinds that are possible in a model; None stands for a layout that is not known."""
        kinds: list[str] = []
        if not norms_outputs and not parallel:
            kinds.append(self.usual)
        if norms_outputs is not False and not parallel:
            kinds.append(self.normed_outputs or self.usual)
        if not norms_outputs and parallel is not False:
            kinds.extend(self.parallel or (self.usual,))
        return tuple(dict.fromkeys(kinds))


TRANSFORMER_LENS = {
    "hook_resid_pre": Kinds(RESIDUAL),
    "hook_resid_mid": Kinds(MIDDLE),
    "hook_attn_out": Kinds(ATTN_OUT, NORMED_ATTN_OUT),
    "hook_mlp_out": Kinds(MLP_OUT, NORMED_MLP_OUT),
    "attn.hook_z": Kinds(HEADS),
    "mlp.hook_pre": Kinds(MLP_GATES),
    "mlp.hook_post": Kinds(MLP_ACTS),
}
"""Kinds of place of TransformerLens's hooks in a block. `hook_resid_post` is the next block's `hook_resid_pre`."""
OUTPUT_NORMS = ("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "olmo2", "olmo3", "exaone4")
"""Model types (`model_type`) that normalise the outputs of attention and MLP, the former in
`post_attention_layernorm`."""
OTHER_OUTPUT_NORMS = ("glm4",)
"""Model types that normalise these outputs too, under other names: `post_attention_layernorm` is before the MLP."""
PARALLEL = ("codegen", "cohere", "cohere2", "gptj", "phi")
"""Model types whose attention and MLP both read the layer's input."""
PARALLEL_KEYS = {"gpt_neox": ("use_parallel_residual", True), "stablelm": ("use_parallel_residual", False)} | {
    "falcon": ("parallel_attn", True)
}
"""Model types in which a key of the config says whether they do, with its default."""
SERIAL = (
    *("gemma", "gpt2", "gpt_neo", "gpt_bigcode", "granite", "llama", "mistral", "mixtral", "olmo", "opt", "phi3"),
    *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
)
"""Model types whose MLP reads what attention wrote."""
_ATTENTION = r"(self_attn|attn|attention|self_attention|attn\.attention)"
_MLP = r"(mlp|feed_forward|ffn)"
MODULES = {
    r"input|(input_layernorm|ln_1|ln1)\.input": Kinds(RESIDUAL),
    r"pre_feedforward_layernorm\.input": Kinds(MIDDLE),
    r"(ln_2|ln2)\.input": Kinds(MIDDLE),
    r"post_attention_layernorm\.input": Kinds(MIDDLE, ATTN_OUT, (RESIDUAL,)),
    rf"{_ATTENTION}(\.(q_proj|k_proj|v_proj|c_attn|query_key_value))?\.input": Kinds(ATTN_IN),
    r"(input_layernorm|ln_1|ln1)\.output": Kinds(ATTN_IN, parallel=(ATTN_IN, MLP_IN)),
    rf"{_ATTENTION}\.(o_proj|c_proj|dense|out_proj)\.input": Kinds(HEADS),
    rf"{_ATTENTION}(\.(o_proj|c_proj|dense|out_proj))?\.output": Kinds(ATTN_OUT),
    r"post_attention_layernorm\.output": Kinds(MLP_IN, NORMED_ATTN_OUT),
    rf"{_MLP}(\.(gate_proj|up_proj|c_fc|dense_h_to_4h|fc_in|fc1))?\.input": Kinds(MLP_IN, parallel=(MLP_IN, ATTN_IN)),
    r"(ln_2|ln2|pre_feedforward_layernorm)\.output|fc1\.input": Kinds(MLP_IN),
    rf"{_MLP}\.(gate_proj|c_fc|dense_h_to_4h|fc_in|fc1)\.output|fc1\.output": Kinds(MLP_GATES),
    rf"{_MLP}\.(down_proj|c_proj|dense_4h_to_h|fc_out|fc2)\.input|fc2\.input": Kinds(MLP_ACTS),
    rf"{_MLP}(\.(down_proj|c_proj|dense_4h_to_h|fc_out|fc2))?\.output|fc2\.output": Kinds(MLP_OUT),
    r"post_feedforward_layernorm\.output": Kinds(NORMED_MLP_OUT),
}
"""Kinds of place of the sides of Hugging Face's modules in a layer, as patterns of their names."""


class Reading(NamedTuple):
    """A place as a name gives it, as far as the name tells."""

    name: str
    places: tuple[Place, ...]
    """The place; none if the name is not known here, and several if it depends on the model's layout (`Kinds`)."""
    layer: int | None
    """The layer in the name."""
    kinds: Kinds | None = None
    """The kinds that the places have in models of different layouts, if there are several."""

    @property
    def layers(self) -> set[int]:
        """The layers whose input, output or inside this can be."""
        near = {layer for place in self.places for layer in (place.layer, place.layer - (place.kind == RESIDUAL))}
        return near or ({self.layer} if self.layer is not None else set())

    def of_model(self, norms_outputs: bool | None, parallel: bool | None = None) -> "Reading":
        """The place, or the places that are possible, in a model of some layout; None where the layout is not known."""
        if self.kinds is None or self.layer is None:
            return self
        return self._replace(places=_places(self.kinds.of_model(norms_outputs, parallel), self.layer))

    def __str__(self) -> str:
        places = " or ".join(map(str, self.places))
        return f"'{self.name[:80]}'" + (f" ({places})" if places else "")


def read_hook_name(name: str) -> Reading:
    """Read a hook of TransformerLens, or a module of Hugging Face with or without a side, the output by default."""
    if hook := re.fullmatch(r"blocks\.(\d{1,6})\.(.*hook_.*)", name):
        layer, kind = int(hook[1]), hook[2]
        if kind == "hook_resid_post":
            return Reading(name, (Place(RESIDUAL, layer + 1),), layer)
        return reading_of(name, TRANSFORMER_LENS.get(kind), layer)
    sided = name if name.endswith((".input", ".output")) else f"{name}.output"
    module = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks|layer)\.(\d{1,6})\.(.+)", sided)
    if module is None:
        return Reading(name, (), None)
    layer, side = int(module[1]), module[2]
    if side == "output":
        return Reading(name, (Place(RESIDUAL, layer + 1),), layer)
    return reading_of(
        name, next((kinds for pattern, kinds in MODULES.items() if re.fullmatch(pattern, side)), None), layer
    )


def reading_of(name: str, kinds: Kinds | None, layer: int) -> Reading:
    """The reading of a name that means these kinds of place in a layer; None for a name that is not known."""
    return Reading(name, (), layer, kinds).of_model(None)


def _places(kinds: Iterable[str], layer: int) -> tuple[Place, ...]:
    return tuple(Place(kind, layer) for kind in kinds)


def norm_kind(config: Mapping) -> str | None:
    """The kind of norm of a language model, `layer` or `rms`, from its config.json; None if that does not tell."""
    keys = {key for part in (config, *config.values()) if isinstance(part, Mapping) for key in part}
    if any("rms_norm" in key or "rmsnorm" in key for key in keys):  # first, because image parts may have LayerNorm
        return "rms"
    of_layer_norm = {"layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon"}
    return "layer" if keys & of_layer_norm or config.get("model_type") == "opt" else None


def norms_outputs(config: Mapping) -> bool | None:
    """True if the language model of a config.json normalises the outputs of attention and MLP; None if unsure."""
    kind = text_config(config).get("model_type")
    return None if kind in OTHER_OUTPUT_NORMS else kind in OUTPUT_NORMS


def has_parallel_blocks(config: Mapping) -> bool | None:
    """True if attention and MLP of the language model of a config.json read the layer's input; None if unsure."""
    text = text_config(config)
    kind = text.get("model_type")
    if isinstance(kind, str) and kind in PARALLEL_KEYS:
        key, default = PARALLEL_KEYS[kind]
        return text.get(key, default) is True
    if kind in PARALLEL:
        return True
    return False if kind in (*SERIAL, *OUTPUT_NORMS, *OTHER_OUTPUT_NORMS) else None
