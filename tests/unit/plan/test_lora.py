"""Fine-tuning by LoRA in the plan: the layers that names match, checks before the first job, and the edge in words."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.errors import InputError
from saelineage.plan.brought import check_on_disk, known_layers
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.lora import Layers, choose_layers, ends_of, filed_layers, pretrained_layers
from saelineage.plan.params import Params
from saelineage.plan.plan import Plan
from tests.hub_server import SCRIPTS
from tests.unit.plan.jobs import Wildcards

SCHEMA = read_schema(SCRIPTS.parents[1] / "config" / "config.schema.yaml")
ALL = {"r": 2, "target_modules": "all-linear"}
BLOCK = "model.layers.0"
LAYERS = Layers(
    {f"{BLOCK}.self_attn.q_proj": (8, 8), f"{BLOCK}.self_attn.k_proj": (4, 8), "lm_head": (300, 8)},
    {"model.embed_tokens": "is an embedding"},
)
PRETRAIN = {"corpora": {"lua": 1.0}, "n_tokens": 5120, "n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2}


def plan(parent: dict, lora: dict | None, **settings: object) -> Plan:
    finetune = {"parent": "base", "corpora": {"lua": 1.0}, "n_tokens": 5120} | settings
    given = {
        **{"run": "mine", "corpora": {"lua": {"source": "sample", "kind": "lua"}}},
        "tokenizer": {"source": "train", "vocab_size": 300, "corpora": ["lua"]},
        "models": {"base": parent, "tuned": {"finetune": finetune | ({} if lora is None else {"lora": lora})}},
    }
    return Plan(load_config(given, SCHEMA))


def checked(parent: dict, lora: dict) -> list[str]:
    return check_on_disk(plan(parent, lora), lambda manifest: False)


def model_folder(folder: Path, kind: str = "llama", **tensors: tuple[int, ...]) -> dict:
    """A parent from a folder with a Llama of one layer, of width 8."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 8}))
    shapes = {f"{BLOCK}.self_attn.q_proj": (8, 8), f"{BLOCK}.mlp.up_proj": (16, 8), "model.embed_tokens": (99, 8)}
    weights = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in (shapes | tensors).items()}
    save_file(weights, folder / "model.safetensors")
    return {"path": {"folder": str(folder)}}


def test_names_match_as_in_peft_whole_or_at_their_ends():
    def chosen(*targets: str) -> list[str]:
        return choose_layers({"r": 2, "target_modules": list(targets)}, LAYERS, "key").modules

    assert chosen("q_proj") == chosen("self_attn.q_proj") == [f"{BLOCK}.self_attn.q_proj"]
    assert chosen("lm_head", "k_proj") == ["lm_head", f"{BLOCK}.self_attn.k_proj"]
    assert choose_layers(ALL, LAYERS, "key").modules == [f"{BLOCK}.self_attn.k_proj", f"{BLOCK}.self_attn.q_proj"]
    with pytest.raises(InputError, match="'proj' must be a linear layer's name"):
        chosen("proj")


def test_ends_of_names_stand_for_modules_where_they_match_no_others():
    names = [f"h.{layer}.{name}" for layer in (0, 1) for name in ("attn", "attn.c_attn", "mlp.c_fc")]
    assert ends_of(["h.1.mlp.c_fc", "h.0.mlp.c_fc"], names) == ["c_fc"]
    assert ends_of(["h.1.mlp.c_fc"], names) == ["h.1.mlp.c_fc"]


def test_the_layers_of_a_pretrained_model_are_those_of_the_model_that_is_made():
    from saelineage.models.lora import layers_of
    from saelineage.models.training import new_mistral

    for tied in (False, True):
        base = plan({"pretrain": PRETRAIN | {"tie_embeddings": tied}}, {}).graph.settings("base")
        ours, made = pretrained_layers(base), layers_of(new_mistral(base, 300, 16, {"bos": 0, "eos": 1}))
        assert {name: shape for name, shape in ours.linear.items() if name != "lm_head"} == {
            name: shape for name, shape in made.linear.items() if name != "lm_head"
        }
        assert ("lm_head" in ours.linear) == ("lm_head" in made.linear) == (not tied)
        assert set(ours.others) <= set(made.others)


def test_a_name_that_matches_nothing_is_refused_before_the_first_job_with_near_names(tmp_path: Path):
    key = "models.tuned.finetune.lora.target_modules"
    said = f"{key}: 'qproj' must be a linear layer's name, or the end of one after a dot, but"
    for parent in ({"pretrain": PRETRAIN}, model_folder(tmp_path / "theirs")):
        with pytest.raises(InputError) as raised:
            checked(parent, {"target_modules": ["up_proj", "qproj"]})
        assert str(raised.value).startswith(f"{said} the parent has none of that name; did you mean q_proj")
        assert checked(parent, {"target_modules": ["up_proj", "q_proj"]}) == []


def test_tied_and_embedded_and_expert_names_are_refused_before_the_first_job(tmp_path: Path):
    experts = {f"{BLOCK}.block_sparse_moe.experts.0.w1": (16, 8)}
    for name, kind, tensors, target, said in (
        ("tied", "llama", {}, "lm_head", "lm_head is the input embedding too (tied)"),
        ("wte", "llama", {}, "embed_tokens", "model.embed_tokens is an embedding"),
        ("moe", "mixtral", experts, "w1", "experts.0.w1 is a part of experts"),
    ):
        with pytest.raises(InputError) as raised:
            checked(model_folder(tmp_path / name, kind, **tensors), {"target_modules": [target]})
        assert said in str(raised.value)
    untied = model_folder(tmp_path / "untied", lm_head=(99, 8))
    assert checked(untied, {"target_modules": ["lm_head"]}) == []


