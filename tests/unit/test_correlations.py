"""Pearson r between features, from sums that add."""

from itertools import permutations

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.correlations import (
    PairSums,
    add_shards,
    correlate,
    load_correlation,
    load_sums,
    pearson_block,
    pool,
    save_correlation,
    save_sums,
)
from saelineage.errors import InputError

SETTINGS = {"min_firings": 1, "top_matches": 3, "keep_above": 0.3, "n_bins": 20, "block_features": 4096}


def sparse_dense(n_tokens: int, d_sae: int, seed: int) -> np.ndarray:
    """Float32-exact activations, most of them zero, the columns related to each other."""
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(99).random((n_tokens, 4)) @ random.random((4, d_sae))
    return np.where(random.random((n_tokens, d_sae)) < 0.3, shared, 0).astype(np.float32).astype(np.float64)


@pytest.fixture
def pair(write_features):
    """The sums of two SAEs' dense arrays, cut into shards of the given numbers of tokens."""

    def make(a: np.ndarray, b: np.ndarray, *lengths: int, **header: str) -> list[PairSums]:
        ends = np.cumsum(lengths or [len(a)])
        assert ends[-1] == len(a)
        sums = []
        for start, end in zip([0, *ends], ends, strict=False):
            shards = [
                write_features(dense[start:end], name, int(start), model=name, **header)
                for name, dense in (("a", a), ("b", b))
            ]
            sums.append(PairSums.of_shard(*shards))
        return sums

    return make


def correlated(sums: PairSums, **changes: float):
    return correlate({sums.corpus: sums}, **SETTINGS | changes)


def total(sums: list[PairSums]) -> PairSums:
    return add_shards({part.corpus: part} for part in sums)["words"]


def test_r_equals_numpy_s_with_zeros_included(pair):
    a, b = sparse_dense(400, 12, 0), sparse_dense(400, 9, 1)
    r = pearson_block(pair(a, b)[0], range(9), min_firings=1)
    assert np.abs(r - np.corrcoef(a.T, b.T)[:12, 12:]).max() < 1e-9


def test_tokens_left_out_on_either_side_are_not_compared(write_features):
    a, b = sparse_dense(40, 4, 0), sparse_dense(40, 3, 1)
    shards = write_features(a, "a", model="a"), write_features(b, "b", model="b")
    shards[0].compared[:5] = False
    shards[1].compared[3:9] = False
    sums = PairSums.of_shard(*shards)
    assert sums.n_tokens == 31
    kept = PairSums.of_shard(write_features(a[9:], "c", model="a"), write_features(b[9:], "d", model="b"))
    assert np.allclose(pearson_block(sums, range(3), 1), pearson_block(kept, range(3), 1), equal_nan=True)


def test_r_of_large_activations_equals_numpy_s(pair):
    # Nearly constant features: the sums of squares almost cancel.
    a, b = (100 + sparse_dense(400, 3, seed).round(2) for seed in range(2))
    r = pearson_block(pair(a, b)[0], range(3), min_firings=1)
    a, b = a.astype(np.float32).astype(float), b.astype(np.float32).astype(float)
    assert np.abs(r - np.corrcoef(a.T, b.T)[:3, 3:]).max() < 1e-9


def test_r_by_hand(pair):
    # a = 2, 0, 0, 0 and b = 1, 1, 0, 0: n sum(ab) - sum(a) sum(b) = 4 x 2 - 2 x 2 = 4,
    # n sum(a^2) - sum(a)^2 = 16 - 4 = 12, n sum(b^2) - sum(b)^2 = 8 - 4 = 4; r = 4 / sqrt(48).
    a, b = np.array([[2.0], [0], [0], [0]]), np.array([[1.0], [1], [0], [0]])
    assert pearson_block(pair(a, b)[0], range(1), 1)[0, 0] == pytest.approx(4 / 48**0.5)


@pytest.mark.parametrize(
    "lengths", [(400,), (100, 0, 300), (25,) * 16], ids=["one shard", "three, one empty", "sixteen"]
)
def test_shards_added_up_equal_one_pass(pair, lengths):
    a, b = sparse_dense(400, 12, 0), sparse_dense(400, 9, 1)
    whole, added = pair(a, b)[0], total(pair(a, b, *lengths))
    assert added.n_tokens == 400
    assert np.allclose(added.products.toarray(), whole.products.toarray(), rtol=1e-12, atol=0)
    for side in range(2):
        assert np.allclose(added.totals[side], whole.totals[side], rtol=1e-12)
        assert np.allclose(added.squares[side], whole.squares[side], rtol=1e-12)
        assert np.array_equal(added.firings[side], whole.firings[side])
    assert np.allclose(added.products.toarray(), a.T @ b, rtol=1e-12)


def test_the_order_of_shards_does_not_matter(pair):
    a, b = sparse_dense(60, 5, 0), sparse_dense(60, 4, 1)
    parts = pair(a, b, 10, 30, 20)
    found = [pearson_block(total(list(order)), range(4), 1) for order in permutations(parts)]
    assert all(np.allclose(r, found[0], rtol=0, atol=1e-14) for r in found)


