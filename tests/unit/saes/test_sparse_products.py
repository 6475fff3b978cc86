"""Sparse products: the gradients and entries of dense arrays, also when a product in bfloat16 comes first."""

import math

import pytest
import torch

from saelineage.saes import sparse_products
from saelineage.saes.number_formats import product_buffer, round_weights
from saelineage.saes.sparse_products import (
    BF16_UNIT,
    AllEntries,
    Entries,
    Screen,
    all_above_zero,
    entries_above,
    group_maxima,
    row_starts,
    screen,
    top_of_all_tokens,
    top_of_each_token,
)

D_IN, D_SAE = 4, 9


def mask_of(kind: str) -> torch.Tensor:
    """Mask of entries of 6 tokens and 9 latents: all, none, or ragged with two tokens and two latents left out."""
    if kind != "ragged":
        return torch.full((6, D_SAE), kind == "all")
    mask = torch.rand(6, D_SAE, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[[0, 4]] = False
    mask[:, [2, 8]] = False
    return mask


def entries_at(mask: torch.Tensor) -> Entries:
    """Entries in the order of `mask.nonzero()`."""
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    return Entries(indptr, mask.nonzero()[:, 1], mask.shape[1])


def random_tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random, dtype=dtype) for shape in shapes]


def screen_in(
    acts: torch.Tensor,
    W_enc: torch.Tensor,
    b_dec: torch.Tensor,
    bias: torch.Tensor,
    number_format: str,
    *args,
    **kwargs,
) -> Screen:
    return screen(acts, W_enc, b_dec, bias, round_weights(W_enc, number_format), *args, **kwargs)


def encoder_inputs() -> list[torch.Tensor]:
    """acts, W_enc, b_dec and bias, in float64 and with gradients."""
    return [tensor.requires_grad_() for tensor in random_tensors((6, D_IN), (D_SAE, D_IN), (D_IN,), (D_SAE,))]


