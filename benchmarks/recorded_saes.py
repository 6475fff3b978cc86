"""Latents of SAEs in the layouts of publications, as SAELens's own loaders compute them.

Writes small SAEs with random weights under the published names, opens them with `SAE.from_pretrained` and the loader of
each publication, and records their latents on fixed inputs. tests/unit/saes/test_published.py imports the same files
and compares. Needs SAELens in an environment of its own, and nothing of this project:

    python -m venv saelens && saelens/bin/pip install sae-lens==6.54.12
    saelens/bin/python benchmarks/recorded_saes.py

`--json FILE` also writes the table. Files are the same bytes each time, except for those that torch.save may change
between versions of PyTorch.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "recorded_saes"
D_IN, D_SAE, N_HEADS, N_TOKENS, K = 8, 32, 2, 24, 4
FACTOR = 0.6
SIZES = {"d_in": D_IN, "d_sae": D_SAE}


class Case(NamedTuple):
    """An SAE as it was published."""

    loader: str
    """SAELens's name of the loader."""
    repo: str
    path: str
    """The folder in the repository, or its file."""
    format: str
    """Our name of the format."""
    write: Callable[[Path, dict[str, Tensor]], None]
    """From the path and the weights under SAELens's names."""
    overrides: Mapping[str, Any] = {}
    """Keys of SAELens's config that the names say for the real sizes."""
    factor: float | None = None
    """Factor of the input in SAELens's registry."""
    settings: Mapping[str, Any] = {}
    """Further keys of our `import` block."""


def write_npz(prefix: str) -> Callable[[Path, dict[str, Tensor]], None]:
    """A writer of Gemma Scope's archives, whose matrices are `W_enc` or `w_enc`."""

    def write(path: Path, weights: dict[str, Tensor]) -> None:
        arrays: dict[str, Any] = {name.replace("W_", prefix): tensor.numpy() for name, tensor in weights.items()}
        np.savez(path / "params.npz", **arrays)

    return write


def write_gemma_scope_2(config: dict | None) -> Callable[[Path, dict[str, Tensor]], None]:
    def write(path: Path, weights: dict[str, Tensor]) -> None:
        save(path / "params.safetensors", {name.lower(): tensor for name, tensor in weights.items()})
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))

    return write


