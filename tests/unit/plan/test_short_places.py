"""Short names of hookpoints in a config."""

import json
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.plan.short_places import write_out_places


def config_of(models: dict, *places: str) -> dict:
    return {"activations": {"hookpoints": {place: place for place in places}}, "models": models}


def test_short_names_become_modules_of_the_first_model_and_stay_the_hookpoints_names(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 3}))
    models = {"tuned": {"adapter": {"parent": "base"}}, "base": {"path": {"folder": str(tmp_path)}}}
    config = config_of(models, "resid_post.2", "mlp_act.0", "transformer.h.1.output")
    write_out_places(config)
    assert config["activations"]["hookpoints"] == {
        "resid_post.2": "transformer.h.2.output",
        "mlp_act.0": "transformer.h.0.mlp.c_proj.input",
        "transformer.h.1.output": "transformer.h.1.output",
    }


def test_a_pretrained_model_has_mistral_s_modules():
    config = config_of({"base": {"pretrain": {"n_layers": 1}}}, "attn_out.0")
    write_out_places(config)
    assert config["activations"]["hookpoints"] == {"attn_out.0": "model.layers.0.self_attn.output"}
    with pytest.raises(InputError, match=r"from 0 to 0.*attn_out\.0"):
        write_out_places(config_of({"base": {"pretrain": {"n_layers": 1}}}, "attn_out.1"))


def test_a_run_whose_models_are_not_described_before_the_first_job_needs_whole_names():
    models = {"base": {"path": {"folder": "nowhere", "gguf": "base.gguf", "dequantise": True}}}
    with pytest.raises(InputError, match=r"'mlp_out\.0'.*MODULE\.output"):
        write_out_places(config_of(models, "mlp_out.0"))
    write_out_places(config_of(models, "model.layers.0.output"))


def test_a_missing_folder_is_named_with_its_key():
    with pytest.raises(InputError, match=r"models\.base\.path: 'nowhere' is not a folder"):
        write_out_places(config_of({"base": {"path": {"folder": "nowhere"}}}, "mlp_out.0"))
