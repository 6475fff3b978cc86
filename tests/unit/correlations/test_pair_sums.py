"""Raw sums over the aligned tokens of a pair, computed and added."""

import weakref
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from saelineage.correlations.pair_sums import ShardSums, all_sums, require_addable
from saelineage.correlations.pearson import correlate_sums
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard

# Four tokens. Products by hand: a0 b0 = 1 x 1 + 2 x 3 = 7 on two tokens, a0 b1 = 2 x 4 = 8, a2 b1 = 5 x 4 + 1 x 2 = 22.
TOY_A = np.array([[1.0, 0, 0], [2, 0, 5], [0, 0, 1], [0, 0, 0]])
TOY_B = np.array([[1.0, 0], [3, 4], [0, 2], [7, 0]])


def random_latents(n_tokens: int, d_sae: int, seed: int) -> np.ndarray:
    """Float32-exact activations, most of them zero."""
    random = np.random.default_rng(seed)
    latents = np.where(random.random((n_tokens, d_sae)) < 0.3, random.random((n_tokens, d_sae)), 0)
    return latents.astype(np.float32).astype(np.float64)


@pytest.fixture
def sums_of(write_features):
    """The sums of two dense arrays, written as a shard each."""

    def make(a: np.ndarray, b: np.ndarray, name: str = "", **header: str | int) -> ShardSums:
        return ShardSums(*(write_features(x, name + side, model=side, **header) for side, x in (("a", a), ("b", b))))

    return make


def dense(sums: ShardSums, rows_at_once: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """All products, and tokens on which both fire."""
    products, together = np.zeros(sums.shape), np.zeros(sums.shape, dtype=np.int64)
    for first in range(0, sums.shape[0], rows_at_once):
        sums.add_products(first, products[first : first + rows_at_once])
        sums.add_together(first, together[first : first + rows_at_once])
    return products, together


def test_sums_by_hand(sums_of):
    sums = sums_of(TOY_A, TOY_B)
    products, together = dense(sums)
    assert products.tolist() == [[7, 8], [0, 0], [15, 22]]
    assert together.tolist() == [[2, 1], [0, 0], [1, 2]]
    assert [side.tolist() for side in sums.totals] == [[3, 0, 6], [11, 6]]
    assert [side.tolist() for side in sums.squares] == [[5, 0, 26], [59, 20]]
    assert [side.tolist() for side in sums.firings] == [[2, 0, 2], [3, 2]]
    assert (sums.names, sums.corpus, sums.n_tokens) == (("a.seed0", "b.seed0"), "words", 4)
    assert sums.covered == ("0" * 8, 0, 4)


def test_products_are_added_to_what_is_there(sums_of):
    sums, products = sums_of(TOY_A, TOY_B), np.ones((2, 2))
    sums.add_products(1, products)
    assert products.tolist() == [[1, 1], [16, 23]]


@pytest.mark.parametrize("rows_at_once", [1, 5, 1000])
def test_sums_equal_numpy_s_for_any_number_of_rows_at_once(sums_of, rows_at_once):
    a, b = random_latents(100, 12, 0), random_latents(100, 9, 1)
    sums = sums_of(a, b)
    products, together = dense(sums, rows_at_once)
    assert np.allclose(products, a.T @ b, rtol=1e-12, atol=0)
    assert np.array_equal(together, (a > 0).astype(int).T @ (b > 0))
    for side, latents in enumerate((a, b)):
        assert np.allclose(sums.totals[side], latents.sum(axis=0), rtol=1e-12)
        assert np.allclose(sums.squares[side], (latents**2).sum(axis=0), rtol=1e-12)
        assert np.array_equal(sums.firings[side], (latents > 0).sum(axis=0))
    assert np.array_equal(products, dense(sums)[0])


def test_a_shard_without_tokens_sums_to_nothing(sums_of):
    sums = sums_of(np.zeros((0, 3)), np.zeros((0, 2)))
    products, together = dense(sums)
    assert products.tolist() == together.tolist() == [[0, 0]] * 3
    assert sums.n_tokens == 0
    assert sums.totals[0].tolist() == [0, 0, 0]


def test_tokens_left_out_on_either_side_are_not_summed(write_features):
    a, b = random_latents(40, 4, 0), random_latents(40, 3, 1)
    shards = write_features(a, "a"), write_features(b, "b")
    shards[0].compared[:5] = False
    shards[1].compared[3:9] = False
    sums = ShardSums(*shards)
    assert sums.n_tokens == 31
    assert np.allclose(dense(sums)[0], a[9:].T @ b[9:], rtol=1e-12)
    assert np.allclose(sums.totals[0], a[9:].sum(axis=0), rtol=1e-12)
    assert np.array_equal(sums.firings[1], (b[9:] > 0).sum(axis=0))


def test_shards_of_other_tokens_are_refused_with_both_names(write_features):
    a, b = write_features(TOY_A, "first"), write_features(TOY_B, "second", ids_sha256="1" * 8)
    with pytest.raises(InputError, match=r"first\.safetensors' \(words, 0{8} .*second\.safetensors' \(words, 1{8} "):
        ShardSums(a, b)


def test_no_sums_at_all_are_refused():
    with pytest.raises(InputError, match="no sums to add; give at least one shard"):
        require_addable([])


A, B = random_latents(20, 3, 0), random_latents(20, 3, 1)
CORRELATION = {"min_firings": 1, "top_matches": 3, "keep_above": 0.3, "n_bins": 20, "block_features": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sae": "seed1"},
            r"the same names, not \('a\.seed0', 'b\.seed0'\) \(.*firsta.*\) and \('a\.seed1', .*otherb.*\); d",
        ),
        (
            {"ids_sha256": "1" * 8},
            r"of the same tokens, not 0{8} \(.*firsta.*firstb.*\) and 1{8} \(.*othera.*otherb.*\); d",
        ),
    ],
    ids=["another SAE", "another token digest"],
)
def test_shards_that_do_not_go_together_are_refused_with_both_files(sums_of, changes, message):
    sums = [sums_of(A, B, name="first"), sums_of(A, B, name="other", first_row=20, **changes)]
    for order in (sums, sums[::-1]):
        with pytest.raises(InputError, match=message):
            correlate_sums(order, **CORRELATION)


