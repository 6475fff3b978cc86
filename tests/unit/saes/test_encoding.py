"""Encoding through a screen in few bits: the latents of the dense computation, in whatever number format."""

import pytest
import torch

from saelineage.errors import InputError
from saelineage.saes import number_formats
from saelineage.saes.encoding import Encoder, SparseLatents, encode_dense
from saelineage.saes.int16_products import SHAPES, Int16Weights, panels
from saelineage.saes.number_formats import fastest_format
from saelineage.saes.sparse_products import Bfloat16Weights

D_IN, D_SAE, K = 40, 512, 5
FORMATS = ("float32", "bfloat16", "int16")
ARCHITECTURES = ("topk", "relu", "jumprelu")


def random_weights(architecture: str, bias: float) -> dict[str, torch.Tensor]:
    """An SAE whose latents fire on about 1 in 100 tokens with a bias of -15."""
    random = torch.Generator().manual_seed(0)
    weights = {
        "W_enc": torch.randn(D_IN, D_SAE, generator=random),
        "b_enc": torch.randn(D_SAE, generator=random) + bias,
        "b_dec": torch.randn(D_IN, generator=random),
    }
    thresholds = {"threshold": torch.rand(D_SAE, generator=random) - 0.2} if architecture == "jumprelu" else {}
    return weights | thresholds


def random_acts(n_tokens: int = 30) -> torch.Tensor:
    return torch.randn(n_tokens, D_IN, generator=torch.Generator().manual_seed(1))


def filled(latents: SparseLatents) -> torch.Tensor:
    dense = torch.zeros(len(latents.indptr) - 1, D_SAE)
    token = torch.repeat_interleave(torch.arange(len(dense)), latents.indptr.diff())
    return dense.index_put((token, latents.indices.long()), latents.values)


# With a bias of 20 nearly all latents fire, with -200 none.
@pytest.mark.parametrize("bias", [0.0, -15.0, 20.0, -200.0])
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_format_chooses_the_latents_of_the_dense_computation(architecture, number_format, bias):
    weights, acts = random_weights(architecture, bias), random_acts()
    k = K if architecture == "topk" else None
    exact = encode_dense(acts.double(), architecture, {name: of.double() for name, of in weights.items()}, k)
    latents = Encoder(architecture, weights, k, number_format).encode(acts)
    assert torch.equal(filled(latents) > 0, exact > 0)
    assert torch.allclose(filled(latents).double(), exact, rtol=1e-5, atol=1e-5)
    assert bool((latents.values > 0).all())
    for start, stop in zip(latents.indptr, latents.indptr[1:], strict=False):
        assert bool((latents.indices[start:stop].diff() > 0).all())
    assert (len(latents.values) == 0) == (bias == -200)


@pytest.mark.parametrize("number_format", FORMATS)
def test_latents_that_bfloat16_cannot_tell_apart_are_told_apart(number_format):
    # Next to 1, numbers in bfloat16 are 2^-7 apart, so pre-activations 1 + 1e-4 and 1 are equal in it.
    weights = {"W_enc": torch.zeros(16, 64), "b_enc": torch.zeros(64), "b_dec": torch.zeros(16)}
    weights["W_enc"][0, [3, 40]] = torch.tensor([1.0, 1.0001])
    acts = torch.zeros(1, 16)
    acts[0, 0] = 1
    latents = Encoder("topk", weights, 1, number_format).encode(acts)
    assert latents.indices.tolist() == [40]
    assert latents.values.tolist() == pytest.approx([1.0001])


