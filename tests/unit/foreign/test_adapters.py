"""Adapters are checked by their config and the header of their weights, and nothing that they name is opened."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.errors import InputError
from saelineage.foreign.adapters import (
    ADAPTER_WEIGHTS,
    Adapter,
    check_adapter_folder,
    lora_settings,
    matching,
    other_base,
)
from saelineage.foreign.models import ADAPTER_FILE

CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
Q_PROJ = "model.layers.0.self_attn.q_proj"
PAIR = {f"base_model.model.{Q_PROJ}.lora_A.weight": (2, 8), f"base_model.model.{Q_PROJ}.lora_B.weight": (8, 2)}


def adapter(folder: Path, shapes: dict[str, tuple[int, ...]] | None = None, **changes: object) -> Path:
    """A folder with an adapter of rank 2 to one matrix, with changes to its config or other tensors."""
    (folder / ADAPTER_FILE).write_text(json.dumps(CONFIG | changes))
    tensors = {name: np.ones(shape, dtype=np.float32) for name, shape in (shapes or PAIR).items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as raised:
        check_adapter_folder(folder)
    return str(raised.value)


def test_an_adapter_is_described_by_its_settings_and_modules(tmp_path: Path):
    described = check_adapter_folder(adapter(tmp_path, lora_dropout=0.1, use_rslora=True, some_new_key=None))
    settings = lora_settings(CONFIG | {"use_rslora": True}, "here")
    assert described == Adapter(settings, [Q_PROJ], ["q_proj"])
    assert settings["use_rslora"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA (or its kin: rsLoRA, DoRA), not 'IA3'; open it with the"),
        ({"peft_type": None}, "peft_type must be LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type must be CAUSAL_LM, not 'SEQ_CLS'"),
        ({"auto_mapping": {"parent_library": "mine.code"}}, "names code from elsewhere ('mine.code')"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes them before training"),
        ({"loftq_config": {"loftq_bits": 4}}, "init_lora_weights must leave the parent's weights as they are"),
        ({"r": 0}, "r must be a number above 0, not 0"),
        ({"r": True}, "r must be a number above 0, not True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number above 0, not '8'"),
        ({"use_dora": 1}, "use_dora must be true or false, not 1"),
        ({"bias": "some"}, "bias must be one of none, all, lora_only, not 'some'"),
        ({"modules_to_save": ["../lm_head"]}, "modules_to_save must be names of modules, not ['../lm_head']"),
        ({"layer_replication": [[0, 2]]}, "it also uses layer_replication ([[0, 2]])"),
        ({"target_parameters": ["experts"], "use_qalora": True}, "target_parameters (['experts']), use_qalora (True)"),
        ({"rank_pattern": {"(a+)+": 2}}, "short patterns of them"),
        ({"rank_pattern": {"a.*b.*c.*": 2}}, "short patterns of them"),
        ({"alpha_pattern": {"(q_proj": 2}}, "short patterns of them"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern must give numbers above 0, not '2' for q_proj"),
    ],
)
def test_a_config_that_cannot_be_merged_is_refused_with_its_key(tmp_path: Path, changes: dict, message: str):
    assert message in refused(adapter(tmp_path, **changes))


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        (
            PAIR,
            {"r": 4},
            f"the LoRA of {Q_PROJ} must have rank 4, as r and rank_pattern in adapter_config.json say, but",
        ),
        (PAIR, {"rank_pattern": {"q_proj": 1}}, "must have rank 1"),
        (dict(list(PAIR.items())[:1]), {}, f"must have lora_A and lora_B, but not {Q_PROJ}"),
        (
            {"base_model.model.lm_head.weight": (4, 8)},
            {},
            "must hold tensors of LoRA (lora_A and lora_B), but holds none",
        ),
        ({"model.norm.weight": (8,)} | PAIR, {}, "must begin with base_model.model., but do not: model.norm.weight"),
    ],
)
def test_tensors_that_contradict_the_config_are_refused(tmp_path: Path, shapes: dict, changes: dict, message: str):
    assert message in refused(adapter(tmp_path, shapes, **changes))


def test_pickles_and_whole_models_are_refused_with_the_way_round(tmp_path: Path):
    adapter(tmp_path)
    (tmp_path / ADAPTER_WEIGHTS).rename(tmp_path / "adapter_model.bin")
    assert "its weights are adapter_model.bin, a pickle" in refused(tmp_path)
    (tmp_path / "adapter_model.bin").rename(tmp_path / "model.safetensors")
    assert "it holds a whole model; name it as `path` or `hub` with its parents" in refused(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "but adapter_model.safetensors is not there" in refused(tmp_path)
    (tmp_path / ADAPTER_FILE).unlink()
    assert "but adapter_config.json and adapter_model.safetensors are not there" in refused(tmp_path)


def test_a_link_out_of_an_adapter_s_folder_is_refused(tmp_path: Path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    adapter(folder)
    (folder / ADAPTER_WEIGHTS).rename(tmp_path / "outside")
    (folder / ADAPTER_WEIGHTS).symlink_to(tmp_path / "outside")
    assert "is a link that leads out of" in refused(folder)


def test_the_first_pattern_that_matches_the_end_of_a_name_counts():
    patterns = {"layers.1.q_proj": 4, "q_proj": 8, r"layers\.[0-9]+\.v_proj": 16}
    assert matching(patterns, "model.layers.1.q_proj", 2) == 4
    assert matching(patterns, "model.layers.11.q_proj", 2) == 8
    assert matching(patterns, "model.layers.0.v_proj", 2) == 16
    assert matching(patterns, "model.layers.0.my_q_proj", 2) == 2


@pytest.mark.parametrize(
    ("base", "names"),
    [
        ("openai-community/gpt2", ["gpt2"]),
        ("/home/me/models/Gpt2/", ["/data/gpt2", "base"]),
        ("meta/llama", ["/cache/models--meta--llama/snapshots/0123abc", "base"]),
        (None, ["gpt2"]),
    ],
)
def test_an_adapter_that_names_its_parent_or_nothing_passes_without_a_word(base: str | None, names: list[str]):
    assert other_base({"base_model_name_or_path": base}, names, "base") == []


def test_an_adapter_to_another_model_is_warned_of():
    (sentence,) = other_base({"base_model_name_or_path": "meta/llama-3"}, ["meta/llama-2", "base"], "base")
    assert (
        "belongs to 'meta/llama-3', but its parent 'base' is another model by name ('base', 'meta/llama-2')" in sentence
    )
