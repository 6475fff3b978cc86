"""Language models as their folders and config.json describe them: sizes, positions, kind, and what is in the way.

The plan asks before the first job, of folders that lie on disk. The jobs ask again of what they really open.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.foreign import mappings, read_foreign_json, require_inside, require_regular

REMEDY = "fetch it again, or save it again with save_pretrained"
CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE, GENERATION_FILE = "adapter_config.json", "generation_config.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
MOST_NAMED = 5
"""Tensors or keys that a message names; the rest is counted."""

TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Keys under which the config of a multimodal model holds that of its text model."""
VOCABULARY_KEYS = ("vocab_size",)
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
MLP_KEYS = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "ffn_hidden_dim", "d_ff")
DEFAULT_MLP_RATIO = 4
WITH_DEFAULT_MLP = (
    *("bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "imagegpt", "mpt", "openai-gpt"),
)
"""Types whose MLPs are 4 x d_model wide, unless the config says otherwise."""
MOST_COUNTED = 2**40
"""Larger numbers in a config count as not given."""
MOST_TIMES = 2**20
"""Larger factors of a RoPE count as not given."""
POSITION_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length"),
    "context_length",
)
WITHOUT_LIMIT = ("bloom",)
"""Types whose distances between tokens (ALiBi) go on beyond the trained length; their seq_length is no limit."""

