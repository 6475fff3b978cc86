"""A merged adapter computes what peft's merge_and_unload computes, and what the adapter computes on its parent."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from saelineage.errors import InputError
from saelineage.foreign.adapters import ADAPTER_WEIGHTS, check_adapter_folder
from saelineage.models.adapters import Merged, merge_adapter
from saelineage.models.training import save_model

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
ATTENTION = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}
IDS = torch.arange(2, 34).reshape(2, 16)


def llama(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **shape, num_key_value_heads=2, **changes)).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=32)).eval()


def parent(kind: str) -> PreTrainedModel:
    return gpt2() if kind == "gpt2" else llama(tie_word_embeddings=kind == "tied")


def adapted(model: PreTrainedModel, folder: Path, **settings: object):
    """The peft model of an adapter with random numbers, which is also saved in a folder."""
    torch.manual_seed(1)
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 8} | settings)))
    for name, weight in made.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, mean=1.0 if "magnitude" in name else 0.0, std=0.1)
    made.save_pretrained(folder)
    return made.eval()


def merged(model: PreTrainedModel, folder: Path) -> Merged:
    return merge_adapter(model, check_adapter_folder(folder), folder)


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


SETTINGS: list[dict] = [
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"rank_pattern": {"layers.0.self_attn.q_proj": 2, "h.0.attn.c_attn": 2}, "alpha_pattern": {"c_proj": 5}},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"lora_bias": True},
    {"layers_to_transform": [1]},
]
KINDS_WITH_BIAS = ["gpt2"]  # the models whose modules have one, which peft's lora_bias asks for


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (kind, settings)
        for settings in SETTINGS
        for kind in (KINDS_WITH_BIAS if "lora_bias" in settings else ["llama", "gpt2"])
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "lora",
)
def test_a_merged_adapter_equals_merge_and_unload_and_the_adapter_on_its_parent(tmp_path, kind: str, settings: dict):
    theirs = adapted(parent(kind), tmp_path, target_modules=ATTENTION[kind], **settings)
    with torch.no_grad():
        logits = theirs(input_ids=IDS).logits
    ours = merged(parent(kind), tmp_path)
    assert ours.warnings == []
    assert largest_difference(ours.model.state_dict(), theirs.merge_and_unload().state_dict()) <= 1e-6
    with torch.no_grad():
        assert float((ours.model(input_ids=IDS).logits - logits).abs().max()) < 1e-4
        assert float((parent(kind)(input_ids=IDS).logits - logits).abs().max()) > 1e-2


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
@pytest.mark.parametrize(
    ("kind", "module"), [("llama", "model.layers.1.mlp.down_proj"), ("gpt2", "transformer.h.1.attn.c_attn")]
)
def test_each_matrix_is_w_plus_scale_times_b_a(tmp_path: Path, kind: str, module: str, use_rslora: bool, scale: float):
    adapted(parent(kind), tmp_path, target_modules=[module], use_rslora=use_rslora)
    tensors, start = load_file(tmp_path / ADAPTER_WEIGHTS), f"base_model.model.{module}"
    update = scale * tensors[f"{start}.lora_B.weight"] @ tensors[f"{start}.lora_A.weight"]
    ours, before = merged(parent(kind), tmp_path).model.state_dict(), parent(kind).state_dict()
    expected = before[f"{module}.weight"] + (update.T if kind == "gpt2" else update)  # Conv1D is [input, output]
    assert torch.allclose(ours[f"{module}.weight"], expected, atol=1e-6)
    rest = {name for name in before if name != f"{module}.weight"}
    assert all(torch.equal(ours[name], before[name]) for name in rest)


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_modules_that_were_trained_whole_replace_the_parent_s_and_are_saved(tiny, tmp_path: Path, kind: str):
    head = {"target_modules": ATTENTION["gpt2" if kind == "gpt2" else "llama"], "modules_to_save": ["lm_head"]}
    theirs = adapted(parent(kind), tmp_path / "adapter", **head)
    with torch.no_grad():
        logits = theirs(input_ids=IDS).logits
    ours = merged(parent(kind), tmp_path / "adapter").model
    save_model(ours, tiny.tokenizer, tmp_path / "saved")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert float((opened(input_ids=IDS).logits - logits).abs().max()) < 1e-4
    assert not (tmp_path / "saved" / "adapter_config.json").exists()


def test_embeddings_are_adapted_too_and_a_tied_one_is_said(tmp_path: Path):
    theirs = adapted(parent("llama"), tmp_path, target_modules=["embed_tokens", "q_proj"])
    ours = merged(parent("llama"), tmp_path)
    assert largest_difference(ours.model.state_dict(), theirs.merge_and_unload().state_dict()) <= 1e-6
    (sentence,) = merged(parent("tied"), tmp_path).warnings
    assert "the adapter changes model.embed_tokens, and the parent's input and output embeddings are one" in sentence


def test_half_precision_adapters_are_merged_in_float32(tmp_path: Path):
    adapted(parent("llama"), tmp_path, target_modules=["q_proj"])
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / ADAPTER_WEIGHTS).items()}
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    start = "base_model.model.model.layers.0.self_attn.q_proj"
    update = 2 * tensors[f"{start}.lora_B.weight"].float() @ tensors[f"{start}.lora_A.weight"].float()
    ours, name = merged(parent("llama"), tmp_path).model.state_dict(), "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(ours[name], parent("llama").state_dict()[name] + update, atol=1e-6)


def refused(model: PreTrainedModel, folder: Path) -> str:
    with pytest.raises(InputError) as raised:
        merged(model, folder)
    return str(raised.value)


def test_an_adapter_of_another_architecture_is_refused_by_its_modules(tmp_path: Path):
    adapted(gpt2(), tmp_path, target_modules=["c_attn"])
    message = refused(llama(), tmp_path)
    assert "adapts modules that the parent does not have (2): transformer.h.0.attn.c_attn" in message
    assert "name the parent that the adapter was trained on" in message


def test_an_adapter_of_a_wider_model_is_refused_by_its_shapes(tmp_path: Path):
    wide = LlamaForCausalLM(
        LlamaConfig(**SIZES, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )
    adapted(wide, tmp_path, target_modules=["q_proj"])
    assert "holds tensors of other shapes than the parent (4): " in refused(llama(), tmp_path)


def test_an_adapter_without_some_of_its_modules_is_refused(tmp_path: Path):
    adapted(llama(), tmp_path, target_modules=["q_proj"])
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.0" in name}, tmp_path / ADAPTER_WEIGHTS)
    expected = "lacks tensors of modules that its config says are adapted (1): model.layers.1.self_attn.q_proj"
    assert expected in refused(llama(), tmp_path)


def test_an_adapter_without_a_module_trained_whole_is_refused(tmp_path: Path):
    adapted(llama(), tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    assert "lacks tensors that its config says there are (1): base_model.model.lm_head.weight" in refused(
        llama(), tmp_path
    )


def test_tensors_that_the_parent_does_not_have_are_refused(tmp_path: Path):
    adapted(llama(), tmp_path, target_modules=["q_proj"])
    extra = {"base_model.model.model.layers.0.self_attn.router.weight": torch.ones(2)}
    save_file(load_file(tmp_path / ADAPTER_WEIGHTS) | extra, tmp_path / ADAPTER_WEIGHTS)
    expected = "holds tensors that the parent does not have (1): model.layers.0.self_attn.router.weight"
    assert expected in refused(llama(), tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path):
    adapted(llama(), tmp_path, target_modules=["q_proj"])
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    next(iter(tensors.values()))[0] = math.nan
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    assert "weights must be finite, but are not: base_model.model.model.layers.0" in refused(llama(), tmp_path)


def test_the_base_model_that_an_adapter_names_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapted(llama(), tmp_path, target_modules=["q_proj"])
    config = tmp_path / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"base_model_name_or_path": null', '"base_model_name_or_path": "/dev/zero"')
    )
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_a, **_k: pytest.fail("a model was opened"))
    assert merged(llama(), tmp_path).warnings == []
