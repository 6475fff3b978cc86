"""Continuations are the most likely ones, and changes of activations are the formulas that say so."""

import numpy as np
import pytest
import torch

from saelineage.activations import read_activations
from saelineage.behaviour.continuations import Prompts, activations_of, added, continuations, held, prompts_of
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows

D_IN, D_SAE = 6, 4
HOOKPOINT = "model.layers.0.output"


def an_sae() -> Sae:
    random = torch.Generator().manual_seed(0)
    sae = Sae("relu", D_IN, D_SAE)
    with torch.no_grad():
        for weights in (sae.W_enc, sae.W_dec, sae.b_dec):
            weights.copy_(torch.randn(weights.shape, generator=random))
    return sae


def prompts(lengths: list[int], is_text: list[list[bool]]) -> Prompts:
    return Prompts(
        torch.zeros(len(lengths), len(is_text[0]), dtype=torch.int64), *map(torch.tensor, (lengths, is_text))
    )


def test_a_latent_is_held_at_its_value_on_text_from_a_place_on_and_nothing_else_changes():
    sae, acts = an_sae(), torch.randn(2, 4, D_IN, generator=torch.Generator().manual_seed(1))
    acts[1, 3] = 1e6  # an outlier
    sae.max_norm = 1e3
    is_text = [[False, True, True, True], [False, True, True, True]]
    latents, values, first = torch.tensor([2, 0]), torch.tensor([5.0, 0.0]), torch.tensor([2, 0])
    changed = held(sae, prompts([4, 4], is_text), latents, values, first)(acts)
    own = sae.encode(acts)
    expected = acts.clone()
    for row, place in ((0, 2), (0, 3), (1, 1), (1, 2)):
        expected[row, place] += (values[row] - own[row, place, latents[row]]) * sae.W_dec[latents[row]]
    torch.testing.assert_close(changed, expected)
    assert torch.equal(changed[1, 3], acts[1, 3])
    assert (own[1, 1:3, 0] > 0).any()  # so that something is taken out


def test_a_vector_is_added_to_the_last_token_of_each_prompt():
    acts, vectors = torch.zeros(2, 3, D_IN), torch.arange(2.0 * D_IN).view(2, D_IN)
    changed = added(prompts([1, 3], [[True] * 3] * 2), vectors)(acts)
    expected = torch.zeros(2, 3, D_IN)
    expected[0, 0], expected[1, 2] = vectors
    assert torch.equal(changed, expected)


def test_the_activation_of_one_latent_of_each_token_is_read():
    sae, acts = an_sae(), torch.randn(5, D_IN, generator=torch.Generator().manual_seed(2))
    chosen = torch.tensor([0, 1, 2, 3, 0])
    expected = sae.encode(acts)[torch.arange(5), chosen]
    torch.testing.assert_close(activations_of(sae.encode_sparse(acts), chosen), expected)
    assert (expected == 0).any()
    assert (expected > 0).any()


@pytest.fixture
def read(tiny) -> Prompts:
    """Three prompts of different lengths."""
    rows = TokenRows(tiny.tokens["words"]["probe"])
    return prompts_of([rows] * 3, np.array([0, 2, 1]), np.array([3, 9, 6]), 4, torch.device("cpu"))


def one_by_one(model, ids: list[int], allowed: list[int], n_new: int) -> tuple[list[int], torch.Tensor]:
    """Continue one prompt alone, and the first prediction."""
    first, length = None, len(ids)
    for _ in range(n_new):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1, allowed]
        first = logits.double().log_softmax(-1) if first is None else first
        ids = [*ids, allowed[int(logits.argmax())]]
    return ids[length:], first


@torch.inference_mode()
def test_each_prompt_is_continued_as_if_it_were_alone_with_the_allowed_ids(model, read):
    allowed = list(range(3, 300, 2))
    found = continuations(model, read, torch.tensor(allowed), 4)
    for row, length in enumerate(read.lengths.tolist()):
        ids, first = one_by_one(model, read.ids[row, :length].tolist(), allowed, 4)
        assert found.ids[row].tolist() == ids
        torch.testing.assert_close(found.log_probs[row], first, atol=1e-5, rtol=0)
    assert len({tuple(row) for row in found.ids.tolist()}) > 1


def test_what_is_held_at_its_own_value_and_adding_nothing_change_nothing(model, read):
    allowed = torch.arange(300)
    as_it_is = continuations(model, read, allowed, 2)
    nothing = continuations(model, read, allowed, 2, HOOKPOINT, added(read, torch.zeros(3, 32)))
    assert torch.equal(nothing.log_probs, as_it_is.log_probs)
    sae = Sae("relu", 32, 8)  # no latent fires, and 0 is what it is
    silent = held(sae, read, torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(continuations(model, read, allowed, 2, HOOKPOINT, silent).log_probs, as_it_is.log_probs)


def test_the_activations_of_another_model_s_stream_make_it_predict_as_that_model(tiny, model, read):
    # Of prompts of one length, the last token's activations at the last layer are what the prediction is made of.
    last = "model.layers.1.output"
    same = Prompts(*(of[1:2] for of in read))
    acts = read_activations(model, last, same.ids[:, :9])
    moved = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    found = continuations(model, same, torch.arange(300), 1, last, added(same, moved))
    expected = model.lm_head(model.model.norm(acts[:, -1] + moved)).double().log_softmax(-1)
    torch.testing.assert_close(found.log_probs, expected, atol=1e-5, rtol=0)


def test_prompts_hold_the_beginnings_of_rows_and_mark_what_is_no_text(tiny, read):
    ids = np.load(tiny.tokens["words"]["probe"])
    assert read.ids.shape == (3, 13)
    assert read.lengths.tolist() == [3, 9, 6]
    assert read.ids[1, :9].tolist() == ids[2, :9].tolist()
    assert not read.is_text[:, 0].any()  # BOS
    assert read.is_text[:, 9:].all()
