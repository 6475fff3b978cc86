"""Raw sums over the aligned tokens of a pair, computed, saved and added."""

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from safetensors.numpy import load_file, save_file

from saelineage.correlations.pair_sums import PairSums, ShardSums, ahead, load_sums, require_addable, save_sums
from saelineage.correlations.pearson import correlate_sums
from saelineage.errors import InputError

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

    def make(
        a: np.ndarray, b: np.ndarray, block_features: int = 1000, name: str = "", **header: str | int
    ) -> ShardSums:
        written = (write_features(x, name + side, model=side, **header) for side, x in (("a", a), ("b", b)))
        return ShardSums(*written, block_features)

    return make


def dense(sums: PairSums) -> tuple[np.ndarray, np.ndarray]:
    """All products, and tokens on which both fire."""
    blocks = [sums.products(rows) for rows in sums.blocks()]
    return tuple(
        np.vstack(
            [
                scipy.sparse.csr_array(
                    (values, found.indices, found.indptr), shape=(len(rows), sums.shape[1])
                ).toarray()
                for rows, found in zip(sums.blocks(), blocks, strict=True)
                for values in [getattr(found, name)]
            ]
        )
        for name in ("products", "together")
    )


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


def test_products_are_sparse_rows_in_order(sums_of):
    found = sums_of(TOY_A, TOY_B).products(range(3))
    assert found.indptr.tolist() == [0, 2, 2, 4]
    assert found.indices.tolist() == [0, 1, 0, 1]
    assert found.products.tolist() == [7, 8, 15, 22]
    assert found.together.tolist() == [2, 1, 1, 2]


@pytest.mark.parametrize("block_features", [1, 5, 1000])
def test_sums_equal_numpy_s_in_blocks_of_any_size(sums_of, block_features):
    a, b = random_latents(100, 12, 0), random_latents(100, 9, 1)
    sums = sums_of(a, b, block_features)
    products, together = dense(sums)
    assert np.allclose(products, a.T @ b, rtol=1e-12, atol=0)
    assert np.array_equal(together, (a > 0).astype(int).T @ (b > 0))
    for side, latents in enumerate((a, b)):
        assert np.allclose(sums.totals[side], latents.sum(axis=0), rtol=1e-12)
        assert np.allclose(sums.squares[side], (latents**2).sum(axis=0), rtol=1e-12)
        assert np.array_equal(sums.firings[side], (latents > 0).sum(axis=0))
    assert np.array_equal(products, dense(sums_of(a, b))[0])
    assert [place for rows in sums.blocks() for place in rows] == list(range(12))


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
    sums = ShardSums(*shards, 1000)
    assert sums.n_tokens == 31
    assert np.allclose(dense(sums)[0], a[9:].T @ b[9:], rtol=1e-12)
    assert np.allclose(sums.totals[0], a[9:].sum(axis=0), rtol=1e-12)
    assert np.array_equal(sums.firings[1], (b[9:] > 0).sum(axis=0))


def test_shards_of_other_tokens_are_refused_with_both_names(write_features):
    a, b = write_features(TOY_A, "first"), write_features(TOY_B, "second", ids_sha256="1" * 8)
    with pytest.raises(InputError, match=r"first\.safetensors' \(words, 0{8} .*second\.safetensors' \(words, 1{8} "):
        ShardSums(a, b, 1000)


def save(sums: list[ShardSums], path: Path, threads: int = 1) -> Path:
    save_sums(sums, path, len(sums), len(sums[0].blocks()), threads)
    return path


