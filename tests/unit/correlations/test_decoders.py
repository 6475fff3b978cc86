"""Decoder rows in a one-to-one assignment, worked out by hand."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.correlations.decoders import (
    NoSimilarityError,
    assigned_cosines,
    chance_mcc,
    load_decoder,
    mean_correlation,
    seeds_pw_mcc,
)
from saelineage.errors import InputError

ROWS = {
    "base.seed0": np.array([[1.0, 0.0], [0.0, 1.0]]),
    "base.seed1": np.array([[0.0, 2.0], [3.0, 4.0]]),
    "base.seed2": np.array([[-1.0, 0.0], [0.0, -1.0]]),
}


def test_the_assignment_has_the_largest_sum_of_cosines():
    # [0, 1] with [0, 2] at 1 and [1, 0] with [3, 4] / 5 at 0.6. The other way: 0 and 0.8.
    cosines = assigned_cosines(ROWS["base.seed0"], ROWS["base.seed1"])
    assert sorted(cosines) == pytest.approx([0.6, 1.0])
    assert mean_correlation(cosines) == pytest.approx(0.8)


def test_the_assignment_is_the_best_of_all_permutations():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(6, 4)), random.normal(size=(6, 4))
    cosine = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    rows = np.arange(6)
    for signed, values in ((True, cosine), (False, np.abs(cosine))):
        best = max(values[rows, list(order)].mean() for order in permutations(rows))
        assert mean_correlation(assigned_cosines(a, b, signed=signed)) == pytest.approx(best, abs=1e-6)


def test_opposite_directions_match_only_without_signs():
    a, b = ROWS["base.seed0"], ROWS["base.seed2"]
    assert assigned_cosines(a, b) == pytest.approx([0.0, 0.0])
    assert assigned_cosines(a, b, signed=False) == pytest.approx([1.0, 1.0])


def test_each_row_of_the_smaller_side_has_a_partner_and_zero_rows_have_none():
    many = np.array([[0.0, 1.0], [0.0, 0.0], [4.0, 3.0], [1.0, 0.0]])
    assert sorted(assigned_cosines(ROWS["base.seed0"], many)) == pytest.approx([1.0, 1.0])
    assert assigned_cosines(many, np.array([[0.0, 0.0], [0.0, -1.0]])) == pytest.approx([0.0])
    assert mean_correlation(assigned_cosines(many, np.zeros((3, 2)))) is None


def test_a_block_of_rows_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(1)
    a, b = random.normal(size=(7, 3)), random.normal(size=(5, 3))
    whole = assigned_cosines(a, b)
    monkeypatch.setattr("saelineage.correlations.decoders.BLOCK_ROWS", 2)
    assert assigned_cosines(a, b) == pytest.approx(whole, abs=1e-7)


def test_a_model_s_pw_mcc_is_the_mean_over_its_pairs_of_seeds():
    pairs = ["base.seed0__base.seed1", "base.seed0__base.seed2", "base.seed1__base.seed2"]
    # 0.8 and 0, as above. [0, 1] with [-1, 0] at 0 and [0.6, 0.8] with [0, -1] at -0.8; the other way -1 and -0.6.
    found = seeds_pw_mcc(pairs, ROWS.__getitem__)
    assert (found["n_pairs"], found["left_out"]) == (3, None)
    assert found["pw_mcc"] == pytest.approx((0.8 + 0.0 - 0.4) / 3)
    assert found["chance"] == pytest.approx(chance_mcc(2, 2, 2))
    assert seeds_pw_mcc([], ROWS.__getitem__) == {"pw_mcc": None, "chance": None, "n_pairs": 0, "left_out": None}


def test_random_directions_are_closer_the_fewer_the_dimensions():
    # A cosine has mean 0 and deviation d_in^-1/2. In one dimension each of many directions finds its like.
    assert chance_mcc(1, 1, 10_000) == pytest.approx(0, abs=0.05)
    assert chance_mcc(200, 200, 1) > 0.9
    assert chance_mcc(200, 200, 8) > chance_mcc(200, 200, 64) > chance_mcc(200, 200, 4096) > 0
    assert chance_mcc(200, 200, 8) == chance_mcc(200, 200, 8)


def test_where_a_pair_has_no_pw_mcc_the_model_has_none_and_says_why(monkeypatch: pytest.MonkeyPatch):
    pairs = ["base.seed0__base.seed1"]
    zero = seeds_pw_mcc(pairs, (ROWS | {"base.seed1": np.zeros((2, 2))}).__getitem__)
    assert zero["pw_mcc"] is None
    assert "all decoder rows of an SAE of base.seed0__base.seed1 are zero" in str(zero["left_out"])
    wide = seeds_pw_mcc(pairs, (ROWS | {"base.seed1": np.ones((2, 3))}).__getitem__)
    assert "different width: 2 and 3" in str(wide["left_out"])
    assert (wide["pw_mcc"], wide["chance"]) == (None, None)
    with pytest.raises(NoSimilarityError, match=r"pw_mcc\(a, b, max_latents=3\)"):
        assigned_cosines(np.eye(3), np.eye(2, 3), max_latents=2)


def test_w_dec_alone_is_read_and_a_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "sae_weights.safetensors"
    save_file({"W_dec": np.eye(2, 3, dtype=np.float32), "b_dec": np.zeros(3, dtype=np.float32)}, path)
    assert load_decoder(path).tolist() == np.eye(2, 3).tolist()
    save_file({"W_enc": np.eye(2, dtype=np.float32)}, path)
    with pytest.raises(InputError, match=r"sae_weights.safetensors' must hold an SAE's W_dec.*delete it and run again"):
        load_decoder(path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="is damaged or another file"):
        load_decoder(path)
