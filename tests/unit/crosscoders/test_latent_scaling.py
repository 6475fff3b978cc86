"""Latent scaling in closed form: shared, exclusive and rotated latents, and agreement with least squares."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.crosscoders.latent_scaling import (
    Couple,
    betas,
    couples_of,
    decoder_products,
    measure_scaling_sums,
    pair_table,
    scaling_sums,
)
from saelineage.errors import InputError
from saelineage.saes.encoding import SparseLatents
from tests.unit.crosscoders.made import crosscoder_of

D_IN = 4
N_TOKENS = 60


def sparse(latent_acts: np.ndarray) -> SparseLatents:
    """Latents from a dense array [token, d_sae]."""
    tokens, latents = np.nonzero(latent_acts)
    indptr = np.searchsorted(tokens, np.arange(len(latent_acts) + 1))
    values = torch.from_numpy(latent_acts[tokens, latents]).float()
    return SparseLatents(torch.from_numpy(indptr), torch.from_numpy(latents).int(), values)


@pytest.fixture
def toy() -> SimpleNamespace:
    """Random activations of three models, sparse latents, and a crosscoder that has nothing to do with them."""
    random = np.random.default_rng(0)
    latent_acts = random.exponential(size=(N_TOKENS, 5)) * (random.random((N_TOKENS, 5)) < 0.4)
    latent_acts[:, 4] = 0
    crosscoder = crosscoder_of(random.normal(size=(3, 5, D_IN)).astype(np.float32))
    acts = torch.from_numpy(random.normal(size=(N_TOKENS, 3 * D_IN))).float()
    return SimpleNamespace(crosscoder=crosscoder, acts=acts, latents=sparse(latent_acts), dense=latent_acts)


def by_least_squares(toy: SimpleNamespace, model: int, direction: int, latent: int) -> tuple[float, float]:
    """beta on error and on reconstruction, by numpy's least squares over arrays [token x d_in]."""
    crosscoder: Crosscoder = toy.crosscoder
    W_dec, b_dec = (getattr(crosscoder, name).numpy().astype(float) for name in ("W_dec", "b_dec"))
    f = toy.dense.astype(np.float32).astype(float)
    acts = toy.acts.view(N_TOKENS, 3, D_IN)[:, model].numpy().astype(float)
    recons = f @ W_dec[model] + b_dec[model]
    error = acts - (recons - np.outer(f[:, latent], W_dec[model, latent]))
    scaled = np.outer(f[:, latent], W_dec[direction, latent]).reshape(-1, 1)
    return tuple(np.linalg.lstsq(scaled, target.ravel(), rcond=None)[0].item() for target in (error, recons))


def test_betas_are_those_of_least_squares(toy: SimpleNamespace):
    couples = couples_of([("a", "b"), ("b", "c")])
    assert len(couples) == 7  # a and c never meet
    sums = scaling_sums(toy.crosscoder, toy.acts, toy.latents, couples)
    scaled = betas(sums, decoder_products(toy.crosscoder, couples), couples)
    for couple in couples:
        for latent in range(4):
            expected = by_least_squares(toy, "abc".index(couple.model), "abc".index(couple.direction), latent)
            found = tuple(beta[couple][latent] for beta in scaled.values())
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9), (couple, latent)
        assert np.isnan(scaled["error"][couple][4])  # it never fires


