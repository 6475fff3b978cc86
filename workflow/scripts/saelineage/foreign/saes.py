"""Third-party SAEs as their config files describe them: the library that saved them, their computation, their input.

SAELens names places by TransformerLens's hooks (`blocks.3.hook_resid_post`) or by modules whose output is read
(`model.layers.3`). dictionary-learning gives a layer, a name such as `resid_post_layer_3` and a side. sparsify names
the folder after the module. All of these become a `Place`, and so does a run's hookpoint.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json
from saelineage.foreign.models import text_config

FILES = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
    "sparsify": ("cfg.json", "sae.safetensors"),
}
"""Names of the config and weights files of each format."""
REMEDY = "fetch it again, or save it again with the library that made it"
SAELENS_NAMES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
"""SAELens's names of the architectures here."""
DICTIONARY_CLASS_NAMES = (
    *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"),
    "MatryoshkaBatchTopKSAE",
)
"""Classes of dictionary-learning that can be imported."""
SPARSIFY_SETTINGS = {"activation": "topk", "skip_connection": False, "transcode": False, "signed": False}
"""Options of sparsify's sparse coders; other values cannot be imported. `multi_topk` only affects training."""
INPUT_KEYS = (
    *("model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "hf_hook_name", "hook_layer"),
    *("hook_head_index", "context_size", "prepend_bos", "seqpos_slice", "exclude_special_tokens", "dataset_path"),
    "neuronpedia_id",
)
"""SAELens's keys about an SAE's input, in `metadata` since version 6 and at the top before."""
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "hook_name_hf": "hf_hook_name",
    "hf_hook_point": "hf_hook_name",
}
"""Earlier names of these keys."""
MODEL_ALIASES = {"gpt2small": "gpt2"}
"""TransformerLens's names of models that differ from those of the hub."""

# Places in a model.

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
DICTIONARY_NAMES = {
    "resid_pre": Kinds(RESIDUAL),
    "mlp_out": Kinds(MLP_OUT),
    "mlp_in": Kinds(MLP_IN, parallel=(MLP_IN, ATTN_IN)),
    "attn_out": Kinds(ATTN_OUT),
    "attention_out": Kinds(ATTN_OUT),
}
"""Kinds of place of dictionary-learning's names, before `_layer_{n}`. `resid_post` is the residual stream after it."""


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
        return _reading(name, TRANSFORMER_LENS.get(kind), layer)
    sided = name if name.endswith((".input", ".output")) else f"{name}.output"
    module = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks|layer)\.(\d{1,6})\.(.+)", sided)
    if module is None:
        return Reading(name, (), None)
    layer, side = int(module[1]), module[2]
    if side == "output":
        return Reading(name, (Place(RESIDUAL, layer + 1),), layer)
    return _reading(
        name, next((kinds for pattern, kinds in MODULES.items() if re.fullmatch(pattern, side)), None), layer
    )


def _reading(name: str, kinds: Kinds | None, layer: int) -> Reading:
    return Reading(name, (), layer, kinds).of_model(None)


def _places(kinds: Iterable[str], layer: int) -> tuple[Place, ...]:
    return tuple(Place(kind, layer) for kind in kinds)


# What a config says.


class SaeInput(NamedTuple):
    """The input of an SAE, as its config describes it. None where it does not say."""

    where: str
    """The config, for messages."""
    readings: tuple[Reading, ...] = ()
    """The place, under each name that the config has for it."""
    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    hook_head_index: int | None = None
    seqpos_slice: tuple[int | None, ...] | None = None
    model_settings: Mapping[str, object] | None = None
    """Options with which TransformerLens loaded the model; None if the config has no such key."""
    is_transformer_lens: bool = False
    """True if TransformerLens computed the activations, as the names tell."""
    original: Mapping[str, object] = {}
    """The config's own keys about the input, under SAELens's names of version 6."""


class Beside(NamedTuple):
    """The SAEs that are trained beside imported ones, from random weights."""

    names: tuple[str, ...]
    expansion_factor: float | int
    k: int | None
    """Latents that they keep per token; None if their architecture has no k."""