def test_a_shard_of_another_d_sae_is_refused_with_its_file(sums_of):
    sums = [sums_of(A, B, name="first"), sums_of(A[:, :2], B, name="other", first_row=20)]
    with pytest.raises(
        InputError, match=r"the same shape, not \(3, 3\) \(.*firsta.*\) and \(2, 3\) \(.*othera.*\); delete"
    ):
        correlate_sums(sums, **CORRELATION)


@pytest.mark.parametrize(("first_row", "n", "twice"), [(0, 20, "0 to 20"), (19, 20, "19 to 20"), (5, 2, "5 to 7")])
def test_token_rows_that_overlap_are_refused_with_both_files(sums_of, first_row, n, twice):
    sums = [sums_of(A, B, name="one"), sums_of(A[:n], B[:n], name="two", first_row=first_row)]
    rows = rf"count token rows {twice} twice"
    message = rf"\('a\.seed0', 'b\.seed0'\) on 'words' would {rows} \(.*(one|two)a.*; .*(one|two)b.*\); del"
    for order in (sums, sums[::-1]):
        with pytest.raises(InputError, match=message):
            correlate_sums(order, **CORRELATION)


def test_rows_behind_one_another_and_empty_shards_between_them_are_added(sums_of):
    ends = [0, 7, 7, 20]
    pieces = [(A[i:j], B[i:j], i) for i, j in pairwise(ends)]
    sums = [sums_of(a, b, name=str(number), first_row=first) for number, (a, b, first) in enumerate(pieces)]
    require_addable(sums)
    assert correlate_sums(sums, **CORRELATION).n_tokens == {"words": 20}


def test_rows_of_several_corpora_neither_overlap_nor_need_the_same_ids(sums_of):
    require_addable([sums_of(A, B), sums_of(A, B, corpus="lua", ids_sha256="1" * 8)])


def test_of_many_shards_one_pair_is_in_memory_at_a_time(write_features):
    alive: list[weakref.ref] = []

    def shards() -> Iterator[tuple[FeatureShard, FeatureShard]]:
        for number in range(3):
            assert not any(shard() for shard in alive)
            first = 20 * number
            pair = [write_features(x, f"{y}{number}", model=y, first_row=first) for y, x in (("a", A), ("b", B))]
            alive.extend(map(weakref.ref, pair))
            yield pair.pop(0), pair.pop()

    assert [sums.covered[1] for sums in all_sums(shards())] == [0, 20, 40]
