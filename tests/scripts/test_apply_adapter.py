"""A model with an adapter, as the rule makes it."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from apply_adapter import apply_adapter
from tests.hub_server import running_hub

Q_PROJ = "model.layers.0.self_attn.q_proj"
START = f"base_model.model.{Q_PROJ}"
CONFIG = {
    **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 3, "target_modules": [Q_PROJ]},
    "base_model_name_or_path": "own/base",
}


def write_adapter(folder: Path, up: float = 1.0) -> Path:
    """An adapter of rank 1 that adds 3 x up to each number of one matrix of the tiny model, which is 32 x 32."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    tensors = {f"{START}.lora_A.weight": torch.ones(1, 32), f"{START}.lora_B.weight": torch.full((32, 1), up)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def settings(folder: Path, dtype: str = "float32") -> dict:
    return {"folder": str(folder), "parent": "base", "dtype": dtype}


def test_an_adapter_is_added_to_its_parent_s_weights(tiny, tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter")
    facts = apply_adapter(settings(adapter), "tuned", ["own/base", "base"], tiny.models["a"], tmp_path / "tuned")
    assert facts == {"adapted": 1}
    ours, parent = (load_file(folder / "model.safetensors") for folder in (tmp_path / "tuned", tiny.models["a"]))
    assert torch.allclose(ours.pop(f"{Q_PROJ}.weight"), parent.pop(f"{Q_PROJ}.weight") + 3)
    assert ours.keys() == parent.keys()
    assert all(torch.equal(ours[name], parent[name]) for name in parent)


def test_the_folder_has_the_parent_s_tokenizer_and_generation_settings_and_nothing_of_the_adapter(tiny, tmp_path: Path):
    parent = shutil.copytree(tiny.models["a"], tmp_path / "parent")
    generation = json.loads((parent / "generation_config.json").read_text()) | {"max_new_tokens": 7}
    (parent / "generation_config.json").write_text(json.dumps(generation))
    apply_adapter(settings(write_adapter(tmp_path / "adapter")), "tuned", ["base"], parent, tmp_path / "tuned")
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == {path.name for path in parent.iterdir()}
    assert (tmp_path / "tuned/tokenizer.json").read_bytes() == (parent / "tokenizer.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert model.generation_config.max_new_tokens == 7
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tuned")) == tiny.d_vocab


def test_another_base_and_an_adapter_that_changes_nothing_are_said(tiny, tmp_path: Path, caplog):
    adapter = write_adapter(tmp_path / "adapter", up=0.0)
    facts = apply_adapter(settings(adapter), "tuned", ["own/other"], tiny.models["a"], tmp_path / "tuned")
    (warning,) = facts["warnings"]
    assert "belongs to 'own/base', but its parent 'base' is another model by name ('own/other')" in warning
    assert facts["same_weights_as"] == "base"
    assert "the model has exactly the weights of its parent 'base': the adapter changes nothing" in caplog.text
    ours, parent = (folder / "model.safetensors" for folder in (tmp_path / "tuned", tiny.models["a"]))
    assert ours.read_bytes() == parent.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_merged_weights_are_saved_in_the_format_that_is_asked_for(tiny, tmp_path: Path, dtype: str):
    adapter = write_adapter(tmp_path / "adapter")
    apply_adapter(settings(adapter, dtype), "tuned", ["base"], tiny.models["a"], tmp_path / "tuned")
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "tuned/model.safetensors").values()}
    assert kinds == {getattr(torch, dtype)}


IMPORT = """
import json, sys
from pathlib import Path
from apply_adapter import apply_adapter
said = []
for repo in ("own/lora", "own/ia3", "own/pickle"):
    block = {"repo": repo, "revision": "main", "parent": "base", "dtype": "float32"}
    try:
        said.append(apply_adapter(block, "tuned", ["own/base"], Path(sys.argv[1]), Path(repo)))
    except ValueError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def test_an_adapter_from_the_hub_is_pinned_and_checked_before_its_weights_are_fetched(tiny, tmp_path: Path):
    folder = write_adapter(tmp_path / "adapter")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with running_hub() as hub:
        commit = hub.push("own/lora", files | {"README.md": b"text", "training_args.bin": b"code"}, kind="models")
        config = json.dumps(CONFIG | {"peft_type": "IA3"}).encode()
        hub.push("own/ia3", files | {"adapter_config.json": config}, kind="models")
        pickled = {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"code"}
        hub.push("own/pickle", pickled, kind="models")
        command = [sys.executable, "-c", IMPORT, str(tiny.models["a"])]
        environment = hub.environment(tmp_path)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        fetched = [request.partition("/own/")[2] for request in hub.requests if "/resolve/" in request]
    assert done.returncode == 0, done.stderr
    facts, other_kind, pickle = json.loads(done.stdout.splitlines()[-1])
    assert facts["commit"] == commit
    assert facts["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert "peft_type must be LORA (or its kin: rsLoRA, DoRA), not 'IA3'" in other_kind
    assert pickle.startswith("models.tuned: 'own/pickle' must hold an adapter")
    assert {path.partition("/")[0] for path in fetched if path.endswith(".safetensors")} == {"lora"}
    assert not [path for path in fetched if path.endswith((".bin", ".md"))]