class RunInput(NamedTuple):
    """The activations of a run that an SAE is imported for."""

    hookpoint: str
    n_ctx: int
    model: str
    """The model's name in the run."""
    sources: tuple[str, ...] = ()
    """Repository or folder that the model comes from, if it was not made here."""
    d_in: int | None = None
    """Width at the hookpoint, if it is known yet."""
    norm: str | None = None
    """`layer` or `rms`, the kind of the model's norms, if it is known yet (`norm_kind`)."""
    norms_outputs: bool | None = None
    """True if the model normalises the outputs of attention and MLP (`norms_outputs`); None if it is not known."""
    parallel: bool | None = None
    """True if the model's attention and MLP both read the layer's input (`has_parallel_blocks`); None if not known."""
    beside: Beside | None = None
    """The SAEs that the imported one is compared with in size, if there are such and they are known."""

    @property
    def reading(self) -> Reading:
        """The place of the hookpoint."""
        return read_hook_name(self.hookpoint).of_model(self.norms_outputs, self.parallel)

    @property
    def has_layout(self) -> bool:
        """True if something is known of the model's layout."""
        return self.norms_outputs is not None or self.parallel is not None

    @property
    def writes_residual(self) -> bool:
        """True at the residual stream and at what is added to it, where TransformerLens can centre activations."""
        return any(place.kind in CENTRED for place in self.reading.places)


def choose_format(names: Collection[str], chosen: str, where: str) -> str:
    """Choose the format of a folder with these files: `chosen`, or, for `auto`, the only one whose files are present.

    Raises:
        InputError: if the files are missing, or, for `auto`, there are those of several formats.
    """
    candidates = FILES if chosen == "auto" else {chosen: FILES[chosen]}
    present = [name for name, files in candidates.items() if set(files) <= set(names)]
    if len(present) == 1:
        return present[0]
    if present:
        raise InputError(
            f"'{where}' holds SAEs of several formats ({', '.join(present)}); choose one with import.format"
        )
    required = "; ".join(f"{name}: {' and '.join(files)}" for name, files in candidates.items())
    raise InputError(
        f"'{where}' must hold an SAE ({required}), but holds {sorted(names)[:20]}; name the folder with these files"
    )


def read_config(path: Path, format: str) -> dict:
    """Read an SAE's config; one of SAELens is converted to the keys of version 6.

    Raises:
        InputError: if it is not a config of the format, or the SAE computes what cannot be imported.
    """
    config = read_foreign_json(path, REMEDY)
    if format == "saelens":
        config = as_version_6(config, path)
        _require_saelens(config, path)
    elif format == "sparsify":
        require_settings(config, SPARSIFY_SETTINGS, path)
    elif (name := _block(config, "trainer").get("dict_class")) not in DICTIONARY_CLASS_NAMES:
        raise InputError(
            f"'{path}': trainer.dict_class must be one of {sorted(DICTIONARY_CLASS_NAMES)}, not {name!r:.80}; "
            "use another SAE"
        )
    return config


def require_settings(config: Mapping, settings: Mapping, path: Path | str) -> None:
    """Refuse a config that sets one of these keys to another value; missing keys pass.

    Raises:
        InputError: naming the first such key.
    """
    for key, value in settings.items():
        if config.get(key, value) != value:
            raise InputError(f"'{path}': {key} must be {value!r}, not {config[key]!r:.80}; use another SAE")


def as_version_6(config: dict, path: Path) -> dict:
    """Convert a SAELens config to the keys of version 6, as SAELens 6 does.

    Raises:
        InputError: if its activation function is one that SAELens 6 no longer has.
    """
    metadata = _block(config, "metadata")
    version = config.get("sae_lens_version") or metadata.get("sae_lens_version") or "0"
    major = re.match(r"\d{1,9}", str(version))
    if major and int(major.group()) >= 6:
        return config
    hook_name = str(config.get("hook_name") or config.get("hook_point") or "")
    config = {"architecture": "standard", "reshape_activations": "hook_z" if "hook_z" in hook_name else "none"} | config
    normalize = config.get("normalize_activations") or "none"
    config["normalize_activations"] = "expected_average_only_in" if normalize is True else normalize
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    k = _block(config, "activation_fn_kwargs").get("k")
    if activation not in ("relu", "topk"):
        raise InputError(f"'{path}': activation_fn must be 'relu' or 'topk', not {activation!r:.80}; use another SAE")
    return config | {"architecture": "topk", "k": k} if activation == "topk" and k is not None else config