def decoder_inputs(n_entries: int) -> list[torch.Tensor]:
    return [tensor.requires_grad_() for tensor in random_tensors((n_entries,), (D_SAE, D_IN))]


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Gradients of a sum in which each output has another weight."""
    weights = torch.arange(1.0, output.numel() + 1, dtype=output.dtype).view(output.shape).sin()
    return torch.autograd.grad((weights * output).sum(), inputs)


def assert_close(sparse: tuple[torch.Tensor, ...], dense: tuple[torch.Tensor, ...]) -> None:
    for number, (tensor, expected) in enumerate(zip(sparse, dense, strict=True)):
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-11), number


MASKS = pytest.mark.parametrize("kind", ["ragged", "all", "none"])


def test_gradients_equal_finite_differences():
    entries = entries_at(mask_of("ragged"))
    assert torch.autograd.gradcheck(entries.pre_activations, encoder_inputs())
    assert torch.autograd.gradcheck(entries.decode, decoder_inputs(len(entries.latents)))


@MASKS
def test_pre_activations_equal_the_dense_ones_at_the_entries(kind):
    mask, inputs = mask_of(kind), encoder_inputs()
    acts, W_enc, b_dec, bias = inputs
    sparse, dense = entries_at(mask).pre_activations(*inputs), ((acts - b_dec) @ W_enc.T + bias)[mask]
    assert_close((sparse, *gradients(sparse, inputs)), (dense, *gradients(dense, inputs)))


@MASKS
def test_decoding_equals_the_product_with_the_masked_dense_latents(kind):
    mask = mask_of(kind)
    inputs = decoder_inputs(int(mask.sum()))
    values, W_dec = inputs
    dense = torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values) @ W_dec
    sparse = entries_at(mask).decode(values, W_dec)
    assert_close((sparse, *gradients(sparse, inputs)), (dense, *gradients(dense, inputs)))


def test_all_entries_equal_entries_of_every_latent_for_every_token():
    inputs, everything = encoder_inputs(), AllEntries(D_SAE)
    dense, sparse = everything.pre_activations(*inputs), entries_at(mask_of("all")).pre_activations(*inputs)
    assert_close((sparse, *gradients(sparse, inputs)), (dense.flatten(), *gradients(dense, inputs)))
    inputs = decoder_inputs(6 * D_SAE)
    dense = everything.decode(inputs[0].view(6, D_SAE), inputs[1])
    sparse = entries_at(mask_of("all")).decode(*inputs)
    assert_close((sparse, *gradients(sparse, inputs)), (dense, *gradients(dense, inputs)))


def test_given_pre_activations_are_used_with_the_same_gradients():
    entries, inputs = entries_at(mask_of("ragged")), encoder_inputs()
    computed = entries.pre_activations(*inputs)
    given = torch.arange(float(len(computed)), dtype=torch.float64)
    used = entries.pre_activations(*inputs, given)
    assert torch.equal(used, given)
    assert_close(gradients(used, inputs), gradients(computed, inputs))


def test_gradients_of_weights_do_not_need_those_of_activations():
    inputs = encoder_inputs()
    inputs[0].requires_grad_(False)
    entries_at(mask_of("ragged")).pre_activations(*inputs).sum().backward()
    assert inputs[0].grad is None
    assert all(tensor.grad is not None for tensor in inputs[1:])


def test_entries_have_tokens_and_a_transpose():
    # Token 0 has latents 2 and 0, token 1 none, token 2 latent 2.
    entries = Entries(torch.tensor([0, 2, 2, 3]), torch.tensor([2, 0, 2]), 4)
    assert entries.tokens.tolist() == [0, 0, 2]
    order, starts, tokens = entries.by_latent
    assert order.tolist() == [1, 0, 2]
    assert starts.tolist() == [0, 1, 1, 3, 3]
    assert tokens.tolist() == [0, 0, 2]
    assert entries.per_latent(torch.tensor([5.0, 6.0, 7.0, 8.0])).tolist() == [7.0, 5.0, 7.0]
    fired, n_firings = entries.fired(torch.tensor([0.0, 1.0, 2.0]))
    assert fired.tolist() == [True, False, True, False]
    assert n_firings == 2


def test_all_entries_count_firings_over_tokens():
    fired, n_firings = AllEntries(3).fired(torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, -1.0]]))
    assert fired.tolist() == [True, False, True]
    assert n_firings == 3
    assert AllEntries(3).per_latent(torch.ones(3)).shape == (3,)


def whole_inputs(
    n_tokens: int, d_sae: int, bias: float, seed: int, d_in: int = 8, largest: int = 400
) -> list[torch.Tensor]:
    """acts, W_enc, b_dec and bias of whole numbers, with which float32 is exact in any order and bfloat16 rounds."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((n_tokens, d_in), (d_sae, d_in), (d_in,), (d_sae,))
    acts, W_enc, b_dec, added = (
        torch.randint(-largest, largest + 1, shape, generator=random).float() for shape in shapes
    )
    return [acts, W_enc, b_dec, added + bias]


def crowded_inputs(n_tokens: int, d_sae: int, seed: int) -> list[torch.Tensor]:
    """Inputs whose encoder rows are one direction with small changes, too small for bfloat16 to tell apart."""
    acts, W_enc, b_dec, bias = whole_inputs(n_tokens, d_sae, 0.0, seed)
    step = torch.randint(-2, 3, W_enc.shape, generator=torch.Generator().manual_seed(seed + 1000))
    return [acts, W_enc[:1] + step, b_dec, bias.sign()]


