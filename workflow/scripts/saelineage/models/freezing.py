"""Half fine-tuning: freezing weights of a model, and saving them as its parent's file holds them."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.foreign.models import weight_files
from saelineage.models.loading import FLOATS, load_model
from saelineage.plan.freezing import frozen_weights

logger = logging.getLogger(__name__)


def freeze_weights(model: PreTrainedModel, freeze: Mapping | None, key: str) -> list[str]:
    """Freeze some weights of a model, for which the Trainer then keeps neither gradients nor optimizer state.

    Args:
        model: changed in place.
        freeze: the `freeze` block of the config; None freezes none.
        key: the block's place in the config, for messages.

    Returns:
        Names of the frozen weights, sorted.

    Raises:
        InputError: if there is nothing to freeze (`plan.freezing.frozen_weights`).
    """
    weights = dict(model.named_parameters())
    frozen = frozen_weights({name: tuple(weight.shape) for name, weight in weights.items()}, freeze, key)
    for name in frozen:
        weights[name].requires_grad_(False)
    if frozen:
        counts = [sum(weights[name].numel() for name in names) for names in (weights.keys() - set(frozen), frozen)]
        logger.info("training %d weights beside %d frozen ones (%d tensors)", *counts, len(frozen))
    return frozen


def state_as_filed(model: PreTrainedModel, frozen: Collection[str], folder: Path) -> dict[str, Tensor] | None:
    """A model's state in which frozen weights are those of its parent's file, in the number formats of that file.

    Training in bfloat16 rounds the frozen weights of a float32 parent in memory, and training in float32 widens those
    of a 16-bit one. A whole model is held beside the trained one only where that is so.

    Args:
        model: the trained model.
        frozen: names of its frozen weights.
        folder: its parent's.

    Returns:
        The state, or None if the model's own is that already.
    """
    formats = _formats(folder)
    state = model.state_dict()
    if not frozen or set(formats.values()) == {state[name].dtype for name in frozen}:
        return None
    filed = load_model(folder, "auto").state_dict()  # where names in memory differ from the file's, its widest format
    return state | {name: filed[name].to(formats.get(name, filed[name].dtype)) for name in frozen}


def _formats(folder: Path) -> dict[str, torch.dtype]:
    """Number formats of the weights in a model's files, by their names there."""
    formats: dict[str, torch.dtype] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
            formats |= {name: FLOATS[kind] for name, kind in kinds.items() if kind in FLOATS}
    return formats
