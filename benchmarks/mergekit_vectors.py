"""Merges of small models as mergekit computes them.

Writes a base and three fine-tunes of it, Llamas of two layers with random weights, and two models with tensors that are
special cases. mergekit's own `run_merge` merges them in float32 by every method that it shares with this project. Needs
mergekit in an environment of its own, and nothing of this project:

    python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5
    mergekit/bin/python benchmarks/mergekit_vectors.py [FILE]

FILE, tests/recorded_merges/mergekit.safetensors if none is named, holds float32 vectors. Each model, made or merged, is
one vector: its tensors, flattened, one after the other in the order of `tensors` in the record. The file's metadata
has that record, JSON under `saelineage`:

    {"mergekit": VERSION, "tensors": {NAME: SHAPE}, "cases": {NAME: mergekit's configuration, with the models' names}}

The random masks of DARE are vectors of 0 and 1, `CASE/mask/MODEL`, in the same order. In no tensor of a model are two
differences from the base equal in size, because mergekit may keep either. The bytes are the same each time on one kind
of CPU.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = Path(__file__).resolve().parents[1] / "tests" / "recorded_merges" / "mergekit.safetensors"
MOST_BYTES = 200_000
D_MODEL, D_MLP, D_VOCAB, N_LAYERS, SEED = 8, 6, 10, 2, 0
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "vocab_size": D_VOCAB,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
LAYER = {
    "input_layernorm": (D_MODEL,),
    "mlp.down_proj": (D_MODEL, D_MLP),
    "mlp.gate_proj": (D_MLP, D_MODEL),
    "mlp.up_proj": (D_MLP, D_MODEL),
    "post_attention_layernorm": (D_MODEL,),
    "self_attn.k_proj": (4, D_MODEL),
    "self_attn.o_proj": (D_MODEL, D_MODEL),
    "self_attn.q_proj": (D_MODEL, D_MODEL),
    "self_attn.v_proj": (4, D_MODEL),
}
CHANGES = {"layers.0": 0.05, "layers.1": 0.005, "lm_head": 0.3}
"""Size of a fine-tune's differences, by a part of the tensor's name; 0.02 elsewhere. Weights have size 0.1."""
ZERO, OPPOSITE = "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.v_proj.weight"
"""The tensors in which the models `zero` and `opposite` are not `a`: all zeros, and the negative of a's."""


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors, sorted by name."""
    shapes: dict[str, tuple[int, ...]] = {name: (D_VOCAB, D_MODEL) for name in ("lm_head", "model.embed_tokens")}
    layers = {f"model.layers.{layer}.{name}": shape for layer in range(N_LAYERS) for name, shape in LAYER.items()}
    return {f"{name}.weight": shape for name, shape in sorted({**shapes, **layers, "model.norm": (D_MODEL,)}.items())}


def make_models() -> dict[str, dict[str, Tensor]]:
    """The base, its fine-tunes a, b and c, and the special cases. c leaves one tensor as it was."""
    random = np.random.default_rng(SEED)
    shapes = tensor_shapes()

    def drawn(shape: tuple[int, ...], size: float) -> Tensor:
        return torch.from_numpy(random.normal(0, size, shape)).float()

    base = {name: drawn(shape, 0.1) + (len(shape) == 1) for name, shape in shapes.items()}
    models = {"base": base}
    for model in ("a", "b", "c"):
        changes = {name: drawn(shape, size_of_change(name)) for name, shape in shapes.items()}
        models[model] = {name: base[name] + changes[name] for name in shapes}
    models["c"][ZERO] = base[ZERO].clone()
    models["zero"] = models["a"] | {ZERO: torch.zeros(shapes[ZERO])}
    models["opposite"] = models["a"] | {OPPOSITE: -models["a"][OPPOSITE]}
    for model in ("a", "b", "c"):
        require_distinct(model, {name: models[model][name] - base[name] for name in shapes})
    return models


def size_of_change(name: str) -> float:
    """Standard deviation of the differences of a fine-tune's tensor."""
    return next((size for part, size in CHANGES.items() if part in name), 0.02)


