"""Fine-tuning by LoRA: adapters of peft on a frozen model."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_files
from saelineage.foreign.adapters import ADAPTER_WEIGHTS, PREFIX
from saelineage.foreign.models import ADAPTER_FILE, named
from saelineage.models.loading import OTHER_SENSES, load_model
from saelineage.plan.lora import (
    EXPERTS,
    HEADS,
    NO_EMBEDDING,
    NO_TEXT,
    PARTS_OF_EXPERTS,
    TIED,
    Layers,
    choose_layers,
    ends_of,
    is_part_of_experts,
)

if TYPE_CHECKING:
    from peft import PeftModel

UP = ".lora_B.weight"
"""End of the name of the half of an adapter that starts at zero."""


class Adapted(NamedTuple):
    """A frozen model with an adapter to train."""

    model: "PeftModel"
    modules: list[str]
    """The adapted layers, sorted."""
    warnings: list[str]
    """Sentences to warn with."""


def load_frozen(folder: Path | str, is_rounded: bool = False) -> PreTrainedModel:
    """Open a model whose weights are not trained, in its file's number format, or rounded to bfloat16.

    float16 is widened to float32, because gradients of activations vanish in it unless losses are scaled.
    """
    model = load_model(folder, torch.bfloat16 if is_rounded else "auto")
    return model.float() if model.dtype == torch.float16 else model


def add_adapter(model: PreTrainedModel, lora: Mapping, seed: int, key: str) -> Adapted:
    """Freeze a model and add a LoRA adapter, in float32, that changes nothing before it is trained.

    Args:
        model: changed in place.
        lora: the `lora` block of the config.
        seed: of the adapter's initial weights.
        key: the block's place in the config, for messages.

    Raises:
        InputError: if `target_modules` or `r` do not fit the model, or peft does not adapt these layers.
    """
    from peft import LoraConfig, get_peft_model  # most jobs need no adapters
    from peft.tuners.tuners_utils import BaseTunerLayer

    choice = choose_layers(lora, layers_of(model), key)
    settings = {"r": lora["r"], "lora_alpha": lora["alpha"], "lora_dropout": lora["dropout"]}
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=choice.modules, use_rslora=lora["rslora"], **settings)
    set_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Conv1D holds its weights the other way round
            adapted = get_peft_model(model, config)
    except ValueError as error:  # layers that it does not adapt, such as some of Mamba
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{key}: {text}; name other layers under target_modules") from error
    layers = [name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]
    if sorted(name.removeprefix(PREFIX) for name in layers) != choice.modules:
        raise InputError(
            f"{key}: peft must adapt {named(choice.modules)}, but takes some of them for other parts of the model, and "
            f"adapts {named(name.removeprefix(PREFIX) for name in layers)}; name other layers under target_modules"
        )
    return Adapted(adapted, choice.modules, choice.warnings)


def layers_of(model: PreTrainedModel) -> Layers:
    """The layers of a model that LoRA can adapt: linear layers through which text flows, and the output embedding.

    A tied output embedding is left out, and so is what is, or is called as, a part of experts.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    experts = {name.rpartition(".")[0] for name, weight in model.named_parameters() if _holds_experts(name, weight)}
    linear: dict[str, tuple[int, ...]] = {}
    others = {f"{name}.{part}": EXPERTS for name in sorted(experts) for part in ("gate_up_proj", *PARTS_OF_EXPERTS)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            others[name] = NO_EMBEDDING
        elif not isinstance(module, nn.Linear | Conv1D):
            continue
        elif OTHER_SENSES.search(name):
            others[name] = NO_TEXT
        elif module is head and head.get_parameter("weight") is embedding.get_parameter("weight"):
            others |= {name: TIED} | dict.fromkeys(HEADS, TIED)
        elif experts and is_part_of_experts(name):
            others[name] = EXPERTS
        else:
            linear[name] = tuple(module.get_parameter("weight").shape)
    return Layers(linear, others)


def save_adapter(adapted: Adapted, base: Mapping, folder: Path) -> None:
    """Write an adapter's folder as peft reads it, with equal bytes for equal adapters.

    Args:
        adapted: the trained model.
        base: what its config says of the model that it belongs to.
        folder: the folder to write.
    """
    config = adapted.model.peft_config["default"].to_dict()
    names = [name.removeprefix(PREFIX) for name, _ in adapted.model.named_modules()]
    described = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    described |= {**base, "target_modules": ends_of(adapted.modules, names), "inference_mode": True}
    with atomic_files(folder) as temporary:
        save_file(_tensors(adapted), temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        (temporary / ADAPTER_FILE).write_text(text, encoding="utf-8")


def idle_layers(adapted: Adapted) -> list[str]:
    """A sentence to warn with if some layers' adapters are as before the training: no gradient reached them."""
    changed = {name: bool(tensor.any()) for name, tensor in _tensors(adapted).items() if name.endswith(UP)}
    idle = [name.removeprefix(PREFIX).removesuffix(UP) for name, is_changed in changed.items() if not is_changed]
    if not idle or not any(changed.values()):
        return []
    return [
        f"training has not changed the adapters of {named(idle)} ({len(idle)} layers), because the model does not "
        "compute with these layers as with others; leave them out of target_modules"
    ]


def _tensors(adapted: Adapted) -> dict[str, Tensor]:
    """The adapter's weights, under the names that peft's files have."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(adapted.model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _holds_experts(name: str, weight: Tensor) -> bool:
    """True of a weight that holds the matrices of all experts of a layer."""
    return weight.dim() == 3 and ".experts." in name
