"""LoRA adapters as adapter_config.json describes them, and as the names and shapes of their tensors do.

An adapter's config is written by a stranger. Nothing that it names is opened: neither its base model, nor classes.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json, require_inside, tensor_shapes
from saelineage.foreign.models import ADAPTER_FILE, INDEX_FILE, WEIGHTS_FILE, named

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
REMEDY = "fetch the adapter again, or save it again with peft's save_pretrained"
MERGE_WAY = (
    "open it with the library that made it, on the model that it belongs to, call merge_and_unload, save_pretrained "
    "the result, and name that as `path` with its parents"
)
CAUSAL_TASKS = (None, "CAUSAL_LM")
FRESH_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Kinds of init_lora_weights that leave the base model as it is. The others, such as PiSSA, also change its weights."""
BIASES = ("none", "all", "lora_only")
ELSEWHERE = (
    *("base_model_name_or_path", "revision", "peft_type", "task_type", "auto_mapping", "peft_version"),
    *("inference_mode", "lora_dropout", "init_lora_weights", "runtime_config", "qalora_group_size", "megatron_core"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
"""Keys that are checked on their own, or do not matter: the names of the tensors say which modules are adapted."""
PREFIX = "base_model.model."
"""Beginning of every tensor's name in peft's files."""
LORA_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_"
    r"(?:(?P<down>A\.weight|embedding_A)|(?P<up>B\.weight|embedding_B)|B\.bias|magnitude_vector)"
)
MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
MODULE_PATTERN = re.compile(r"[A-Za-z0-9_.\\^$|()\[\]*+-]{1,200}")
"""Characters of a pattern of modules. `_is_quick` also limits what it may repeat."""
MOST_REPEATS = 2
"""Quantifiers in a pattern of modules, so that matching a hostile one cannot take forever."""


class Adapter(NamedTuple):
    """An adapter whose config and tensors fit together."""

    settings: dict
    """The settings of peft's LoraConfig that decide what the adapter adds to its parent's weights."""
    modules: list[str]
    """The adapted modules, sorted."""
    targets: list[str]
    """Ends of the names of modules that its config says are adapted; empty where it does not list them plainly."""


def read_adapter_config(folder: Path | str) -> dict:
    """Read an adapter's config and check everything that can be told from it alone.

    Raises:
        InputError: if it is damaged, of another method than LoRA, of another task than predicting the next token, or
            uses something that is not merged here.
    """
    config, where = read_foreign_json(Path(folder, ADAPTER_FILE), REMEDY), f"'{Path(folder, ADAPTER_FILE)}'"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{where}: peft_type must be LORA (or its kin: rsLoRA, DoRA), not {kind!r:.80}; {MERGE_WAY}")
    if config.get("task_type") not in CAUSAL_TASKS:
        raise InputError(
            f"{where}: task_type must be CAUSAL_LM, not {config['task_type']!r:.80}, because models here predict the "
            "next token; take an adapter to a causal language model"
        )
    library = _mapping(config, "auto_mapping", where).get("parent_library") or "transformers"
    if str(library).partition(".")[0] != "transformers":
        raise InputError(
            f"{where}: auto_mapping names code from elsewhere ({library!r:.80}), which is never run here; take an "
            "adapter to a model whose architecture transformers has"
        )
    start = config.get("init_lora_weights")
    if not any(start is each or start == each for each in FRESH_STARTS) or _mapping(config, "loftq_config", where):
        raise InputError(
            f"{where}: init_lora_weights must leave the parent's weights as they are, but {start!r:.80} changes them "
            "before training; save the adapter with peft's save_pretrained(path_initial_model_for_weight_conversion="
            f"...), or {MERGE_WAY}"
        )
    lora_settings(config, where)
    return config


def lora_settings(config: Mapping, where: str) -> dict:
    """The settings of an adapter's config that decide what it adds to weights, each of its type.

    Args:
        config: an adapter_config.json.
        where: the file, for messages.

    Raises:
        InputError: if one has another type, or the config uses something that is not merged here.
    """
    settings = {
        "r": _number(config, "r", 8, where),
        "lora_alpha": _number(config, "lora_alpha", 8, where),
        **{key: _flag(config, key, where) for key in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")},
        "bias": config.get("bias", "none"),
        "modules_to_save": _names(config, "modules_to_save", where),
        "rank_pattern": _pattern_numbers(config, "rank_pattern", where),
        "alpha_pattern": _pattern_numbers(config, "alpha_pattern", where),
    }
    if settings["bias"] not in BIASES:
        raise InputError(f"{where}: bias must be one of {', '.join(BIASES)}, not {settings['bias']!r:.80}; {REMEDY}")
    used = {key: value for key, value in config.items() if key not in settings and key not in ELSEWHERE}
    further = [f"{key} ({value!r:.60})" for key, value in used.items() if value not in (None, False, [], {}, "")]
    if further:
        raise InputError(
            f"{where}: must be a plain LoRA, rsLoRA or DoRA, but it also uses {named(further)}, which is not merged "
            f"here; {MERGE_WAY}"
        )
    return settings


def check_adapter_folder(folder: Path | str) -> Adapter:
    """Check an adapter's folder: its config, and the header of its weights.

    Raises:
        InputError: if the folder holds no adapter in safetensors, or `read_adapter_config` or `describe` refuse it.
    """
    require_inside(folder, (".json", ".safetensors"))
    if not Path(folder).is_dir():
        raise InputError(f"'{folder}' must be the folder of an adapter, but is not a folder; correct the path")
    require_adapter_files(sorted(path.name for path in Path(folder).iterdir()), f"'{folder}'")
    config, path = read_adapter_config(folder), Path(folder, ADAPTER_WEIGHTS)
    return describe(config, tensor_shapes(path, REMEDY), f"'{path}'")


def require_adapter_files(names: Iterable[str], where: str) -> None:
    """Refuse a folder or repository without an adapter in safetensors, with the way round for what it holds instead.

    Args:
        names: the files at its top.
        where: the quoted folder or repository.

    Raises:
        InputError: if one of the two files of an adapter is missing.
    """
    held = set(names)
    if {ADAPTER_FILE, ADAPTER_WEIGHTS} <= held:
        return
    start = f"{where} must hold an adapter, {ADAPTER_FILE} and {ADAPTER_WEIGHTS}"
    if PICKLED_WEIGHTS in held:
        raise InputError(
            f"{start}, but its weights are {PICKLED_WEIGHTS}, a pickle, which can hold code and is not read; take a "
            "revision that has safetensors, or open it with peft where you trust it, and save_pretrained it"
        )
    if held & {WEIGHTS_FILE, INDEX_FILE}:
        raise InputError(f"{start}, but it holds a whole model; name it as `path` or `hub` with its parents")
    missing = sorted({ADAPTER_FILE, ADAPTER_WEIGHTS} - held)
    are = "are" if len(missing) > 1 else "is"
    raise InputError(f"{start}, but {' and '.join(missing)} {are} not there; correct the name, or {REMEDY}")


def describe(config: Mapping, shapes: Mapping[str, tuple[int, ...]], where: str) -> Adapter:
    """Compare an adapter's tensors with its config.

    Args:
        config: as `read_adapter_config` gives it.
        shapes: of the tensors in its weights file, by name.
        where: that file, for messages.

    Raises:
        InputError: if there are no LoRA tensors, halves of pairs are missing, names are not peft's, or ranks are not
            those of the config.
    """
    settings = lora_settings(config, f"{where} ({ADAPTER_FILE})")
    if strange := [name for name in shapes if not name.startswith(PREFIX)]:
        raise InputError(
            f"{where}: names of tensors must begin with {PREFIX}, but do not: {named(strange)}; save the adapter with "
            "peft's save_pretrained"
        )
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := LORA_TENSOR.fullmatch(name):
            half = "down" if match["down"] else "up" if match["up"] else "other"
            parts.setdefault(match["module"], {})[half] = shape
    if halves := [module for module, held in parts.items() if not {"down", "up"} <= held.keys()]:
        raise InputError(f"{where}: each adapted module must have lora_A and lora_B, but not {named(halves)}; {REMEDY}")
    if not parts:
        raise InputError(f"{where} must hold tensors of LoRA (lora_A and lora_B), but holds none; {REMEDY}")
    if odd := [module for module in parts if not MODULE_NAME.fullmatch(module)]:
        raise InputError(f"{where}: modules must have plain names, but not {odd[0]!r:.80}; {REMEDY}")
    for module, held in parts.items():
        _require_rank(module, held, settings, where)
    targets = _plain_targets(config)
    return Adapter(settings, sorted(parts), targets)


def other_base(config: Mapping, names: Iterable[str], parent: str) -> list[str]:
    """A sentence to warn with if an adapter says that it was trained on another model than its parent.

    Args:
        config: an adapter_config.json.
        names: what the parent is called: its repository, folder, or name in the run.
        parent: its name in the config.
    """
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base or _last(base) in {_last(name) for name in names}:
        return []
    return [
        f"the adapter says that it belongs to {base!r:.200}, but its parent '{parent}' is another model by name "
        f"({named(map(repr, names))}); if they are not the same model, the merged one is not what its author trained"
    ]


def _require_rank(module: str, parts: Mapping[str, tuple[int, ...]], settings: Mapping, where: str) -> None:
    """Refuse a pair of tensors whose rank is not that of the config."""
    down, up = parts["down"], parts["up"]
    rank = matching(settings["rank_pattern"], module, settings["r"])
    if len(down) != 2 or len(up) != 2 or (down[0], up[1]) != (rank, rank):
        raise InputError(
            f"{where}: the LoRA of {module} must have rank {rank}, as r and rank_pattern in {ADAPTER_FILE} say, but "
            f"its tensors are {list(down)} and {list(up)}; fetch both files from one revision"
        )


def matching(patterns: Mapping[str, int], module: str, default: int) -> int:
    """The number of the first pattern that matches a module's name or its end, as peft resolves them."""
    found = (number for pattern, number in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(found, default)


def _plain_targets(config: Mapping) -> list[str]:
    """The ends of names under target_modules, if nothing else narrows the choice."""
    targets = config.get("target_modules")
    narrowed = any(config.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    if narrowed or not isinstance(targets, list):
        return []
    return sorted(target for target in targets if isinstance(target, str))


def _last(name: str) -> str:
    """The last part of the name of a repository or folder, in lower case; a snapshot of the hub's cache has its own."""
    parts = [part for part in name.rstrip("/").lower().split("/") if part]
    cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
    return (cached or parts or [""])[-1]


def _number(config: Mapping, key: str, default: int, where: str) -> int | float:
    value = config.get(key, default)
    is_whole = type(value) is int or (key == "lora_alpha" and type(value) is float)
    if not is_whole or not 0 < value < 1 << 20:
        raise InputError(f"{where}: {key} must be a number above 0, not {value!r:.80}; {REMEDY}")
    return value


def _flag(config: Mapping, key: str, where: str) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key} must be true or false, not {value!r:.80}; {REMEDY}")
    return value


def _names(config: Mapping, key: str, where: str) -> list[str] | None:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) and MODULE_NAME.fullmatch(name) for name in value):
        raise InputError(f"{where}: {key} must be names of modules, not {value!r:.80}; {REMEDY}")
    return value or None


def _mapping(config: Mapping, key: str, where: str) -> dict:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key} must be a mapping, not {value!r:.80}; {REMEDY}")
    return value


def _pattern_numbers(config: Mapping, key: str, where: str) -> dict:
    """Numbers by patterns of modules, which peft reads as regular expressions."""
    patterns = _mapping(config, key, where)
    for pattern, number in patterns.items():
        if not _is_quick(pattern):
            raise InputError(
                f"{where}: {key} must have names of modules or short patterns of them (at most {MOST_REPEATS} of * "
                f"and +, and none after a bracket), not {pattern!r:.80}; {MERGE_WAY}"
            )
        if type(number) not in (int, float) or not 0 < number < 1 << 20:
            raise InputError(f"{where}: {key} must give numbers above 0, not {number!r:.80} for {pattern}; {REMEDY}")
    return patterns


def _is_quick(pattern: str) -> bool:
    """True for a regular expression that is valid and quick to match whatever it is matched with."""
    repeats = len(re.findall(r"[*+]", pattern))
    if not MODULE_PATTERN.fullmatch(pattern) or repeats > MOST_REPEATS or re.search(r"\)[*+]", pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