def _require_saelens(config: Mapping, path: Path) -> None:
    """Refuse transformations of the input that cannot be folded, and architectures that are none of those here."""
    if config.get("normalize_activations", "none") != "none":
        raise InputError(
            f"'{path}': normalize_activations must be 'none', not {config['normalize_activations']!r:.80}; if it is "
            "one factor for all tokens, fold it with SAELens (fold_activation_norm_scaling_factor, then save_model); a "
            "norm per token cannot be folded"
        )
    if config.get("reshape_activations", "none") != "none":
        raise InputError(
            f"'{path}': reshape_activations must be 'none', not {config['reshape_activations']!r:.80}; if the "
            "hookpoint's activations are concatenated heads (the input of o_proj), set it to 'none' in a copy"
        )
    require_architecture(config, path)


def require_architecture(config: Mapping, path: Path | str) -> None:
    """Refuse a SAELens config of another architecture than those here.

    Raises:
        InputError: naming the architecture.
    """
    if config.get("architecture") not in list(SAELENS_NAMES.values()):
        raise InputError(
            f"'{path}': architecture must be one of {sorted(SAELENS_NAMES.values())}, not "
            f"{config.get('architecture')!r:.80}; use an SAE of one of these"
        )


def _block(config: Mapping, key: str) -> dict:
    """The mapping under a key of a config; empty if the key is missing or holds something else."""
    return block if isinstance(block := config.get(key), dict) else {}


def describe_input(config: Mapping, path: Path, format: str) -> SaeInput:
    """Extract what a config says of the SAE's input. Values of unexpected types count as not given.

    Args:
        config: as `read_config` gives it.
        path: its file. If the config names no place, the names of the two folders above may.
        format: a key of `FILES`.
    """
    described = _DESCRIPTIONS[format](config, str(path))
    if described.readings:
        return described
    of_folders = [read_hook_name(folder.name) for folder in path.parents[:2]]
    return described._replace(readings=tuple(reading for reading in of_folders if reading.layer is not None)[:1])