def test_a_rank_above_every_layer_is_refused_before_the_first_job_and_above_some_is_said(tmp_path: Path):
    for parent, largest in (({"pretrain": PRETRAIN}, 32), (model_folder(tmp_path / "theirs"), 8)):
        with pytest.raises(
            InputError, match=rf"models\.tuned\.finetune\.lora\.r: must be at most {largest}, .* not 33"
        ):
            checked(parent, {"r": 33})
    (sentence,) = checked({"pretrain": PRETRAIN}, {"r": 17})  # keys of two of four heads are 16 wide
    assert "17 is above the smaller side of some layers" in sentence
    assert f"{BLOCK}.self_attn.k_proj (16)" in sentence


def test_parents_whose_names_in_memory_are_not_known_are_left_to_the_job(tmp_path: Path):
    assert filed_layers({"model_type": "new_type"}, {"model.layers.0.q.weight": (8, 8)}) is None
    assert filed_layers({"model_type": "llama"}, {}) is None
    hub = {"hub": {"repo": "own/base", "revision": "1" * 40}}
    assert known_layers(plan(hub, {}), "tuned") is None
    assert checked(model_folder(tmp_path / "theirs", "new_type"), {"target_modules": ["qproj"]}) == []


def test_a_child_of_a_child_is_checked_against_the_model_that_its_line_begins_with():
    line = plan({"pretrain": PRETRAIN}, {})
    line.config["models"]["later"] = {"finetune": line.graph.settings("tuned") | {"parent": "tuned"}}
    assert known_layers(Plan(line.config), "later") == pretrained_layers(line.graph.settings("base"))


def test_lora_has_a_learning_rate_of_its_own_unless_one_is_given():
    parent = {"pretrain": PRETRAIN}
    assert plan(parent, None).graph.settings("tuned")["learning_rate"] == 0.001
    assert plan(parent, {}).graph.settings("tuned")["learning_rate"] == 0.0002
    assert plan(parent, {}, learning_rate=0.01).graph.settings("tuned")["learning_rate"] == 0.01
    assert plan(parent, {}).graph.lora("tuned") == {
        **{"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear", "rslora": False}
    }
    assert plan(parent, None).graph.lora("tuned") is None


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"r": 0}, "models.tuned.finetune.lora.r: 0 is less than the minimum of 1"),
        ({"alpha": 0}, "models.tuned.finetune.lora.alpha: 0 is less than or equal to the minimum of 0"),
        ({"dropout": 1.0}, "models.tuned.finetune.lora.dropout: 1.0 is greater than or equal to the maximum of 1"),
        ({"target_modules": "q_proj"}, "models.tuned.finetune.lora.target_modules: 'q_proj' does not match"),
        ({"target_modules": []}, "models.tuned.finetune.lora.target_modules: [] should be non-empty"),
        ({"lora_alpha": 8}, "models.tuned.finetune.lora: unknown key 'lora_alpha'"),
        (None, "models.tuned.finetune.lora: None is not of type 'object'"),
    ],
)
def test_mistakes_in_a_lora_block_are_named(lora: dict | None, said: str):
    finetune = {"parent": "base", "corpora": {"lua": 1.0}, "n_tokens": 5120, "lora": lora}
    with pytest.raises(InputError) as raised:
        load_config(plan({"pretrain": PRETRAIN}, None).config | {"models": {"tuned": {"finetune": finetune}}}, SCHEMA)
    assert str(raised.value).startswith(said)


def test_the_page_says_rank_scale_and_layers_of_an_edge():
    def made(**lora: object) -> str:
        return plan({"pretrain": PRETRAIN}, lora).graph.made("tuned")

    assert made() == "fine-tuned from base with LoRA (r = 8, alpha = 16, all linear layers)"
    assert made(r=2, alpha=0.5, rslora=True, target_modules=["q_proj", "v_proj"]) == (
        "fine-tuned from base with rsLoRA (r = 2, alpha = 0.5, q_proj, v_proj)"
    )
    assert plan({"pretrain": PRETRAIN}, None).graph.made("tuned") == "fine-tuned from base"


def test_fine_tunes_by_lora_have_a_rule_of_their_own():
    parent = {"pretrain": PRETRAIN}
    for lora in (None, {}):
        graph = plan(parent, lora).graph
        assert graph.of_kind("finetune") == ["tuned"]
        assert graph.finetuned(with_lora=lora is not None) == ["tuned"]
        assert graph.finetuned(with_lora=lora is None) == []


def test_an_adapter_s_config_names_the_repository_or_folder_of_its_base(tmp_path: Path):
    for parent, expected in (
        ({"hub": {"repo": "own/base", "revision": "1" * 40}}, ("own/base", "1" * 40)),
        (model_folder(tmp_path / "theirs"), (str(tmp_path / "theirs"), None)),
        ({"pretrain": PRETRAIN}, ("base", None)),
    ):
        base = Params(plan(parent, {})).adapter_base(Wildcards(model="tuned"))
        assert (base["base_model_name_or_path"], base["revision"]) == expected
