"""Drift of activations against shares worked by hand, and the bound below which nothing can be said of losses."""

import pytest
import torch

from saelineage.errors import InputError
from saelineage.lineage import drift as module
from saelineage.lineage.drift import DriftSums, drift, drift_sums, is_visible, report, unexplained
from saelineage.saes.metrics import SaeSums, fvu, reconstruction_sums
from saelineage.saes.sae import Sae


@pytest.fixture
def centred() -> torch.Tensor:
    """Activations of 60 tokens whose mean is zero."""
    acts = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return acts - acts.mean(0)


def test_a_child_scaled_by_a_factor_has_moved_by_the_square_of_the_factor_less_one(write_acts, centred):
    sums = drift_sums([write_acts(centred, "parent")], [write_acts(centred * 1.5, "child")])
    assert drift(sums) == pytest.approx(0.25, rel=1e-6)
    # |0.5 x|^2 counts the mean m of x too: with x = centred + m it is 0.25 (1 + n |m|^2 / deviation).
    shifted = centred + 3
    sums = drift_sums([write_acts(shifted, "parent")], [write_acts(shifted * 1.5, "child")])
    assert drift(sums) == pytest.approx(0.25 * (1 + 60 * 36 / float(centred.square().sum())), rel=1e-6)


def test_equal_models_have_not_moved_and_a_child_that_is_all_the_parents_mean_has_moved_by_one(write_acts, centred):
    parent = write_acts(centred + 3, "parent")
    assert drift(drift_sums([parent], [parent])) == 0.0
    mean = write_acts(torch.full((60, 4), 3.0), "child")
    assert drift(drift_sums([parent], [mean])) == pytest.approx(1, rel=1e-6)


def test_a_removed_direction_moves_its_own_share_of_the_variance(write_acts, centred):
    child = centred.clone()
    child[:, 2] = 0  # centred, so this is sum x_2^2 of sum |x|^2
    found = drift(drift_sums([write_acts(centred, "parent")], [write_acts(child, "child")]))
    assert found == pytest.approx(float(centred[:, 2].square().sum() / centred.square().sum()), rel=1e-6)


def test_drift_is_in_the_units_of_fvu(write_acts, centred):
    """A child whose activations are an SAE's reconstructions has moved by what the SAE leaves unexplained."""
    sae = Sae("relu", 4, 3)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4, 3))
        sae.W_dec.copy_(torch.eye(3, 4))
        latents = sae.encode_sparse(centred)
        recons = sae.decode_sparse(latents)
    expected = fvu(SaeSums().add(reconstruction_sums(centred, recons, latents, 3)))
    found = drift(drift_sums([write_acts(centred, "parent")], [write_acts(recons, "child")]))
    assert found == pytest.approx(expected, rel=1e-9)


def test_several_shards_and_chunks_make_one_set_of_tokens(write_acts, centred, monkeypatch):
    parent, child = centred + 2, centred * 0.5 + torch.arange(4.0)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 7)
    paths = [
        [write_acts(part, f"{name}{place}") for place, part in enumerate(acts.split(25))]
        for name, acts in (("parent", parent), ("child", child))
    ]
    found = drift_sums(*paths)
    assert found.moments.n == 60
    deviation = (parent - parent.mean(0)).double().square().sum()
    assert drift(found) == pytest.approx(float((child - parent).double().square().sum() / deviation), rel=1e-6)


def test_tokens_that_no_feature_is_compared_on_are_left_out(write_acts, centred):
    parent, child = centred.clone(), centred * 1.5
    parent[3], child[5] = 1e6, 1e6
    sums = drift_sums([write_acts(parent, "parent")], [write_acts(child, "child")], max_norms=(100.0, 50.0))
    kept = [place for place in range(60) if place not in (3, 5)]
    deviation = (centred[kept] - centred[kept].mean(0)).square().sum()
    assert report(sums) == {
        "drift": pytest.approx(float((centred[kept] * 0.5).square().sum() / deviation), rel=1e-5),
        "n_tokens": 58,
        "n_left_out": 2,
    }


def test_a_centred_sae_sees_no_drift_along_the_direction_of_ones(write_acts, centred):
    sae = Sae("relu", 4, 3)
    sae.centred = True
    paths = [write_acts(centred, "parent")], [write_acts(centred + torch.randn(60, 1), "child")]
    assert drift(drift_sums(*paths)) > 0.1
    assert drift(drift_sums(*paths, target=sae.target)) == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_measured_is_missing(write_acts, centred):
    constant = write_acts(torch.ones(60, 4), "parent")
    assert drift(drift_sums([constant], [write_acts(centred, "child")])) is None
    wider = write_acts(torch.randn(60, 5), "wider")
    assert drift_sums([constant], [wider]) is None
    assert report(None) == {"drift": None, "n_tokens": None, "n_left_out": None}
    assert drift(DriftSums()) is None


def test_activations_of_other_tokens_are_refused(write_acts, centred):
    parent, shorter = write_acts(centred, "parent"), write_acts(centred[:50], "child")
    with pytest.raises(InputError, match=r"same tokens and hookpoint, .*parent.* and .*child.* do not \(stop_row"):
        drift_sums([parent], [shorter])
    with pytest.raises(InputError, match="got 1 and 2; list both in the same order"):
        drift_sums([parent, parent], [parent])


def test_a_drift_below_what_either_sae_leaves_unexplained_is_not_visible():
    assert unexplained([0.1, 0.25]) == 0.25
    assert unexplained([0.1, None]) is None
    assert is_visible(0.2, 0.25) is False
    assert is_visible(0.25, 0.25) is True
    assert is_visible(0.0, 0.0) is True  # perfect SAEs see everything
    assert is_visible(None, 0.25) is None
    assert is_visible(0.2, None) is None