def storable(value: object) -> object:
    """A JSON value that can be written again and logged: printable strings and finite numbers."""
    if isinstance(value, dict):
        return {storable(key): storable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [storable(entry) for entry in value]
    if isinstance(value, str):
        return "".join(character if character.isprintable() else "?" for character in value)
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _describe_saelens(config: Mapping, where: str) -> SaeInput:
    metadata = _block(config, "metadata")
    keys = {OLD_NAMES.get(key, key): value for key, value in (dict(config) | metadata).items()}
    original = {key: storable(keys[key]) for key in INPUT_KEYS if key in keys}
    hook = _text(keys.get("hook_name"))
    if hook is not None and (layer := _count(keys.get("hook_layer"))) is not None:
        hook = hook.replace("{layer}", str(layer))  # version 1 left the number to another key
    readings = tuple(read_hook_name(name) for name in (hook, _text(keys.get("hf_hook_name"))) if name)
    settings = keys.get("model_from_pretrained_kwargs")
    return SaeInput(
        where,
        readings,
        d_in=_count(config.get("d_in")),
        d_sae=_count(config.get("d_sae")),
        k=_count(config.get("k")),
        model_name=_text(keys.get("model_name")),
        context_size=_count(keys.get("context_size")),
        prepend_bos=keys["prepend_bos"] if isinstance(keys.get("prepend_bos"), bool) else None,
        hook_head_index=_count(keys.get("hook_head_index")),
        seqpos_slice=_positions(keys.get("seqpos_slice")),
        model_settings=settings if isinstance(settings, dict) else None,
        is_transformer_lens=hook is not None and "hook_" in hook,
        original=original,
    )


def _describe_dictionary_learning(config: Mapping, where: str) -> SaeInput:
    trainer, buffer = _block(config, "trainer"), _block(config, "buffer")
    layer, side = _count(trainer.get("layer")), "input" if buffer.get("io") == "in" else "output"
    name = _text(trainer.get("submodule_name"))
    reading = _dictionary_reading(name, side) if name else None
    if reading is None or reading.layer is None:
        reading = Reading(f"layer {layer}", (), layer) if layer is not None else None
    return SaeInput(
        where,
        (reading,) if reading else (),
        d_in=_count(trainer.get("activation_dim")),
        d_sae=_count(trainer.get("dict_size")),
        k=_count(trainer.get("k")),
        model_name=_text(trainer.get("lm_name")),
        context_size=_count(buffer.get("ctx_len")),
        original={key: storable(block) for key, block in {"trainer": trainer, "buffer": buffer}.items()},
    )


def _dictionary_reading(name: str, side: str) -> Reading:
    """Read dictionary-learning's name of a module, and the side of it that was read."""
    named = re.fullmatch(r"(\w+?)_layer_(\d{1,6})", name)
    if named is None:
        return read_hook_name(name if name.endswith((".input", ".output")) else f"{name}.{side}")
    layer = int(named[2])
    if side == "input":  # the names are those of outputs
        return Reading(f"the input of {name}", (), layer)
    if named[1] == "resid_post":
        return Reading(name, (Place(RESIDUAL, layer + 1),), layer)
    return _reading(name, DICTIONARY_NAMES.get(named[1]), layer)


def _describe_sparsify(config: Mapping, where: str) -> SaeInput:
    d_in, factor = _count(config.get("d_in")), _count(config.get("expansion_factor"))
    d_sae = _count(config.get("num_latents")) or (d_in * factor if d_in and factor else None)
    return SaeInput(
        where, d_in=d_in, d_sae=d_sae, k=_count(config.get("k")), original={"config": storable(dict(config))}
    )


_DESCRIPTIONS = {
    "saelens": _describe_saelens,
    "dictionary_learning": _describe_dictionary_learning,
    "sparsify": _describe_sparsify,
}


def _text(value: object) -> str | None:
    return str(storable(value)) if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= 2**40 else None


def _positions(value: object) -> tuple[int | None, ...] | None:
    """A slice of positions as SAELens writes it: start, stop and step, of which later ones may be missing."""
    if not isinstance(value, list) or not 1 <= len(value) <= 3:
        return None
    if not all(entry is None or type(entry) is int for entry in value) or (len(value) == 3 and value[2] == 0):
        return None
    return tuple(value)


# Comparison with a run.


def check_sae(path: Path, format: str, run: RunInput, key: str) -> list[str]:
    """Refuse an SAE whose config contradicts a run; needs the config alone.

    Args:
        path: the SAE's config.
        format: a key of `FILES`.
        run: the activations that it is imported for.
        key: the key of the config that names the SAE, for messages.

    Returns:
        What cannot be told for sure, a sentence each.

    Raises:
        InputError: if the config is not one of the format, or the SAE is of another place.
    """
    return compare_with_run(describe_input(read_config(path, format), path, format), run, key)


def compare_with_run(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    """Refuse an SAE whose input is not a run's, and say in sentences what cannot be told for sure.

    Raises:
        InputError: naming the key to change, if the place or its width is another, one head alone was read, or the SAE
            was not trained on positions that the run reads.
    """
    sentences = _compare_places(sae, run, key)
    _require_width(sae, run, key)
    _require_whole(sae, run, key)
    is_centred(sae, run, key)  # refuses what cannot be folded
    sentences += [*_compare_models(sae, run, key), *_compare_rows(sae, run, key), *_doubts(sae, run, key)]
    return sentences + (_compare_sizes(sae, run.beside, key) if run.beside else [])


def _compare_places(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    hookpoint = run.reading
    if not sae.readings:
        return [
            f"{key}: '{sae.where}' does not say at which hookpoint the SAE was trained; make sure that it is "
            f"'{run.hookpoint}' (activations.hookpoint)"
        ]
    sentences = []
    for reading in (reading.of_model(run.norms_outputs, run.parallel) for reading in sae.readings):
        if reading.name == run.hookpoint:
            continue
        known = bool(reading.places and hookpoint.places)
        # Before the model is known, the layout is left to the job.
        is_ambiguous = len({*reading.places, *hookpoint.places}) > 1 and run.has_layout
        same_place = bool(set(reading.places) & set(hookpoint.places))
        same_layer = bool(reading.layers & hookpoint.layers) or not (reading.layers and hookpoint.layers)
        if not (same_place if known else same_layer):
            raise InputError(
                f"{key}: '{sae.where}' says that the SAE was trained at {reading}, but activations.hookpoint is "
                f"{hookpoint}; {_remedy(reading, run.hookpoint)}"
            )
        if not known or (is_ambiguous and reading.places != hookpoint.places):
            sentences.append(
                f"{key}: '{sae.where}' says that the SAE was trained at {reading}, and it is unclear whether that is "
                f"{hookpoint} (activations.hookpoint); make sure that it is"
            )
    return sentences


def _remedy(reading: Reading, hookpoint: str) -> str:
    """The next step for an SAE of another place: the hookpoint that it needs, if its name in this model can be told."""
    layer = re.fullmatch(r"(.*\.(?:layers|h|blocks|layer))\.\d+\.(.+)", hookpoint)
    needed = None
    if layer and len(reading.places) == 1:
        (place,) = reading.places
        if place.kind == RESIDUAL:
            needed = f"{place.layer - 1}.output" if place.layer else "0.input"
        elif place.kind in [of_run.kind for of_run in read_hook_name(hookpoint).places]:
            needed = f"{place.layer}.{layer[2]}"
    change = f"set it to '{layer[1]}.{needed}'" if layer and needed else "set it to that place"
    return f"{change}, or import an SAE that was trained at this hookpoint"


def _require_width(sae: SaeInput, run: RunInput, key: str) -> None:
    if sae.d_in is not None and run.d_in is not None and sae.d_in != run.d_in:
        raise InputError(
            f"{key}: an SAE for '{run.hookpoint}' must have d_in {run.d_in}, but '{sae.where}' says {sae.d_in}; "
            "set activations.hookpoint to the place it was trained at, or import another SAE"
        )


def _require_whole(sae: SaeInput, run: RunInput, key: str) -> None:
    """Refuse an SAE of one head, or of a part of the positions that the run reads."""
    if sae.hook_head_index is not None:
        raise InputError(
            f"{key}: the SAE of '{sae.where}' was trained on head {sae.hook_head_index} alone (hook_head_index), but "
            "activations.hookpoint reads all heads; import another SAE"
        )
    if sae.seqpos_slice is None:
        return
    positions = range(sae.context_size or run.n_ctx)
    trained = positions[slice(*sae.seqpos_slice)]
    read = positions[1 : run.n_ctx]  # position 0 is BOS, which is not read
    unseen = [position for position in read if position not in trained]
    if unseen:
        raise InputError(
            f"{key}: '{sae.where}' must have a seqpos_slice that holds all positions, but {list(sae.seqpos_slice)} "
            f"left {len(unseen)} of the {len(read)} that are read here out of the SAE's training, from position "
            f"{unseen[0]}; import another SAE"
        )


def _compare_models(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    names = [run.model, *run.sources]
    if sae.model_name is None or _plain_name(sae.model_name) in map(_plain_name, names):
        return []
    source = f", which comes from {' and '.join(map(repr, run.sources))}" if run.sources else ""
    return [
        f"{key}: '{sae.where}' says that the SAE was trained on the model '{sae.model_name[:80]}', but it is imported "
        f"for '{run.model}'{source}; make sure that these are the same model, or one whose features you want to see "
        "through the other's SAE"
    ]


def _plain_name(name: str) -> str:
    """A model's name without its owner, punctuation and case."""
    plain = re.sub(r"[^a-z0-9]", "", name.rstrip("/").rsplit("/", 1)[-1].lower())
    return MODEL_ALIASES.get(plain, plain)


def _compare_rows(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    sentences = []
    if sae.context_size is not None and sae.context_size != run.n_ctx:
        sentences.append(
            f"{key}: '{sae.where}' says that the SAE was trained on contexts of {sae.context_size} tokens, but rows "
            f"here have {run.n_ctx} (tokens.n_ctx); activations depend on the position, so set n_ctx to "
            f"{sae.context_size} if you can"
        )
    if sae.prepend_bos is False:
        sentences.append(
            f"{key}: '{sae.where}' says that the SAE was trained on contexts without BOS (prepend_bos), but rows here "
            "begin with it, which changes the activations after it; look at the SAE's fvu"
        )
    return sentences


def _doubts(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    """Say which options of loading the model may matter."""
    settings, sentences = sae.model_settings or {}, []
    if sae.model_settings is None and sae.is_transformer_lens and run.norm == "layer" and run.writes_residual:
        sentences.append(
            f"{key}: '{sae.where}' does not say whether TransformerLens centred the activations "
            "(model_from_pretrained_kwargs), which fvu hardly shows; if it did, add "
            '{"center_writing_weights": true} there in a copy'
        )
    if settings.get("center_writing_weights") and run.norm == "rms":
        sentences.append(
            f"{key}: '{sae.where}' has center_writing_weights, which TransformerLens ignores for models with RMSNorm; "
            "so it is ignored here"
        )
    if settings.get("center_writing_weights") and run.norm is None and run.writes_residual:
        sentences.append(
            f"{key}: '{sae.where}' has center_writing_weights, so the activations are centred for this SAE; "
            "this is right if the model has LayerNorm, which could not be told from its config"
        )
    moved = {"revision", "checkpoint_index", "checkpoint_value", "checkpoint_label"} & settings.keys()
    return sentences + [
        f"{key}: '{sae.where}' says that the SAE was trained on {name} {settings[name]!r:.80} of the model; make sure "
        f"that '{run.model}' is the same"
        for name in sorted(moved)
    ]


def is_centred(sae: SaeInput, run: RunInput, key: str) -> bool:
    """True if an SAE was trained on activations minus their mean over dimensions, as TransformerLens can make them.

    `center_writing_weights` removes the mean from all that is written to the residual stream of a model with LayerNorm,
    which changes no logit. Other places keep their values.

    Raises:
        InputError: if TransformerLens changed the activations in a way that cannot be folded into the SAE.
    """
    settings = sae.model_settings or {}
    for option in ("fold_value_biases", "refactor_factored_attn_matrices"):
        if settings.get(option) and HEADS in [place.kind for place in run.reading.places]:
            raise InputError(
                f"{key}: '{sae.where}' must not have {option} in model_from_pretrained_kwargs, because the heads of "
                "such a model are not those of the model on the hub; import another SAE"
            )
    if not settings.get("center_writing_weights") or run.norm == "rms":
        return False
    if not run.reading.places:
        raise InputError(
            f"{key}: '{sae.where}' has center_writing_weights, but whether it changes activations at "
            f"'{run.hookpoint}' (activations.hookpoint) cannot be told; name the input or output of a layer, or of its "
            "attention or MLP"
        )
    return run.writes_residual


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


def _expansion_factor(d_in: int, d_sae: int) -> str:
    """The shortest number that gives d_sae latents."""
    texts = (f"{d_sae / d_in:.{n_digits}g}" for n_digits in range(1, 18))
    return next((text for text in texts if round(d_in * float(text)) == d_sae), repr(d_sae / d_in))


def _compare_sizes(sae: SaeInput, beside: Beside, key: str) -> list[str]:
    """Say that an imported SAE differs in size or k from SAEs that are trained beside it."""
    sentences, names = [], ", ".join(beside.names[:5]) + (" ..." if len(beside.names) > 5 else "")
    trained = round(sae.d_in * beside.expansion_factor) if sae.d_in else None
    if sae.d_in and sae.d_sae and sae.d_sae != trained:
        sentences.append(
            f"{key}: '{sae.where}' has {sae.d_sae} latents, but SAEs that are trained beside it ({names}) have "
            f"{trained}; for SAEs of one size set saes.expansion_factor to {_expansion_factor(sae.d_in, sae.d_sae)}"
        )
    if sae.k is not None and beside.k is not None and sae.k != beside.k:
        sentences.append(
            f"{key}: '{sae.where}' keeps {sae.k} latents per token, but SAEs that are trained beside it ({names}) "
            f"keep {beside.k}; for SAEs of one sparsity set saes.k to {sae.k}"
        )
    return sentences
