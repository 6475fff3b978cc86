"""Llama Scope (He et al., arXiv 2410.20526) and its SAEs of R1-Distill: JumpReLU SAEs of scaled inputs.

Repository `fnlp/Llama3_1-8B-Base-LX{R|A|M}-{8|32}x`, folder `Llama3_1-8B-Base-L{n}{R|A|M}-{8|32}x`, with
`hyperparams.json`; or `fnlp/Llama-Scope-R1-Distill`, folder `{data}/L{n}R`, with `config.json`.
"""

from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats.architectures import require_settings
from saelineage.foreign.sae_formats.names import search
from saelineage.foreign.sae_formats.refusals import TRANSCODER, WAY_ROUND
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY, block, number, storable, text, whole_number
from saelineage.foreign.sae_inputs import SaeInput

SETTINGS = {
    "use_glu_encoder": False,
    "apply_decoder_bias_to_pre_encoder": False,
    "sae_type": "sae",
    "act_fn": "jumprelu",
}
"""Options of the library that trained them; other values cannot be imported."""
KEPT_KEYS = ("hook_point_in", "jump_relu_threshold", "dataset_average_activation_norm", "norm_activation", "act_fn")


def read_config(path: Path) -> dict:
    """Read a config.

    Raises:
        InputError: if it is no such config, a transcoder's, or of another architecture.
    """
    config = read_foreign_json(path, REMEDY)
    place_in, place_out = config.get("hook_point_in"), config.get("hook_point_out")
    if place_out not in (None, place_in):
        raise InputError(
            f"'{path}': hook_point_out must be hook_point_in, {place_in!r:.80}, not {place_out!r:.80}, because "
            f"{TRANSCODER.replace('it is', 'this is')}; {WAY_ROUND}"
        )
    require_settings(config, SETTINGS, path)
    return config


def describe(config: Mapping, source: SaeSource) -> SaeInput:
    hook = text(config.get("hook_point_in"))
    d_in, factor = whole_number(config.get("d_model")), number(config.get("expansion_factor"))
    d_sae = whole_number(config.get("d_sae")) or (round(d_in * factor) if d_in and factor else None)
    model = None
    if search(r"R1-Distill", source.names):
        model = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    elif search(r"Llama3_1-8B-Base", source.names):
        model = "meta-llama/Llama-3.1-8B"
    original: dict[str, object] = {"hook_name": hook, "model_name": model, "context_size": 1024, "prepend_bos": True}
    return SaeInput(
        str(source.config),
        (read_hook_name(hook),) if hook else (),
        d_in=d_in,
        d_sae=d_sae,
        model_name=model,
        context_size=1024,
        is_transformer_lens=hook is not None and "hook_" in hook,
        original=original | {"config": {key: storable(config[key]) for key in KEPT_KEYS if key in config}},
    )


def input_factor(config: Mapping, source: SaeSource) -> float:
    """The factor by which inputs are multiplied: the root of d_in over the average norm of the training data.

    `norm_scaling_factor` of the `import` block takes the place of what the config says.

    Raises:
        InputError: if neither has it.
    """
    if (given := source.settings.get("norm_scaling_factor")) is not None:
        return float(given)
    said = block(config, "dataset_average_activation_norm").get("in")
    norm, d_in = number(said), whole_number(config.get("d_model"))
    if not norm or not d_in:
        raise InputError(
            f"'{source.config}': d_model and dataset_average_activation_norm.in must say how inputs are scaled, but "
            f"are {d_in} and {said!r:.40}; set import.norm_scaling_factor (SAELens's registry has one for each "
            "of its SAEs)"
        )
    return float(d_in**0.5 / norm)