def require_distinct(model: str, differences: Mapping[str, Tensor]) -> None:
    """Stop if two differences of a tensor have the same size: which of them mergekit keeps is not defined."""
    for name, difference in differences.items():
        if difference.any() and len(difference.abs().unique()) < difference.numel():
            raise SystemExit(f"{model}: differences of '{name}' must not be equal in size; choose another SEED")


def weighted(parameters: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The `models` of a configuration."""
    return [{"model": model, "parameters": dict(values)} for model, values in parameters.items()]


def equal(models: str, **parameters: Any) -> list[dict[str, Any]]:
    """The `models` of a configuration in which all have the same parameters."""
    return weighted({model: parameters for model in models})


def over_base(method: str, models: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    """A configuration of a method that adds differences from the base."""
    return {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}


def arc(other: str, t: Any) -> dict[str, Any]:
    """A configuration of SLERP from a to another model."""
    models = [{"model": "a"}, {"model": other}]
    return {"merge_method": "slerp", "base_model": "a", "models": models, "parameters": {"t": t}}


def cases() -> dict[str, dict[str, Any]]:
    """mergekit's configurations by the names of the cases."""
    unequal = {"a": {"weight": 0.5}, "b": {"weight": 0.8}, "c": {"weight": 1.5}}
    uneven = {"a": {"weight": 0.7, "density": 0.2}, "b": {"weight": 1.1, "density": 0.7}}
    by_part = [{"filter": "self_attn", "value": 0.3}, {"filter": "mlp", "value": 0.7}, {"value": 0.5}]

    def linear(models: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        return {"merge_method": "linear", "models": models, "parameters": parameters}

    def karcher(*models: str, **parameters: Any) -> dict[str, Any]:
        return {"merge_method": "karcher", "models": [{"model": model} for model in models], "parameters": parameters}

    def heavy(density: float, **more: Any) -> list[dict[str, Any]]:
        return weighted({model: {**values, "density": density, **more} for model, values in unequal.items()})

    return {
        "linear of two": linear(equal("ab", weight=1.0)),
        "linear, weighted": linear(weighted(unequal)),
        "linear, not normalized": linear(weighted(unequal), normalize=False),
        "slerp at 0.25": arc("b", 0.25),
        "slerp at 0.5": arc("b", 0.5),
        "slerp at 0.58": arc("b", 0.58),
        "slerp by layer": arc("b", [0.2, 0.8]),
        "slerp by part": arc("b", by_part),
        "slerp, one tensor zero": arc("zero", 0.5),
        "slerp, one tensor opposite": arc("opposite", 0.25),
        "karcher of two": karcher("a", "b"),
        "karcher of three": karcher("a", "b", "c"),
        "karcher of three, converged": karcher("a", "b", "c", max_iter=100, tol=1e-6),
        "karcher, one tensor zero": karcher("b", "zero"),
        "task_arithmetic": over_base("task_arithmetic", equal("ab", weight=1.0)),
        "task_arithmetic, weighted": over_base("task_arithmetic", weighted(unequal), **{"lambda": 0.4}),
        "task_arithmetic, normalized": over_base("task_arithmetic", weighted(unequal), normalize=True),
        "task_arithmetic by layer": over_base("task_arithmetic", equal("ab", weight=[0.2, 0.9])),
        "ties, density 0.2": over_base("ties", equal("abc", weight=1.0, density=0.2)),
        "ties, density 0.5": over_base("ties", equal("ab", weight=1.0, density=0.5)),
        "ties, weighted": over_base("ties", heavy(0.5), **{"lambda": 0.7}),
        "ties, not normalized": over_base("ties", heavy(0.2), normalize=False),
        "ties, densities that differ": over_base("ties", weighted(uneven)),
        "ties, int8 mask": over_base("ties", equal("abc", weight=1.0, density=0.2), int8_mask=True),
        "ties, rescaled": over_base("ties", equal("abc", weight=1.0, density=0.2), rescale=True),
        "dare_linear, density 0.5": over_base("dare_linear", equal("ab", weight=1.0, density=0.5)),
        "dare_linear, weighted": over_base("dare_linear", heavy(0.2), **{"lambda": 0.7}),
        "dare_linear, not rescaled": over_base("dare_linear", equal("ab", weight=1.0, density=0.5), rescale=False),
        "dare_linear, normalized": over_base("dare_linear", heavy(0.5), normalize=True),
        "dare_ties, density 0.5": over_base("dare_ties", equal("ab", weight=1.0, density=0.5)),
        "dare_ties, weighted": over_base("dare_ties", heavy(0.2), **{"lambda": 0.7}),
        "dare_ties, normalized": over_base("dare_ties", heavy(0.5), normalize=True, rescale=False),
        "breadcrumbs": over_base("breadcrumbs", equal("ab", weight=1.0, density=0.15, gamma=0.1)),
        "breadcrumbs, weighted": over_base("breadcrumbs", heavy(0.5, gamma=0.05), **{"lambda": 0.7}),
        "breadcrumbs, more than all": over_base("breadcrumbs", equal("ab", weight=1.0, density=0.9, gamma=0.3)),
        "breadcrumbs_ties": over_base("breadcrumbs_ties", equal("abc", weight=1.0, density=0.5, gamma=0.1)),
        "breadcrumbs_ties, normalized": over_base("breadcrumbs_ties", heavy(0.3, gamma=0.05), normalize=True),
    }


@contextmanager
def recorded_masks() -> Iterator[dict[tuple[str, str], Tensor]]:
    """The random masks that mergekit draws meanwhile, by model and tensor."""
    masks: dict[tuple[str, str], Tensor] = {}
    drawn: list[Tensor] = []
    merge_group, bernoulli = GeneralizedTaskArithmeticMerge.merge_group, torch.bernoulli

    def draw(probabilities: Tensor) -> Tensor:
        drawn.append(bernoulli(probabilities))
        return drawn[-1]

    def merge(self: GeneralizedTaskArithmeticMerge, group: TensorGroup, /, **parameters: Any) -> Tensor:
        drawn.clear()
        merged = merge_group(self, group, **parameters)
        for entry, mask in zip(group.non_base if drawn else (), drawn, strict=True):
            masks[Path(str(entry.id)).name, str(group.metadata.name)] = mask.clone()
        return merged

    with (
        patch.object(GeneralizedTaskArithmeticMerge, "merge_group", merge),
        patch.object(torch, "bernoulli", draw),
    ):
        yield masks


def merge_by_mergekit(case: dict[str, Any], folder: Path) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Merge models that lie in a folder; the merged tensors, and the random masks."""
    places = case | {"models": [entry | {"model": str(folder / entry["model"])} for entry in case["models"]]}
    if "base_model" in case:
        places |= {"base_model": str(folder / case["base_model"])}
    options = MergeOptions(random_seed=SEED, copy_tokenizer=False, write_model_card=False, quiet=True)
    with tempfile.TemporaryDirectory() as output, recorded_masks() as masks:
        run_merge(MergeConfiguration.model_validate(places), output, options)
        return load_file(Path(output, "model.safetensors")), masks


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All tensors as one vector, in the order of their names."""
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def record(case: dict[str, Any], name: str, folder: Path) -> dict[str, Tensor]:
    """The vectors of a case."""
    merged, masks = merge_by_mergekit(case, folder)
    vectors = {name: flat(merged)}
    for model in sorted({model for model, _ in masks}):
        of_model = {tensor: mask for (owner, tensor), mask in masks.items() if owner == model}
        vectors[f"{name}/mask/{model}"] = flat(of_model).to(torch.uint8)
    return vectors


def main() -> None:
    """Merge all cases and write the file; print a row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    path = parser.parse_args().file
    torch.set_num_threads(1)
    models, settings = make_models(), cases()
    vectors = {name: flat(model) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as temporary:
        for name, model in models.items():
            folder = Path(temporary, name)
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(CONFIG))
            save_file(model, folder / "model.safetensors", metadata={"format": "pt"})
        for name, case in settings.items():
            vectors |= record(case, name, Path(temporary))
            parent = vectors[case["models"][0]["model"]]
            print(f"{name:32} largest difference from its first model {(vectors[name] - parent).abs().max():.3f}")
    content = {"mergekit": version("mergekit"), "tensors": tensor_shapes(), "cases": settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(vectors, path, metadata={"saelineage": json.dumps(content)})
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"'{path}' must have at most {MOST_BYTES} bytes, not {size}; make the models smaller")


if __name__ == "__main__":
    main()
