"""Tiny random models of many architectures: opened, read, re-initialised, and their logit effects.

A family is made from its config, saved and opened as a run opens it. What the library says is compared with the model
itself: its own hidden states, and derivatives of its logits.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, set_seed

from saelineage.activations import hooked, read_activations, require_causal, same_output
from saelineage.correlations.decoders import NoSimilarityError
from saelineage.correlations.logit_maps import logit_map
from saelineage.errors import InputError
from saelineage.foreign.models import read_config, residual_stream
from saelineage.models.loading import load_model, reinitialised

D_VOCAB, D_MODEL, D_MLP = 96, 24, 40
IDS = torch.arange(3, 15).reshape(2, 6)

IDS_OF_SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SHAPE: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
} | IDS_OF_SPECIAL
GROUPED = SHAPE | {"num_key_value_heads": 1}
HEADS = GROUPED | {"head_dim": 12}
GPT = {"vocab_size": D_VOCAB, "n_embd": D_MODEL, "n_layer": 2, "n_head": 2, "n_positions": 32}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 14,
    "patch_size": 14,
}
IMAGES = {"mm_tokens_per_image": 1, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
OPT = {key: value for key, value in SHAPE.items() if key != "intermediate_size"} | {"ffn_dim": D_MLP}
BLOOM = {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "n_layer": 2, "n_head": 2} | IDS_OF_SPECIAL
MPT = {"vocab_size": D_VOCAB, "d_model": D_MODEL, "n_layers": 2, "n_heads": 2, "max_seq_len": 32}
XGLM = {"vocab_size": D_VOCAB, "d_model": D_MODEL, "num_layers": 2, "attention_heads": 2, "ffn_dim": D_MLP}


class Family(NamedTuple):
    """An architecture, and the places in it that a user names."""

    model_type: str
    config: dict
    blocks: str
    """The list of its two blocks."""
    added: str | None
    """A place in a block from which a matrix leads to the residual stream; None if there is none."""
    d_added: int = D_MLP
    first_block: int = 1
    """Place of the first block's output in the `hidden_states` of the model's own answer; before it is its input."""


FAMILIES = {
    "llama": Family("llama", HEADS, "model.layers", "mlp.down_proj.input"),
    "mistral": Family("mistral", HEADS, "model.layers", "mlp.output", D_MODEL),
    "qwen2": Family("qwen2", GROUPED, "model.layers", "mlp.down_proj.input"),
    "gemma2": Family("gemma2", HEADS | {"final_logit_softcapping": None}, "model.layers", None),
    "gemma3_text": Family("gemma3_text", HEADS, "model.layers", None),
    "gemma3": Family(
        "gemma3",
        {"text_config": HEADS | {"model_type": "gemma3_text"}, "vision_config": VISION} | IMAGES,
        "model.language_model.layers",
        "post_feedforward_layernorm.output",
        D_MODEL,
    ),
    "gpt2": Family("gpt2", GPT | {"n_inner": D_MLP}, "transformer.h", "mlp.c_proj.input"),
    "gpt_neox": Family("gpt_neox", SHAPE, "gpt_neox.layers", "mlp.dense_4h_to_h.input"),
    "opt": Family("opt", OPT, "model.decoder.layers", "fc2.input"),
    "bloom": Family("bloom", BLOOM, "transformer.h", "mlp.dense_4h_to_h.input", 4 * D_MODEL),
    "falcon": Family("falcon", SHAPE | {"ffn_hidden_size": D_MLP}, "transformer.h", "mlp.dense_4h_to_h.input"),
    "phi": Family("phi", SHAPE, "model.layers", "mlp.fc2.input"),
    "olmo2": Family("olmo2", GROUPED, "model.layers", None),
    "mamba": Family("mamba", SHAPE | {"state_size": 4}, "backbone.layers", "mixer.out_proj.input", first_block=0),
    "mixtral": Family(
        "mixtral", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}, "model.layers", "mlp.output", D_MODEL
    ),
    "cohere": Family("cohere", GROUPED | {"logit_scale": 0.25}, "model.layers", "mlp.down_proj.input"),
    "starcoder2": Family("starcoder2", GROUPED, "model.layers", "mlp.c_proj.input"),
    "granite": Family(
        "granite", GROUPED | {"logits_scaling": 8.0, "residual_multiplier": 0.22}, "model.layers", "mlp.down_proj.input"
    ),
    "mpt": Family("mpt", MPT, "transformer.blocks", "ffn.down_proj.input", 4 * D_MODEL),
    "xglm": Family("xglm", XGLM, "model.layers", "fc2.input"),
}
WITH_PLACES = [name for name, family in FAMILIES.items() if family.added]
NOT_CAUSAL = {
    "bert": SHAPE,
    "electra": SHAPE | {"embedding_size": D_MODEL},
    "roberta": SHAPE | {"max_position_embeddings": 40},
}


class Opened(NamedTuple):
    """A family's model as it was made, and as a run opens it."""

    family: Family
    made: PreTrainedModel
    model: PreTrainedModel
    folder: Path


