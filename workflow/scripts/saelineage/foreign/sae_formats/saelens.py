"""SAELens's folders, of versions 1 to 6 of its config."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json, tensor_shapes
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats.refusals import TEMPORAL, TRANSCODER, WAY_ROUND
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


BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
"""Architectures that SAELens has in training alone; what it saves at the end is JumpReLU with one threshold."""
PER_LATENT = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
} | dict.fromkeys(BATCH_TOPK, ("b_enc",))
"""The tensors [d_sae] of the architectures that can be imported, beside W_enc and W_dec."""
OTHER_ARCHITECTURES = {
    "abstopk": (
        "its latents fire with both signs; save it as a topk SAE of twice the latents with the same k, which computes "
        "the same: W_enc beside -W_enc, b_enc before -b_enc, W_dec above -W_dec, b_dec as it is"
    ),
    "matching_pursuit": (
        "it chooses latents one after another, each by what the ones before leave over, which no encoder of one step "
        "computes; import an SAE of another architecture, or leave import out to train one"
    ),
    "temporal": f"{TEMPORAL}; import an SAE of another architecture, or leave import out to train one",
} | dict.fromkeys(
    ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"), f"{TRANSCODER}; {WAY_ROUND}"
)
"""The other architectures of SAELens 6.54.12: why they cannot be imported, and the way round."""
SCALER_FILE = "activation_scaler.json"
"""File in a checkpoint of SAELens with the factor of its inputs, null once that is folded into the weights."""
PER_TOKEN = {
    "layer_norm": "each token's activations minus their mean, divided by their standard deviation",
    "constant_norm_rescale": "each token's activations divided by their norm",
}
"""SAELens's normalisations that differ from token to token."""
MOST_FACTOR = 1e30


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
    """Refuse architectures that are none of those here, and inputs whose transformation cannot be folded."""
    architecture, metadata = config.get("architecture"), block(config, "metadata")
    out = metadata.get("hook_name_out", config.get("hook_name_out"))
    if out is not None and out != metadata.get("hook_name", config.get("hook_name")):
        raise InputError(f"'{path}' cannot be imported (hook_name_out {out!r:.80}), because {TRANSCODER}; {WAY_ROUND}")
    if isinstance(architecture, str) and architecture in OTHER_ARCHITECTURES:
        reason = OTHER_ARCHITECTURES[architecture]
        raise InputError(f"'{path}' cannot be imported (architecture {architecture!r}), because {reason}")
    if not isinstance(architecture, str) or architecture not in PER_LATENT:
        raise InputError(
            f"'{path}': architecture must be one of {sorted(PER_LATENT)}, not {architecture!r:.80}; use an SAE of one "
            "of these"
        )
    _require_folded_input(config.get("normalize_activations", "none"), path)
    _require_heads(config, path)


def _require_folded_input(normalisation: object, path: Path) -> None:
    """Refuse inputs that the weights cannot hold the transformation of."""
    if isinstance(normalisation, str) and normalisation in PER_TOKEN:
        raise InputError(
            f"'{path}' cannot be imported (normalize_activations {normalisation!r}), because it reads "
            f"{PER_TOKEN[normalisation]}, and weights cannot hold a division that differs between tokens; import an "
            "SAE whose normalize_activations is 'none' (for GPT-2 small, SAELens's release gpt2-small-res-jb has such)"
        )
    if normalisation == "covariance_whitening":
        raise InputError(
            f"'{path}' reads whitened activations, which SAELens folds into the weights at the end of training only; "
            "import the final_ checkpoint or the output_path of that training, or fold it with SAELens: "
            f"{FOLD_WHITENING}"
        )
    if normalisation not in ("none", "expected_average_only_in"):
        raise InputError(
            f"'{path}': normalize_activations must be 'none' or 'expected_average_only_in', not {normalisation!r:.80}; "
            "use another SAE"
        )


FOLD_WHITENING = (
    "from sae_lens.saes.sae import TrainingSAE; from sae_lens.training.activation_scaler import ActivationScaler; "
    "sae = TrainingSAE.load_from_disk(FOLDER); scaler = ActivationScaler(); "
    f"scaler.load(f'{{FOLDER}}/{SCALER_FILE}'); w = scaler.whitening; "
    "sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix); sae.save_inference_model(NEW_FOLDER)"
)
"""Python that folds whitening into a checkpoint."""


def _require_heads(config: Mapping, path: Path) -> None:
    """Refuse reshaped inputs unless they are the concatenated heads."""
    reshape = config.get("reshape_activations", "none")
    if reshape not in ("none", "hook_z"):
        raise InputError(
            f"'{path}': reshape_activations must be 'none' or 'hook_z', not {reshape!r:.80}; use another SAE"
        )
    name = block(config, "metadata").get("hook_name") or config.get("hook_name") or config.get("hook_point")
    if reshape == "hook_z" and not str(name).endswith("hook_z"):
        raise InputError(
            f"'{path}': with reshape_activations 'hook_z', metadata.hook_name must be a hook of the heads "
            f"(blocks.3.attn.hook_z), not {name!r:.80}; name the right one in a copy, or set reshape_activations to "
            "'none' there"
        )


