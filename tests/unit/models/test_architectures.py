"""Merging and opening models of many architectures, some of whose tensors have other names in files than in memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from saelineage.errors import InputError
from saelineage.models.loading import load_model, open_state, weights_sha256
from saelineage.models.losses import next_token_loss
from saelineage.models.merging.merge import merged_state
from saelineage.models.merging.parents import open_parents
from saelineage.models.predictions import predict
from tests.merges import merge, settings

VOCABULARY = 300
IDS = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))
SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2},
}
EXPERTS = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
NEOX = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
ARCHITECTURES = {
    "GPT-2, tied": ("gpt2", GPT2),
    "Llama": ("llama", SIZES),
    "Pythia": ("gpt_neox", NEOX),  # its output embedding is embed_out in files and lm_head in memory
    "Mixtral": ("mixtral", EXPERTS),  # experts are joined in memory
    "Mixtral, tied": ("mixtral", EXPERTS | {"tie_word_embeddings": True}),
    "Qwen2-MoE": (
        "qwen2_moe",
        SIZES
        | {"num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "GraniteMoE, tied": ("granitemoe", EXPERTS | {"tie_word_embeddings": True}),
    "Gemma 3 text": ("gemma3_text", SIZES | {"head_dim": 8}),
    "Gemma 3": (  # its text model is language_model in memory
        "gemma3",
        {
            "text_config": SIZES | {"head_dim": 8},
            "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
            | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        },
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        SIZES
        | {"num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1}
        | {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 8}
        | {"q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
    ),
    "Jamba": (
        "jamba",
        SIZES
        | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False}
        | {"mamba_d_state": 4, "mamba_dt_rank": 4},
    ),
}
UNTIED = {"tie_word_embeddings": False}


def loss(model: PreTrainedModel) -> float:
    """Mean next-token loss on fixed ids."""
    with torch.inference_mode():
        total, _, n = next_token_loss(predict(model, IDS), IDS)
    return total / n


def saved(kind: str, sizes: dict, seed: int, folder: Path) -> float:
    """Save a model with random weights as transformers does, and return its loss."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    model.save_pretrained(folder)
    return loss(model)