def test_shards_that_overlap_are_refused(pair):
    sums = pair(sparse_dense(20, 3, 0), sparse_dense(20, 3, 1))[0]
    with pytest.raises(InputError, match=r"\('a.seed0', 'b.seed0'\) on 'words' would count .*rows 0 to 20.* twice"):
        total([sums, sums])


def test_sums_of_other_pairs_or_corpora_are_refused(pair):
    a, b = sparse_dense(20, 3, 0), sparse_dense(20, 3, 1)
    words, lua = pair(a, b)[0], pair(a, b, corpus="lua", ids_sha256="1" * 8)[0]
    other = pair(a, b, sae="seed1", ids_sha256="2" * 8)[0]
    for wrong in (lua, other):
        with pytest.raises(InputError, match=r"sums of .* on 'words' cannot be added to those of"):
            words.add(wrong)


def test_shards_of_other_tokens_are_refused(write_features):
    a = write_features(sparse_dense(5, 3, 0), "first")
    b = write_features(sparse_dense(5, 3, 1), "second", ids_sha256="1" * 8)
    with pytest.raises(InputError, match="must come from the same tokens"):
        PairSums.of_shard(a, b)


def test_corpora_are_summed_apart_and_pooled(pair):
    a, b = sparse_dense(60, 5, 0), sparse_dense(60, 4, 1)
    words = pair(a[:20], b[:20])[0]
    lua = pair(a[20:], b[20:], corpus="lua", ids_sha256="1" * 8)[0]
    apart = add_shards([{"words": words, "lua": lua}])
    assert {corpus: sums.n_tokens for corpus, sums in apart.items()} == {"words": 20, "lua": 40}
    r = pearson_block(pool(list(apart.values())), range(4), 1)
    assert np.allclose(r, np.corrcoef(a.T, b.T)[:5, 5:], atol=1e-9)
    found = correlate(apart, **SETTINGS)
    assert found.corpora == ["lua", "words"]
    assert np.array_equal(found.firings[0], [(a[20:] > 0).sum(0), (a[:20] > 0).sum(0)])
    assert found.n_tokens == 60
    assert np.allclose(found.best_r[0][:, 0], r.max(axis=1))


# Six tokens. a0 = b0; a1 is b1 doubled; a2 fires once; a3 never; a4 is always 1. b2 is a0 with its last firing moved.
TOY_A = np.array(
    [[1, 0, 0, 0, 1], [2, 0, 0, 0, 1], [3, 0, 5, 0, 1], [0, 2, 0, 0, 1], [0, 4, 0, 0, 1], [0, 0, 0, 0, 1.0]]
)
TOY_B = np.array([[1, 0, 1], [2, 0, 2], [3, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 3.0]])


def toy_r() -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.corrcoef(TOY_A.T, TOY_B.T)[:5, 5:]


def test_features_that_do_not_vary_have_no_r(pair):
    found = correlated(pair(TOY_A, TOY_B)[0])
    assert found.testable[0].tolist() == [True, True, True, False, False]
    assert found.testable[1].tolist() == [True, True, True]
    assert np.isnan(found.best_r[0][3:]).all()
    assert (found.best[0][3:] == -1).all()
    assert found.n_undefined == 2 * 3


def test_features_that_hardly_fire_are_untestable_and_nobody_s_match(pair):
    found = correlated(pair(TOY_A, TOY_B)[0], min_firings=3)
    # a0 and b0 and b2 fire three times, a1 and b1 twice, a2 once.
    assert found.testable[0].tolist() == [True, False, False, False, False]
    assert found.testable[1].tolist() == [True, False, True]
    assert found.best[0].tolist() == [[0, 2, -1], [-1] * 3, [-1] * 3, [-1] * 3, [-1] * 3]
    assert found.best[1].tolist() == [[0, -1, -1], [-1] * 3, [0, -1, -1]]
    assert found.kept.nnz == 1
    assert found.n_undefined == 15 - 2
    assert found.histogram.sum() == 2


def test_best_matches_by_hand(pair):
    found, r = correlated(pair(TOY_A, TOY_B)[0]), toy_r()
    assert found.best[0][:3].tolist() == np.argsort(-r[:3], axis=1).tolist()
    assert np.allclose(found.best_r[0][:3], -np.sort(-r[:3], axis=1))
    assert found.best[0][0, 0] == 0
    assert found.best[0][1, 0] == 1
    assert found.best_r[0][:2, 0] == pytest.approx([1, 1])
    assert found.best[1][:, 0].tolist() == [0, 1, 0]
    assert np.allclose(found.best_r[1], -np.sort(-r[:3].T, axis=1))


def test_pairs_above_the_floor_are_kept_and_no_others(pair):
    r = toy_r()
    for floor in (0.05, 0.3, 0.99):
        found = correlated(pair(TOY_A, TOY_B)[0], keep_above=floor)
        assert np.allclose(found.kept.toarray(), np.where(np.nan_to_num(r, nan=-1) >= floor, r, 0))


