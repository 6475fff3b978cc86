"""First-order effects of single features: exact where the loss is linear, and close to ablations where it is not."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from saelineage.lineage.ablations import feature_effects
from saelineage.lineage.attributions import attributed_effects
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows

HOOKPOINT = "inner.output"
D_IN, D_SAE = 6, 9
ABOVE = 40.0
"""A logit so far above all others that the loss is this logit."""


class Linear(PreTrainedModel):
    """A model whose loss at each token is linear in its activations: one wrong id takes all probability.

    The loss of the next id, whatever it is, is `ABOVE` + <acts, slope>.
    """

    def __init__(self, d_vocab: int):
        super().__init__(PretrainedConfig())
        random = torch.Generator().manual_seed(1)
        self.embedding = nn.Parameter(torch.randn(d_vocab, D_IN, generator=random))
        self.slope = nn.Parameter(torch.randn(D_IN, generator=random))
        self.inner, self.d_vocab = nn.Identity(), d_vocab

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        wrong = ABOVE + self.inner(self.embedding[input_ids]) @ self.slope
        others = torch.zeros(*input_ids.shape, self.d_vocab)
        return SimpleNamespace(logits=torch.cat([others, wrong.unsqueeze(-1)], dim=-1))


@pytest.fixture
def rows(tiny) -> dict[str, TokenRows]:
    return {corpus: TokenRows(tiny.tokens[corpus]["validation"]) for corpus in ("words", "sums")}


def random_sae(d_in: int, d_sae: int, size: float, k: int = 3) -> Sae:
    """An SAE of random weights with decoder rows of about this size. Latent 0 never fires."""
    random = torch.Generator().manual_seed(0)
    sae = Sae("topk", d_in, d_sae, k)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(sae.W_enc.shape, generator=random))
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=random) * size)
        sae.b_enc[0], sae.b_dec[:] = -1e3, 0.1
    return sae


def test_where_the_loss_is_linear_effects_are_those_of_ablations_and_equal_the_formula(tiny, rows):
    model, sae = Linear(tiny.d_vocab), random_sae(D_IN, D_SAE, 1.0)
    found = attributed_effects(model, sae, HOOKPOINT, rows, 4, max_rows=6)
    assert found.corpora == ("sums", "words")
    for place, corpus in enumerate(found.corpora):
        spread = rows[corpus].spread(6)
        ids = torch.from_numpy(rows[corpus].read(spread))
        latents = sae.encode(model.embedding[ids]).double()
        latents *= torch.from_numpy(rows[corpus].text_mask(spread)).unsqueeze(-1)
        firings = (latents > 0).sum((0, 1))
        # Nothing is predicted after the last token of a row, so its activations have no effect.
        expected = -(latents[:, :-1].sum((0, 1)) * (sae.W_dec.double() @ model.slope.double()))
        np.testing.assert_allclose(found.sums[place], expected.detach().numpy(), rtol=1e-5, atol=1e-6)
        assert found.n_firings[place].tolist() == firings.tolist()
        assert found.n_tokens[place] == 6 * (tiny.n_ctx - 1)
        exact = feature_effects(model, sae, HOOKPOINT, {corpus: rows[corpus]}, np.arange(D_SAE), 4, max_rows=6)
        measured = exact["loss_change"].fillna(0.0) * exact["n_firings"]
        np.testing.assert_allclose(found.sums[place], measured, rtol=1e-3, atol=1e-2)
    assert found.sums[:, 0].tolist() == [0.0, 0.0]
    assert np.abs(found.sums[:, 1:]).max() > 1.0


def test_effects_do_not_depend_on_the_size_of_batches_and_the_model_is_left_as_it_was(tiny, rows):
    model, sae = Linear(tiny.d_vocab), random_sae(D_IN, D_SAE, 1.0)
    one, other = (attributed_effects(model, sae, HOOKPOINT, rows, batch_rows) for batch_rows in (2, 1000))
    np.testing.assert_allclose(one.sums, other.sums, rtol=1e-5, atol=1e-5)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_outliers_have_no_effect(tiny, rows):
    model, sae = Linear(tiny.d_vocab), random_sae(D_IN, D_SAE, 1.0)
    sae.max_norm = 1e-6
    found = attributed_effects(model, sae, HOOKPOINT, rows, 8)
    assert not found.sums.any()
    assert not found.n_firings.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_effects_of_a_real_model_are_close_to_those_of_ablating_one_feature_at_a_time(model, rows, dtype):
    point, model = "model.layers.0.mlp.output", deepcopy(model).to(dtype)
    sae = random_sae(32, 20, 0.0005)
    found = attributed_effects(model, sae, point, {"words": rows["words"]}, 8)
    exact = feature_effects(deepcopy(model).float(), sae, point, {"words": rows["words"]}, np.arange(20), 8)
    measured = (exact["loss_change"].fillna(0.0) * exact["n_firings"]).to_numpy()
    assert np.corrcoef(found.sums[0], measured)[0, 1] > 0.98
