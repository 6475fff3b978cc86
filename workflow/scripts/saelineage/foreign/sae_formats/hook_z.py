"""Kissane and Conmy's SAEs of GPT-2 small's attention heads: ReLU, `{name}.pt` and `{name}_cfg.json`.

Repository `ckkissane/attn-saes-gpt2-small-all-layers`. They read the concatenated heads, the input of the output
projection.
"""

from collections.abc import Mapping
from pathlib import Path

from saelineage.files.foreign import read_foreign_json
from saelineage.foreign.places import read_hook_name
from saelineage.foreign.sae_formats.sources import SaeSource
from saelineage.foreign.sae_formats.values import REMEDY, storable, text, whole_number
from saelineage.foreign.sae_inputs import SaeInput

MODEL = "gpt2-small"


def read_config(path: Path) -> dict:
    """Read a config.

    Raises:
        InputError: if it is no such config.
    """
    return read_foreign_json(path, REMEDY)


def describe(config: Mapping, source: SaeSource) -> SaeInput:
    hook = text(config.get("act_name"))
    model = text(config.get("model_name")) or MODEL
    return SaeInput(
        str(source.config),
        (read_hook_name(hook),) if hook else (),
        d_in=whole_number(config.get("act_size")),
        d_sae=whole_number(config.get("dict_size")),
        model_name=model,
        context_size=whole_number(config.get("seq_len")) or 128,
        is_transformer_lens=hook is not None and "hook_" in hook,
        original={"hook_name": hook, "model_name": model, "config": storable(dict(config))},
    )
