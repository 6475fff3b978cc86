"""A twin is trained by the script that trains its model, from the settings that the plan gives it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune_model import finetune_model
from saelineage.plan.graph import Graph
from train_adapter import train_adapter

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "rslora": False}


def graph(settings: dict, seed: int) -> Graph:
    models = {"base": {"path": {}}, "tuned": {"finetune": settings}, "again": {"twin": {"of": "tuned", "seed": seed}}}
    return Graph({"models": models, "corpora": {"words": {}}, "lineage": {"controls": {}}})


@pytest.fixture(params=[None, LORA], ids=["all weights", "lora"])
def settings(training_settings, request) -> dict:
    """Four steps of four rows."""
    steps = {"parent": "base", "corpora": {"words": 1.0}, "n_tokens": 4 * 4 * 16, "warmup_steps": 0}
    return training_settings | steps | ({"lora": request.param} if request.param else {})


def train(tiny, settings: dict, folder: Path) -> Path:
    """Train as the rules do; the path of the weights."""
    arguments = {
        "settings": settings,
        "paths_to_tokens": {"words": str(tiny.tokens["words"]["train"])},
        "parent_folder": tiny.models["a"],
        "folder": folder,
        "checkpoints": folder.with_name(f"{folder.name}.checkpoints"),
        "gpus": 0,
    }
    if "lora" in settings:
        base = {"base_model_name_or_path": "base", "revision": None}
        train_adapter(name=folder.name, base=base, adapter_folder=folder / "adapter", **arguments)
    else:
        finetune_model(**arguments)
    return folder / "model.safetensors"


def test_a_twin_has_other_weights_and_the_same_seed_would_give_the_same_bytes(tiny, tmp_path: Path, settings):
    trained = train(tiny, settings, tmp_path / "tuned")
    same = train(tiny, graph(settings, seed=settings["seed"]).settings("again"), tmp_path / "same")
    twin = train(tiny, graph(settings, seed=settings["seed"] + 1).settings("again"), tmp_path / "again")
    assert same.read_bytes() == trained.read_bytes()
    first, second = load_file(trained), load_file(twin)
    assert {name: tensor.shape for name, tensor in first.items()} == {name: t.shape for name, t in second.items()}
    changed = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(first[changed], second[changed])