def test_sums_of_batches_add_up_to_those_of_all_tokens(toy: SimpleNamespace):
    couples, latents = couples_of([("a", "b")]), toy.dense
    whole = scaling_sums(toy.crosscoder, toy.acts, sparse(latents), couples)
    parts = [
        scaling_sums(toy.crosscoder, toy.acts[place], sparse(latents[place]), couples)
        for place in (slice(0, 7), slice(7, 7), slice(7, 60))
    ]
    added = parts[0].add(parts[1]).add(parts[2])
    assert added.n_tokens == whole.n_tokens == 60
    assert added.n_firings.tolist() == whole.n_firings.tolist() == (latents > 0).sum(0).tolist()
    for name in ("squares", "on_error", "on_recons"):
        assert np.allclose(getattr(added, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def perfect(parent: np.ndarray, child: np.ndarray, decoder: np.ndarray) -> tuple:
    """Activations that three latents write with the given directions, and a crosscoder with the given decoders."""
    random = np.random.default_rng(1)
    latent_acts = random.exponential(size=(N_TOKENS, 3)) * (random.random((N_TOKENS, 3)) < 0.5)
    latent_acts = latent_acts.astype(np.float32)
    crosscoder = crosscoder_of(decoder.astype(np.float32))
    crosscoder.b_dec.zero_()
    acts = torch.from_numpy(np.concatenate([latent_acts @ parent, latent_acts @ child], 1)).float()
    return crosscoder, acts, sparse(latent_acts)


def table_of(crosscoder: Crosscoder, acts: Tensor, latents: SparseLatents) -> pd.DataFrame:
    """The scaling of all latents in models a and b."""
    sums = scaling_sums(crosscoder, acts, latents, couples_of([("a", "b")]))
    return pair_table(sums, decoder_products(crosscoder, sums.couples), "a", "b")


def test_shared_half_written_absent_and_turned_latents_by_hand():
    # Latent 0 is written equally by both, 1 half as strongly by the parent, 2 by the child alone.
    basis = np.eye(3, D_IN)
    parent, child = basis * [[1.0], [0.5], [0.0]], basis
    crosscoder, acts, latents = perfect(parent, child, np.stack([parent, child]))
    sums = scaling_sums(crosscoder, acts, latents, couples_of([("a", "b")]))
    products = decoder_products(crosscoder, sums.couples)
    table = pair_table(sums, products, "a", "b")
    assert table["nu_error"].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    assert table["nu_reconstruction"].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    assert table["relative_norm"].tolist() == pytest.approx([0.5, 0.75, 1.0])
    for target in ("error", "reconstruction"):
        assert table[f"own_ratio_{target}"].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    assert table["writer"].tolist()[1:] == ["child", "child"]
    assert table["cosine"].tolist()[:2] == pytest.approx([1.0, 1.0])
    assert np.isnan(table["cosine"][2])
    mirrored = pair_table(sums, products, "b", "a")
    assert mirrored["writer"].tolist()[1:] == ["parent", "parent"]
    assert mirrored["nu_error"].tolist() == pytest.approx(table["nu_error"].tolist())
    assert mirrored["relative_norm"].tolist() == pytest.approx([0.5, 0.25, 0.0])


def test_the_activations_decide_and_not_the_decoder():
    # The child alone writes latent 2, but the parent's decoder still has a part in a direction that nothing follows.
    basis = np.eye(3, D_IN)
    parent = basis * [[1.0], [1.0], [0.0]]
    worn = parent + 0.6 * np.eye(4)[[3] * 3] * [[0.0], [0.0], [1.0]]
    crosscoder, acts, latents = perfect(parent, basis, np.stack([worn, basis]))
    table = table_of(crosscoder, acts, latents)
    assert table["relative_norm"][2] == pytest.approx(0.7)  # (1 + (1 - 0.6) / 1) / 2: the bins call it neither
    assert table[["nu_error", "own_ratio_error"]].to_numpy()[2] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert table["writer"][2] == "child"


def test_a_latent_whose_direction_others_reconstruct_has_a_low_nu_on_error_alone():
    # Decoupling: the parent has the direction of latent 2 too, but there latent 0, which always fires with it, took it.
    random = np.random.default_rng(2)
    f = random.exponential(size=(N_TOKENS, 2)).astype(np.float32)
    latent_acts = np.stack([f[:, 0], f[:, 1], f[:, 0]], 1)
    basis = np.eye(3, D_IN)
    parent = np.stack([basis[0] + basis[2], basis[1], 0 * basis[2]])
    crosscoder = crosscoder_of(np.stack([parent, basis]).astype(np.float32))
    crosscoder.b_dec.zero_()
    acts = torch.from_numpy(np.concatenate([latent_acts @ parent, latent_acts @ basis], 1)).float()
    table = table_of(crosscoder, acts, sparse(latent_acts))
    assert table["nu_error"][2] == pytest.approx(0.0, abs=1e-6)
    assert table["nu_reconstruction"][2] == pytest.approx(1.0, abs=1e-6)


def test_a_turned_latent_has_a_low_nu_and_is_written_in_its_own_direction():
    basis = np.eye(3, D_IN)
    parent = basis[[0, 1, 2]].copy()
    parent[2] = [0.0, 0.0, 0.0, 1.0]
    crosscoder, acts, latents = perfect(parent, basis, np.stack([parent, basis]))
    table = table_of(crosscoder, acts, latents)
    found = table[["nu_error", "nu_reconstruction", "own_ratio_error", "own_ratio_reconstruction", "cosine"]]
    assert found.to_numpy()[2] == pytest.approx([0.0, 0.0, 1.0, 1.0, 0.0], abs=1e-6)


def test_measuring_encodes_batches(toy: SimpleNamespace):
    whole = measure_scaling_sums(toy.crosscoder, [toy.acts], [("a", "b")])
    parts = measure_scaling_sums(toy.crosscoder, toy.acts.split(7), [("a", "b")])
    assert whole.couples == [Couple(*names) for names in ("aa", "ab", "ba", "bb")]
    assert whole.n_firings.tolist() == parts.n_firings.tolist()
    assert np.allclose(whole.on_error, parts.on_error)
    dense = toy.crosscoder.sae.encode(toy.acts)
    assert whole.n_firings.tolist() == (dense > 0).sum(0).tolist()
    with pytest.raises(InputError, match=r"models \['a', 'b', 'c'\], got \['d'\]"):
        measure_scaling_sums(toy.crosscoder, [toy.acts], [("a", "d")])
    with pytest.raises(InputError, match="there are none"):
        measure_scaling_sums(toy.crosscoder, [], [("a", "b")])
