"""Logits in blocks are the model's own, whatever its architecture does to them, and so are losses and gradients."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from saelineage.activations import hooked, read_with_predictions
from saelineage.models.losses import LossSums, next_token_loss, token_losses
from saelineage.models.predictions import Predictions, predict

D_VOCAB = 50
SIZES = {"vocab_size": D_VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0}
SCALED = {
    "gemma2": SIZES | {"head_dim": 8, "final_logit_softcapping": 0.5},
    "cohere": SIZES | {"logit_scale": 0.25},
    "granite": SIZES | {"logits_scaling": 8.0},
    "mistral": SIZES,
    "opt": {"vocab_size": D_VOCAB, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "max_position_embeddings": 32, "word_embed_proj_dim": 8},
    "bert": {**SIZES, "is_decoder": True},
}
IDS = torch.randint(1, D_VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
EVERYWHERE = torch.arange(IDS.numel())


@pytest.fixture(scope="module", params=SCALED)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SCALED[request.param])).eval()


def in_blocks(model: PreTrainedModel, size: int) -> torch.Tensor:
    """All logits, some positions at a time."""
    return torch.cat([logits for _, logits in predict(model, IDS, size).blocks(EVERYWHERE)])


@torch.no_grad()
def test_logits_in_blocks_equal_the_model_s_own(model: PreTrainedModel):
    own = model(input_ids=IDS).logits.flatten(0, 1)
    for size in (1, 4, 100):
        assert torch.allclose(in_blocks(model, size), own, atol=1e-6)
    backwards = EVERYWHERE.flip(0)
    assert torch.allclose(predict(model, IDS).at(backwards), own[backwards], atol=1e-6)
    assert torch.equal(model(input_ids=IDS).logits.flatten(0, 1), own)  # the model is as it was


def test_no_more_logits_are_made_at_once_than_asked_for(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    head = model.get_output_embeddings()
    before = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: made.append(hidden.shape[:-1].numel()) or before(hidden))
    with torch.no_grad():
        next_token_loss(predict(model, IDS, 5), IDS)
    assert max(made) == 5
    assert sum(made) == IDS[:, 1:].numel()


def test_losses_in_blocks_and_their_gradients_equal_those_of_all_logits(model: PreTrainedModel):
    predicted = torch.ones_like(IDS, dtype=torch.bool)
    predicted[1, 3:6] = False
    weight = model.get_input_embeddings().weight
    losses, gradients = [], []
    for predictions in (Predictions.of(model(input_ids=IDS).logits), predict(model, IDS), predict(model, IDS, 4)):
        of_tokens = token_losses(predictions, IDS, predicted)
        assert of_tokens.shape == (3, 8)
        assert of_tokens[1, 2:5].tolist() == [0.0] * 3
        gradients.append(torch.autograd.grad(of_tokens.sum(), weight)[0])
        losses.append(of_tokens)
        sums = next_token_loss(predictions, IDS, predicted)
        assert sums.loss == pytest.approx(float(of_tokens.sum()))
        assert sums.n_predictions == int(predicted[:, 1:].sum()) == 21
    for each in (1, 2):
        assert torch.allclose(losses[each], losses[0], atol=1e-6)
        assert torch.allclose(gradients[each], gradients[0], atol=1e-6)
    assert gradients[0].abs().max() > 1e-3


def test_losses_by_hand():
    # Softmax of (0, ln 3) is (1/4, 3/4).
    logits = torch.tensor([0.0, 3.0]).clamp(1).log().expand(1, 3, 2)
    assert token_losses(Predictions.of(logits), torch.tensor([[0, 1, 0]])).exp().tolist() == [
        pytest.approx([4 / 3, 4.0])
    ]
    assert LossSums(2.0, 1, 4).plus(LossSums(1.0, 2, 2)).means() == {
        "loss": 0.5,
        "accuracy": 0.5,
        "n_predictions": 6,
    }


@torch.no_grad()
def test_a_change_before_the_last_hidden_state_and_one_behind_it_reach_the_logits(model: PreTrainedModel):
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm) or "norm" in name]
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    for place in (f"{norms[0]}.output", f"{head}.input"):
        with hooked(model, place, lambda acts: acts.roll(1, dims=1) * 2):
            own = model(input_ids=IDS).logits.flatten(0, 1)
            assert torch.allclose(in_blocks(model, 4), own, atol=1e-6)
        assert not torch.allclose(in_blocks(model, 4), own, atol=1e-4)
        acts, predictions = read_with_predictions(model, place, IDS)
        assert acts.shape[:2] == IDS.shape
        assert torch.allclose(predictions.at(EVERYWHERE), model(input_ids=IDS).logits.flatten(0, 1), atol=1e-6)