def input_factor(config: Mapping, path: Path, chosen: float | None) -> float | None:
    """The factor by which the inputs of an SAE were multiplied in training, unless it is in the weights already.

    Args:
        config: the config in the keys of version 6.
        path: its file. SAELens's checkpoints have the factor beside it.
        chosen: `import.norm_scaling_factor`.

    Raises:
        InputError: if there is a factor that neither the files nor the config of the run give, or both do differently.
    """
    is_scaled = config.get("normalize_activations", "none") == "expected_average_only_in"
    if not is_scaled:
        if chosen is not None:
            raise InputError(
                f"'{path}' says that its inputs were not scaled, or that the weights hold the factor already "
                "(normalize_activations 'none'); leave import.norm_scaling_factor out"
            )
        return None
    scaler = path.with_name(SCALER_FILE)
    held = read_foreign_json(scaler, REMEDY).get("scaling_factor") if scaler.exists() else None
    if held is None and chosen is None:
        raise InputError(
            f"'{path}' says that its inputs were multiplied by one factor in training (normalize_activations "
            "'expected_average_only_in'), which is not in its files; set import.norm_scaling_factor to it (SAELens's "
            "registry has it under this name; otherwise it is sqrt(d_in) by the mean norm of the activations in "
            "training)"
        )
    if held is not None and not (type(held) in (int, float) and 0 < held <= MOST_FACTOR):
        raise InputError(f"'{scaler}': scaling_factor must be a number above 0, not {held!r:.80}; {REMEDY}")
    if held is None:
        return chosen
    if chosen is not None and not math.isclose(held, chosen, rel_tol=1e-6):
        raise InputError(
            f"'{scaler}' says that the inputs were multiplied by {held:g}, but import.norm_scaling_factor is "
            f"{chosen:g}; leave import.norm_scaling_factor out"
        )
    return float(held)


def check_header(config: Mapping, path: Path) -> None:
    """Refuse weights by their header alone, as `check_tensors` does.

    Raises:
        InputError: if they are no safetensors, or not the tensors of their config.
    """
    check_tensors(config, tensor_shapes(path, REMEDY), path)


def check_tensors(config: Mapping, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Refuse weights whose names and shapes are not those of their config's architecture.

    Values are left to the reader: whether a threshold was trained, and whether a scaling factor is 1.

    Raises:
        InputError: naming the tensors, or what they show that the file is.
    """
    d_in, d_sae = whole_number(config.get("d_in")), whole_number(config.get("d_sae"))
    if "W_skip" in shapes or (shapes.get("b_dec", (d_in,)) != (d_in,) and shapes.get("W_enc") == (d_in, d_sae)):
        raise InputError(
            f"'{path}' cannot be imported (its tensors are {_listed(shapes)}), because {TRANSCODER}; {WAY_ROUND}"
        )
    architecture = config["architecture"]
    if architecture in BATCH_TOPK and "topk_threshold" not in shapes:
        raise InputError(
            f"'{path}' must hold topk_threshold, because its config says {architecture!r}, but it holds "
            f"{_listed(shapes)}; for weights that SAELens saved for inference, set architecture to 'jumprelu' in a copy"
        )
    if d_in is None or d_sae is None:
        return  # the reader says which sizes are missing
    needed = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    needed |= {name: (d_sae,) for name in PER_LATENT[architecture]}
    found = {("threshold" if name == "log_threshold" else name): shape for name, shape in shapes.items()}
    beside = {"scaling_factor", "finetuning_scaling_factor"} | (
        {"topk_threshold"} if architecture in BATCH_TOPK else set()
    )
    if needed != {name: shape for name, shape in found.items() if name not in beside}:
        raise InputError(
            f"'{path}': its config needs tensors {needed}, the weights file holds {_listed(shapes)}; correct one"
        )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return str({name[:40]: shape for name, shape in sorted(shapes.items())[:20]})[:500]


def describe(config: Mapping, where: str, norm_scaling_factor: float | None = None) -> SaeInput:
    """What the config says.

    Args:
        config: the config in the keys of version 6.
        where: its file.
        norm_scaling_factor: `import.norm_scaling_factor`.

    Raises:
        InputError: if the factor of its inputs is not known.
    """
    input_factor(config, Path(where), norm_scaling_factor)
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
        k=trained_k(config),
        model_name=text(keys.get("model_name")),
        context_size=whole_number(keys.get("context_size")),
        prepend_bos=keys["prepend_bos"] if isinstance(keys.get("prepend_bos"), bool) else None,
        hook_head_index=whole_number(keys.get("hook_head_index")),
        seqpos_slice=_positions(keys.get("seqpos_slice")),
        model_settings=settings if isinstance(settings, dict) else None,
        is_transformer_lens=hook is not None and "hook_" in hook,
        original=original,
        remarks=_remarks(config, Path(where)),
    )


def trained_k(config: Mapping) -> int | None:
    """Latents per token that it was trained to keep; SAELens's BatchTopK has a float for it."""
    k = config.get("k")
    return whole_number(int(k) if type(k) is float and k.is_integer() else k)


def _remarks(config: Mapping, path: Path) -> tuple[str, ...]:
    """Say that a folder is a checkpoint from within a training, as its number of tokens for a name tells."""
    name = path.absolute().parent.name
    if "decoder_init_norm" not in config or not re.fullmatch(r"\d{1,18}", name):
        return ()
    return (f"'{path}' is a checkpoint after {int(name)} tokens of SAELens's training, not its end (final_{{tokens}})",)


def _positions(value: object) -> tuple[int | None, ...] | None:
    """A slice of positions as SAELens writes it: start, stop and step, of which later ones may be missing."""
    if not isinstance(value, list) or not 1 <= len(value) <= 3:
        return None
    if not all(entry is None or type(entry) is int for entry in value) or (len(value) == 3 and value[2] == 0):
        return None
    return tuple(value)