def test_the_histogram_counts_every_r(pair):
    # Four bins of width 0.5 from -1; of the nine r two are 1, the others by numpy.
    found, r = correlated(pair(TOY_A, TOY_B)[0], n_bins=4), toy_r()[:3].ravel()
    by_hand = [int(((r >= low) & (r < low + 0.5)).sum()) for low in (-1, -0.5, 0, 0.5)]
    by_hand[3] += int((r >= 1).sum())
    assert found.histogram.tolist() == by_hand
    assert sum(by_hand) == 9


def test_an_sae_is_its_own_perfect_match(pair):
    a = sparse_dense(300, 15, 3)
    found = correlated(pair(a, a)[0])
    for side in range(2):
        assert found.best_r[side][:, 0] == pytest.approx(np.ones(15), abs=1e-12)
        assert found.best[side][:, 0].tolist() == list(range(15))


def test_r_never_leaves_its_range(pair):
    a = np.repeat(sparse_dense(50, 1, 0) * 0.1, 30, axis=1).astype(np.float32).astype(float)
    found = correlated(pair(a, a)[0])
    assert found.best_r[0].max() <= 1
    assert found.histogram.sum() == 900


@pytest.mark.parametrize("block_features", [1, 2, 7, 40])
@pytest.mark.parametrize("top_matches", [1, 3, 60])
def test_the_size_of_blocks_changes_nothing(pair, block_features, top_matches):
    a, b = sparse_dense(80, 30, 0), sparse_dense(80, 40, 1)
    b[:, 20:30] = b[:, :10]  # equal features: equal r
    b[:, 35] = 0
    a[:, 4] = 0
    sums = pair(a, b)[0]
    one = correlated(sums, top_matches=top_matches)
    blocks = correlated(sums, top_matches=top_matches, block_features=block_features)
    for side in range(2):
        assert np.array_equal(one.best[side], blocks.best[side])
        assert np.array_equal(one.best_r[side], blocks.best_r[side], equal_nan=True)
        assert np.array_equal(one.testable[side], blocks.testable[side])
    assert np.array_equal(one.kept.toarray(), blocks.kept.toarray())
    assert np.array_equal(one.histogram, blocks.histogram)
    assert one.n_undefined == blocks.n_undefined == 40 + 30 - 1


@pytest.mark.parametrize("block_features", [3, 8, 4096])
def test_of_equal_matches_the_lower_latents_come_first(pair, block_features):
    one = sparse_dense(50, 1, 0)
    found = correlated(pair(one, np.repeat(one, 20, axis=1))[0], top_matches=4, block_features=block_features)
    assert found.best[0].tolist() == [[0, 1, 2, 3]]
    assert found.best[1].tolist() == [[0, -1, -1, -1]] * 20


def test_sums_survive_a_round_trip(pair, tmp_path):
    a, b = sparse_dense(40, 6, 0), sparse_dense(40, 5, 1)
    a[:, 2] = 0
    sums = {"words": pair(a, b)[0], "lua": pair(a, b, corpus="lua", ids_sha256="1" * 8)[0]}
    save_sums(sums, tmp_path / "sums.safetensors")
    loaded = load_sums(tmp_path / "sums.safetensors")
    assert loaded.keys() == sums.keys()
    for corpus, found in loaded.items():
        wanted = sums[corpus]
        assert (found.names, found.corpus, found.n_tokens) == (wanted.names, corpus, 40)
        assert found.covered == wanted.covered
        assert np.array_equal(found.products.toarray(), wanted.products.toarray())
        for part in ("totals", "squares", "firings"):
            for side in range(2):
                assert np.array_equal(getattr(found, part)[side], getattr(wanted, part)[side])
    save_sums(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "sums.safetensors").read_bytes()


def test_a_correlation_survives_a_round_trip(pair, tmp_path):
    found = correlated(pair(TOY_A, TOY_B)[0])
    save_correlation(found, tmp_path / "correlation.safetensors")
    loaded = load_correlation(tmp_path / "correlation.safetensors")
    assert (loaded.names, loaded.n_tokens, loaded.corpora) == (("a.seed0", "b.seed0"), 6, ["words"])
    assert loaded.n_undefined == found.n_undefined
    assert np.array_equal(loaded.histogram, found.histogram)
    assert np.array_equal(loaded.kept.toarray(), found.kept.toarray())
    for part in ("firings", "testable", "best_r", "best"):
        for mine, theirs in zip(getattr(loaded, part), getattr(found, part), strict=True):
            assert np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")


@pytest.mark.parametrize("load", [load_sums, load_correlation])
def test_damaged_files_are_refused_by_name(pair, tmp_path, load):
    path = tmp_path / "found.safetensors"
    sums = pair(TOY_A, TOY_B)[0]
    save_sums({"words": sums}, path) if load is load_sums else save_correlation(correlated(sums), path)
    whole = path.read_bytes()
    load(path)
    for damaged in (b"", whole[:100], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"found\.safetensors' is not a whole"):
            load(path)
    save_file({"kept": np.zeros(1)}, path)
    with pytest.raises(InputError, match="its header does not say what it holds"):
        load(path)
