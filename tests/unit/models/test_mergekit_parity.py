"""Merges equal those of mergekit 0.1.5, as `benchmarks/mergekit_vectors.py` recorded them, where both have a method.

docs/decisions/0035-merging.md lists where we differ.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from torch import Tensor

from saelineage.models.merging import merge
from tests.merges import merged

FILE = Path(__file__).parents[2] / "recorded_merges" / "mergekit.safetensors"
with safe_open(FILE, "pt") as file:
    RECORD = json.loads(file.metadata()["saelineage"])
    VECTORS = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
CASES: dict[str, dict] = RECORD["cases"]
CLOSE = 1e-6
OF_METHOD: dict[str, dict] = {
    "ties": {"trim": "tensor"},
    "breadcrumbs": {"mask": "tensor"},
    "breadcrumbs_ties": {"mask": "tensor", "normalize": False},
    "dare_linear": {"rescale": "l1"},
    "dare_ties": {"rescale": "l1", "normalize": False},
    "karcher": {"norms": "mean"},
}
"""Settings in which we have mergekit's way beside the papers'."""
NOT_OURS = {
    "linear, not normalized": "a mean's weights add up to one",
    "slerp, one tensor zero": "ours is linear there",
    "karcher of three": "mergekit stops at steps of 1e-5",
    "ties, densities that differ": "ours has one density for all parents",
    "ties, rescaled": "only random differences are rescaled",
}


def tensors_of(vector: Tensor) -> dict[str, Tensor]:
    parts = vector.split([math.prod(shape) for shape in RECORD["tensors"].values()])
    return {name: part.view(shape) for (name, shape), part in zip(RECORD["tensors"].items(), parts, strict=True)}


def test_every_method_that_both_have_is_compared():
    assert {case["merge_method"] for case in CASES.values()} == {
        *("linear", "slerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties"),
        *("breadcrumbs", "breadcrumbs_ties"),
    }


def by_tensor(value: object) -> float | dict[str, float]:
    """A setting of mergekit's: a number, one for each end of the layers, or one by part of a tensor's name."""
    if not isinstance(value, list):
        assert isinstance(value, float | int)
        return float(value)
    if isinstance(value[0], dict):
        filters = {f"*{entry['filter']}*": entry["value"] for entry in value if "filter" in entry}
        return filters | {"*": next(entry["value"] for entry in value if "filter" not in entry)}
    first, last = value  # two layers; mergekit counts what is in no layer as the first
    return {"*layers.1.*": last, "*": first}


def ours(case: dict) -> dict:
    """The settings of our merge for a case of mergekit's."""
    method, parameters = case["merge_method"], dict(case["parameters"])
    of_models = [entry.get("parameters", {}) for entry in case["models"]]
    settings: dict = {"method": method} | OF_METHOD.get(method, {})
    weights = [by_tensor(of["weight"]) for of in of_models if "weight" in of]
    settings |= {"weights": weights} if weights else {}
    for name in ("density", "gamma"):
        settings |= {name: of_models[0][name]} if name in of_models[0] else {}
    settings |= {"t": by_tensor(parameters["t"])} if "t" in parameters else {}
    scale = parameters.get("lambda", 1.0)
    if parameters.get("normalize") and method in ("task_arithmetic", "dare_linear"):
        scale /= sum(float(weight) for weight in weights)
    elif "normalize" in parameters:
        settings["normalize"] = parameters["normalize"]
    if parameters.get("rescale") is False:
        settings |= {"rescale": "q", "q": 1.0}
    return settings | ({"lambda": scale} if scale != 1 else {})


class Recorded(np.random.Generator):
    """A mask that mergekit drew, in the place of a generator."""

    def __init__(self, mask: Tensor):
        super().__init__(np.random.PCG64())
        self._left = mask.flatten()

    def take(self, block: Tensor) -> Tensor:
        part, self._left = self._left[: block.numel()], self._left[block.numel() :]
        return part.view(block.shape).bool()


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_OURS])
def test_a_merge_is_that_of_mergekit(name, tmp_path, monkeypatch):
    case = CASES[name]
    parents = [entry["model"] for entry in case["models"]]
    models = {parent: tensors_of(VECTORS[parent]) for parent in parents}
    masks = {parent: tensors_of(VECTORS[key]) for parent in parents if (key := f"{name}/mask/{parent}") in VECTORS}
    if masks:  # what follows from a mask is compared, since it comes from another generator
        monkeypatch.setattr(merge, "generator_of", lambda _, parent, tensor: Recorded(masks[parent][tensor]))
        monkeypatch.setattr(merge, "drawn", lambda block, _, mask: mask.take(block))
    base = tensors_of(VECTORS["base"]) if case.get("base_model") == "base" else None
    found = merged(tmp_path, models, base, **ours(case))
    for tensor, expected in tensors_of(VECTORS[name]).items():
        assert float((found[tensor] - expected).abs().max()) <= CLOSE, tensor


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_compared_is_in_the_record(name):
    assert name in CASES
