"""The metadata by which SAELens finds activations: names of places, models and tokens that are left out."""

import json
from pathlib import Path

import pytest

from saelineage.foreign.sae_formats.registry import SaeSource, check_source
from saelineage.foreign.sae_inputs import RunInput
from saelineage.foreign.saelens_names import LISTED, UNNAMED, input_keys, model_keys, place_keys, token_keys

LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-6}
GPT_J = {"model_type": "gptj", "layer_norm_epsilon": 1e-5}


def test_an_output_is_its_module():
    auto = {"model_class_name": "AutoModelForCausalLM"}
    assert place_keys("model.layers.0.output") == {"hook_name": "model.layers.0"} | auto
    assert place_keys("model.layers.0.mlp.output") == {"hook_name": "model.layers.0.mlp"} | auto
    assert place_keys("strange.output") == {"hook_name": "strange"} | auto


def test_an_input_is_the_module_whose_output_it_is():
    assert place_keys("model.layers.1.input", "model.layers.0")["hook_name"] == "model.layers.0"


@pytest.mark.parametrize(
    ("hookpoint", "config", "hook"),
    [
        ("model.layers.3.mlp.down_proj.input", LLAMA, "blocks.3.mlp.hook_post"),
        ("model.layers.3.mlp.down_proj.input", {}, "blocks.3.mlp.hook_post"),
        ("model.layers.3.self_attn.o_proj.input", LLAMA, "blocks.3.attn.hook_z"),
        ("model.layers.0.input", LLAMA, "blocks.0.hook_resid_pre"),
        ("model.layers.3.post_attention_layernorm.input", LLAMA, "blocks.3.hook_resid_mid"),
    ],
)
def test_an_input_that_is_no_output_has_transformer_lens_s_name(hookpoint: str, config: dict, hook: str):
    assert place_keys(hookpoint, None, config) == {
        "hook_name": hook,
        "hf_hook_name": hookpoint,
        "hook_name_note": LISTED,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {},
    }


@pytest.mark.parametrize(
    ("hookpoint", "config"),
    [
        ("model.layers.3.post_attention_layernorm.input", {}),  # which place it is depends on the layout
        ("model.layers.3.self_attn.input", LLAMA),  # TransformerLens's hook for it is before the norm
        ("transformer.h.0.strange.input", GPT_J),
    ],
)
def test_a_place_without_a_name_says_so_and_has_no_wrong_one(hookpoint: str, config: dict):
    assert place_keys(hookpoint, None, config) == {
        "hook_name": None,
        "hf_hook_name": hookpoint,
        "hook_name_note": UNNAMED,
    }


def test_a_model_of_the_hub_has_its_revision():
    assert model_keys("own/base", "v2") == {
        "model_name": "own/base",
        "model_from_pretrained_kwargs": {"revision": "v2"},
    }
    assert model_keys("results/mine/models/lua") == {"model_name": "results/mine/models/lua"}


def test_tokens_that_are_left_out_are_said_as_far_as_saelens_can():
    text, chat = {"n_ctx": 16, "left_out_ids": [0, 1]}, {"n_ctx": 16, "left_out_ids": None}
    assert token_keys([text, text]) == {"context_size": 16, "prepend_bos": True, "exclude_special_tokens": [0, 1]}
    assert token_keys([chat]) == {"context_size": 16, "exclude_special_tokens": False, "seqpos_slice": [1, None]}
    assert token_keys([text, chat]) == token_keys([{"n_ctx": 16}]) == {"context_size": 16}


HOOKPOINTS = [
    "model.layers.1.output",
    "model.layers.1.input",
    "model.layers.1.mlp.down_proj.input",
    "model.layers.1.self_attn.o_proj.input",
    "model.layers.1.self_attn.input",
    "model.layers.1.strange.input",
]


@pytest.mark.parametrize("hookpoint", HOOKPOINTS)
@pytest.mark.parametrize("same_output", [None, "model.somewhere.else"])
def test_our_own_folders_are_read_back_at_the_same_place(hookpoint: str, same_output: str | None, tmp_path: Path):
    header = {"hookpoint": hookpoint, "n_ctx": 32, "left_out_ids": [0, 1]}
    header |= {"saelens": place_keys(hookpoint, same_output, LLAMA)}
    keys = input_keys([header], {"name": "own/base", "revision": "v2"})
    config = {"architecture": "standard", "d_in": 8, "d_sae": 32}
    config |= {"metadata": {"sae_lens_version": "6.54.12", **keys, "saelineage": {"hookpoint": hookpoint}}}
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(config))
    for norm in ("rms", "layer"):
        run = RunInput(hookpoint, 32, "base", ("own/base",), d_in=8, norm=norm, revision="v2")
        run = run._replace(norms_outputs=False, parallel=False)
        assert check_source(SaeSource(path.parent, "saelens", None), run, "saes.import") == []
    (sentence,) = check_source(SaeSource(path.parent, "saelens", None), run._replace(revision="v3"), "saes.import")
    assert "was trained on revision 'v2' of the model" in sentence


def test_folders_of_older_versions_are_read_at_the_place_that_their_hook_name_is(tmp_path: Path):
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "model.layers.1.mlp.down_proj.input", "model_name": "base"}
    metadata |= {"model_class_name": "AutoModelForCausalLM", "context_size": 32, "saelineage": {"model": "base"}}
    config = {"architecture": "standard", "d_in": 8, "d_sae": 32, "metadata": metadata}
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(config))
    run = RunInput("model.layers.1.mlp.down_proj.input", 32, "base", d_in=8, norms_outputs=False, parallel=False)
    assert check_source(SaeSource(path.parent, "saelens", None), run, "saes.import") == []
    with pytest.raises(ValueError, match=r"activations\.hookpoint"):
        check_source(
            SaeSource(path.parent, "saelens", None),
            run._replace(hookpoint="model.layers.2.mlp.down_proj.input"),
            "saes.import",
        )
