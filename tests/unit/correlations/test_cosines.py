"""Similarities of features that come from weights."""

import numpy as np
import pytest
import torch
from torch import nn

from saelineage.correlations.cosines import (
    best_summary,
    cosines,
    decoder_cosine,
    encoder_cosine,
    load_similarities,
    logit_coordinates,
    logit_effect_cosine,
    mmcs,
    pw_mcc,
    save_similarities,
)
from saelineage.correlations.decoders import NoSimilarityError
from saelineage.correlations.logit_maps import LogitMap
from saelineage.errors import InputError
from saelineage.saes.sae import Sae


def sae_of(decoder: torch.Tensor, encoder: torch.Tensor | None = None) -> Sae:
    """An SAE with these decoder rows, and these encoder columns given as rows."""
    sae = Sae("relu", decoder.shape[1], decoder.shape[0])
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        if encoder is not None:
            sae.W_enc.copy_(encoder.T)
    return sae


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(drawn(width, width, seed=9))[0]


def all_of(found) -> np.ndarray:
    """The dense matrix, where everything was kept."""
    return found.kept.toarray()


def test_decoder_cosines_of_two_and_three_features_by_hand():
    a = sae_of(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    b = sae_of(torch.tensor([[0.0, 2.0], [-5.0, 0.0], [4.0, 3.0]]))
    found = decoder_cosine(a, b, top_matches=2, keep_above=-1.0, n_bins=4)
    # (3, 4) / 5 with (0, 1), (-1, 0), (4, 3) / 5: 4/5, -3/5, 24/25. (1, 0) with them: 0, -1, 4/5.
    assert all_of(found) == pytest.approx(np.array([[0.8, -0.6, 0.96], [0, -1, 0.8]]))
    assert found.partners[0].tolist() == [[2, 0], [2, 0]]
    assert found.partners[1].tolist() == [[0, 1], [0, 1], [0, 1]]
    # bins from -1, -0.5, 0 and 0.5: -0.6 and -1; none; 0; the rest
    assert found.histogram.tolist() == [2, 0, 1, 3]
    # a: 0.96 and 0.8; b: 0.8, -0.6 and 0.96
    assert mmcs(found) == pytest.approx((0.88, 1.16 / 3))
    # one-to-one: 0.8 + 0.8 is more than 0.96 + 0
    assert pw_mcc(a, b) == pytest.approx(0.8)


def test_the_decoder_is_compared_by_its_rows_and_the_encoder_by_its_columns():
    # Decoder rows: e0 against e1. Encoder columns: (3, 4) against (4, 3), 24 / 25.
    a = sae_of(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    b = sae_of(torch.tensor([[0.0, 1.0]]), torch.tensor([[4.0, 3.0]]))
    assert mmcs(decoder_cosine(a, b)) == (0, 0)
    assert mmcs(encoder_cosine(a, b)) == pytest.approx((0.96, 0.96))


def test_an_sae_and_itself_have_cosine_one_on_the_diagonal_and_every_mean_is_one():
    sae = sae_of(drawn(12, 5), drawn(12, 5, seed=1))
    for cosine in (decoder_cosine, encoder_cosine):
        found = cosine(sae, sae)
        assert found.best[0][:, 0] == pytest.approx(np.ones(12))
        assert found.partners[0][:, 0].tolist() == list(range(12))
        assert mmcs(found) == pytest.approx((1, 1))
    assert pw_mcc(sae, sae) == pytest.approx(1)


def test_orthogonal_features_have_cosine_zero():
    one, other = sae_of(torch.eye(4)[:2]), sae_of(torch.eye(4)[2:])
    assert mmcs(decoder_cosine(one, other)) == (0, 0)
    assert pw_mcc(one, other) == 0


def test_latents_in_another_order_and_of_another_length_are_found_again():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    lengths = torch.linspace(0.1, 9, 20)[:, None]
    decoder, encoder = drawn(20, 8), drawn(20, 8, seed=1)
    a, b = sae_of(decoder, encoder), sae_of((decoder * lengths)[order], (encoder * lengths)[order])
    for cosine in (decoder_cosine, encoder_cosine):
        found = cosine(a, b)
        assert found.partners[1][:, 0].tolist() == order.tolist()
        assert mmcs(found) == pytest.approx((1, 1))
    assert pw_mcc(a, b) == pytest.approx(1)


def test_the_best_partner_may_be_shared_but_an_assigned_one_is_not():
    # Both features of a are e0; of b one is e0, the other e1. Best: 1 and 1; assigned: 1 + 0.
    a, b = sae_of(torch.eye(2)[[0, 0]]), sae_of(torch.eye(2))
    assert mmcs(decoder_cosine(a, b)) == pytest.approx((1, 0.5))
    assert pw_mcc(a, b) == pytest.approx(0.5)


def test_opposite_directions_are_not_the_same_feature():
    a = sae_of(torch.eye(3))
    assert pw_mcc(a, sae_of(-torch.eye(3)[:1])) == 0  # it is assigned to one of the two it is orthogonal to
    assert decoder_cosine(a, sae_of(-torch.eye(3)), top_matches=1).best[0].max() == 0


def test_a_zero_vector_has_no_cosine_and_is_nobody_s_partner():
    decoder = torch.eye(3)
    decoder[1] = 0
    a, b = sae_of(decoder, decoder), sae_of(torch.eye(3), torch.eye(3))
    found = decoder_cosine(a, b, top_matches=3)
    assert np.isnan(found.best[0][1]).all()
    assert found.partners[0][1].tolist() == [-1, -1, -1]
    assert 1 not in found.partners[1]
    assert found.n_undefined == 3
    # b's second feature has only orthogonal ones
    assert mmcs(found) == pytest.approx((1, 2 / 3))
    assert pw_mcc(a, b) == pytest.approx(1)
    assert encoder_cosine(a, b).n_undefined == 3


def test_where_all_vectors_are_zero_nothing_is_defined():
    empty = sae_of(torch.zeros(2, 3))
    found = decoder_cosine(empty, sae_of(torch.eye(3)))
    assert np.isnan([*mmcs(found), pw_mcc(empty, empty)]).all()
    nothing = {"n": 0, "mean_best": None, "best_quantiles": {"0.05": None, "0.5": None, "0.95": None}}
    assert best_summary(found) == {"a": nothing, "b": nothing}


def test_cosines_need_a_shared_basis_for_a_rotation_of_one_side_hides_the_features():
    decoder = drawn(64, 64)
    one, turned = sae_of(decoder), sae_of(decoder @ rotation(64))
    assert mmcs(decoder_cosine(turned, turned))[0] == pytest.approx(1)
    assert mmcs(decoder_cosine(one, turned))[0] < 0.5


@pytest.mark.parametrize(("block_features", "threads"), [(3, 2), (100, 3)])
def test_blocks_and_threads_change_nothing_but_rounding(block_features, threads):
    a, b = drawn(10, 4), drawn(7, 4, seed=1)
    whole = cosines(a, b, keep_above=-1.0)
    found = cosines(a, b, keep_above=-1.0, block_features=block_features, threads=threads)
    assert all_of(found) == pytest.approx(all_of(whole), abs=1e-6)
    assert all_of(found) == pytest.approx(nn.functional.cosine_similarity(a[:, None], b[None], dim=2).numpy(), abs=1e-6)
    assert found.partners[0].tolist() == whole.partners[0].tolist()


def test_the_summary_has_quantiles_of_the_best():
    # Best of a: cosines 1, 0.6 and 0; their median 0.6, and 1/20 of the way 0.06, 19/20 of it 0.96.
    found = cosines(torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]]), torch.tensor([[2.0, 0, 0]]))
    summary = best_summary(found)
    assert summary["a"]["n"] == 3
    assert summary["a"]["mean_best"] == pytest.approx(1.6 / 3)
    assert summary["a"]["best_quantiles"] == pytest.approx({"0.05": 0.06, "0.5": 0.6, "0.95": 0.96})
    assert summary["b"]["mean_best"] == pytest.approx(1)