def drawn(model_type: str, config: dict) -> PreTrainedModel:
    """A random model whose gains and biases are random too, so that none can be left out unseen."""
    set_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    made = drawn(family.model_type, family.config)
    made.save_pretrained(folder)
    return Opened(family, made, load_model(folder), folder)


@torch.no_grad()
def test_a_model_is_opened_with_its_logits_unchanged(opened: Opened):
    logits = opened.made(input_ids=IDS).logits
    assert torch.equal(opened.model(input_ids=IDS).logits, logits)
    assert logits.shape == (*IDS.shape, D_VOCAB)


@torch.no_grad()
def test_a_block_s_output_is_the_hidden_state_that_the_model_itself_returns(opened: Opened):
    acts = read_activations(opened.model, f"{opened.family.blocks}.0.output", IDS)
    hidden_states = opened.model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert torch.equal(acts, hidden_states[opened.family.first_block])
    assert torch.equal(read_activations(opened.model, f"{opened.family.blocks}.1.input", IDS), acts)
    assert residual_stream(read_config(opened.folder), 0) == f"{opened.family.blocks}.0.output"


@torch.no_grad()
@pytest.mark.parametrize("opened", WITH_PLACES, indirect=True)
def test_places_inside_a_block_are_read_and_replaced_row_by_row(opened: Opened):
    hookpoint = f"{opened.family.blocks}.0.{opened.family.added}"
    acts = read_activations(opened.model, hookpoint, IDS)
    assert acts.shape == (*IDS.shape, opened.family.d_added)
    torch.testing.assert_close(read_activations(opened.model, hookpoint, IDS[1:]), acts[1:])
    logits = opened.model(input_ids=IDS).logits
    with hooked(opened.model, hookpoint, lambda acts: acts.clone()):
        assert torch.equal(opened.model(input_ids=IDS).logits, logits)

    def ablate_second_row(acts: Tensor) -> Tensor:
        return torch.cat([acts[:1], torch.zeros_like(acts[1:])])

    with hooked(opened.model, hookpoint, ablate_second_row):
        changed = opened.model(input_ids=IDS).logits
    torch.testing.assert_close(changed[0], logits[0])
    assert not torch.allclose(changed[1], logits[1], atol=1e-4)


EQUAL_OUTPUTS = {
    "gpt2": {"0.input": "transformer.drop", "0.mlp.c_proj.input": "transformer.h.0.mlp.act"},
    "gpt_neox": {"0.input": "gpt_neox.emb_dropout", "0.mlp.dense_4h_to_h.input": "gpt_neox.layers.0.mlp.act"},
    "llama": {"0.input": "model.embed_tokens", "0.mlp.down_proj.input": None, "0.self_attn.o_proj.input": None},
    "mistral": {"1.mlp.input": "model.layers.1.post_attention_layernorm"},
    "gemma2": {"1.mlp.input": "model.layers.1.pre_feedforward_layernorm", "0.mlp.down_proj.input": None},
}
"""Modules whose output the input of another is, read off the code of transformers."""


@torch.no_grad()
def test_an_input_is_named_by_the_module_whose_output_it_is(opened: Opened):
    blocks = opened.family.blocks
    assert same_output(opened.model, f"{blocks}.1.input") == f"{blocks}.0"
    assert same_output(opened.model, f"{blocks}.1.output") == f"{blocks}.1"
    places = EQUAL_OUTPUTS.get(opened.family.model_type, {}) | {"1.input": f"{blocks}.0", "0.input": ...}
    for place, expected in places.items():
        module = same_output(opened.model, f"{blocks}.{place}")
        assert expected in (..., module)
        if module is not None:  # on other tokens than those it was found with
            acts = read_activations(opened.model, f"{blocks}.{place}", IDS)
            assert torch.equal(read_activations(opened.model, f"{module}.output", IDS), acts)


def test_an_architecture_is_reinitialised_from_its_seed(opened: Opened):
    states = [reinitialised(opened.folder, seed).state_dict() for seed in (0, 0, 1)]
    trained = opened.model.state_dict()
    assert all(state.keys() == trained.keys() for state in states)
    assert all(torch.equal(states[0][name], states[1][name]) for name in trained)
    matrices = [name for name, tensor in trained.items() if tensor.ndim == 2]
    assert not any(torch.equal(states[0][name], trained[name]) for name in matrices)
    assert any(not torch.equal(states[0][name], states[2][name]) for name in matrices)


def test_its_predictions_see_no_later_token(opened: Opened):
    require_causal(opened.model, "mine")


