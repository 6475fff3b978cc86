"""Short names of places: the modules they stand for in a small model of every type that is known."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, set_seed

from saelineage.activations import read_all
from saelineage.errors import InputError
from saelineage.foreign.models import LAYERS
from saelineage.foreign.usual_places import usual_place

WIDTHS = {"hidden_size": 16, "n_embd": 16, "d_model": 16, "word_embed_proj_dim": 16, "embed_dim": 16}
MLPS = {"intermediate_size": 24, "ffn_hidden_size": 24, "n_inner": 24, "ffn_dim": 24, "moe_intermediate_size": 24}
HEADS = {"num_attention_heads": 2, "n_head": 2, "n_heads": 2, "num_heads": 2, "attention_heads": 2}
HEADS |= {"num_key_value_heads": 2, "head_dim": 8}
LAYER_COUNTS = {"num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2}
SMALL = WIDTHS | MLPS | HEADS | LAYER_COUNTS | {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1}
OWN = {
    "gpt_neo": {"attention_types": [[["global"], 2]], "intermediate_size": 24},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "granite": {"residual_multiplier": 0.5},
    "granitemoe": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
}
ADDED_SHARE = {"granite": 0.5}
"""The share of attention's and the MLP's output that types add to the residual stream, if it is not all."""
IN_PARTS = ("falcon_mamba", "mamba", "mamba2", "gemma3", "deepseek_v2", "deepseek_v3")
"""Types without attention, and those whose configs need more than sizes."""
TYPES = sorted(kind for kinds in LAYERS.values() for kind in kinds if kind not in IN_PARTS)


def small_config(kind: str) -> dict:
    """The config.json of a model with two layers."""
    config_class = CONFIG_MAPPING[kind]
    known = {key: value for key, value in SMALL.items() if key in config_class().to_dict()}
    return config_class(**known | OWN.get(kind, {})).to_dict()


@pytest.mark.parametrize("kind", TYPES)
def test_the_stream_after_a_layer_is_that_before_it_and_what_attention_and_mlp_add(kind: str):
    config = small_config(kind)
    set_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config)).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    names = [f"{name}.1" for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    places = [usual_place(name, config, "mine") for name in names]
    before, attention, mlp, after = read_all(model, places, torch.arange(8, 24).view(2, 8))
    added = ADDED_SHARE.get(kind, 1.0) * (attention + mlp)
    torch.testing.assert_close(after, before + added, atol=1e-4, rtol=1e-4)
    assert float(added.norm()) > 0.01 * float(before.norm()), "nothing was added, so the test shows nothing"


def test_the_mlp_s_activations_are_what_its_last_matrix_reads():
    config = small_config("llama")
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**config)).eval()
    acts, out = read_all(
        model, [usual_place(name, config, "mine") for name in ("mlp_act.0", "mlp_out.0")], torch.arange(8).view(1, 8)
    )
    assert acts.shape[-1] == 24
    torch.testing.assert_close(acts @ model.model.layers[0].mlp.down_proj.weight.detach().T, out)


@pytest.mark.parametrize(
    ("name", "config", "told"),
    [
        ("resid_post.2", {"model_type": "llama", "num_hidden_layers": 2}, "resid_post.1"),
        ("resid_post.0", {"model_type": "novel", "num_hidden_layers": 2}, "MODULE.output"),
        ("mlp_act.0", {"model_type": "mixtral", "num_hidden_layers": 2}, "resid_post.0"),
        ("attn_out.0", {"model_type": "mamba", "num_hidden_layers": 2}, "resid_post.0"),
    ],
)
def test_a_place_that_the_model_does_not_have_is_refused_with_what_it_has(name: str, config: dict, told: str):
    with pytest.raises(InputError, match=told):
        usual_place(name, config, "mine")