def test_saes_of_different_width_have_neither_cosine():
    a, b = sae_of(torch.eye(2)), sae_of(torch.eye(3))
    for measure in (decoder_cosine, encoder_cosine, pw_mcc):
        with pytest.raises(NoSimilarityError, match="different width: 2 and 3"):
            measure(a, b)


def test_an_assignment_that_takes_long_is_made_only_when_asked_for():
    sae = sae_of(torch.eye(3))
    with pytest.raises(NoSimilarityError, match=r"pw_mcc\(a, b, max_latents=3\)"):
        pw_mcc(sae, sae, max_latents=2)


def direct_effects(sae: Sae, path: LogitMap) -> torch.Tensor:
    """Effects on all logits, less their mean: what is never made elsewhere."""
    effects = sae.W_dec.detach().double() @ path.to_norm.double() @ path.unembedding.double().T
    return effects - effects.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("shared", [True, False])
def test_logit_effect_cosines_are_those_of_the_whole_vectors(shared):
    a, b = sae_of(drawn(9, 12)), sae_of(drawn(8, 12, seed=1))
    map_a = LogitMap(drawn(12, 6, seed=2), drawn(50, 6, seed=3) + 2)  # a mean that must not count
    map_b = map_a if shared else LogitMap(drawn(12, 5, seed=4), drawn(50, 5, seed=5))
    expected = cosines(direct_effects(a, map_a), direct_effects(b, map_b), keep_above=-1.0)
    found = logit_effect_cosine(a, b, map_a, map_b, keep_above=-1.0)
    assert all_of(found) == pytest.approx(all_of(expected), abs=1e-5)