# Squares of 1e-25 are zero in float32 and those of 1e20 infinite, so norms of these rows tell nothing.
@pytest.mark.parametrize("scale", [1e-25, 1e20])
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_latents_of_rows_whose_norm_float32_cannot_hold_are_found(architecture, number_format, scale):
    weights = random_weights(architecture, 0.0)
    weights |= {"b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(D_IN)}
    acts, k = scale * random_acts(), K if architecture == "topk" else None
    acts[3], acts[5] = scale, 0  # equal values have the largest sums of integers
    exact = encode_dense(acts.double(), architecture, {name: of.double() for name, of in weights.items()}, k)
    latents = Encoder(architecture, weights, k, number_format).encode(acts)
    assert torch.equal(filled(latents) > 0, exact > 0)


@pytest.mark.parametrize("number_format", FORMATS)
def test_an_encoder_gives_equal_latents_however_its_buffer_was_used_before(number_format):
    encoder = Encoder("topk", random_weights("topk", -15.0), K, number_format)
    acts = random_acts()
    first = encoder.encode(acts)
    few = encoder.encode(acts[:3])
    again = encoder.encode(acts)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(few.indices, first.indices[: len(few.indices)])


@pytest.mark.parametrize("kind", [Bfloat16Weights, Int16Weights])
def test_products_are_off_by_no_more_than_they_say(kind):
    random = torch.Generator().manual_seed(0)
    # 30 tokens and 40 inputs fill neither the last panel of rows nor the last vector. One token is zero, one has an
    # outlier, one is small.
    acts, W_enc = torch.randn(30, D_IN, generator=random), torch.randn(12, D_IN, generator=random)
    acts[0], acts[1, 5], acts[2] = 0, 1e4, 1e-6 * acts[2]
    exact = acts.double() @ W_enc.double().T
    for buffer in (None, torch.full((40, 12), torch.nan, dtype=torch.bfloat16)):
        pre_acts, slack, largest = kind(W_enc).product(acts, buffer)
        assert pre_acts.shape == (30, 12)
        assert bool(((pre_acts.double() - exact).abs() <= slack[:, None] + 2.0**-8 * exact.abs()).all())
        assert bool((slack[1:] > 0).all())
        assert bool((exact.abs() <= largest[:, None]).all())


def test_integers_of_16_bits_are_far_more_exact_than_bfloat16():
    acts, W_enc = random_acts(), torch.randn(12, D_IN, generator=torch.Generator().manual_seed(2))
    slack = [kind(W_enc).product(acts, None).slack for kind in (Int16Weights, Bfloat16Weights)]
    assert bool((slack[0] < slack[1] / 20).all())


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_sums_of_16_bit_products_do_not_overflow(value):
    # Equal rows have the largest sum that norms of 46,000 allow: 2.1e9, where 2^31 = 2.15e9.
    acts, W_enc = torch.full((4, 4096), value), torch.ones(4, 4096)
    assert Int16Weights(W_enc).product(acts, None).values.tolist() == [[4096 * value] * 4] * 4
    one = torch.zeros(4, 4096)  # all of the norm in one input is more than 16 bits hold
    one[:, 7] = value
    assert Int16Weights(one).product(one, None).values.tolist() == [[1.0] * 4] * 4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_products_need_whole_panels_of_latents(shape):
    with pytest.raises(InputError, match=f"multiple of {shape.right_rows} latents, not 5; use float32"):
        Int16Weights(torch.ones(5, 16), shape)


@pytest.mark.parametrize("d_in", [100, 512, 1300])  # less than a block of inputs, one block, two blocks and a part
@pytest.mark.parametrize("n_tokens", [1, 300])
def test_vectors_of_every_width_give_equal_products(n_tokens, d_in):
    # sums of integers are exact, so only their rounding to bfloat16 is left
    acts = torch.randn(n_tokens, d_in, generator=torch.Generator().manual_seed(1))
    W_enc = torch.randn(24, d_in, generator=torch.Generator().manual_seed(2))
    narrow, wide = (Int16Weights(W_enc, shape).product(acts, None).values for shape in SHAPES.values())
    assert torch.equal(narrow, wide)
    assert torch.allclose(narrow.float(), acts @ W_enc.T, rtol=2**-8, atol=0.05)


def test_rows_are_arranged_in_panels():
    rows = torch.arange(1.0, 6.0)[:, None] * torch.eye(5, 20)  # five rows with one number each
    rounded = panels(rows, 4, 16)
    assert rounded.values.shape == (2, 2, 4, 16)  # panels, vectors in a row, rows, integers in a vector
    assert [tuple(place) for place in rounded.values.nonzero().tolist()] == [
        *((0, 0, row, row) for row in range(4)),
        (1, 0, 0, 4),
    ]
    assert bool((rounded.values[rounded.values != 0] == 32767).all())
    assert rounded.norms.tolist() == [1, 2, 3, 4, 5]
    assert panels(rows[:4], 2, 32).values.shape == (2, 1, 2, 32)


def test_integers_are_used_where_they_are_fast_and_pay(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(number_formats, "native_bf16", lambda device: False)
    for name, vnni, expected in [
        ("AVX512", True, "int16"),
        ("AVX512", False, "float32"),
        ("DEFAULT", False, "float32"),
        ("AVX2", False, "int16"),
    ]:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=name: name)
        monkeypatch.setattr(number_formats, "has_vnni", lambda vnni=vnni: vnni)
        assert fastest_format(2048, 2048, cpu) == expected
    assert fastest_format(2047, 2048, cpu) == "float32"  # fewer weights than LEAST_FOR_INT16
    assert fastest_format(4096, 2044, cpu) == "float32"  # not whole panels
    monkeypatch.setattr(number_formats, "native_bf16", lambda device: True)
    assert fastest_format(4, 4, cpu) == "bfloat16"