@pytest.mark.parametrize("threads", [1, 5])
def test_saved_sums_come_back_by_partner_and_are_equal_bytes_for_any_number_of_threads(sums_of, tmp_path, threads):
    a, b = random_latents(60, 12, 0), random_latents(60, 9, 1)
    a[:, 3:5] = 0  # a row with products between two without
    of_b = [sums_of(a, b, 3), sums_of(a[:50], b[:50], 3, name="lua", corpus="lua")]
    of_c = sums_of(a, random_latents(60, 7, 2), 3, name="c")
    of_c.names = ("a.seed0", "c.seed0")
    path = save([*of_b, of_c], tmp_path / "sums.safetensors", threads)
    assert [sums.names for sums in load_sums(path, "c.seed0")] == [("a.seed0", "c.seed0")]
    with pytest.raises(InputError, match=r"'d\.seed0'"):
        load_sums(path, "d.seed0")
    for sums, loaded in zip([*of_b, of_c], load_sums(path, "b.seed0") + load_sums(path, "c.seed0"), strict=True):
        for name in ("names", "corpus", "n_tokens", "covered", "block_features", "shape"):
            assert getattr(loaded, name) == getattr(sums, name)
        arrays, expected_arrays = (
            [*x.totals, *x.squares, *x.firings, *(array for rows in x.blocks() for array in x.products(rows))]
            for x in (loaded, sums)
        )
        for array, expected in zip(arrays, expected_arrays, strict=True):
            assert array.dtype == expected.dtype
            assert np.array_equal(array, expected)
    assert save([*of_b, of_c], tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_longest_names_fit_into_the_header(sums_of, tmp_path):
    longest = "x" * 64
    a, b = random_latents(20, 5, 0), random_latents(20, 5, 1)
    sums = [sums_of(a, b, 1, name=c, corpus=c * 64, sae=longest, ids_sha256="0" * 64) for c in "cd"]
    path = save(sums, tmp_path / "sums.safetensors")
    assert [loaded.corpus for loaded in load_sums(path, f"b.{longest}")] == ["c" * 64, "d" * 64]


def test_two_sums_of_one_pair_and_corpus_do_not_go_into_one_file(sums_of, tmp_path):
    with pytest.raises(ValueError, match=r"'b\.seed0/words/totals_a' was added before"):
        save([sums_of(TOY_A, TOY_B)] * 2, tmp_path / "new" / "sums.safetensors")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.fixture
def saved(sums_of, tmp_path) -> Path:
    return save([sums_of(TOY_A, TOY_B, 2)], tmp_path / "sums.safetensors")


def read_all(path: Path) -> None:
    for sums in load_sums(path, "b.seed0"):
        dense(sums)


def test_sums_cut_off_anywhere_are_refused_by_name(saved):
    whole = saved.read_bytes()
    for n_bytes in (0, 7, 100, -1):
        saved.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError, match=r"sums\.safetensors' .*delete it"):
            load_sums(saved, "b.seed0")


def test_any_damaged_byte_of_sums_is_refused_by_name(saved):
    whole = saved.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    used = len(whole[: 8 + header].rstrip())
    for place in [*range(0, used, 11), *range(8 + header, len(whole))]:
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"sums\.safetensors' .*delete it"):
            read_all(saved)


def test_a_file_damaged_after_it_was_opened_is_refused_when_it_is_read(saved):
    (sums,) = load_sums(saved, "b.seed0")
    whole = bytearray(saved.read_bytes())
    whole[-1] ^= 1
    saved.write_bytes(whole)
    with pytest.raises(InputError, match=r"sums\.safetensors' .*delete it"):
        dense(sums)


def test_other_files_are_no_sums(saved, tmp_path):
    save_file(load_file(saved), saved)
    for path in (saved, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=rf"{path.name}' .*delete it"):
            load_sums(path, "b.seed0")


def test_no_sums_at_all_are_refused():
    with pytest.raises(InputError, match="no sums to add; give at least one shard"):
        require_addable([])


A, B = random_latents(20, 3, 0), random_latents(20, 3, 1)
CORRELATION = {"min_firings": 1, "top_matches": 3, "keep_above": 0.3, "n_bins": 20}


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


def test_shards_in_blocks_of_another_size_are_refused(sums_of):
    sums = [sums_of(A, B, 2, name="first"), sums_of(A, B, 3, name="other", first_row=20)]
    with pytest.raises(
        InputError, match=r"the same block_features, not 2 \(.*firsta.*\) and 3 \(.*othera.*\); delete the one"
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


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_none_is_computed_far_ahead(threads):
    started, taken, most = [], [], []

    def task(number: int) -> int:
        started.append(number)
        return number

    for number in ahead((lambda n=n: task(n) for n in range(20)), threads):
        taken.append(number)
        most.append(len(started) - len(taken))
    assert taken == list(range(20))
    assert max(most) <= threads


def test_what_a_task_raises_is_raised_and_no_thread_stays():
    def fail() -> None:
        raise InputError("damaged")

    before = threading.active_count()
    with pytest.raises(InputError, match="damaged"):
        list(ahead([fail] * 5, 3))
    assert threading.active_count() == before
