"""Best matches on documents that are drawn again and again."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from saelineage.correlations import bootstrap as module
from saelineage.correlations.bootstrap import (
    DocumentSums,
    Replicates,
    bootstrap,
    centred_interval,
    document_numbers,
    document_sums,
    document_weights,
    feature_intervals,
    fires_in_enough,
    firing_documents,
    leading_candidates,
    load_replicates,
    percentile_interval,
    ratio_interval,
    relative,
    replicate_shares,
    require_paired,
    resampled_best,
    resampled_r,
    share_bounds,
    widening,
)
from saelineage.correlations.pair_sums import ShardSums
from saelineage.correlations.pearson import correlate_sums
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from tests.unit.correlations.groups import save_replicates

SETTINGS = {"min_firings": 1, "top_matches": 3, "keep_above": 0.3, "n_bins": 20, "block_features": 1000}
BOS, EOS = 1, 2
NAN = float("nan")
# Two documents of three and two tokens.
DOCUMENTS = np.array([0, 0, 0, 1, 1])
A = np.array([[1, 0], [2, 0], [0, 3], [4, 0], [1, 0]], dtype=np.float64)
B = np.array([[1, 2], [0, 2], [5, 0], [2, 0], [0, 0]], dtype=np.float64)
ALL = (np.array([[0, 1], [0, 1]]), np.array([[0, 1], [0, 1]]))


def shards_of(a: np.ndarray, b: np.ndarray, corpus: str = "corpus", first: int = 0) -> tuple[FeatureShard, ...]:
    """Aligned shards, one token a row, from some row on."""
    pair = FeatureShard.of_array(a, "a"), FeatureShard.of_array(b, "b")
    for shard in pair:
        shard.corpus, shard.first_row, shard.stop_row = corpus, first, first + len(a)
        shard.positions = first + np.arange(len(a))
    return pair


def sums_of(a: np.ndarray, b: np.ndarray, documents: np.ndarray, candidates=ALL) -> DocumentSums:
    return document_sums([shards_of(a, b)], candidates, {"corpus": documents})


def related(n_tokens: int, d_sae: int, seed: int) -> np.ndarray:
    """Activations, most of them zero, the columns related to each other."""
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(99).random((n_tokens, 4)) @ random.random((4, d_sae))
    return np.where(random.random((n_tokens, d_sae)) < 0.3, shared, 0).astype(np.float32).astype(np.float64)


def every_pair(d_sae_a: int, d_sae_b: int) -> tuple[np.ndarray, np.ndarray]:
    """All features of the other side as candidates."""
    return np.tile(np.arange(d_sae_b), (d_sae_a, 1)), np.tile(np.arange(d_sae_a), (d_sae_b, 1))


def numpy_r(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]


@pytest.mark.parametrize("bos", [BOS, EOS], ids=["BOS differs from EOS", "BOS is EOS"])
def test_a_document_goes_on_over_rows_until_its_eos(bos):
    ids = np.array([[bos, 5, 6, EOS], [bos, 7, 8, 9], [bos, 7, EOS, 5]], dtype=np.uint16)
    assert document_numbers(ids, EOS).tolist() == [-1, 0, 0, -1, -1, 1, 1, 1, -1, 1, -1, 2]


def test_documents_without_text_have_no_number():
    # The rows begin with the EOS of a document whose text came before them; the third document is empty.
    ids = np.array([[BOS, EOS, 5, EOS], [BOS, EOS, 6, 6]])
    assert document_numbers(ids, EOS).tolist() == [-1, -1, 0, -1, -1, -1, 1, 1]


def test_sums_by_document_by_hand():
    sums = sums_of(A, B, DOCUMENTS)
    assert sums.n_documents == {"corpus": 2}
    assert sums.n_tokens.tolist() == [3, 2]
    # Latent 0 of a fires with 1, 2 in the first document and 4, 1 in the second.
    assert sums.totals[0].toarray().tolist() == [[3, 5], [3, 0]]
    assert sums.squares[0].toarray().tolist() == [[5, 17], [9, 0]]
    assert sums.totals[1].toarray().tolist() == [[6, 2], [4, 0]]
    assert sums.squares[1].toarray().tolist() == [[26, 4], [8, 0]]
    assert sums.pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    # (0, 0): 1 x 1, then 4 x 2; (0, 1): 1 x 2 + 2 x 2; (1, 0): 3 x 5.
    assert sums.products.toarray().tolist() == [[1, 8], [6, 0], [15, 0], [0, 0]]


def test_a_pair_that_both_sides_name_is_summed_once():
    # a's candidates: 0 -> 2, 1 -> none; b's: 0 -> 1, 1 -> none, 2 -> 0. So (0, 2) twice and (1, 0).
    b = np.hstack([B, B[:, :1]])
    sums = sums_of(A, b, DOCUMENTS, (np.array([[2], [-1]]), np.array([[1], [-1], [0]])))
    assert sums.pairs.tolist() == [[0, 2], [1, 0]]
    assert [numbers.tolist() for numbers in sums.pair_numbers] == [[[0], [-1]], [[1], [-1], [0]]]


def test_sums_do_not_depend_on_how_many_pairs_are_multiplied_at_a_time(monkeypatch):
    a, b = related(40, 6, 0), related(40, 5, 1)
    candidates = every_pair(6, 5)
    documents = np.arange(40) // 9
    by_hand = [[a[documents == d, i] @ b[documents == d, j] for d in range(5)] for i in range(6) for j in range(5)]
    for at_once in (1, 7, 10_000):
        monkeypatch.setattr(module, "ENTRIES_AT_ONCE", at_once)
        products = sums_of(a, b, documents, candidates).products.toarray()
        assert np.allclose(products, by_hand, rtol=1e-14, atol=0)


def test_a_document_that_goes_on_in_the_next_shard_is_one_document():
    shards = [shards_of(A[:2], B[:2]), shards_of(A[2:], B[2:], first=2)]
    assert_same(document_sums(shards, ALL, {"corpus": DOCUMENTS}), sums_of(A, B, DOCUMENTS))


def test_tokens_that_one_side_does_not_compare_do_not_count():
    a, b = shards_of(np.vstack([A, [9, 9]]), np.vstack([B, [9, 9]]))
    b.compared[5] = False
    assert_same(document_sums([(a, b)], ALL, {"corpus": np.append(DOCUMENTS, 1)}), sums_of(A, B, DOCUMENTS))


def test_documents_stand_in_the_order_of_the_corpora_s_names():
    shards = [shards_of(A[:3], B[:3], "words"), shards_of(A[3:], B[3:], "sums")]
    documents = {"words": np.array([0, 0, 1]), "sums": np.array([0, 0])}
    sums = document_sums(shards, ALL, documents)
    assert list(sums.n_documents.items()) == [("sums", 1), ("words", 2)]
    assert sums.n_tokens.tolist() == [2, 2, 1]
    assert sums.totals[0].toarray().tolist() == [[5, 3, 0], [0, 0, 3]]


def test_documents_that_are_not_compared_at_all_stay_in_the_draw():
    a, b = shards_of(A, B)
    a.compared[3:] = False
    sums = document_sums([(a, b)], ALL, {"corpus": DOCUMENTS, "none": np.array([-1]), "others": np.array([-1, 0])})
    assert sums.n_documents == {"corpus": 2, "none": 0, "others": 1}
    assert sums.n_tokens.tolist() == [3, 0, 0]
    assert np.isnan(resampled_r(sums, np.array([[0, 2, 1]]))).all()


def test_one_pair_of_shards_is_held_at_a_time():
    def loaded() -> Iterator[tuple[FeatureShard, ...]]:
        before = []
        for row in range(3):
            assert all(shard() is None for shard in before)
            pair = shards_of(A[row : row + 1], B[row : row + 1], first=row)
            before = [weakref.ref(shard) for shard in pair]
            yield pair
            del pair

    assert document_sums(loaded(), ALL, {"corpus": DOCUMENTS}).n_tokens.tolist() == [3, 0]


def test_weights_of_one_give_the_best_matches_of_all_tokens():
    a, b = related(300, 12, 0), related(300, 9, 1)
    a[:, 3] = 0
    shards = [shards_of(a[:200], b[:200], "words"), shards_of(a[200:], b[200:], "sums")]
    found = correlate_sums([ShardSums(*pair) for pair in shards], **SETTINGS)
    documents = {"words": np.arange(200) // 7, "sums": np.arange(100) // 5}
    sums = document_sums(shards, leading_candidates(found), documents)
    ones = np.ones((1, len(sums.n_tokens)), dtype=np.int64)
    r = resampled_r(sums, ones)
    for side in range(2):
        numbers, expected = sums.pair_numbers[side], found.pearson.best[side]
        assert numbers.shape == expected.shape
        assert np.array_equal(numbers < 0, np.isnan(expected))
        assert np.nanmax(np.abs(np.where(numbers < 0, NAN, r[numbers, 0]) - expected)) < 1e-9
        assert np.array_equal(resampled_best(sums, ones)[side][0], expected[:, 0].astype(np.float32), equal_nan=True)


def test_a_document_that_is_drawn_twice_counts_twice():
    a, b = related(30, 4, 0), related(30, 3, 1)
    documents = np.arange(30) // 10
    weights = np.array([[2, 0, 1], [0, 3, 0], [1, 1, 1]])
    r = resampled_r(sums_of(a, b, documents, every_pair(4, 3)), weights)
    for replicate, drawn in enumerate(weights):
        times = drawn[documents]
        expected = numpy_r(np.repeat(a, times, axis=0), np.repeat(b, times, axis=0))
        assert np.allclose(r[:, replicate].reshape(4, 3), expected, rtol=0, atol=1e-9)


def test_a_feature_s_best_is_its_best_candidate_of_the_replicate():
    # In the first document a is b's first latent, in the second its second one.
    a = np.array([[0.0], [1], [2], [0], [1], [2]])
    b = np.array([[0.0, 1], [1, 0], [2, 1], [1, 0], [0, 1], [1, 2]])
    sums = sums_of(a, b, np.array([0, 0, 0, 1, 1, 1]), every_pair(1, 2))
    best = resampled_best(sums, np.array([[2, 0], [0, 2]]))
    # Of the other latent 1, 0, 1 and of a 0, 1, 2: deviations 1/3, -2/3, 1/3 and -1, 0, 1, so r = 0.
    assert best[0].tolist() == [[1.0], [1.0]]
    assert np.allclose(best[1], [[1, 0], [0, 1]], rtol=0, atol=1e-7)


def test_only_candidates_are_looked_at():
    sums = sums_of(A, A, DOCUMENTS, (np.array([[1], [-1]]), np.array([[-1], [-1]])))
    best = resampled_best(sums, np.array([[1, 1]]))
    # Not r = 1 of latent 0 with itself, which is no candidate.
    assert best[0][0, 0] == np.float32(numpy_r(A, A)[0, 1])


def test_a_feature_without_candidates_has_no_best():
    candidates = (np.array([[0, -1], [-1, -1]]), np.array([[-1], [-1]]))
    best = resampled_best(sums_of(A, B, DOCUMENTS, candidates), np.array([[1, 1]]))
    assert np.isnan(best[0]).tolist() == [[False, True]]
    assert np.isnan(best[1]).all()


def test_where_no_feature_has_candidates_none_has_a_best():
    for rank in (0, 2):
        none = np.full((2, rank), -1)
        best = resampled_best(sums_of(A, B, DOCUMENTS, (none, none)), np.array([[1, 1]]))
        assert [side.shape for side in best] == [(1, 2), (1, 2)]
        assert np.isnan(best).all()


def test_a_feature_that_does_not_vary_in_the_documents_drawn_has_no_best():
    # Latent 1 of a never fires in the second document; latent 0 of b does.
    best = resampled_best(sums_of(A, B, DOCUMENTS), np.array([[0, 2], [1, 1]]))
    assert np.isnan(best[0]).tolist() == [[False, True], [False, False]]


def test_a_feature_that_is_the_same_everywhere_has_no_best():
    # Of such numbers in float32 some variances come out as rounding errors above zero.
    a = np.tile(np.arange(1, 40) / 10, (5, 1))
    candidates = np.zeros((39, 1), dtype=int), np.full((2, 1), -1)
    best = resampled_best(sums_of(a, B, DOCUMENTS, candidates), np.array([[1, 1], [3, 5], [7, 9]]))
    assert np.isnan(best[0]).all()


def test_r_is_never_above_one():
    a = np.random.default_rng(0).random((5, 40))
    itself = np.arange(40)[:, None]
    r = resampled_r(sums_of(a, a, DOCUMENTS, (itself, itself)), np.array([[1, 1], [3, 5]]))
    assert 1 - 1e-12 < r.min() <= r.max() == 1


def test_of_defined_and_undefined_candidates_the_defined_ones_count():
    a, dead = A[:, :1], np.hstack([np.zeros((5, 1)), A[:, :1]])
    for candidates in ([[0, 1]], [[1, 0]]):
        sums = sums_of(a, dead, DOCUMENTS, (np.array(candidates), np.array([[-1], [-1]])))
        assert resampled_best(sums, np.array([[1, 1]]))[0].tolist() == [[1.0]]


def test_best_matches_do_not_depend_on_how_many_replicates_are_computed_at_a_time(monkeypatch):
    a, b = related(60, 5, 0), related(60, 4, 1)
    sums = sums_of(a, b, np.arange(60) // 6, every_pair(5, 4))
    weights = document_weights(sums.n_documents, 7, 0)
    whole = resampled_best(sums, weights)
    monkeypatch.setattr(module, "REPLICATES_AT_ONCE", 3)
    for one, other in zip(resampled_best(sums, weights), whole, strict=True):
        assert np.array_equal(one, other)
    for replicate in range(7):
        r = resampled_r(sums, weights[replicate : replicate + 1]).reshape(5, 4)
        assert np.allclose(whole[0][replicate], r.max(axis=1), rtol=0, atol=1e-7)
        assert np.allclose(whole[1][replicate], r.max(axis=0), rtol=0, atol=1e-7)


def test_more_tokens_of_the_same_documents_make_no_interval_narrower():
    # Every token ten times over: r of every replicate stays, for documents are drawn and not tokens.
    a, b = related(60, 5, 0), related(60, 4, 1)
    few = sums_of(a, b, np.arange(60) // 6, every_pair(5, 4))
    many = sums_of(np.repeat(a, 10, axis=0), np.repeat(b, 10, axis=0), np.arange(600) // 60, every_pair(5, 4))
    weights = document_weights({"corpus": 10}, 5, 0)
    assert np.allclose(resampled_r(few, weights), resampled_r(many, weights), rtol=0, atol=1e-12)


def test_every_corpus_keeps_its_number_of_documents():
    weights = document_weights({"words": 7, "sums": 3, "one": 1}, 50, 0)
    assert weights.shape == (50, 11)
    assert (weights >= 0).all()
    assert (weights[:, 0] == 1).all()
    assert (weights[:, 1:4].sum(axis=1) == 3).all()
    assert (weights[:, 4:].sum(axis=1) == 7).all()


def test_weights_depend_on_seed_and_documents_alone():
    weights = document_weights({"words": 7, "sums": 3}, 5, 0)
    assert np.array_equal(weights, document_weights({"sums": 3, "words": 7}, 5, 0))
    assert not np.array_equal(weights, document_weights({"sums": 3, "words": 7}, 5, 1))


def test_all_documents_are_drawn_equally_often_as_in_a_multinomial_draw():
    # A document is drawn n times with chance 1/n each: mean 1, variance 1 - 1/n = 0.75, and two documents covary by
    # -1/n. The standard error of a mean over 4000 replicates is sqrt(0.75 / 4000) = 0.014.
    weights = document_weights({"words": 4}, 4000, 0)
    assert np.abs(weights.mean(axis=0) - 1).max() < 0.06
    assert np.abs(np.cov(weights.T) - (np.eye(4) - 0.25)).max() < 0.1


def test_a_corpus_without_documents_cannot_be_drawn_from():
    with pytest.raises(InputError, match="'words' has 0 in its probe split"):
        document_weights({"sums": 3, "words": 0}, 5, 0)


def test_the_interval_of_r_covers_the_truth_as_often_as_it_says():
    # a = u + x, b = u + y; u of a document, x and y of a token, independent and uniform on [0, 1]: r = 0.5. Tokens of a
    # document share u, so that an interval from single tokens would be far too narrow.
    random, covered, n_sets = np.random.default_rng(0), 0, 200
    documents = np.arange(400) // 10
    for _ in range(n_sets):
        shared = random.random((40, 1))[documents]
        a, b = (shared + random.random((400, 1)) for _ in range(2))
        found = bootstrap(sums_of(a, b, documents, every_pair(1, 1)), 200, seed=1)
        r = np.array([numpy_r(a, b)[0, 0]])
        (low,), (high,) = feature_intervals(found.best[0], r, found.documents[0])
        covered += low <= 0.5 <= high
        assert low <= r[0] <= high
    # Binomial: 0.95 +- 0.03 in 200 sets.
    assert 0.9 <= covered / n_sets <= 0.99


def test_the_share_of_matches_by_hand():
    # Testable are all but latent 3. First replicate: 0.9 and 0.8 of 0.9, 0.8, NaN; second: 0.8 of 0.7, 0.8, 0.1.
    best = np.array([[0.9, 0.8, NAN, 1.0], [0.7, 0.8, 0.1, 1.0]], dtype=np.float32)
    shares = replicate_shares(best, np.array([True, True, True, False]), 0.8)
    assert np.allclose(shares, [2 / 3, 1 / 3], rtol=0, atol=1e-15)


def test_without_testable_features_there_is_no_share():
    shares = replicate_shares(np.ones((2, 3)), np.zeros(3, dtype=bool), 0.8)
    assert shares.shape == (2,)
    assert np.isnan(shares).all()


def test_shares_relative_to_a_floor_are_paired_and_undefined_where_either_is():
    shares = relative(np.array([0.2, 0.3, 0.5, 0.0, NAN, 0.5]), np.array([0.4, 0.6, 0.0, 0.0, 0.5, NAN]))
    assert np.array_equal(shares, [0.5, 0.5, NAN, NAN, NAN, NAN], equal_nan=True)


def test_an_interval_leaves_half_the_rest_out_on_either_side():
    # 0, 1, ... 40: 2.5 % of 40 is 1, so that the middle 95 % runs from 1 to 39; 25 % is 10.
    values = np.random.default_rng(0).permutation(41).astype(np.float64)
    assert percentile_interval(values) == pytest.approx((1.0, 39.0), abs=1e-12)
    assert percentile_interval(values, level=0.5) == pytest.approx((10.0, 30.0), abs=1e-12)
    assert percentile_interval(np.full(9, 0.25)) == (0.25, 0.25)


def test_an_interval_needs_replicates_that_are_all_defined():
    assert percentile_interval(np.array([])) is percentile_interval(np.array([0.5, NAN])) is None


def test_an_interval_is_as_wide_as_its_replicates_and_holds_its_estimate():
    # 0.40, 0.41 ... 0.80 have the quantiles 0.41 and 0.79, so 0.19 on either side of 0.60. Wider by
    # t(0.975; 19) / 1.96 x sqrt(20 / 19), from a table of t: 2.093.
    values, many = 0.4 + np.random.default_rng(0).permutation(41) / 100, {"words": 10**9}
    half = 0.19 * 2.0930240544 / 1.9599639845 * np.sqrt(20 / 19)
    twenty = {"words": 15, "sums": 6}  # 14 + 5 degrees of freedom
    assert centred_interval(values, 0.6, twenty) == pytest.approx((0.6 - half, 0.6 + half), abs=1e-9)
    assert centred_interval(values, 0.6, many) == pytest.approx((0.41, 0.79), abs=1e-9)
    # Replicates that lie 0.1 above their estimate: as far below it may lie what endless documents would give.
    assert centred_interval(values, 0.5, many) == pytest.approx((0.5 - 0.19 - 0.1, 0.5 + 0.19), abs=1e-9)
    assert centred_interval(values, 0.7, many) == pytest.approx((0.7 - 0.19, 0.7 + 0.19 + 0.1), abs=1e-9)


def test_an_interval_keeps_to_what_is_possible():
    values = np.linspace(0.9, 1.0, 41)
    assert centred_interval(values, 0.99, {"words": 5})[1] == 1.0
    assert centred_interval(values, 0.99, {"words": 5}, (0.0, np.inf))[1] > 1.0
    assert centred_interval(1 - values, 0.01, {"words": 5})[0] == 0.0


def test_without_a_second_document_an_estimate_or_replicates_there_is_no_interval():
    values = np.linspace(0.4, 0.8, 41)
    assert centred_interval(values, 0.6, {"words": 1, "sums": 1}) is None
    assert centred_interval(values, None, {"words": 9}) is centred_interval(values, NAN, {"words": 9}) is None
    assert centred_interval(np.append(values, NAN), 0.6, {"words": 9}) is None
    assert centred_interval(np.array([]), 0.6, {"words": 9}) is None


def test_the_widening_by_a_table_of_student_s_t():
    # t(0.975) with 1, 4 and 19 degrees of freedom, over 1.95996.
    expected = np.array([NAN, 12.7062047 * np.sqrt(2), 2.7764451 * np.sqrt(5 / 4), 2.0930241 * np.sqrt(20 / 19)])
    found = widening(np.array([1, 2, 5, 20]))
    assert np.allclose(found, expected / 1.9599640, rtol=1e-7, atol=0, equal_nan=True)
    assert widening(10**9) == pytest.approx(1.0, abs=1e-8)


def test_each_feature_has_its_own_interval_around_its_r():
    # z of the replicates is -0.2 to 0.2 around atanh 0.6; 95 % of it -0.19 to 0.19.
    z = np.arctanh(0.6) + (np.arange(41) - 20) / 100
    best = np.tanh(np.stack([z, z + 0.05, z, z, z], axis=1))
    best[7, 2] = NAN
    r, documents = np.array([0.6, 0.6, 0.6, NAN, 0.6]), np.array([10**9, 5, 10**9, 10**9, 2])
    low, high = feature_intervals(best, r, documents)
    wide = 0.19 * widening(5)  # the replicates lie 0.05 too high, which does not count
    expected = [np.tanh(np.arctanh(0.6) - half) for half in (0.19, wide)]
    assert np.allclose(low[:2], expected, rtol=0, atol=1e-6)
    assert np.allclose(np.arctanh(low[:2]) + np.arctanh(high[:2]), 2 * np.arctanh(0.6), rtol=0, atol=1e-6)
    # A replicate without r is left out; r that is undefined and features of two documents have no interval.
    assert abs(low[2] - low[0]) < 0.01
    assert np.isnan([low[3:], high[3:]]).all()


def test_r_of_one_is_within_its_interval():
    best = np.array([[1.0], [0.9], [1.0]])
    low, high = feature_intervals(best, np.array([1.0]), np.array([4]))
    assert low[0] < 1.0 == high[0]


def test_without_replicates_no_feature_has_an_interval():
    low, high = feature_intervals(np.empty((0, 3), dtype=np.float32), np.full(3, 0.5), np.full(3, 9))
    assert np.isnan([low, high]).all()
    assert len(low) == len(high) == 3


def test_the_share_lies_between_the_features_that_surely_match_and_those_that_may():
    # Of four testable features one lies above 0.8, one below, one around it, and one has no interval.
    low, high = np.array([0.81, 0.5, 0.7, NAN, 0.9]), np.array([0.9, 0.79, 0.8, NAN, 0.95])
    testable = np.array([True, True, True, True, False])
    # Of a share s, s + 0.05 (1 - s) lie surely above by chance, and 0.95 s may.
    assert share_bounds(low, high, testable, 0.8) == pytest.approx(((0.25 - 0.05) / 0.95, 0.75 / 0.95))
    assert share_bounds(low, high, testable, 0.8, level=1.0) == (0.25, 0.75)
    assert share_bounds(low, high, testable, 0.99) == (0.0, pytest.approx(0.25 / 0.95))
    assert share_bounds(low, high, np.zeros(5, dtype=bool), 0.8) is None


def test_documents_in_which_a_feature_fires_by_hand():
    # Latent 0 of a fires in both documents, latent 1 in the first; of b the same.
    sums = sums_of(A, B, DOCUMENTS)
    assert [documents.tolist() for documents in firing_documents(sums)] == [[2, 1], [2, 1]]
    assert [documents.tolist() for documents in bootstrap(sums, 2, seed=0).documents] == [[2, 1], [2, 1]]


def test_a_feature_must_fire_in_three_documents_or_in_all_if_there_are_fewer():
    a = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=np.float64)
    for documents, expected in (([0, 1, 2, 2], [True, False, False]), ([0, 0, 1, 1], [True, False, False])):
        enough = fires_in_enough(sums_of(a, a[:, :2], np.array(documents), every_pair(3, 2)))
        assert [side.tolist() for side in enough] == [expected, expected[:2]]
    sums = sums_of(a, a[:, :2], np.array([0, 1, 2, 3]), every_pair(3, 2))
    assert fires_in_enough(sums, least=1)[0].tolist() == [True, True, True]


def test_replicates_are_those_of_the_weights_of_their_seed():
    sums = sums_of(related(30, 4, 0), related(30, 3, 1), np.arange(30) // 6, every_pair(4, 3))
    found = bootstrap(sums, 6, seed=5)
    assert found[:3] == (("a.sae", "b.sae"), {"corpus": 5}, 5)
    expected = resampled_best(sums, document_weights({"corpus": 5}, 6, 5))
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(found.best, expected, strict=True))


def replicates(seed: int = 3, n: int = 2, n_documents: dict[str, int] | None = None) -> Replicates:
    best = np.linspace(-1, 1, 3 * n, dtype=np.float32).reshape(n, 3), np.full((n, 2), np.nan, dtype=np.float32)
    documents = np.array([3, 0, 13], dtype=np.int32), np.array([1, 2], dtype=np.int32)
    return Replicates(("lua.seed0", "stories.seed0"), n_documents or {"sums": 4, "words": 9}, seed, best, documents)


def test_a_round_trip_keeps_replicates(tmp_path):
    loaded = load_replicates(save_replicates(replicates(), tmp_path / "r.safetensors"), "stories.seed0")
    assert loaded[:3] == replicates()[:3]
    for best, expected in zip(loaded.best, replicates().best, strict=True):
        assert best.dtype == expected.dtype == np.float32
        assert np.array_equal(best, expected, equal_nan=True)
    for documents, expected in zip(loaded.documents, replicates().documents, strict=True):
        assert documents.dtype == expected.dtype == np.int32
        assert np.array_equal(documents, expected)


def test_a_file_that_is_damaged_missing_or_of_something_else_is_refused(tmp_path):
    path = save_replicates(replicates(), tmp_path / "r.safetensors")
    whole = path.read_bytes()
    save_file(load_file(path), tmp_path / "others")
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), (tmp_path / "others").read_bytes(), None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"r\.safetensors' .*'stories\.seed0'.*delete it"):
            load_replicates(path, "stories.seed0")
        path.touch()


def test_a_file_with_other_replicates_than_its_header_says_is_refused(tmp_path):
    a, b = replicates().best
    path = save_replicates(replicates()._replace(best=(a, b[:1])), tmp_path / "r.safetensors")
    with pytest.raises(InputError, match="2 replicates"):
        load_replicates(path, "stories.seed0")
    path = save_replicates(replicates()._replace(documents=(a[0], a[0])), tmp_path / "s.safetensors")
    with pytest.raises(InputError, match="the documents of every feature"):
        load_replicates(path, "stories.seed0")


def test_only_replicates_of_the_same_draws_can_be_paired():
    require_paired([replicates(), replicates()._replace(names=("c.seed0", "d.seed0"))])
    for others in (replicates(seed=4), replicates(n=3), replicates(n_documents={"sums": 4, "words": 8})):
        with pytest.raises(InputError, match="must be of the same draws"):
            require_paired([replicates(), replicates(), others])


def refused(*shards: tuple[FeatureShard, ...], candidates=ALL, documents=DOCUMENTS) -> str:
    """The message about shards that cannot be summed."""
    with pytest.raises(InputError) as caught:
        document_sums(shards, candidates, {"corpus": documents})
    return str(caught.value)


def test_shards_that_do_not_go_together_are_refused():
    assert "at least one shard" in refused()
    assert "same tokens" in refused((shards_of(A, B)[0], shards_of(A, B, first=1)[1]))
    shards_of_other_sae = shards_of(A[2:], B[2:], first=2)
    shards_of_other_sae[1].sae = "seed1"
    assert "('a.sae', 'b.seed1')" in refused(shards_of(A[:2], B[:2]), shards_of_other_sae)


def test_tokens_cannot_be_summed_twice():
    assert "rows 0 to 3" in refused(shards_of(A[:3], B[:3]), shards_of(A, B))
    shards_of_other_tokens = shards_of(A[2:], B[2:], first=2)
    for shard in shards_of_other_tokens:
        shard.ids_sha256 = "another"
    assert "(another" in refused(shards_of(A[:2], B[:2]), shards_of_other_tokens)


def test_candidates_of_other_saes_are_refused():
    for candidates in ((ALL[0][:1], ALL[1]), (ALL[0], ALL[1] + 1)):
        assert "candidates must be of the SAEs" in refused(shards_of(A, B), candidates=candidates)


def test_tokens_outside_the_text_of_known_documents_are_refused():
    assert "4 places" in refused(shards_of(A, B), documents=DOCUMENTS[:4])
    assert "(words)" in refused(shards_of(A, B, "words"))
    assert "place 2 of the token rows is BOS or EOS" in refused(shards_of(A, B), documents=np.array([0, 0, -1, 1, 1]))


def assert_same(sums: DocumentSums, expected: DocumentSums) -> None:
    """Check that sums of whole numbers, for which the order of adding does not matter, are equal to the last bit."""
    assert (sums.names, sums.n_documents) == (expected.names, expected.n_documents)
    assert np.array_equal(sums.n_tokens, expected.n_tokens)
    assert np.array_equal(sums.pairs, expected.pairs)
    matrices, expected_matrices = ((*x.totals, *x.squares, x.products) for x in (sums, expected))
    for matrix, expected_matrix in zip(matrices, expected_matrices, strict=True):
        assert np.array_equal(matrix.toarray(), expected_matrix.toarray())


def test_an_interval_of_a_ratio_is_over_clusters_and_there_is_none_of_one():
    counts = np.array([1.0, 2.0, 5.0])
    assert ratio_interval(0.25 * counts, counts, 50, 0) == pytest.approx((0.25, 0.25))
    sums = np.array([1.0, 0.0, 5.0])
    low, high = ratio_interval(sums, counts, 200, 0)
    assert low < 0.75 < high  # 6 / 8
    assert ratio_interval(sums, counts, 200, 0, (0.0, 1.0)) == (max(low, 0.0), min(high, 1.0))
    assert all(np.isnan(ratio_interval(np.ones(n), np.ones(n), 50, 0)).all() for n in (0, 1))