LAYERS = {
    "model.layers": (
        *(
            "cohere",
            "cohere2",
            "deepseek_v2",
            "deepseek_v3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "glm",
            "glm4",
            "gpt_oss",
        ),
        *("granite", "granitemoe", "helium", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo"),
        *("olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("smollm3", "stablelm", "starcoder2", "xglm"),
    ),
    "transformer.h": ("bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj"),
    "gpt_neox.layers": ("gpt_neox",),
    "model.decoder.layers": ("opt",),
    "model.language_model.layers": ("gemma3",),
    "backbone.layers": ("falcon_mamba", "mamba", "mamba2"),
    "transformer.blocks": ("mpt",),
}
"""Lists of layers in Hugging Face's models, and the types of the models (`model_type`) that have them there."""

ENCODERS = (
    *("albert", "bert", "bert-generation", "big_bird", "camembert", "convbert", "data2vec-text", "deberta"),
    *("deberta-v2", "distilbert", "electra", "ernie", "megatron-bert", "mobilebert", "modernbert", "mpnet"),
    *("nomic_bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
    *("xlm-roberta-xl", "xlnet", "xmod"),
)
"""Types in which each token sees those after it, unless `is_decoder` is set."""
OTHER_HEADS = re.compile(r".*For(MaskedLM|\w+Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction)")

ADAPTER_WAY = "open it with peft on the model that it belongs to, call merge_and_unload, and save_pretrained the result"

SAME_FUNCTION = (
    # Where the model comes from, and the format of its files.
    *("_name_or_path", "name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("tokenizer_class", "unsloth_fixed", "unsloth_version", "_attn_implementation_autoset"),
    # Use in generation and padding: the rows of a run have no padding, and generate nothing.
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "output_attentions", "output_hidden_states", "return_dict"),
    # The same product in other blocks.
    *("chunk_size_feed_forward", "pretraining_tp"),
    # Fresh weights and training.
    *("initializer_range", "initializer_factor", "init_std", "init_method", "gradient_checkpointing", "layerdrop"),
    *("router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise", "output_router_logits"),
    # Names of classes, for heads that a causal model does not have.
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    # The tensors show whether input and output embeddings are tied, and how many rows they have.
    *("tie_word_embeddings", "vocab_size"),
    # The same product in another order of operations.
    "reorder_and_upcast_attn",
    # Defaults of generation, which older versions of transformers wrote into config.json.
    *("do_sample", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "temperature", "top_k", "top_p"),
    *("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "length_penalty", "early_stopping"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("num_return_sequences", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "output_scores"),
    *("return_dict_in_generate", "prefix"),
)
"""Keys of a config.json that do not change the logits of a model with given weights."""
NOT_OF_LOGITS = re.compile(r".*(dropout|pdrop|drop_rate).*|summary_.*")
"""Keys of rates that apply in training only, and of GPT-2's head that sums up a text."""
INERT_WITHOUT_WINDOW = ("sliding_window", "max_window_layers")
"""Keys that do nothing where `use_sliding_window` is false."""
DERIVED = ("head_dim", "n_inner")
"""Sizes that follow from others where a config has null for them, or none at all."""
ROPE_PARTS = ("rope_scaling", "rope_parameters")
ROPE_KEYS = {
    **{"rope_theta": "rope_theta", "rotary_emb_base": "rope_theta"},
    **{"partial_rotary_factor": "partial_rotary_factor", "rotary_pct": "partial_rotary_factor"},
}
"""Keys of a RoPE that older configs have beside `rope_scaling`, with their names in `rope_parameters`."""
POSITIONS_SCALE = ("dynamic", "longrope", "su", "yarn")
"""Kinds of RoPE in which the number of positions decides the rotation."""


def text_config(config: Mapping) -> Mapping:
    """The part of a model's config that describes its text model: a nested part, or the config itself."""
    for key in TEXT_PARTS:
        part = config.get(key)
        if isinstance(part, Mapping):
            return text_config(part)
    return config


def vocab_size(config: Mapping) -> int | None:
    """Number of token ids, also of a multimodal model; None where the config leaves it to its class's default."""
    return _count(text_config(config), VOCABULARY_KEYS) or _count(config, VOCABULARY_KEYS)


def n_layers(config: Mapping) -> int | None:
    """Number of layers of the text model; None where the config does not say."""
    return _count(text_config(config), LAYER_KEYS)


def d_model(config: Mapping) -> int | None:
    """Width of the residual stream of the text model; None where the config does not say."""
    return _count(text_config(config), WIDTH_KEYS)


def d_mlp(config: Mapping) -> int | None:
    """Width of the text model's MLPs as an estimate: 4 x d_model where it is not known; None without d_model."""
    width = d_model(config)
    return known_d_mlp(config) or (DEFAULT_MLP_RATIO * width if width else None)


def known_d_mlp(config: Mapping) -> int | None:
    """Width of the text model's MLPs; None where neither the config nor the model's type says it."""
    text = text_config(config)
    width, stated = d_model(config), _count(text, MLP_KEYS)
    is_default = text.get("model_type") in WITH_DEFAULT_MLP or any(text.get(key, "") is None for key in MLP_KEYS)
    if stated or not is_default or not width:
        return stated
    return (_count(text, ("expansion_ratio",)) or DEFAULT_MLP_RATIO) * width


def n_positions(config: Mapping) -> int | None:
    """Most tokens that a model's text part was made for; None where there is no limit, or the config does not say.

    With a RoPE that is scaled by a factor, it is the larger of the stated number and the original one times the factor,
    because configs state either.
    """
    text = text_config(config)
    if text.get("alibi") or text.get("model_type") in WITHOUT_LIMIT:
        return None
    stated = _count(text, POSITION_KEYS)
    if stated is None:
        return None
    scaled = [
        int(factor * (_count(part, ("original_max_position_embeddings",)) or stated))
        for part in _rope_parts(text)
        if isinstance(factor := part.get("factor"), int | float) and 1 < factor <= MOST_TIMES
    ]
    return max(stated, *scaled) if scaled else stated


def residual_stream(config: Mapping, layer: int) -> str:
    """The hookpoint of the residual stream after a layer.

    Raises:
        InputError: if this type of model is not in `LAYERS`.
    """
    kind = config.get("model_type")
    layers = next((layers for layers, kinds in LAYERS.items() if kind in kinds), None)
    if layers is None:
        known = ", ".join(sorted(kind for kinds in LAYERS.values() for kind in kinds))
        raise InputError(
            f"hookpoint: must be given for models of type {kind!r:.60}, whose layers have no name here that is known "
            f"(known types: {known}); add hookpoint=MODULE.output, with a name that print(model) shows for a layer"
        )
    return f"{layers}.{layer}.output"


def hookpoint_problem(config: Mapping, hookpoint: str) -> str | None:
    """The sentence with which a hookpoint is refused that a model cannot have, or None if it may have it.

    Only layers are known before the model is opened, and only those of the types in `LAYERS`.
    """
    kind, count = config.get("model_type"), n_layers(config)
    own = next((layers for layers, kinds in LAYERS.items() if kind in kinds), None)
    named = next((layers for layers in LAYERS if hookpoint.startswith(f"{layers}.")), None)
    if own is None:
        return None
    if named != own:
        is_in_a_layer = named is not None or any(part.isdigit() for part in hookpoint.split("."))
        wrong = named or re.split(r"\.[0-9]", hookpoint)[0]
        return f"its type '{kind}' has its layers at {own}, not at {wrong}" if is_in_a_layer else None
    layer = hookpoint.removeprefix(f"{own}.").split(".")[0]
    if not layer.isascii() or not layer.isdigit() or count is None or int(layer) < count:
        return None
    return f"it has {count} layers, counted from 0, so the last one is {own}.{count - 1}"


def module_problem(tensors: Iterable[str], hookpoint: str) -> str | None:
    """The sentence with which a place in a layer is refused that no module of a model's weights file is like, or None.

    Modules without weights, such as activation functions, are in no file, so only what is close to another name, or
    lies below a module that is not there, is refused.

    Args:
        tensors: names of the weights.
        hookpoint: MODULE.output or MODULE.input.
    """
    parents = [name.split(".")[:-1] for name in tensors]
    modules = {".".join(parts[:n]) for parts in parents for n in range(1, len(parts) + 1)}
    parts = hookpoint.split(".")[:-1]
    layer = next((n + 1 for n, part in enumerate(parts) if part.isdigit()), len(parts))
    if ".".join(parts[:layer]) not in modules or any("experts" in name for name in modules):
        return None  # names may be others in memory
    for n in range(layer, len(parts)):
        above, name = ".".join(parts[:n]), parts[n]
        beside = sorted({module.split(".")[n] for module in modules if module.startswith(f"{above}.")})
        near = get_close_matches(name, beside, n=1, cutoff=0.75)
        if name not in beside and (near or n + 1 < len(parts)):
            meant = f"; did you mean {near[0]}?" if near else ""
            return f"{above} has no module {name}, but {', '.join(beside) or 'none with weights'}{meant}"
    return None


def context_problem(config: Mapping, n_ctx: int) -> str | None:
    """The sentence with which a model is refused whose positions are fewer than the run's rows are long, or None.

    Args:
        config: a config.json, or a whole config as the model's class completes it.
        n_ctx: tokens of a row.
    """
    limit = n_positions(config)
    if limit is None or n_ctx <= limit:
        return None
    key = next(key for key in POSITION_KEYS if _count(text_config(config), (key,)))
    return (
        f"tokens.n_ctx must be at most {limit}, the positions that this model was made for ({key} in {CONFIG_FILE}), "
        f"not {n_ctx}, because it predicts nothing sensible beyond them; lower tokens.n_ctx, or take another model"
    )


def causal_problem(config: Mapping) -> str | None:
    """The sentence with which a model is refused whose config says that it is no causal language model, or None."""
    kind, text = config.get("model_type"), text_config(config)
    if config.get("is_encoder_decoder") is True:
        return f"model_type '{kind}' is an encoder with a decoder, not a causal language model; take a decoder alone"
    if text.get("model_type") in ENCODERS and text.get("is_decoder") is not True:
        return (
            f"model_type '{text.get('model_type')}' is an encoder, in which each token sees those after it, not a "
            "causal language model; take a model that predicts the next token"
        )
    architectures = config.get("architectures")
    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if named and all(map(OTHER_HEADS.fullmatch, named)):
        return (
            f"its architecture, {named[0]}, has another head than the one that predicts the next token; take the "
            "causal language model that it was made from"
        )
    return None


def check_folder(folder: Path | str, n_ctx: int | None = None) -> list[str]:
    """Check a model's folder by the names of its files and its config.json, before any job.

    Args:
        folder: a folder of someone else's.
        n_ctx: tokens of a row; None leaves out the check of positions.

    Returns:
        Sentences to warn with.

    Raises:
        InputError: if the folder holds no safetensors, but GGUF, pickles, an adapter or a tokenizer alone; or its
            config.json is damaged, of quantised weights, of a model that is not causal, or of one with fewer positions.
    """
    require_inside(folder, (".json", ".safetensors"))
    for path in weight_files(folder):
        require_regular(path, None, REMEDY)
    check_config(read_config(folder), f"'{folder}'", n_ctx)
    return adapter_notes(folder)


def check_config(config: Mapping, where: str, n_ctx: int | None = None) -> None:
    """Check what a model's config says of the model.

    Args:
        config: a config.json, or a whole config as the model's class completes it.
        where: the model, for messages: a quoted folder or a key of the run's config.
        n_ctx: tokens of a row; None leaves out the check of positions.

    Raises:
        InputError: if the model is not causal, or has fewer positions than a row has tokens.
    """
    problem = causal_problem(config) or (context_problem(config, n_ctx) if n_ctx else None)
    if problem:
        raise InputError(f"{where}: {problem}")


def adapter_notes(folder: Path | str) -> list[str]:
    """Sentences to warn with about an adapter that lies beside full weights."""
    if not Path(folder, ADAPTER_FILE).exists():
        return []
    return [
        f"'{folder}' holds {ADAPTER_FILE} beside full weights; the full weights are taken as they are, and no adapter "
        f"is applied to them; if an adapter belongs to them, {ADAPTER_WAY}"
    ]


def weight_files(folder: Path | str) -> list[Path]:
    """List the safetensors files of a model's folder: the single one, or those that its index names.

    Raises:
        InputError: if there are none, or the index names anything but safetensors files of this folder.
    """
    if Path(folder, WEIGHTS_FILE).exists():
        return [Path(folder, WEIGHTS_FILE)]
    if not Path(folder).is_dir():
        raise InputError(f"'{folder}' must be the folder of a model, but is not a folder; correct the path")
    if not Path(folder, INDEX_FILE).exists():
        raise InputError(no_safetensors(f"'{folder}'", sorted(path.name for path in Path(folder).iterdir())))
    index = read_foreign_json(Path(folder, INDEX_FILE), REMEDY).get("weight_map")
    names = list(index.values()) if isinstance(index, dict) else []
    unsafe_names = [name for name in names if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name)]
    if unsafe_names or not names:
        shown = f"{unsafe_names[0]!r:.80}" if unsafe_names else "nothing"
        raise unopenable(folder, f"weight_map in {INDEX_FILE} must name safetensors files of this folder, not {shown}")
    return [Path(folder, name) for name in sorted(set(names))]


def read_config(folder: Path | str) -> dict:
    """Read a model's config.json.

    Raises:
        InputError: if it is damaged, or says that the weights are quantised or that weights or code lie elsewhere.
    """
    config = read_foreign_json(Path(folder, CONFIG_FILE), REMEDY)
    for part in mappings(config):  # transformers may use a nested part, the one that describes the text model
        if part.get("quantization_config"):
            raise unopenable(
                folder,
                f"{CONFIG_FILE} says that its weights are quantised (quantization_config)",
                "take the model that it was made from, or dequantise it and save_pretrained the result",
            )
        weights = part.get("transformers_weights")
        if weights not in (None, WEIGHTS_FILE):  # transformers would open that file instead of those checked here
            raise unopenable(folder, f"{CONFIG_FILE} names other weights (transformers_weights: {weights!r:.80})")
        implementations = [part.get(key) for key in ("attn_implementation", "_attn_implementation")]
        kernel = next((name for name in implementations if name is not None and "/" in str(name)), None)
        if kernel is not None:
            raise unopenable(folder, f"{CONFIG_FILE} names code from elsewhere (attn_implementation: {kernel!r:.80})")
    return config


def no_safetensors(where: str, names: Sequence[str]) -> str:
    """Error message for a model without safetensors, with the way round for what it holds instead.

    Args:
        where: the quoted folder or repository.
        names: its files.
    """
    start = (
        f"{where} cannot be opened as a causal model from safetensors: it holds neither {WEIGHTS_FILE} nor {INDEX_FILE}"
    )
    if gguf := _ending(names, ".gguf"):
        return (
            f"{start}, but GGUF ('{gguf}'), a format of llama.cpp with rounded weights; take the safetensors that it "
            f"was made from, or say in its `path` block that the rounded ones will do (gguf: {gguf}, dequantise: true)"
        )
    if ADAPTER_FILE in names:
        return (
            f"{start}, but an adapter to another model ({ADAPTER_FILE}); name that model as its parent (adapter: "
            "{folder or repo, parent})"
        )
    if others := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"{start}, but safetensors under other names ({_listed(others)}); open it with the library that saved it, "
            "and save it again with save_pretrained"
        )
    if not any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")) for name in names):
        held = f"no weights at all, only {_listed(names)}" if names else "no files at all"
        return f"{start}, and {held}; name the folder, or the repository, of a model's weights"
    return (
        f"{start} (pickles, as in .bin files, can hold code, and are not read); take a revision that has them, or "
        "convert it where you trust it (AutoModelForCausalLM.from_pretrained, then save_pretrained)"
    )


def unopenable(source: Path | str, reason: str, remedy: str = REMEDY) -> InputError:
    """The refusal of a model's folder."""
    return InputError(f"'{source}' cannot be opened as a causal model from safetensors: {reason.rstrip('.')}; {remedy}")


class ConfigComparison(NamedTuple):
    """Differences between two configs in keys that may change the logits."""

    different: dict[str, tuple[object, object]]
    """Both values by key, with dots into nested parts."""
    only_one: list[str]
    """Keys that one of them lacks, so that its class's default, or nothing, stands there."""


def compare_configs(a: Mapping, b: Mapping, *, complete: bool = True) -> ConfigComparison:
    """Compare two models' configs, leaving out keys that do not change the logits of given weights.

    The number of positions is left out too, unless the rotation of a RoPE depends on it. Learned positions show in the
    shapes of tensors.

    Args:
        a, b: configs.
        complete: True for whole configs as the models' classes complete them. In a config.json null often stands for
            what the class makes of it, so there null against a value counts as a key of one config alone.
    """
    first, second = dict(_leaves(_plain(a))), dict(_leaves(_plain(b)))
    of_first, of_second = dict(_leaves(_derived(a))), dict(_leaves(_derived(b)))
    scales = any(part.get("rope_type", part.get("type")) in POSITIONS_SCALE for part in mappings([dict(a), dict(b)]))
    different, only_one = {}, []
    for key in sorted(first.keys() | second.keys()):
        name = key.rpartition(".")[2]
        if name in SAME_FUNCTION or NOT_OF_LOGITS.fullmatch(name) or (name in POSITION_KEYS and not scales):
            continue
        stated = first.get(key), second.get(key)
        values = tuple(
            defaults.get(key) if value is None else value
            for value, defaults in zip(stated, (of_first, of_second), strict=True)
        )
        if values[0] == values[1]:  # None stands for a missing key
            continue
        is_of_both = key in first and key in second and (complete or None not in stated)
        if is_of_both or name == "rope_type" or (complete and name in DERIVED):
            different[key] = (values[0], values[1])
        else:
            only_one.append(key)
    return ConfigComparison(different, only_one)


def _plain(config: Mapping) -> dict:
    """A config in one spelling, without keys that do nothing."""
    parts = {key: value for key, value in config.items() if isinstance(value, Mapping) and key not in ROPE_PARTS}
    plain = dict(config) | {key: _plain(part) for key, part in parts.items()}
    if plain.get("use_sliding_window") is False:
        plain = {key: value for key, value in plain.items() if key not in INERT_WITHOUT_WINDOW}
    return _with_plain_activation(_with_plain_rope(plain))


def _derived(config: Mapping) -> dict:
    """The `DERIVED` sizes that a config has where it has null for them, in the parts that tell."""
    derived: dict = {key: _derived(part) for key, part in config.items() if isinstance(part, Mapping)}
    width, n_heads = _count(config, WIDTH_KEYS), _count(config, ("num_attention_heads",))
    if width and n_heads:
        derived["head_dim"] = width // n_heads
    if width:
        derived["n_inner"] = DEFAULT_MLP_RATIO * width
    return derived


def _with_plain_activation(config: dict) -> dict:
    """Take the tanh approximation for the GELU of a Gemma without `hidden_activation`, as its class does."""
    if config.get("model_type") != "gemma":
        return config
    activation = config.get("hidden_activation") or config.get("hidden_act")
    rest = {key: value for key, value in config.items() if key not in ("hidden_activation", "hidden_act")}
    return rest | {"hidden_activation": "gelu_pytorch_tanh" if activation in (None, "gelu") else activation}


def _with_plain_rope(config: dict) -> dict:
    """Put all that describes a RoPE into `rope_parameters`, without the default type."""
    rope = {ROPE_KEYS[key]: config[key] for key in ROPE_KEYS if config.get(key) is not None}
    for part in (config.get(key) for key in ROPE_PARTS):
        rope |= part if isinstance(part, dict) else {}
    rest = {key: value for key, value in config.items() if key not in (*ROPE_KEYS, *ROPE_PARTS)}
    return rest | {"rope_parameters": _plain_rope(rope)}


def _plain_rope(rope: Mapping) -> dict:
    """A RoPE's description, or one for each kind of layer, with the older `type` as `rope_type`."""
    plain = {key: _plain_rope(value) if isinstance(value, dict) else value for key, value in rope.items()}
    kind = plain.pop("type", None)
    kind = plain.pop("rope_type", None) or kind
    return plain if kind in (None, "default") else plain | {"rope_type": kind}


def require_same_function(a: Mapping, b: Mapping, names: tuple[str, str], *, complete: bool = True) -> list[str]:
    """Refuse to merge models whose configs differ in what changes the logits, because a merge has one config.

    Args:
        a, b: configs.
        names: the models' names.
        complete: False for config.json files, which leave much to the models' classes.

    Returns:
        Sentences to warn with, about keys that only one config has.

    Raises:
        InputError: with the keys and both values.
    """
    comparison = compare_configs(a, b, complete=complete)
    if comparison.different:
        shown = [f"{key} ({first!r:.60} and {second!r:.60})" for key, (first, second) in comparison.different.items()]
        raise InputError(
            f"models '{names[0]}' and '{names[1]}' cannot be merged, because a merged model has one {CONFIG_FILE} and "
            f"theirs differ in {_listed(shown)}; merge models of one base, or correct the {CONFIG_FILE} that is wrong"
        )
    if not comparison.only_one:
        return []
    return [
        f"only one of the models '{names[0]}' and '{names[1]}' has {_listed(comparison.only_one)} in its "
        f"{CONFIG_FILE}; the merged model has the {CONFIG_FILE} of '{names[0]}'"
    ]


def equal_sources(sources: Mapping[str, Mapping]) -> list[str]:
    """Sentences to warn with about models that are taken over from one and the same place.

    Args:
        sources: the `path` or `hub` block of each imported model, by its name.
    """
    by_source: dict[tuple[str, ...], list[str]] = {}
    for model, block in sources.items():
        place = (
            (str(Path(block["folder"], block.get("gguf", "")).resolve()),)
            if "folder" in block
            else (block["repo"], block["revision"])
        )
        by_source.setdefault(place, []).append(model)
    return [
        f"models {_listed(list(map(repr, models)))} are taken from the same place ({' at '.join(place)}), so they are "
        "one model; correct one of them"
        for place, models in by_source.items()
        if len(models) > 1
    ]


def named(names: Iterable[str]) -> str:
    """Up to five names in order, and the number of the others."""
    return _listed(sorted(names))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _ending(names: Iterable[str], ending: str) -> str | None:
    return next((name for name in names if name.endswith(ending)), None)


def _rope_parts(text: Mapping) -> Iterator[dict]:
    """The mappings that describe a RoPE; some models have one for each kind of layer."""
    for key in ROPE_PARTS:
        if isinstance(text.get(key), dict):
            yield from mappings(text[key])


def _leaves(value: Mapping, start: str = "") -> Iterator[tuple[str, object]]:
    """Values of a nested config by dotted keys; lists count as values."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{start}{key}.")
        else:
            yield f"{start}{key}", item


def _count(config: Mapping, keys: Iterable[str]) -> int | None:
    counts = (config.get(key) for key in keys)
    return next((count for count in counts if type(count) is int and 0 < count <= MOST_COUNTED), None)
