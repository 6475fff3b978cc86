"""Merging LoRA adapters into the weights of the model that they belong to."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.errors import InputError
from saelineage.files.hub import hub_download
from saelineage.foreign.adapters import ADAPTER_WEIGHTS, PREFIX, REMEDY, Adapter
from saelineage.foreign.hub import fetch_adapter_config
from saelineage.foreign.models import CONFIG_FILE, named
from saelineage.models.loading import ModelSource, untie
from saelineage.tokens import TOKENIZER_FILES


class Merged(NamedTuple):
    """A model with an adapter in its weights."""

    model: PreTrainedModel
    warnings: list[str]
    """Sentences to warn with."""


def find_adapter(settings: Mapping, key: str) -> ModelSource:
    """Find the adapter that a config block names; of a hub repository only config, tokenizer and weights are fetched.

    Args:
        settings: the block, with a folder, or a repo and its revision.
        key: the block's place in the config, for error messages.

    Raises:
        InputError: if the hub does not have the adapter, or not in safetensors; or its config already shows that it
            cannot be used, before its weights are downloaded.
    """
    if "folder" in settings:
        return ModelSource(Path(settings["folder"]), None, [])
    described = fetch_adapter_config(settings, key)
    names = [name for name in TOKENIZER_FILES if name in described.repo.files and name != CONFIG_FILE]
    files = [hub_download(settings["repo"], described.repo.commit, name, key) for name in (*names, ADAPTER_WEIGHTS)]
    return ModelSource(described.folder, described.repo.commit, [described.path, *files])


def merge_adapter(model: PreTrainedModel, adapter: Adapter, folder: Path | str) -> Merged:
    """Merge an adapter into a model's weights, as peft's merge_and_unload does.

    Args:
        model: the parent in float32, changed in place.
        adapter: the description of the adapter (`check_adapter_folder`).
        folder: its folder.

    Raises:
        InputError: if tensors are not finite, or do not fit the model: modules or tensors that it lacks, others that
            are missing, or other shapes.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict  # most jobs need no adapters

    source = f"'{Path(folder, ADAPTER_WEIGHTS)}'"
    tensors = _without_copies(load_file(Path(folder, ADAPTER_WEIGHTS)))
    _require_finite(tensors, source)
    _require_modules(model, adapter, source)
    resized = _resize(model, adapter, tensors, source)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=adapter.modules, **adapter.settings)
    tied = _tied_modules(model, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is said below
            adapted = get_peft_model(model, config)
            _require_tensors(adapted, tensors, source)
            set_peft_model_state_dict(adapted, tensors)
            merged: object = adapted.merge_and_unload(safe_merge=True)
    except InputError:
        raise
    except Exception as error:  # peft raises almost anything over files that do not fit
        raise _misfit(source, " ".join(str(error).split())[:300].rstrip(".")) from error
    assert isinstance(merged, PreTrainedModel)
    _settle_ties(merged)
    return Merged(merged.eval().requires_grad_(False), resized + tied)


def _without_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out second copies of trained modules, which peft writes where it also saves whole embeddings."""
    first = {name: name.replace(".modules_to_save.", ".") for name in tensors}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name == first[name] or first[name] not in tensors or not torch.equal(tensor, tensors[first[name]])
    }


def _require_finite(tensors: dict[str, Tensor], source: str) -> None:
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise InputError(f"{source}: weights must be finite, but are not: {named(broken)}; use another adapter")


def _require_modules(model: PreTrainedModel, adapter: Adapter, source: str) -> None:
    """Refuse an adapter of modules that the model lacks, or without tensors for modules that its config names."""
    held = dict(model.named_modules())
    if missing := [module for module in adapter.modules if module not in held]:
        raise _misfit(source, f"adapts modules that the parent does not have ({len(missing)}): {named(missing)}")
    saved = adapter.settings["modules_to_save"] or []
    named_by_config = [name for name in held if _ends_in(name, adapter.targets) and not _ends_in(name, saved)]
    if lacking := [name for name in named_by_config if name not in adapter.modules]:
        raise _misfit(
            source, f"lacks tensors of modules that its config says are adapted ({len(lacking)}): {named(lacking)}"
        )


def _require_tensors(adapted: object, tensors: dict[str, Tensor], source: str) -> None:
    """Refuse an adapter without a tensor that the adapted model has, or with tensors of other shapes."""
    from peft import PeftModel, get_peft_model_state_dict

    assert isinstance(adapted, PeftModel)
    needed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if missing := [name for name in needed if name not in tensors]:
        raise _misfit(source, f"lacks tensors that its config says there are ({len(missing)}): {named(missing)}")
    shapes = {name: (tuple(tensors[name].shape), tuple(tensor.shape)) for name, tensor in needed.items()}
    other = [f"{name} has {list(held)}, not {list(own)}" for name, (held, own) in shapes.items() if held != own]
    if other:
        raise _misfit(source, f"holds tensors of other shapes than the parent ({len(other)}): {named(other)}")
    base = {name for name, _ in adapted.named_parameters()} | {name for name, _ in adapted.named_buffers()}
    if further := [name for name in tensors if name not in needed and name not in base]:
        shown = [name.removeprefix(PREFIX) for name in further]
        raise _misfit(source, f"holds tensors that the parent does not have ({len(shown)}): {named(shown)}")


def _resize(model: PreTrainedModel, adapter: Adapter, tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Give a model as many embedding rows as an adapter that comes with whole embeddings, and say so.

    peft saves them where an embedding was resized before training, for tokens that were added.

    Raises:
        InputError: if the adapter has other numbers of rows, but not whole input and output embeddings with them.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules() if module in (embedding, head)}
    n_rows = {
        name: len(tensors[key])
        for name in names.values()
        for key in (f"{PREFIX}{name}.weight", f"{PREFIX}{name}.base_layer.weight")
        if key in tensors
    }
    before = len(embedding.get_parameter("weight"))
    if set(n_rows.values()) <= {before}:
        return []
    is_tied = head is not None and head.get_parameter("weight") is embedding.get_parameter("weight")
    is_one = is_tied and not _ends_in(names[embedding], adapter.settings["modules_to_save"] or [])
    needed = {names[embedding]} if head is None or is_one else set(names.values())
    if len(set(n_rows.values())) != 1 or not needed <= n_rows.keys():
        held = ", ".join(f"{name} {number}" for name, number in sorted(n_rows.items()))
        raise _misfit(
            source,
            f"must hold whole embeddings of one size ({', '.join(sorted(needed))}) where it has other rows than the "
            f"parent ({before}), but holds {held} rows",
        )
    (after,) = set(n_rows.values())
    model.resize_token_embeddings(after, mean_resizing=False)  # new rows are the adapter's
    return [f"the adapter comes with embeddings of {after} rows, and the parent has {before}; the model has {after}"]


def _tied_modules(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """A sentence to warn with if an embedding is adapted that is also the output embedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.get_parameter("weight") is not embedding.get_parameter("weight"):
        return []
    modules = [name for name, module in model.named_modules() if module in (embedding, head)]
    adapted = [name for name in modules if name in adapter.modules]
    if not adapted:
        return []
    return [
        f"the adapter changes {named(adapted)}, and the parent's input and output embeddings are one matrix; merging "
        "changes both, as peft's merge_and_unload does, so the merged model is not quite the one that was trained"
    ]


def _settle_ties(model: PreTrainedModel) -> None:
    """Make the config say that embeddings are not tied where an adapter came with one of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.get_parameter("weight") is not embedding.get_parameter("weight"):
        untie(model.config)


def _ends_in(name: str, ends: list[str]) -> bool:
    """True if a module's name is one of these, or ends in one after a dot."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _misfit(source: str, reason: str) -> InputError:
    return InputError(f"{source} {reason}; name the parent that the adapter was trained on, or {REMEDY}")