def test_logit_coordinates_have_the_products_of_logits():
    a, b = drawn(40, 3), drawn(40, 4, seed=1)
    own, other = logit_coordinates(a, b)
    centred_a, centred_b = (unembedding.double() - unembedding.double().mean(0) for unembedding in (a, b))
    torch.testing.assert_close(own @ own.T, centred_a.T @ centred_a)
    torch.testing.assert_close(own @ other.T, centred_a.T @ centred_b)


def test_logit_effects_see_through_a_rotation_of_the_model_s_basis():
    decoder, unembedding, turn = drawn(10, 6), drawn(30, 6, seed=1), rotation(6)
    a, b = sae_of(decoder), sae_of(decoder @ turn)
    map_a, map_b = LogitMap(torch.eye(6), unembedding), LogitMap(torch.eye(6), unembedding @ turn)
    found = logit_effect_cosine(a, b, map_a, map_b)
    assert mmcs(found) == pytest.approx((1, 1), abs=1e-5)
    assert found.partners[0][:, 0].tolist() == list(range(10))


def test_a_feature_that_moves_all_logits_alike_or_is_zero_has_no_direction():
    # Three logits: the first dimension adds to all of them, the second to one.
    path = LogitMap(torch.eye(2), torch.tensor([[1.0, 0], [1, 0], [1, 5]]))
    sae = sae_of(torch.tensor([[0.0, 1], [7, 1], [0, 0]]))
    found = logit_effect_cosine(sae, sae, path, path)
    assert found.best[0][:, 0] == pytest.approx([1, 1, np.nan], nan_ok=True)
    assert found.kept.toarray()[0, 1] == pytest.approx(1)  # what is added to all logits is not seen


def test_vocabularies_of_different_size_have_no_common_logits():
    with pytest.raises(NoSimilarityError, match="vocabularies differ: 5 and 6"):
        logit_coordinates(drawn(5, 2), drawn(6, 2))


def test_similarities_are_read_as_they_were_written(tmp_path):
    a, b = sae_of(drawn(6, 4), drawn(6, 4, seed=1)), sae_of(drawn(5, 4, seed=2), drawn(5, 4, seed=3))
    found = {"decoder_cosine": decoder_cosine(a, b), "encoder_cosine": encoder_cosine(a, b)}
    path = tmp_path / "similarities.safetensors"
    save_similarities(found, ("base.seed0", "lua.seed0"), path)
    read = load_similarities(path)
    assert list(read) == list(found)
    for measure, matches in found.items():
        assert (read[measure].kept != matches.kept).nnz == 0
        assert read[measure].partners[1].tolist() == matches.partners[1].tolist()
        assert read[measure].histogram.tolist() == matches.histogram.tolist()


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "similarities.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"similarities\.safetensors' must hold .*delete it"):
        load_similarities(path)
