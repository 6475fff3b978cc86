"""Scripts that make models: what does not fit the run is refused, and what changes nothing is said."""

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    MixtralConfig,
)

from finetune_model import finetune_model
from import_model import import_model
from merge_models import merge_models
from saelineage.errors import InputError
from saelineage.models.loading import evaluate, load_model
from saelineage.tokens import TokenRows
from sweep_merge import sweep_merge
from tests.merges import settings


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny.models["a"], tmp_path / "theirs")


def imported(tiny, folder: Path, tmp_path: Path, n_ctx: int = 16) -> dict:
    return import_model({"folder": str(folder)}, "mine", n_ctx, tiny.tokenizer, tmp_path / "mine")


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_rows_beyond_a_model_s_positions_are_refused_at_import(tiny, folder, tmp_path):
    with pytest.raises(InputError, match=r"models\.mine: tokens\.n_ctx must be at most 16, .* not 17"):
        imported(tiny, folder, tmp_path, n_ctx=17)
    assert not (tmp_path / "mine").exists()


def test_positions_that_the_config_leaves_to_its_class_are_checked_at_import(tiny, tmp_path):
    config = GPT2Config(vocab_size=tiny.d_vocab, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "n_positions"})
    )
    imported(tiny, tmp_path / "theirs", tmp_path, n_ctx=1024)
    with pytest.raises(InputError, match=r"at most 1024, the positions .* \(n_positions in config\.json\), not 1025"):
        imported(tiny, tmp_path / "theirs", tmp_path, n_ctx=1025)


def test_an_encoder_is_refused_unless_its_config_makes_it_a_decoder(tiny, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(vocab_size=tiny.d_vocab, **sizes)).save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="model_type 'bert' is an encoder, in which each token sees those after it"):
        imported(tiny, tmp_path / "theirs", tmp_path)
    set_config(tmp_path / "theirs", is_decoder=True)
    imported(tiny, tmp_path / "theirs", tmp_path)


def test_an_import_keeps_the_generation_config_and_notes_an_adapter(tiny, folder, tmp_path):
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.3}')
    (folder / "adapter_config.json").write_text("{}")
    facts = imported(tiny, folder, tmp_path)
    assert any("holds adapter_config.json beside full weights" in warning for warning in facts["warnings"])
    assert json.loads((tmp_path / "mine" / "generation_config.json").read_text())["temperature"] == 0.3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "mine").generation_config.do_sample


@pytest.mark.parametrize("kind", [GPTNeoXConfig, MixtralConfig], ids=["Pythia", "Mixtral"])
def test_a_sweep_of_imported_models_ends_at_their_losses(tiny, tmp_path, kind):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folders, losses = [], []
    rows = TokenRows(tiny.tokens["words"]["validation"])
    for seed, name in enumerate(("left", "right")):
        torch.manual_seed(seed)
        config = kind(vocab_size=tiny.d_vocab, **sizes | {"num_key_value_heads": 2, "initializer_range": 0.3})
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs" / name)
        folders.append(tmp_path / name)
        import_model({"folder": str(tmp_path / "theirs" / name)}, name, 16, tiny.tokenizer, folders[-1])
        losses.append(evaluate(load_model(folders[-1]), rows, 8)["loss"])
    sweep_merge(
        merges=[settings(["left", "right"], t=t) for t in (0.0, 0.5, 1.0)],
        over=["t"],
        parent_folders=folders,
        base_folder=None,
        beside=folders,
        paths_to_validation={"words": str(tiny.tokens["words"]["validation"])},
        batch_rows=8,
        path_to_sweep=str(tmp_path / "sweep.parquet"),
        gpus=0,
    )
    sweep = pd.read_parquet(tmp_path / "sweep.parquet")
    measured = sweep["loss"].tolist()
    assert [measured[0], measured[2]] == losses
    assert measured[1] not in losses
    assert sweep["model"].dropna().tolist() == ["left", "right"]
    assert measured[3:] == losses
    expected = [0, measured[1] - sum(losses) / 2, 0]
    assert sweep["barrier"].tolist()[:3] == pytest.approx(expected, abs=1e-9)
    assert bool(sweep["barrier"][3:].isna().all())


def test_a_merge_that_is_one_of_its_parents_is_said_to_be(tiny, tmp_path, caplog):
    a, b = tiny.models["a"], tiny.models["b"]
    half, end = (settings(["a", "b"], t=t) for t in (0.5, 1.0))
    assert merge_models(half, [a, b], None, tmp_path / "between") == {}
    assert merge_models(end, [a, b], None, tmp_path / "end") == {"same_weights_as": "b"}
    again = shutil.copytree(a, tmp_path / "again")
    assert merge_models(half, [a, again], None, tmp_path / "same") == {"same_weights_as": "a"}
    assert "the merged model has exactly the weights of 'a'" in caplog.text


@pytest.mark.parametrize("learning_rate", [0.0, 0.01])
def test_a_fine_tune_that_changes_nothing_is_said_to(tiny, tmp_path, training_settings, learning_rate, caplog):
    with caplog.at_level(logging.WARNING):
        facts = finetune_model(
            settings=training_settings
            | {"parent": "base", "n_tokens": 4 * 16, "learning_rate": learning_rate}
            | {"warmup_steps": 0},
            paths_to_tokens={"words": str(tiny.tokens["words"]["train"])},
            parent_folder=tiny.models["a"],
            folder=tmp_path / "tuned",
            checkpoints=tmp_path / "checkpoints",
            gpus=0,
        )
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny.models["a"], tmp_path / "tuned"))
    is_same = all(torch.equal(before[name], after[name]) for name in before)
    assert is_same == (learning_rate == 0.0)
    assert facts == ({"same_weights_as": "base"} if is_same else {})
    assert ("training has changed nothing" in caplog.text) == is_same
