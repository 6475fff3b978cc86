"""A model that is fine-tuned by LoRA, as the rule makes it."""

import json
import logging
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from apply_adapter import apply_adapter
from finetune_model import finetune_model
from saelineage.errors import InputError
from saelineage.models.loading import evaluate, load_model
from saelineage.tokens import TokenRows
from train_adapter import train_adapter

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "rslora": False}
STEPS = {"parent": "base", "n_tokens": 10 * 4 * 16, "warmup_steps": 0}


def train(tiny, settings: dict, folder: Path) -> dict:
    return train_adapter(
        settings={"lora": LORA} | settings,
        name="tuned",
        base={"base_model_name_or_path": "own/base", "revision": None},
        paths_to_tokens={"words": str(tiny.tokens["words"]["train"])},
        parent_folder=tiny.models["a"],
        folder=folder,
        adapter_folder=folder / "adapter",
        checkpoints=folder.with_name("checkpoints"),
        gpus=0,
    )


@pytest.fixture
def settings(training_settings) -> dict:
    return training_settings | STEPS


def test_the_folder_is_a_plain_model_and_the_adapter_beside_it_gives_the_same(tiny, tmp_path: Path, settings):
    folder = tmp_path / "tuned"
    # 7 layers in 2 blocks of width 32 (keys 16, MLP 48): 4 x (2 x 64 + 2 x 48 + 3 x 80) numbers a block.
    assert train(tiny, settings, folder) == {"adapted": 14, "trained": 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80)}
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny.models["a"].iterdir()} | {"adapter"}
    ours = AutoModelForCausalLM.from_pretrained(folder)
    assert not isinstance(ours, PeftModel)
    assert len(AutoTokenizer.from_pretrained(folder)) == tiny.d_vocab
    base = AutoModelForCausalLM.from_pretrained(tiny.models["a"])
    theirs = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
    assert max(float((theirs[name] - tensor).abs().max()) for name, tensor in ours.state_dict().items()) <= 1e-6
    validation = TokenRows(tiny.tokens["words"]["validation"])
    before, after = (evaluate(load_model(path), validation, 8)["loss"] for path in (tiny.models["a"], folder))
    assert after < before - 0.1


def test_the_kept_adapter_is_one_that_the_workflow_imports(tiny, tmp_path: Path, settings):
    train(tiny, settings, tmp_path / "tuned")
    block = {"folder": str(tmp_path / "tuned/adapter"), "parent": "base", "dtype": "float32"}
    assert apply_adapter(block, "again", ["own/base", "base"], tiny.models["a"], tmp_path / "again") == {"adapted": 14}
    ours, again = (tmp_path / name / "model.safetensors" for name in ("tuned", "again"))
    assert ours.read_bytes() == again.read_bytes()


def test_equal_inputs_give_equal_bytes(tiny, tmp_path: Path, settings):
    for name in ("first", "second"):
        train(tiny, settings, tmp_path / name / "tuned")
    files = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first/tuned").rglob("*") if path.is_file()]
    assert len(files) == 7
    assert [file for file in files if read(tmp_path / "first", file) != read(tmp_path / "second", file)] == []


def read(folder: Path, file: Path) -> bytes:
    return (folder / file).read_bytes()


def test_a_training_that_changes_nothing_is_said_to(tiny, tmp_path: Path, settings, caplog):
    with caplog.at_level(logging.WARNING):
        facts = train(tiny, settings | {"learning_rate": 0.0}, tmp_path / "tuned")
    assert facts["same_weights_as"] == "base"
    assert "the model has exactly the weights of its parent 'base': training has changed nothing" in caplog.text
    before, after = (folder / "model.safetensors" for folder in (tiny.models["a"], tmp_path / "tuned"))
    assert after.read_bytes() == before.read_bytes()


def test_a_name_that_matches_nothing_ends_the_job_before_it_trains(tiny, tmp_path: Path, settings):
    with pytest.raises(
        InputError, match=r"models\.tuned\.finetune\.lora\.target_modules: 'wq' must be a linear layer's name"
    ):
        train(tiny, settings | {"lora": LORA | {"target_modules": ["wq"]}}, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_warnings_are_on_record(tiny, tmp_path: Path, settings):
    facts = train(tiny, settings | {"lora": LORA | {"r": 17}}, tmp_path / "tuned")
    assert "17 is above the smaller side of some layers" in facts["warnings"][0]
    assert json.loads((tmp_path / "tuned/adapter/adapter_config.json").read_text())["r"] == 17


def test_a_model_that_was_trained_by_lora_is_fine_tuned_on(tiny, tmp_path: Path, settings):
    train(tiny, settings, tmp_path / "tuned")
    facts = finetune_model(
        settings=settings | {"parent": "tuned"},
        paths_to_tokens={"words": str(tiny.tokens["words"]["train"])},
        parent_folder=tmp_path / "tuned",
        folder=tmp_path / "later",
        checkpoints=tmp_path / "later.checkpoints",
        gpus=0,
    )
    assert facts == {}
