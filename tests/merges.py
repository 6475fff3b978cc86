"""Merges of small models and tensors, with the settings that a config would give them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig

from saelineage.foreign.models import WEIGHTS_FILE
from saelineage.models.merging.merge import merge_folders, merged_state
from saelineage.models.merging.parents import Parents
from saelineage.models.merging.weights import Weights
from saelineage.plan.merges import merge_settings

EVERY_MERGE = {"base": None, "lines": None, "vocabulary": "refuse", "dtype": None, "chosen_on": None}
"""What the schema fills in for every method."""


def settings(parents: Sequence[str], **own: object) -> dict:
    """The settings of a merge, by default by SLERP."""
    block = EVERY_MERGE | {"method": "slerp", "parents": list(parents)} | own
    return merge_settings(block, "models.merged.merge")


def merge(folders: Sequence[Path], to: Path, base: Path | None = None, **own: object) -> dict:
    """Merge model folders into another one."""
    return merge_folders(settings([folder.name for folder in folders], **own), folders, base, to)


def merged(
    folder: Path, parents: Mapping[str, Mapping], base: Mapping | None = None, embeddings: Sequence[str] = (), **own
) -> dict[str, torch.Tensor]:
    """Merge tensors, given as lists or tensors by name for each parent; they lie in files meanwhile."""

    def saved(name: str, tensors: Mapping) -> Weights:
        (folder / name).mkdir(exist_ok=True)
        save_file({key: torch.as_tensor(of) for key, of in tensors.items()}, folder / name / WEIGHTS_FILE)
        return Weights(folder / name)

    models = tuple(saved(name, tensors) for name, tensors in parents.items())
    of_base = None if base is None else saved("the base", base)
    opened = Parents((), models, of_base, None, PretrainedConfig(), tuple(embeddings), tuple(embeddings), None)
    return merged_state(opened, settings(list(parents), **own))
