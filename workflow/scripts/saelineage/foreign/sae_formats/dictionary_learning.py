"""dictionary-learning's folders of one trainer."""

import re
from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json
from saelineage.foreign.places import (
    ATTN_IN,
    ATTN_OUT,
    MLP_IN,
    MLP_OUT,
    RESIDUAL,
    Kinds,
    Place,
    Reading,
    read_hook_name,
    reading_of,
)
from saelineage.foreign.sae_formats.values import REMEDY, block, storable, text, whole_number
from saelineage.foreign.sae_inputs import SaeInput

CLASS_NAMES = (
    *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"),
    "MatryoshkaBatchTopKSAE",
)
"""Classes of dictionary-learning that can be imported."""
PLACE_NAMES = {
    "resid_pre": Kinds(RESIDUAL),
    "mlp_out": Kinds(MLP_OUT),
    "mlp_in": Kinds(MLP_IN, parallel=(MLP_IN, ATTN_IN)),
    "attn_out": Kinds(ATTN_OUT),
    "attention_out": Kinds(ATTN_OUT),
}
"""Kinds of place of dictionary-learning's names, before `_layer_{n}`. `resid_post` is the residual stream after it."""


def read_config(path: Path) -> dict:
    """Read a config.

    Raises:
        InputError: if it is no such config, or of a class that cannot be imported.
    """
    config = read_foreign_json(path, REMEDY)
    if (name := block(config, "trainer").get("dict_class")) not in CLASS_NAMES:
        raise InputError(
            f"'{path}': trainer.dict_class must be one of {sorted(CLASS_NAMES)}, not {name!r:.80}; use another SAE"
        )
    return config


def describe(config: Mapping, where: str) -> SaeInput:
    trainer, buffer = block(config, "trainer"), block(config, "buffer")
    layer, side = whole_number(trainer.get("layer")), "input" if buffer.get("io") == "in" else "output"
    name = text(trainer.get("submodule_name"))
    reading = _reading(name, side) if name else None
    if reading is None or reading.layer is None:
        reading = Reading(f"layer {layer}", (), layer) if layer is not None else None
    return SaeInput(
        where,
        (reading,) if reading else (),
        d_in=whole_number(trainer.get("activation_dim")),
        d_sae=whole_number(trainer.get("dict_size")),
        k=whole_number(trainer.get("k")),
        model_name=text(trainer.get("lm_name")),
        context_size=whole_number(buffer.get("ctx_len")),
        original={key: storable(block) for key, block in {"trainer": trainer, "buffer": buffer}.items()},
    )


def _reading(name: str, side: str) -> Reading:
    """Read dictionary-learning's name of a module, and the side of it that was read."""
    named = re.fullmatch(r"(\w+?)_layer_(\d{1,6})", name)
    if named is None:
        return read_hook_name(name if name.endswith((".input", ".output")) else f"{name}.{side}")
    layer = int(named[2])
    if side == "input":  # the names are those of outputs
        return Reading(f"the input of {name}", (), layer)
    if named[1] == "resid_post":
        return Reading(name, (Place(RESIDUAL, layer + 1),), layer)
    return reading_of(name, PLACE_NAMES.get(named[1]), layer)