def swept(a: Path, b: Path, t: float) -> float:
    """The loss of a merge as `sweep_merge` measures it."""
    parents = open_parents([a, b], None)
    state = merged_state(parents, settings([a.name, b.name], t=t))
    return loss(open_state(parents.config, state, "the merge"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_sweep_s_ends_are_the_parents_and_a_merge_is_the_model_between(name: str, tmp_path: Path):
    kind, sizes = ARCHITECTURES[name]
    a, b = tmp_path / "a", tmp_path / "b"
    losses = [saved(kind, sizes, seed, folder) for seed, folder in enumerate((a, b))]
    assert losses[0] != losses[1]
    assert [loss(load_model(folder)) for folder in (a, b)] == losses
    assert [swept(a, b, t) for t in (0.0, 1.0)] == losses
    assert merge([a, b], tmp_path / "merged", t=0.4) == {}
    assert loss(load_model(tmp_path / "merged")) == swept(a, b, 0.4)
    assert swept(a, b, 0.4) not in losses


@pytest.mark.parametrize("name", ["GPT-2, tied", "Gemma 3 text", "Mixtral, tied"])
def test_tied_embeddings_are_merged_once_and_stay_tied(name: str, tmp_path: Path):
    kind, sizes = ARCHITECTURES[name]
    for seed, model in enumerate("ab"):
        saved(kind, sizes, seed, tmp_path / model)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged", t=0.4)
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    merged = load_model(tmp_path / "merged")
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["Llama", "Pythia", "Mixtral", "Gemma 3"])
def test_a_tied_and_an_untied_model_are_merged_with_an_output_embedding_each(name: str, tmp_path: Path):
    kind, sizes = ARCHITECTURES[name]
    tied, untied = tmp_path / "tied", tmp_path / "untied"
    of_tied = saved(kind, sizes | {"tie_word_embeddings": True}, 0, tied)
    of_untied = saved(kind, sizes | UNTIED, 1, untied)
    assert [swept(tied, untied, t) for t in (0.0, 1.0)] == [of_tied, of_untied]
    assert [swept(untied, tied, t) for t in (0.0, 1.0)] == [of_untied, of_tied]
    merge([tied, untied], tmp_path / "merged", t=0.4)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    assert loss(load_model(tmp_path / "merged")) == swept(tied, untied, 0.4)


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_a_tensor_too_few_or_too_many_is_an_error_where_ties_hid_it(change: str, tmp_path: Path):
    saved("gpt2", GPT2, 0, tmp_path / "a")
    state = load_file(tmp_path / "a" / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    if change == "missing":
        del state[name]
    else:
        state["transformer.h.2.mlp.c_fc.weight"] = state[name].clone()
    expected = (
        rf"the merge lacks weights .*{name}" if change == "missing" else r"does not have \(1\): transformer\.h\.2"
    )
    with pytest.raises(InputError, match=expected):
        open_state(load_model(tmp_path / "a").config, state, "the merge")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "rope_parameters.rope_theta (10000.0 and 1000000.0)",
        ),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps (1e-06 and 0.01)"),
        ({"hidden_act": "gelu"}, "hidden_act ('silu' and 'gelu')"),
        ({"num_attention_heads": 2, "num_key_value_heads": 1}, "head_dim (8 and 16), num_attention_heads (4 and 2)"),
        ({"kind": "mistral"}, "model_type ('llama' and 'mistral')"),
    ],
    ids=["theta", "eps", "activation", "heads", "architecture"],
)
def test_models_of_equal_shapes_that_compute_something_else_are_not_merged(change: dict, said: str, tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    saved("llama", SIZES, 0, a)
    saved(change.pop("kind", "llama"), SIZES | change, 1, b)
    for run in (lambda: open_parents([a, b], None), lambda: merge([a, b], tmp_path / "merged")):
        with pytest.raises(InputError) as raised:
            run()
        start = "models 'a' and 'b' cannot be merged, because a merged model has one config.json and theirs differ in"
        assert str(raised.value).startswith(f"{start} {said}")
    assert not (tmp_path / "merged").exists()


def test_buffers_that_old_versions_saved_are_neither_missed_nor_counted_as_left_over(tmp_path: Path):
    mask = torch.ones(1, 1, 64, 64).tril()
    buffers = {
        "gpt2": (GPT2, "transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
        "gpt_neox": (NEOX, "gpt_neox.layers.{}.attention.bias", "gpt_neox.layers.{}.attention.rotary_emb.inv_freq"),
        "gptj": (GPT2 | {"rotary_dim": 4}, "transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
        "llama": (SIZES, "model.layers.{}.self_attn.rotary_emb.inv_freq"),
    }
    for kind, (sizes, *names) in buffers.items():
        expected = saved(kind, sizes, 0, tmp_path / kind)
        state = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / kind / "model.safetensors").items()}
        more = {name.format(layer): mask.clone() for name in names for layer in range(2)}
        save_file(state | more, tmp_path / kind / "model.safetensors", {"format": "pt"})
        opened = load_model(tmp_path / kind, dtype="auto")
        assert opened.dtype == torch.bfloat16  # float32 masks are no weights
        assert loss(opened.float()) == pytest.approx(expected, abs=0.02)


def test_equal_weights_have_one_digest_whatever_their_format_and_ties(tmp_path: Path):
    saved("llama", SIZES | {"tie_word_embeddings": True}, 0, tmp_path / "tied")
    model = load_model(tmp_path / "tied").to(torch.bfloat16)
    digest = weights_sha256(model)
    assert digest == weights_sha256(model.float())
    model.save_pretrained(tmp_path / "half")
    assert weights_sha256(load_model(tmp_path / "half")) == digest
    state = load_file(tmp_path / "half" / "model.safetensors")
    config = AutoConfig.from_pretrained(tmp_path / "half", **UNTIED)
    untied = state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
    assert weights_sha256(open_state(config, untied, "untied")) == digest
    untied["model.norm.weight"][0] += 1e-3
    assert weights_sha256(open_state(config, untied, "changed")) != digest