def derivatives(opened: Opened, hookpoint: str, acts: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives, at the last token, of the logits and of the last block's output along a direction at a hookpoint."""
    outputs: list[Tensor] = []
    with torch.no_grad(), forward_ad.dual_level():
        last = forward_ad.make_dual(acts[:, -1:], direction.expand(1, 1, -1))
        changed = torch.cat([acts[:, :-1], last], dim=1)
        output = f"{opened.family.blocks}.1.output"
        with hooked(opened.model, hookpoint, lambda _: changed), hooked(opened.model, output, outputs.append):
            logits = opened.model(input_ids=IDS[:1], use_cache=False).logits
        logits_change, residual_change = (forward_ad.unpack_dual(each).tangent[0, -1] for each in (logits, outputs[0]))
    return logits_change, residual_change


def test_logit_effects_of_the_residual_stream_are_derivatives_of_the_logits(opened: Opened):
    require_derivatives(opened, "output")


@pytest.mark.parametrize("opened", WITH_PLACES, indirect=True)
def test_logit_effects_of_a_place_inside_a_block_are_derivatives_of_the_logits(opened: Opened):
    require_derivatives(opened, str(opened.family.added))


def require_derivatives(opened: Opened, place: str) -> None:
    """Logit effects are derivatives with the final norm's scale held fixed.

    A direction that leaves the norm's scale as it is shows the derivative at a fixed scale.

    The scale depends on the residual stream h only through its length (RMSNorm) or that of h less its mean (LayerNorm).
    Directions whose contributions to h have no component along either leave it as it is, to first order.
    """
    hookpoint = f"{opened.family.blocks}.1.{place}"
    path = logit_map(opened.model, hookpoint)
    acts = read_activations(opened.model, hookpoint, IDS[:1]).clone()
    residual = read_activations(opened.model, f"{opened.family.blocks}.1.output", IDS[:1])[0, -1].clone()
    directions = torch.randn(3, acts.shape[-1], generator=torch.Generator().manual_seed(1))
    contributions = torch.stack([derivatives(opened, hookpoint, acts, each)[1] for each in directions])
    along = torch.stack([contributions @ residual, contributions @ torch.ones_like(residual)])
    direction = torch.linalg.svd(along.detach().double())[2][-1].float() @ directions  # where both components are 0
    effect = derivatives(opened, hookpoint, acts, direction)[0].detach()
    expected = direction @ path.to_norm @ path.unembedding.T
    scale = (effect @ expected) / (expected @ expected)
    assert scale > 0
    assert (effect - scale * expected).norm() < 1e-5 * effect.norm()


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_a_norm_between_the_mlp_and_the_residual_stream_bars_the_path_from_inside(name: str):
    model = drawn(FAMILIES[name].model_type, FAMILIES[name].config)
    for place in ("mlp.output", "mlp.down_proj.input", "self_attn.output"):
        with pytest.raises(NoSimilarityError, match=rf"'model\.layers\.1\.{place}' has no linear path"):
            logit_map(model, f"model.layers.1.{place}")
    assert torch.equal(
        logit_map(model, "model.layers.1.post_feedforward_layernorm.output").to_norm,
        logit_map(model, "model.layers.1.output").to_norm,
    )


def test_a_model_without_a_norm_after_its_last_block_has_no_logit_map():
    opt_350m = drawn("opt", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 12})
    with pytest.raises(NoSimilarityError, match=r"'model\.decoder\.project_out', which does not read the residual"):
        logit_map(opt_350m, "model.decoder.layers.1.output")
    gpt_1 = drawn("openai-gpt", GPT)
    with pytest.raises(NoSimilarityError, match="no norm between its last block and the unembedding"):
        logit_map(gpt_1, "transformer.h.1.input")


@pytest.mark.parametrize("model_type", NOT_CAUSAL)
def test_a_model_that_sees_later_tokens_is_refused(model_type: str):
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**NOT_CAUSAL[model_type])).eval()
    message = r"^models\.mine: the model must be causal, but later tokens change its earlier logits, as in an encoder"
    with pytest.raises(InputError, match=message):
        require_causal(model, "mine")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_used_as_a_decoder_and_experts_in_bfloat16_are_causal(dtype: torch.dtype):
    for model_type, config in [("bert", SHAPE | {"is_decoder": True}), ("mixtral", FAMILIES["mixtral"].config)]:
        require_causal(drawn(model_type, config).to(dtype), "mine")


def test_hidden_states_of_experts_are_refused_and_the_layer_s_own_are_read():
    model = drawn("mixtral", FAMILIES["mixtral"].config)
    for inside in ("mlp.experts.0.w2.input", "mlp.experts.down_proj.input"):
        with pytest.raises(InputError, match=r"hidden states of experts .*; use model\.layers\.0\.mlp\.input or model"):
            read_activations(model, f"model.layers.0.{inside}", IDS)
    experts = read_activations(model, "model.layers.0.mlp.experts.output", IDS)
    assert torch.equal(experts, read_activations(model, "model.layers.0.mlp.output", IDS))
