"""SAELens's folders, of versions 1 to 6 of its config."""

import re
from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats.architectures import require_architecture
from saelineage.foreign.sae_formats.values import REMEDY, block, storable, text, whole_number
from saelineage.foreign.sae_inputs import SaeInput

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


def read_config(path: Path) -> dict:
    """Read a config and convert it to the keys of version 6.

    Raises:
        InputError: if it is no such config, or the SAE computes what cannot be imported.
    """
    config = as_version_6(read_foreign_json(path, REMEDY), path)
    _require_importable(config, path)
    return config


def as_version_6(config: dict, path: Path) -> dict:
    """Convert a SAELens config to the keys of version 6, as SAELens 6 does.

    Raises:
        InputError: if its activation function is one that SAELens 6 no longer has.
    """
    metadata = block(config, "metadata")
    version = config.get("sae_lens_version") or metadata.get("sae_lens_version") or "0"
    major = re.match(r"\d{1,9}", str(version))
    if major and int(major.group()) >= 6:
        return config
    hook_name = str(config.get("hook_name") or config.get("hook_point") or "")
    config = {"architecture": "standard", "reshape_activations": "hook_z" if "hook_z" in hook_name else "none"} | config
    normalize = config.get("normalize_activations") or "none"
    config["normalize_activations"] = "expected_average_only_in" if normalize is True else normalize
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    k = block(config, "activation_fn_kwargs").get("k")
    if activation not in ("relu", "topk"):
        raise InputError(f"'{path}': activation_fn must be 'relu' or 'topk', not {activation!r:.80}; use another SAE")
    return config | {"architecture": "topk", "k": k} if activation == "topk" and k is not None else config


def _require_importable(config: Mapping, path: Path) -> None:
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


def describe(config: Mapping, where: str) -> SaeInput:
    metadata = block(config, "metadata")
    keys = {OLD_NAMES.get(key, key): value for key, value in (dict(config) | metadata).items()}
    original = {key: storable(keys[key]) for key in INPUT_KEYS if key in keys}
    hook = text(keys.get("hook_name"))
    if hook is not None and (layer := whole_number(keys.get("hook_layer"))) is not None:
        hook = hook.replace("{layer}", str(layer))  # version 1 left the number to another key
    own = text(block(metadata, "saelineage").get("hookpoint"))  # exact, where SAELens has another name or none
    names = (own,) if own else (hook, text(keys.get("hf_hook_name")))
    readings = tuple(read_hook_name(name) for name in names if name)
    settings = keys.get("model_from_pretrained_kwargs")
    return SaeInput(
        where,
        readings,
        d_in=whole_number(config.get("d_in")),
        d_sae=whole_number(config.get("d_sae")),
        k=whole_number(config.get("k")),
        model_name=text(keys.get("model_name")),
        context_size=whole_number(keys.get("context_size")),
        prepend_bos=keys["prepend_bos"] if isinstance(keys.get("prepend_bos"), bool) else None,
        hook_head_index=whole_number(keys.get("hook_head_index")),
        seqpos_slice=_positions(keys.get("seqpos_slice")),
        model_settings=settings if isinstance(settings, dict) else None,
        is_transformer_lens=hook is not None and "hook_" in hook,
        original=original,
    )


def _positions(value: object) -> tuple[int | None, ...] | None:
    """A slice of positions as SAELens writes it: start, stop and step, of which later ones may be missing."""
    if not isinstance(value, list) or not 1 <= len(value) <= 3:
        return None
    if not all(entry is None or type(entry) is int for entry in value) or (len(value) == 3 and value[2] == 0):
        return None
    return tuple(value)
