"""Fine-tuning by LoRA trains the adapter alone; what it writes is what peft opens, and merges to the same weights."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from saelineage.errors import InputError
from saelineage.foreign.adapters import check_adapter_folder
from saelineage.models import training
from saelineage.models.adapters import merge_adapter
from saelineage.models.lora import Adapted, add_adapter, idle_layers, load_frozen, save_adapter
from saelineage.models.training import train_on
from saelineage.tokens import TokenRows, read_token_rows
from tests.unit.models.test_architectures import ARCHITECTURES, IDS, SIZES
from tests.unit.models.test_training import TRAINING, Kill, Killed

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "rslora": False}
BASE = {"base_model_name_or_path": "base", "revision": None}
WITH_DROPOUT = TRAINING | {"lora": LORA | {"dropout": 0.1}}
MORE = {
    "Qwen2": ("qwen2", SIZES),
    "Gemma 2": ("gemma2", SIZES | {"head_dim": 8}),
    "OPT": (
        "opt",
        {"vocab_size": 300, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 16},
    ),
}
DENSE = ["GPT-2, tied", "Llama", "Pythia", "Gemma 3 text", "Qwen2", "Gemma 2", "OPT"]
MIXTURES = ["Mixtral", "Mixtral, tied", "Qwen2-MoE", "GraniteMoE, tied", "DeepSeek-V3"]


def new_model(name: str) -> PreTrainedModel:
    kind, sizes = (ARCHITECTURES | MORE)[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()


def adapted(name: str, **lora: object) -> Adapted:
    return add_adapter(new_model(name), LORA | lora, 0, "models.tuned.finetune.lora")


def a_step(of: Adapted, learning_rate: float = 0.01) -> None:
    """One step of AdamW on fixed ids."""
    optimizer = torch.optim.AdamW([weight for weight in of.model.parameters() if weight.requires_grad], learning_rate)
    of.model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


def merged(of: Adapted, parent: PreTrainedModel, folder: Path) -> PreTrainedModel:
    save_adapter(of, BASE, folder)
    return merge_adapter(parent, check_adapter_folder(folder), folder).model


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("name", [*DENSE, *MIXTURES, "Gemma 3", "Jamba"])
def test_a_trained_adapter_is_opened_by_peft_and_merges_to_what_peft_merges(name: str, tmp_path: Path):
    ours = adapted(name, rslora=name == "Qwen2")
    a_step(ours)
    ours.model.eval()
    with torch.no_grad():
        logits = ours.model(input_ids=IDS).logits
    model = merged(ours, new_model(name), tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(new_model(name), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert float((theirs(input_ids=IDS).logits - logits).abs().max()) < 1e-5
        assert float((new_model(name)(input_ids=IDS).logits - logits).abs().max()) > 1e-4
    assert largest_difference(model.state_dict(), theirs.merge_and_unload().state_dict()) <= 1e-6
    with torch.no_grad():
        assert float((model(input_ids=IDS).logits - logits).abs().max()) < 1e-4


@pytest.mark.parametrize("name", DENSE)
def test_all_linear_is_what_peft_calls_so(name: str):
    theirs = peft.get_peft_model(new_model(name), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    assert adapted(name).modules == sorted(theirs.base_model.targeted_module_names)


@pytest.mark.parametrize("name", ["GPT-2, tied", "Llama", "Mixtral"])
def test_before_training_the_merged_model_is_the_parent_bit_for_bit(name: str, tmp_path: Path):
    before = new_model(name).state_dict()
    after = merged(adapted(name), new_model(name), tmp_path / "adapter").state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key].view(torch.int32), before[key].view(torch.int32)) for key in before)


@pytest.mark.parametrize("name", ["GPT-2, tied", "Llama"])
def test_only_the_adapter_is_trained(name: str):
    before, ours = new_model(name).state_dict(), adapted(name)
    start = {key: weight.detach().clone() for key, weight in ours.model.named_parameters()}
    a_step(ours)
    changed = {key for key, weight in ours.model.named_parameters() if not torch.equal(weight, start[key])}
    # In the first step B gets gradients and A none, because B is zero; weight decay shrinks A.
    assert changed == {key for key in start if ".lora_" in key}
    base = {key.removeprefix("base_model.model.").replace(".base_layer", ""): key for key in start.keys() - changed}
    assert all(torch.equal(start[key], before[name]) for name, key in base.items())


def test_experts_are_left_out_with_a_warning_and_refused_by_name():
    for name in MIXTURES:
        ours = adapted(name)
        assert {module.rpartition(".")[2] for module in ours.modules}.isdisjoint({"gate_proj", "up_proj", "down_proj"})
        warning, *_ = ours.warnings
        assert warning.startswith("models.tuned.finetune.lora: all-linear leaves out model.layers.0.")
    for name, target in (("Mixtral", "w1"), ("Mixtral", "gate_up_proj"), ("DeepSeek-V3", "gate_proj")):
        with pytest.raises(InputError, match=rf"target_modules: '{target}' must be .* experts are not adapted here"):
            adapted(name, target_modules=["o_proj", target])


def test_embeddings_images_and_layers_that_peft_leaves_are_refused_by_name():
    for name, target, said in (
        ("GPT-2, tied", "lm_head", "lm_head is the input embedding too (tied)"),
        ("GPT-2, tied", "wte", "transformer.wte is an embedding"),
        ("Gemma 3", "fc1", "fc1 works on images or sound"),
        ("Llama", "qproj", "the parent has none of that name; did you mean q_proj"),
        ("Llama", "c_attn", "none of that name; correct it (its linear layers: down_proj, gate_proj"),
    ):
        with pytest.raises(InputError) as raised:
            adapted(name, target_modules=[target])
        assert str(raised.value).startswith(
            f"models.tuned.finetune.lora.target_modules: '{target}' must be a linear layer's"
        )
        assert said in str(raised.value)


def test_an_untied_output_embedding_is_adapted_where_it_is_named(tmp_path: Path):
    ours = adapted("Llama", target_modules=["lm_head", "q_proj"])
    a_step(ours)
    model = merged(ours, new_model("Llama"), tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(new_model("Llama"), tmp_path / "adapter").merge_and_unload()
    assert not torch.equal(model.lm_head.weight, new_model("Llama").lm_head.weight)
    assert largest_difference(model.state_dict(), theirs.state_dict()) <= 1e-6


def test_a_rank_above_every_layer_s_width_is_refused_and_above_some_is_said():
    # The keys of two of four heads are 16 wide, all other layers at least 32.
    (warning,) = adapted("Llama", r=20).warnings
    assert "20 is above the smaller side of some layers" in warning
    assert "model.layers.0.self_attn.k_proj (16)" in warning
    with pytest.raises(
        InputError, match=r"models\.tuned\.finetune\.lora\.r: must be at most 32, .* not 33, because the adapter"
    ):
        adapted("Llama", r=33)


def test_layers_that_no_gradient_reaches_are_said():
    ours = adapted("Jamba")  # which reads the weight of dt_proj, and never calls that layer
    a_step(ours)
    (warning,) = idle_layers(ours)
    assert "not changed the adapters of model.layers.0.mamba.dt_proj (1 layers)" in warning
    untrained = adapted("Llama")
    assert idle_layers(untrained) == []


@pytest.mark.parametrize(("dtype", "held"), [("bfloat16", torch.bfloat16), ("float16", torch.float32)])
def test_a_frozen_model_keeps_its_format_but_float16_and_adapters_are_float32(dtype: str, held: torch.dtype, tmp_path):
    new_model("Llama").to(getattr(torch, dtype)).save_pretrained(tmp_path / "half")
    model = load_frozen(tmp_path / "half")
    ours = add_adapter(model, LORA, 0, "models.tuned.finetune.lora")
    weights = dict(ours.model.named_parameters())
    assert {weight.dtype for weight in weights.values() if not weight.requires_grad} == {held}
    assert {weight.dtype for weight in weights.values() if weight.requires_grad} == {torch.float32}
    a_step(ours)
    save_adapter(ours, BASE, tmp_path / "adapter")
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_the_saved_config_names_few_layers_in_order_and_the_base(tmp_path: Path):
    save_adapter(adapted("Llama", r=2, alpha=3, rslora=True), BASE | {"revision": "abc"}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == names
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 2, 3)
    assert (config["base_model_name_or_path"], config["revision"]) == ("base", "abc")
    assert config["use_rslora"]
    save_adapter(adapted("Llama", target_modules=["layers.0.mlp.up_proj"]), BASE, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.mlp.up_proj"]


def training_rows(tiny) -> dict[str, TokenRows]:
    return read_token_rows({"words": tiny.tokens["words"]["train"]})


def train(tiny, folder: Path, checkpoints: Path, **changes: object) -> bytes:
    """Train an adapter on model `a`; returns the bytes of its two files."""
    settings = WITH_DROPOUT | changes
    ours = add_adapter(load_frozen(tiny.models["a"]), settings["lora"], settings["seed"], "models.tuned.finetune.lora")
    train_on(ours.model, training_rows(tiny), settings, checkpoints, torch.device("cpu"))
    save_adapter(ours, BASE, folder)
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_a_killed_training_resumes_with_adapter_and_optimizer_and_ends_with_the_same_bytes(
    tiny, tmp_path, caplog, monkeypatch
):
    undisturbed = train(tiny, tmp_path / "undisturbed", tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(training, "LogToFile", Kill)
        with pytest.raises(Killed):
            train(tiny, tmp_path / "killed", tmp_path / "killed.checkpoints")
    (checkpoint,) = (tmp_path / "killed.checkpoints").iterdir()
    assert checkpoint.name == "checkpoint-5"
    held = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"} <= held
    assert "model.safetensors" not in held

    # A second kill, in the middle of writing the next checkpoint, leaves a folder without its last file.
    shutil.copytree(checkpoint, checkpoint.with_name("checkpoint-10"))
    (checkpoint.with_name("checkpoint-10") / "trainer_state.json").unlink()
    with caplog.at_level(logging.INFO):
        resumed = train(tiny, tmp_path / "resumed", tmp_path / "killed.checkpoints")
    assert f"resuming from {checkpoint}" in caplog.text
    assert resumed == undisturbed
    assert train(tiny, tmp_path / "other", tmp_path / "other.checkpoints", seed=4) != undisturbed


def test_initial_weights_follow_from_the_seed():
    def start(seed: int) -> list[torch.Tensor]:
        ours = add_adapter(new_model("Llama"), LORA, seed, "models.tuned.finetune.lora")
        return [weight for name, weight in ours.model.named_parameters() if "lora_A" in name]

    assert all(map(torch.equal, start(0), start(0)))
    assert not any(map(torch.equal, start(0), start(1)))
    assert all(isinstance(weight, nn.Parameter) for weight in start(0))