def write_llama_scope(path: Path, weights: dict[str, Tensor]) -> None:
    (path / "checkpoints").mkdir(exist_ok=True)
    save(path / "checkpoints" / "final.safetensors", linear(weights))
    norm = D_IN**0.5 / FACTOR
    hook = "blocks.15.hook_resid_post"
    config = {
        "d_model": D_IN,
        "d_sae": D_SAE,
        "jump_relu_threshold": 0.9,
        "hook_point_in": hook,
        "hook_point_out": hook,
    }
    config["dataset_average_activation_norm"] = {"in": norm, "out": norm}
    (path / "hyperparams.json").write_text(
        json.dumps(config | {"act_fn": "jumprelu", "expansion_factor": D_SAE // D_IN})
    )


def write_r1_distill(path: Path, weights: dict[str, Tensor]) -> None:
    save(path / "sae_weights.safetensors", linear(weights) | {"log_jumprelu_threshold": weights["threshold"].log()})
    hook = "blocks.15.hook_resid_post"
    config = {"d_model": D_IN, "expansion_factor": D_SAE // D_IN, "hook_point_in": hook, "hook_point_out": hook}
    (path / "config.json").write_text(json.dumps(config))


def write_qwen_scope(path: Path, weights: dict[str, Tensor]) -> None:
    transposed = {name: weights[name].T.contiguous() for name in ("W_enc", "W_dec")}
    torch.save({name: transposed.get(name, weights[name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}, path)


def write_linear(suffix: str) -> Callable[[Path, dict[str, Tensor]], None]:
    def write(path: Path, weights: dict[str, Tensor]) -> None:
        torch.save({name.replace(".", f"{suffix}."): tensor for name, tensor in linear(weights).items()}, path)

    return write


def write_hook_z(path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({name: weights[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}, path)
    config = {"act_size": D_IN, "dict_size": D_SAE, "act_name": "blocks.3.attn.hook_z", "seq_len": 128}
    path.with_name(f"{path.stem}_cfg.json").write_text(json.dumps(config))


def write_dictionary(path: Path, weights: dict[str, Tensor]) -> None:
    tensors = {name: tensor for name, tensor in linear(weights).items() if name != "decoder.bias"}
    torch.save(tensors | {"b_dec": weights["b_dec"], "k": torch.tensor(K)}, path / "ae.pt")
    trainer = {"dict_class": "AutoEncoderTopK", "layer": 3, "k": K, "activation_dim": D_IN, "dict_size": D_SAE}
    trainer |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_3"}
    (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128, "io": "out"}}))


def linear(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of two linear layers."""
    return {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "decoder.bias": weights["b_dec"],
    }


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


GEMMA_3 = {
    "architecture": "jump_relu",
    "model_name": "google/gemma-v3-1b-pt",
    "hf_hook_point_in": "model.layers.13.output",
}
SCOPE = "google/gemma-scope-2b-pt"
SCOPE_2 = "google/gemma-scope-2-1b-pt"
GOODFIRE, QRESEARCH = "Llama-3.1-8B-Instruct-SAE-l19", "DeepSeek-R1-Distill-Llama-8B-SAE-l19"
QWEN = "SAE-Res-Qwen3-1.7B-Base-W32K"
HEADS = "gpt2-small_L3_Hcat_z_lr1.20e-03_l18.00e-01_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v5.pt"
CASES = (
    Case("gemma_2", f"{SCOPE}-res", "layer_12/width_16k/average_l0_82", "gemma_scope", write_npz("W_"), SIZES),
    Case("gemma_2", f"{SCOPE}-res", "embedding/width_4k/average_l0_6", "gemma_scope", write_npz("W_"), SIZES),
    Case("gemma_2", f"{SCOPE}-mlp", "layer_5/width_16k/average_l0_95", "gemma_scope", write_npz("w_"), SIZES),
    Case("gemma_2", f"{SCOPE}-att", "layer_3/width_16k/average_l0_93", "gemma_scope", write_npz("w_"), SIZES),
    Case("gemma_3", SCOPE_2, "resid_post/layer_13_width_16k_l0_medium", "gemma_scope_2", write_gemma_scope_2(GEMMA_3)),
    Case("gemma_3", SCOPE_2, "attn_out/layer_13_width_16k_l0_small", "gemma_scope_2", write_gemma_scope_2(None)),
    Case("gemma_3", SCOPE_2, "mlp_out_all/layer_2_width_16k_l0_big", "gemma_scope_2", write_gemma_scope_2(None)),
    Case(
        "llama_scope",
        "fnlp/Llama3_1-8B-Base-LXR-8x",
        "Llama3_1-8B-Base-L15R-8x",
        "llama_scope",
        write_llama_scope,
        factor=FACTOR,
    ),
    Case(
        "llama_scope_r1_distill",
        "fnlp/Llama-Scope-R1-Distill",
        "800M-Slimpajama-0-OpenR1-Math-220k/L15R",
        "llama_scope",
        write_r1_distill,
        factor=FACTOR,
        settings={"norm_scaling_factor": FACTOR},
    ),
    Case("qwen_scope", f"Qwen/{QWEN}-L0_{K}", "layer3.sae.pt", "qwen_scope", write_qwen_scope, SIZES),
    Case("goodfire", f"Goodfire/{GOODFIRE}", f"{GOODFIRE}.pth", "goodfire", write_linear("_linear"), SIZES),
    Case("deepseek_r1", f"qresearch/{QRESEARCH}", f"{QRESEARCH}.pt", "goodfire", write_linear(""), SIZES),
    Case("connor_rob_hook_z", "ckkissane/attn-saes-gpt2-small-all-layers", HEADS, "hook_z", write_hook_z),
    Case(
        "dictionary_learning_1",
        "canrager/lm_sae",
        "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0",
        "dictionary_learning",
        write_dictionary,
    ),
)


def drawn(seed: int) -> dict[str, Tensor]:
    """Random weights under SAELens's names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "W_enc": (D_IN, D_SAE),
        "W_dec": (D_SAE, D_IN),
        "b_enc": (D_SAE,),
        "b_dec": (D_IN,),
        "threshold": (D_SAE,),
    }
    weights = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}
    return weights | {"threshold": weights["threshold"].abs() + 0.05}


def download(repo_id: str, filename: str, subfolder: str | None = None, **_: object) -> str:
    """The file in the recorded repositories, in place of the hub's."""
    path = FOLDER / repo_id / (subfolder or "") / filename
    if not path.exists():
        raise LocalEntryNotFoundError(str(path))
    return str(path)


def shapes_of(repo_id: str, filename: str) -> dict[str, list[int]]:
    """The shapes of tensors that SAELens asks the hub for."""
    with safe_open(FOLDER / repo_id / filename, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def latents_of(case: Case, acts: Tensor) -> Tensor:
    """Latents of an SAE as SAELens opens it."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def loader(cfg_overrides: dict[str, Any], **arguments: Any) -> Any:
        return loaders.NAMED_PRETRAINED_SAE_LOADERS[case.loader](
            cfg_overrides=cfg_overrides | dict(case.overrides), **arguments
        )

    with (
        patch.object(loaders, "hf_hub_download", download),
        patch.object(loaders, "get_safetensors_tensor_shapes", shapes_of),
        patch("sae_lens.saes.sae.get_norm_scaling_factor", lambda release, sae_id: case.factor),
    ):
        sae = SAE.from_pretrained(case.repo, case.path, converter=loader)
    by_head = sae.cfg.reshape_activations == "hook_z"
    return sae.encode(acts.reshape(N_TOKENS, N_HEADS, -1) if by_head else acts)


def record(case: Case, seed: int, acts: Tensor) -> Tensor:
    """Write an SAE and compute its latents."""
    path = FOLDER / case.repo / case.path
    is_file = path.suffix in (".pt", ".pth")
    (path.parent if is_file else path).mkdir(parents=True, exist_ok=True)
    case.write(path, drawn(seed))
    return latents_of(case, acts)


@torch.no_grad()
def main() -> None:
    """Write the files, the latents and the `import` blocks; print a row per SAE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    acts = torch.randn(N_TOKENS, D_IN, generator=torch.Generator().manual_seed(1000)) * 1.5 + 0.3
    FOLDER.mkdir(exist_ok=True)
    vectors, blocks, rows = {"acts": acts}, {}, []
    for seed, case in enumerate(CASES):
        name = f"{case.repo}/{case.path}"
        vectors[name] = record(case, seed, acts).contiguous()
        folder, file = (str(Path(name).parent), Path(name).name) if name.endswith((".pt", ".pth")) else (name, None)
        blocks[name] = {"folder": folder, "format": case.format, **({"file": file} if file else {}), **case.settings}
        rows.append({"loader": case.loader, "sae": name, "l0": float((vectors[name] > 0).float().sum(1).mean())})
        print(f"{case.loader:24} {name:100.100} l0 {rows[-1]['l0']:5.2f}")
    save_file(vectors, FOLDER / "vectors.safetensors")
    record_of = {"sae_lens": version("sae-lens"), "imports": blocks}
    (FOLDER / "imports.json").write_text(json.dumps(record_of, indent=1) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
