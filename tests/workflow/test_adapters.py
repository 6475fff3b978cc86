"""Jobs of a run with a model that is another one with an adapter."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.workflow.conftest import Checkout

FINETUNED = "left: {finetune: {parent: base, corpora: {lua: 1.0}, n_tokens: 5120}}"
ADAPTED = "left: {adapter: {folder: lora, parent: base}}"


def write_adapter(folder: Path) -> None:
    folder.mkdir()
    start = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    tensors = {f"{start}A.weight": np.ones((2, 32), np.float32), f"{start}B.weight": np.ones((32, 2), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")


def test_an_adapter_is_an_edge_like_a_fine_tune(tmp_path: Path):
    checkout = Checkout(tmp_path)
    as_finetune = checkout.stale_jobs()
    write_adapter(checkout.folder / "lora")
    checkout.edit("tiny.yaml", FINETUNED, ADAPTED)
    as_adapter = checkout.stale_jobs()
    assert as_finetune - as_adapter == {("finetune_model", "left")}
    assert as_adapter - as_finetune == {("apply_adapter", "left")}
    assert ("merge_models", "merged") in as_adapter


def test_a_damaged_adapter_is_refused_before_any_job(tmp_path: Path):
    checkout = Checkout(tmp_path)
    write_adapter(checkout.folder / "lora")
    (checkout.folder / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    checkout.edit("tiny.yaml", FINETUNED, ADAPTED)
    process = checkout.snakemake("--cores", "1")
    assert process.returncode == 1
    assert "must have rank 8, as r and rank_pattern in adapter_config.json say" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (checkout.folder / "results").exists()