def dense(acts: torch.Tensor, W_enc: torch.Tensor, b_dec: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (acts - b_dec) @ W_enc.T + bias


def assert_top(entries: Entries, values: torch.Tensor, pre_acts: torch.Tensor, kept: torch.Tensor) -> None:
    """Entries with values above zero must be those of `kept`, up to exact ties of the smallest kept in each row."""
    above = values > 0
    tokens, latents = entries.tokens[above], entries.latents[above]
    counts = torch.zeros(pre_acts.shape, dtype=torch.int64)
    counts.index_put_((tokens, latents), torch.ones_like(tokens), accumulate=True)
    assert int(counts.max()) <= 1, "an entry occurs twice"
    assert torch.equal(pre_acts[tokens, latents], values[above]), "a value is not the pre-activation"
    least = torch.where(kept, pre_acts, torch.inf).amin(1, keepdim=True)
    assert torch.equal(counts.bool() & (pre_acts > least), kept & (pre_acts > least))
    assert not (counts.bool() & (pre_acts < least)).any()
    assert torch.equal(counts.sum(1), kept.sum(1))


def kept_of_each_token(pre_acts: torch.Tensor, k: int) -> torch.Tensor:
    """Mask of the k largest of each token, of those above zero, by torch's topk."""
    return torch.zeros(pre_acts.shape, dtype=torch.bool).scatter(1, pre_acts.topk(k).indices, True) & (pre_acts > 0)


def assert_top_of_all(entries: Entries, values: torch.Tensor, pre_acts: torch.Tensor, n: int) -> None:
    """As `assert_top`, with all tokens as one."""
    kept = kept_of_each_token(pre_acts.flatten()[None], n)
    tokens, latents = entries.tokens, entries.latents
    flat = Entries(torch.tensor([0, len(values)]), tokens * pre_acts.shape[1] + latents, pre_acts.numel())
    assert bool((values > 0).all())
    assert bool((tokens.diff() >= 0).all())
    assert_top(flat, values, pre_acts.flatten()[None], kept)


# 48 latents are three groups of 16, 40 are five of 8, 35 are each a group of its own.
SIZES = pytest.mark.parametrize("d_sae", [48, 40, 35])
PRECISIONS = pytest.mark.parametrize("number_format", ["float32", "bfloat16"])
BIASES = (0.0, -4e5, -1e7)
"""With a bias of -400,000 a token fires few latents, with -10 million none."""


@SIZES
@PRECISIONS
def test_the_top_of_each_token_is_that_of_torch(d_sae, number_format):
    for bias in BIASES:
        for k in (1, 2, 7, 34):
            inputs = whole_inputs(20, d_sae, bias, seed=k)
            entries, values = top_of_each_token(screen_in(*inputs, number_format), k)
            assert entries.indptr.tolist() == list(range(0, 20 * k + 1, k))
            assert_top(entries, values, dense(*inputs), kept_of_each_token(dense(*inputs), k))


@SIZES
@PRECISIONS
def test_the_top_of_all_tokens_is_that_of_torch(d_sae, number_format):
    for bias in BIASES:
        for n in (1, 20, 61, 690):
            inputs = whole_inputs(20, d_sae, bias, seed=n)
            assert_top_of_all(*top_of_all_tokens(screen_in(*inputs, number_format), n), dense(*inputs), n)


@SIZES
@PRECISIONS
def test_all_above_zero_are_those_of_torch(d_sae, number_format):
    for bias in BIASES[1:]:
        inputs = whole_inputs(60, d_sae, bias, seed=0)
        entries, values = all_above_zero(screen_in(*inputs, number_format))
        assert_top(entries, values, dense(*inputs), dense(*inputs) > 0)
        assert bool((values > 0).all())


@SIZES
@PRECISIONS
def test_a_fixed_number_of_candidates_gives_the_same_winners_or_counts_the_tokens(d_sae, number_format):
    def positive(entries: Entries, values: torch.Tensor) -> tuple[Entries, torch.Tensor]:
        above = values > 0
        return Entries(row_starts(entries.tokens[above], 20), entries.latents[above], d_sae), values[above]

    for bias in BIASES:
        inputs = whole_inputs(20, d_sae, bias, seed=3)
        exact, screened = dense(*inputs), screen_in(*inputs, number_format, fixed_sizes=True)
        for k in (1, 2, 7, 34):
            entries, values = top_of_each_token(screened, k)
            assert_top(entries, values, exact, kept_of_each_token(exact, k))
            assert not entries.n_unsure or 4 * k < d_sae
        for n in (1, 20, 61, 690):
            assert_top_of_all(*positive(*top_of_all_tokens(screened, n)), exact, n)
    acts, W_enc, b_dec, bias = whole_inputs(20, d_sae, 0.0, seed=3)
    for share in (0.5, 0.02, 0.0):
        inputs = [acts, W_enc, b_dec, bias - dense(acts, W_enc, b_dec, bias).quantile(1 - share).round()]
        entries, values = all_above_zero(screen_in(*inputs, number_format, fixed_sizes=True))
        if share == 0.5:
            assert isinstance(entries, AllEntries)
            assert values is None
        else:
            assert_top(entries, values, dense(*inputs), dense(*inputs) > 0)
            assert bool((values > 0).any()) == (share > 0)


def test_tokens_whose_winners_bfloat16_may_hide_are_counted():
    inputs = crowded_inputs(40, 48, seed=0)
    exact, screened = dense(*inputs), screen_in(*inputs, "bfloat16", fixed_sizes=True)
    entries, _ = top_of_each_token(screened, 3)
    winners = exact.topk(3).indices.sort().values
    missed = int((entries.latents.view(40, 3).sort().values != winners).any(1).sum())
    assert missed > 0, "the data are not hard enough"
    assert entries.n_unsure is not None
    assert missed <= int(entries.n_unsure) <= 40
    # The 480 candidates for 120 winners come from ten tokens, far from the others; the 20 for 5 from one.
    assert [int(top_of_all_tokens(screened, n)[0].n_unsure) for n in (120, 5)] == [0, 40]
    everything = top_of_each_token(screened, 12)[0]  # 4 candidates for each of 12 winners are all 48 latents
    assert everything.n_unsure == 0


@PRECISIONS
def test_if_many_latents_fire_all_entries_are_chosen(number_format):
    inputs = whole_inputs(20, 48, 0.0, seed=0)  # half of all entries fire
    entries, values = all_above_zero(screen_in(*inputs, number_format))
    assert isinstance(entries, AllEntries)
    assert values is None


@PRECISIONS
def test_ties_never_give_an_entry_twice(number_format):
    # Latents come in threes that are equal; the second largest of a token is always tied.
    acts, W_enc, b_dec, bias = whole_inputs(30, 16, 0.0, seed=0)
    inputs = [acts, W_enc.repeat(3, 1), b_dec, bias.repeat(3)]
    screened = screen_in(*inputs, number_format)
    assert_top(*top_of_each_token(screened, 2), dense(*inputs), kept_of_each_token(dense(*inputs), 2))
    assert_top_of_all(*top_of_all_tokens(screened, 50), dense(*inputs), 50)


@pytest.mark.parametrize("seed", range(4))
def test_latents_that_bfloat16_cannot_tell_apart_are_chosen_as_by_float32(seed):
    inputs = crowded_inputs(40, 48, seed)
    exact, screened = dense(*inputs), screen_in(*inputs, "bfloat16")
    differ = screened.pre_acts.float().topk(3).indices.sort().values != exact.topk(3).indices.sort().values
    assert bool(differ.any()), "the data are not hard enough"
    assert_top(*top_of_each_token(screened, 3), exact, kept_of_each_token(exact, 3))
    assert_top_of_all(*top_of_all_tokens(screened, 120), exact, 120)
    shifted = [*inputs[:3], inputs[3] - exact.quantile(0.97).round()]  # zero lies among the crowded values
    entries, values = all_above_zero(screen_in(*shifted, "bfloat16"))
    assert isinstance(entries, Entries)
    assert_top(entries, values, dense(*shifted), dense(*shifted) > 0)


def latents_at(entries: Entries, values: torch.Tensor) -> torch.Tensor:
    """Dense latents [token, d_sae] of entries; entries that only fill up a row add zero."""
    latent_acts = torch.zeros(entries.n_tokens, entries.d_sae)
    return latent_acts.index_put((entries.tokens, entries.latents), values.clamp_min(0), accumulate=True)


@pytest.mark.parametrize("seed", range(4))
def test_random_latents_are_chosen_as_by_float32(seed):
    acts, W_enc, b_dec, bias = random_tensors((64, 24), (96, 24), (24,), (96,), dtype=torch.float32, seed=seed)
    inputs = [acts, W_enc / math.sqrt(24), b_dec, bias - 1.5]
    screens = [screen_in(*inputs, number_format) for number_format in ("float32", "bfloat16")]
    for choose, size in ((top_of_each_token, 5), (top_of_all_tokens, 320)):
        exact, low = (latents_at(*choose(screened, size)) for screened in screens)
        assert torch.equal(exact > 0, low > 0)
        assert torch.allclose(exact, low, rtol=0, atol=1e-5)
    rarer = [*inputs[:3], inputs[3] - 2]
    latent_acts = latents_at(*all_above_zero(screen_in(*rarer, "bfloat16")))
    assert torch.allclose(latent_acts, dense(*rarer).relu(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_screen_s_rounding_error_is_within_its_bound(spread):
    acts, W_enc, b_dec, bias = random_tensors((200, 16), (64, 16), (16,), (64,), dtype=torch.float32, seed=5)
    acts[::7] = 0.99609375  # half a unit below 1: the worst case of rounding, all in one direction
    W_enc = W_enc * torch.linspace(-spread, spread, 64).exp()[:, None]
    for acts_scale in (1e-3, 1.0, 1e4):
        for bias_scale in (0.0, 1.0, 1e4):
            inputs = [acts * acts_scale, W_enc, b_dec * acts_scale, bias * bias_scale]
            screened = screen_in(*inputs, "bfloat16")
            exact = dense(*(tensor.double() for tensor in inputs))
            error = (screened.pre_acts.double() - exact).abs()
            bound = screened.slack[:, None] + 2 * BF16_UNIT * exact.abs()
            assert bool((error <= bound).all()), (acts_scale, bias_scale)
            assert float(error.max()) > 0


def test_a_latent_that_never_fires_does_not_loosen_the_bound_of_the_others():
    acts, W_enc, b_dec, bias = random_tensors((20, 16), (64, 16), (16,), (64,), dtype=torch.float32)
    bias[7] = -1e6
    screened = screen_in(acts, W_enc, b_dec, bias, "bfloat16")
    assert float(screened.slack.max()) < 1  # |acts| |W_enc| is about 50, and a hundredth of it the error
    entries, _ = top_of_each_token(screened, 3)
    exact = dense(acts, W_enc, b_dec, bias)
    assert torch.equal(latents_at(entries, torch.ones(60)) > 0, kept_of_each_token(exact, 3))


def test_the_screen_fills_the_buffer_it_is_given():
    inputs = random_tensors((5, D_IN), (D_SAE, D_IN), (D_IN,), (D_SAE,), dtype=torch.float32)
    for number_format, precision in (("float32", 1e-5), ("bfloat16", 0.2)):
        buffer = product_buffer(5, D_SAE, number_format, torch.device("cpu"))
        assert screen_in(*inputs, number_format, buffer).pre_acts.data_ptr() == buffer.data_ptr()
        assert torch.allclose(buffer[:5].float(), dense(*inputs), atol=precision)


def test_entries_of_some_tokens_are_a_part_of_all():
    entries = Entries(torch.tensor([0, 2, 2, 3, 5]), torch.tensor([2, 0, 2, 1, 3]), 4)
    some, place = entries.of_tokens(1, 4)
    assert (some.indptr.tolist(), some.latents.tolist()) == ([0, 0, 1, 3], [2, 1, 3])
    assert (place.start, place.stop) == (2, 5)


@SIZES
@pytest.mark.parametrize("at_once", [7, 512])
def test_entries_above_a_bound_are_those_of_torch(d_sae, at_once, monkeypatch):
    monkeypatch.setattr(sparse_products, "SEARCHED_TOKENS", at_once)
    pre_acts, bound = random_tensors((30, d_sae), (30,), dtype=torch.float32)
    bound[0], bound[1] = -torch.inf, torch.inf
    pre_acts[4, 3] = bound[4]  # equal is not above
    entries = entries_above(pre_acts, bound, group_maxima(pre_acts))
    mask = torch.zeros(30, d_sae, dtype=torch.bool)
    mask[entries.tokens, entries.latents] = True
    assert torch.equal(mask, bound[:, None] < pre_acts)
    assert len(entries.latents) == int(mask.sum())


def test_rounding_a_bound_to_bfloat16_leaves_no_entry_out():
    pre_acts = torch.tensor([[1.0, 1.0078125], [1.0, 1.0078125]]).bfloat16()  # neighbours in bfloat16
    entries = entries_above(pre_acts, torch.tensor([1.005, 1.003]), group_maxima(pre_acts))  # round to 1.0078 and to 1
    pairs = list(zip(entries.tokens.tolist(), entries.latents.tolist(), strict=True))
    assert pairs[-1] == (1, 1)
    assert (0, 1) in pairs


def test_exact_values_of_a_screen_are_returned_unchanged():
    inputs = whole_inputs(4, D_SAE, 0.0, seed=0)
    screened = Screen(dense(*inputs), None, tuple(inputs))
    entries, values = top_of_each_token(screened, 3)
    assert torch.equal(values, dense(*inputs)[entries.tokens, entries.latents])
