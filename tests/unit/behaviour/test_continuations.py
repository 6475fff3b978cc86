"""Continuations are the most likely ones, and changes of activations are the formulas that say so."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saelineage.activations import hooked, read_activations
from saelineage.behaviour.continuations import Prompts, activations_of, added, begun, continuations, held, prompts_of
from saelineage.behaviour.steps import Past
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


def prompts(*is_text: list[bool]) -> Prompts:
    marks = torch.tensor(is_text)
    return Prompts(torch.zeros(marks.shape, dtype=torch.int64), marks)


def test_a_latent_is_held_at_its_value_on_text_from_a_place_on_and_nothing_else_changes():
    sae, acts = an_sae(), torch.randn(2, 5, D_IN, generator=torch.Generator().manual_seed(1))
    acts[1, 3] = 1e6  # an outlier
    sae.max_norm = 1e3
    read = prompts([False, True, True, True], [False, True, True, True])
    latents, values = torch.tensor([2, 0]), torch.tensor([5.0, 0.0])
    own, everywhere, from_second = (sae.encode(acts), *(held(sae, read, latents, values, first) for first in (0, 2)))
    expected = acts.clone()
    for row, place in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 4)):  # the fifth token is a new one
        expected[row, place] += (values[row] - own[row, place, latents[row]]) * sae.W_dec[latents[row]]
    torch.testing.assert_close(everywhere(acts, 0), expected)
    expected[:, 1] = acts[:, 1]
    torch.testing.assert_close(from_second(acts, 0), expected)
    assert torch.equal(from_second(acts, 0)[1, 3], acts[1, 3])
    assert (own[1, 1:3, 0] > 0).any()  # so that something is taken out
    # Read in two parts, the tokens are changed as in one.
    parts = [from_second(acts[:, :2], 0), from_second(acts[:, 2:3], 2), from_second(acts[:, 3:], 3)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


def test_a_vector_is_added_to_the_last_token_of_each_prompt():
    acts, vectors = torch.zeros(2, 4, D_IN), torch.arange(2.0 * D_IN).view(2, D_IN)
    change = added(prompts([True] * 3, [True] * 3), vectors)
    expected = torch.zeros(2, 4, D_IN)
    expected[:, 2] = vectors
    assert torch.equal(change(acts, 0), expected)
    parts = [change(acts[:, :2], 0), change(acts[:, 2:3], 2), change(acts[:, 3:], 3)]
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_the_activation_of_one_latent_of_each_token_is_read():
    sae, acts = an_sae(), torch.randn(5, D_IN, generator=torch.Generator().manual_seed(2))
    chosen = torch.tensor([0, 1, 2, 3, 0])
    expected = sae.encode(acts)[torch.arange(5), chosen]
    torch.testing.assert_close(activations_of(sae.encode_sparse(acts), chosen), expected)
    assert (expected == 0).any()
    assert (expected > 0).any()


@pytest.fixture
def read(tiny) -> Prompts:
    """Three prompts of nine tokens."""
    rows = TokenRows(tiny.tokens["words"]["probe"])
    return prompts_of([rows] * 3, np.array([0, 2, 1]), 9, torch.device("cpu"))


def by_hand(model, rows: torch.Tensor, allowed: list[int], n_new: int) -> tuple[list[list[int]], torch.Tensor]:
    """Continue prompts by reading them from the beginning for each token; and the first prediction."""
    first, length = None, rows.shape[1]
    for _ in range(n_new):
        logits = model(input_ids=rows, use_cache=False).logits[:, -1, allowed]
        first = logits.double().log_softmax(-1) if first is None else first
        rows = torch.cat([rows, torch.tensor(allowed)[logits.argmax(-1, keepdim=True)]], dim=1)
    return rows[:, length:].tolist(), first


@torch.inference_mode()
def test_prompts_are_continued_with_the_allowed_ids_as_if_they_were_read_again_for_each(model, read):
    allowed = list(range(3, 300, 2))
    ids, first = by_hand(model, read.ids, allowed, 4)
    past = begun(model, read)
    assert past.n_tokens == 8
    for before in (Past(), past, past):  # reading on from the same past twice gives the same
        found = continuations(model, read, torch.tensor(allowed), 4, before)
        assert found.ids.tolist() == ids
        torch.testing.assert_close(found.log_probs, first, atol=1e-5, rtol=0)
    assert len({tuple(row) for row in ids}) > 1


@torch.inference_mode()
def test_a_model_that_keeps_nothing_reads_its_rows_again(model, read, monkeypatch: pytest.MonkeyPatch):
    allowed = list(range(3, 300, 2))
    expected = by_hand(model, read.ids, allowed, 3)[0]
    monkeypatch.setattr(model, "forward", partial(forgetful, model.forward))
    assert begun(model, read) == Past()
    assert continuations(model, read, torch.tensor(allowed), 3, Past()).ids.tolist() == expected


def forgetful(forward, **given):
    """The output of a model without a cache."""
    return SimpleNamespace(logits=forward(**given | {"use_cache": False}).logits)


@torch.inference_mode()
def test_a_change_of_every_token_is_made_on_those_that_are_kept_and_on_new_ones(model, read):
    sae, allowed = Sae("relu", 32, 8), list(range(300))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(8, 32, generator=torch.Generator().manual_seed(5)))
    latents, values = torch.tensor([0, 3, 1]), torch.tensor([3.0, -2.0, 4.0])
    change = held(sae, read, latents, values, 0)
    with hooked(model, HOOKPOINT, lambda acts: change(acts, 0)):
        ids, first = by_hand(model, read.ids, allowed, 4)
    found = continuations(model, read, torch.tensor(allowed), 4, Past(), HOOKPOINT, change)
    assert found.ids.tolist() == ids
    torch.testing.assert_close(found.log_probs, first, atol=1e-5, rtol=0)
    assert ids != by_hand(model, read.ids, allowed, 4)[0]


def test_what_is_held_at_its_own_value_and_adding_nothing_change_nothing(model, read):
    allowed, past = torch.arange(300), begun(model, read)
    as_it_is = continuations(model, read, allowed, 2, past)
    nothing = continuations(model, read, allowed, 2, past, HOOKPOINT, added(read, torch.zeros(3, 32)))
    assert torch.equal(nothing.log_probs, as_it_is.log_probs)
    sae = Sae("relu", 32, 8)  # no latent fires, and 0 is what it is
    silent = held(sae, read, torch.zeros(3, dtype=torch.int64), torch.zeros(3), read.last)
    assert torch.equal(continuations(model, read, allowed, 2, past, HOOKPOINT, silent).log_probs, as_it_is.log_probs)


def test_the_activations_of_another_model_s_stream_make_it_predict_as_that_model(tiny, model, read):
    # The last token's activations at the last layer are what the prediction is made of.
    last = "model.layers.1.output"
    same = Prompts(*(of[1:2] for of in read))
    acts = read_activations(model, last, same.ids)
    moved = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    found = continuations(model, same, torch.arange(300), 1, begun(model, same), last, added(same, moved))
    expected = model.lm_head(model.model.norm(acts[:, -1] + moved)).double().log_softmax(-1)
    torch.testing.assert_close(found.log_probs, expected, atol=1e-5, rtol=0)


def test_prompts_hold_the_beginnings_of_rows_and_mark_what_is_no_text(tiny, read):
    ids = np.load(tiny.tokens["words"]["probe"])
    assert read.ids.shape == (3, 9)
    assert read.last == 8
    assert read.ids[1].tolist() == ids[2, :9].tolist()
    assert not read.is_text[:, 0].any()  # BOS
    assert read.is_text[:, 1:].any()
