"""Pearson r and the Jaccard index between features, from sums that add."""

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from saelineage.correlations.matches import Correlation, load_correlation, match_tensors
from saelineage.correlations.pair_sums import ShardSums
from saelineage.correlations.pearson import (
    JACCARD,
    Latents,
    correlate,
    correlate_sums,
    dense_pearson,
    similarity_blocks,
)
from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.plan.graph import POOLED
from tests.unit.correlations.groups import save_correlation

SETTINGS = {"min_firings": 1, "top_matches": 3, "keep_above": 0.3, "n_bins": 20, "block_features": 1000}
EVERYTHING = {"by_corpus": True, "jaccard": True}


def related(n_tokens: int, d_sae: int, seed: int) -> np.ndarray:
    """Float32-exact activations, most of them zero, the columns related to each other."""
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(99).random((n_tokens, 4)) @ random.random((4, d_sae))
    return np.where(random.random((n_tokens, d_sae)) < 0.3, shared, 0).astype(np.float32).astype(np.float64)


@pytest.fixture
def pair(write_features):
    """The sums of two SAEs' dense arrays, cut into shards of the given numbers of tokens."""

    def make(a: np.ndarray, b: np.ndarray, *lengths: int, **header: str) -> list[ShardSums]:
        ends = [0, *np.cumsum(lengths or [len(a)])]
        assert ends[-1] == len(a)
        sums = []
        for start, end in pairwise(map(int, ends)):
            shards = [write_features(x[start:end], y, start, model=y, **header) for y, x in (("a", a), ("b", b))]
            sums.append(ShardSums(*shards))
        return sums

    return make


def correlated(sums: list[ShardSums], **changes: float) -> Correlation:
    return correlate_sums(sums, **SETTINGS | EVERYTHING | changes)


def everything(sums: list[ShardSums], name: str = POOLED, min_firings: int = 1, threads: int = 1) -> np.ndarray:
    """All similarities of one kind."""
    of_corpora: dict[str, list[ShardSums]] = {}
    for of_shard in sums:
        of_corpora.setdefault(of_shard.corpus, []).append(of_shard)
    blocks = similarity_blocks(of_corpora, 7, min_firings, threads, **EVERYTHING)
    return np.vstack([block[name].copy() for _, block in blocks])


def numpy_r(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]


def named_arrays(found: Correlation) -> dict[str, np.ndarray]:
    """All that a correlation holds."""
    arrays = {"one_to_one": found.one_to_one, "n_tokens": np.array(list(found.n_tokens.values()))}
    arrays |= {f"{what}{side}": getattr(found, what)[side] for what in ("firings", "testable") for side in range(2)}
    for name, matches in {"pooled": found.pearson, "jaccard index": found.jaccard, **found.by_corpus}.items():
        if matches is not None:
            arrays |= match_tensors(matches, name)
    if found.combined is not None:
        arrays |= {
            f"{what}{side}": getattr(found.combined, what)[side] for what in ("r", "whole_of") for side in range(2)
        }
    return arrays


def assert_same(one: Correlation, other: Correlation, within: float = 0) -> None:
    """Equal, but for floats that may be so far from each other."""
    mine, theirs = named_arrays(one), named_arrays(other)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        if array.dtype.kind == "f":
            assert np.allclose(array, theirs[name], rtol=0, atol=within, equal_nan=True), name
        else:
            assert np.array_equal(array, theirs[name]), name


def test_r_equals_numpy_s_with_zeros_included(pair):
    a, b = related(400, 12, 0), related(400, 9, 1)
    assert np.abs(everything(pair(a, b)) - numpy_r(a, b)).max() < 1e-9


def test_r_per_corpus_and_over_all_equals_numpy_s(pair):
    a, b = related(700, 12, 0), related(700, 9, 1)
    b[400:] *= 16  # so that pooled r is not a mean of those of corpora
    own = {"lua": slice(0, 100), "words": slice(100, 400), "python": slice(400, 700)}
    sums = [one for corpus, rows in own.items() for one in pair(a[rows], b[rows], corpus=corpus)]
    for corpus, rows in own.items():
        assert np.abs(everything(sums, corpus) - numpy_r(a[rows], b[rows])).max() < 1e-9
    assert np.abs(everything(sums) - numpy_r(a, b)).max() < 1e-9
    found = correlated(sums)
    assert found.corpora == ["lua", "python", "words"]
    assert found.n_tokens == {"lua": 100, "python": 300, "words": 300}
    in_order = [a[own[corpus]] for corpus in found.corpora]
    assert np.array_equal(found.firings[0], [(latents > 0).sum(0) for latents in in_order])
    assert np.allclose(found.pearson.best[0][:, 0], numpy_r(a, b).max(axis=1), atol=1e-9)
    for corpus, rows in own.items():
        assert np.allclose(found.by_corpus[corpus].best[0][:, 0], numpy_r(a[rows], b[rows]).max(axis=1), atol=1e-9)


def test_of_a_single_corpus_r_is_that_over_all(pair):
    correlation = correlated(pair(related(50, 4, 0), related(50, 3, 1)))
    pooled, of_corpus = match_tensors(correlation.pearson, "r"), match_tensors(correlation.by_corpus["words"], "r")
    assert all(np.array_equal(pooled[name], of_corpus[name]) for name in pooled)


def test_r_by_corpus_and_the_jaccard_index_are_kept_only_where_they_are_asked_for_and_change_no_bit_of_r(pair):
    sums = pair(related(50, 4, 0), related(50, 3, 1)) + pair(related(60, 4, 2), related(60, 3, 3), corpus="lua")
    everything_kept, r_alone = correlated(sums), correlate_sums(sums, **SETTINGS)
    assert (r_alone.by_corpus, r_alone.jaccard) == ({}, None)
    within = 1e-14  # products are added corpus by corpus, or shard by shard
    assert_same(r_alone, everything_kept._replace(by_corpus={}, jaccard=None), within)


def test_tokens_left_out_on_either_side_are_not_compared(write_features):
    a, b = related(40, 4, 0), related(40, 3, 1)
    shards = write_features(a, "a", model="a"), write_features(b, "b", model="b")
    shards[0].compared[:5] = False
    shards[1].compared[3:9] = False
    assert np.allclose(everything([ShardSums(*shards)]), numpy_r(a[9:], b[9:]), atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(("least", "within"), [(10, 1e-11), (1000, 1e-7)])
def test_r_of_nearly_constant_features_equals_numpy_s(pair, least, within):
    # The sums of squares almost cancel: their rounding, 1e-16, counts by mean square over variance, some 4 least^2.
    a, b = ((least + related(400, 3, seed).round(2)).astype(np.float32).astype(float) for seed in range(2))
    assert np.abs(everything(pair(a, b)) - numpy_r(a, b)).max() < within


def test_activations_of_any_size_have_an_r(pair):
    a, b = related(100, 3, 0), related(100, 3, 1)
    for scale in (2.0**-100, 2.0**90):
        assert np.abs(everything(pair(a * scale, b)) - numpy_r(a, b)).max() < 1e-9


def test_r_by_hand(pair):
    # a = 2, 0, 0, 0 and b = 1, 1, 0, 0: n sum(ab) - sum(a) sum(b) = 4 x 2 - 2 x 2 = 4,
    # n sum(a^2) - sum(a)^2 = 16 - 4 = 12, n sum(b^2) - sum(b)^2 = 8 - 4 = 4; r = 4 / sqrt(48).
    a, b = np.array([[2.0], [0], [0], [0]]), np.array([[1.0], [1], [0], [0]])
    assert everything(pair(a, b))[0, 0] == pytest.approx(4 / 48**0.5)


def test_features_that_never_fire_together_are_below_zero(pair):
    # a = 1, 0, 0 and b = 0, 1, 0: (0 - 1) / sqrt((3 - 1) (3 - 1)) = -1/2.
    assert everything(pair(np.array([[1.0], [0], [0]]), np.array([[0.0], [1], [0]])))[0, 0] == pytest.approx(-0.5)


# Six tokens. a0 = b0; a1 is b1 doubled; a2 fires once; a3 never; a4 is always 1. b2 is a0 with its last firing moved.
TOY_A = np.array(
    [[1, 0, 0, 0, 1], [2, 0, 0, 0, 1], [3, 0, 5, 0, 1], [0, 2, 0, 0, 1], [0, 4, 0, 0, 1], [0, 0, 0, 0, 1.0]]
)
TOY_B = np.array([[1, 0, 1], [2, 0, 2], [3, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 3.0]])


def test_the_jaccard_index_by_hand(pair):
    # a0 fires on 0-2, a1 on 3-4, a2 on 2, a3 never, a4 always; b0 on 0-2, b1 on 3-4, b2 on 0, 1 and 5.
    wanted = [[1, 0, 2 / 4], [0, 1, 0], [1 / 3, 0, 0], [np.nan] * 3, [3 / 6, 2 / 6, 3 / 6]]
    assert np.array_equal(everything(pair(TOY_A, TOY_B), JACCARD), wanted, equal_nan=True)
    found = correlated(pair(TOY_A, TOY_B)).jaccard
    assert found.partners[0].tolist() == [[0, 2, 1], [1, 0, 2], [0, 1, 2], [-1] * 3, [0, 2, 1]]
    assert found.n_undefined == 3
    # Pairs that rarely fire are undefined: only a0, a4, b0 and b2 fire on three tokens.
    rare = everything(pair(TOY_A, TOY_B), JACCARD, min_firings=3)
    assert np.argwhere(~np.isnan(rare)).tolist() == [[0, 0], [0, 2], [4, 0], [4, 2]]


def test_the_jaccard_index_is_over_all_corpora_together(pair):
    sums = pair(TOY_A[:2], TOY_B[:2]) + pair(TOY_A[2:], TOY_B[2:], corpus="lua")
    assert np.array_equal(everything(sums, JACCARD), everything(pair(TOY_A, TOY_B), JACCARD), equal_nan=True)


def test_where_neither_feature_fires_there_is_no_jaccard_index(pair):
    assert np.isnan(everything(pair(np.zeros((3, 1)), np.zeros((3, 1))), JACCARD, min_firings=0)).all()


def test_features_that_do_not_vary_have_no_r(pair):
    found = correlated(pair(TOY_A, TOY_B))
    assert found.testable[0].tolist() == [True, True, True, False, False]
    assert found.testable[1].tolist() == [True, True, True]
    assert np.isnan(found.pearson.best[0][3:]).all()
    assert (found.pearson.partners[0][3:] == -1).all()
    assert found.pearson.n_undefined == 2 * 3
    assert np.array_equal(np.isnan(everything(pair(TOY_A, TOY_B))), np.isnan(numpy_r(TOY_A, TOY_B)))


def test_features_that_do_not_vary_in_one_corpus_have_no_r_there(pair):
    constant, varied, b = np.full((4, 1), 0.1), related(4, 1, 3) + 0.1, np.arange(4.0).reshape(4, 1)
    found = correlated(pair(constant, b) + pair(varied, b, corpus="lua"))
    assert found.by_corpus["words"].n_undefined == 1
    assert found.by_corpus["lua"].n_undefined == found.pearson.n_undefined == 0


def test_features_that_hardly_fire_are_untestable_and_nobody_s_match(pair):
    found = correlated(pair(TOY_A, TOY_B), min_firings=3)
    # a0 and b0 and b2 fire three times, a1 and b1 twice, a2 once.
    assert found.testable[0].tolist() == [True, False, False, False, False]
    assert found.testable[1].tolist() == [True, False, True]
    assert found.pearson.partners[0].tolist() == [[0, 2, -1], [-1] * 3, [-1] * 3, [-1] * 3, [-1] * 3]
    assert found.pearson.partners[1].tolist() == [[0, -1, -1], [-1] * 3, [0, -1, -1]]
    assert found.pearson.kept.nnz == 1
    assert found.pearson.n_undefined == 15 - 2
    assert found.pearson.histogram.sum() == 2


def test_firings_are_counted_over_the_corpora_that_r_is_over(pair):
    # The feature fires twice in each corpus: on four tokens over both.
    latents = np.array([[1.0], [2], [0], [0]])
    found = correlated(pair(latents, latents) + pair(latents, latents, corpus="lua"), min_firings=3)
    assert found.testable[0].tolist() == [True]
    assert found.pearson.n_undefined == found.jaccard.n_undefined == 0
    assert [found.by_corpus[corpus].n_undefined for corpus in found.corpora] == [1, 1]


def test_best_matches_by_hand(pair):
    found, r = correlated(pair(TOY_A, TOY_B)), numpy_r(TOY_A, TOY_B)
    best, partners = found.pearson.best, found.pearson.partners
    assert partners[0][:3].tolist() == np.argsort(-r[:3], axis=1).tolist()
    assert np.allclose(best[0][:3], -np.sort(-r[:3], axis=1))
    assert partners[0][:2, 0].tolist() == [0, 1]
    assert best[0][:2, 0] == pytest.approx([1, 1])
    assert partners[1][:, 0].tolist() == [0, 1, 0]
    assert np.allclose(best[1], -np.sort(-r[:3].T, axis=1))
    assert found.one_to_one[:2].tolist() == [0, 1]


def test_pairs_above_the_floor_are_kept_and_no_others(pair):
    r = numpy_r(TOY_A, TOY_B)
    for floor in (0.05, 0.3, 0.99):
        kept = correlated(pair(TOY_A, TOY_B), keep_above=floor).pearson.kept
        assert np.allclose(kept.toarray(), np.where(np.nan_to_num(r, nan=-1) >= floor, r, 0))


def test_the_histogram_counts_every_r(pair):
    # Four bins of width 0.5 from -1; of the nine r two are 1, the others by numpy.
    found, r = correlated(pair(TOY_A, TOY_B), n_bins=4).pearson, numpy_r(TOY_A, TOY_B)[:3].ravel()
    by_hand = [int(((r >= low) & (r < low + 0.5)).sum()) for low in (-1, -0.5, 0, 0.5)]
    by_hand[3] += int((r >= 1).sum())
    assert found.histogram.tolist() == by_hand
    assert sum(by_hand) == 9


def test_an_sae_is_its_own_perfect_match(pair):
    a = related(300, 15, 3)
    found = correlated(pair(a, a))
    for side in range(2):
        assert found.pearson.best[side][:, 0] == pytest.approx(np.ones(15), abs=1e-12)
        assert found.jaccard.best[side][:, 0].tolist() == [1] * 15
        assert found.pearson.partners[side][:, 0].tolist() == list(range(15))
    assert found.one_to_one.tolist() == list(range(15))


@pytest.mark.parametrize("offset", [0.0, 0.1, 1000.0], ids=lambda offset: f"{offset} and more")
def test_r_never_leaves_its_range(pair, offset):
    one = (related(50, 1, 0) * 0.1 + offset).astype(np.float32).astype(float)
    a = np.hstack([np.repeat(one, 30, axis=1), (one.max() - one) * 3])
    r = everything(pair(a, a))
    assert np.nanmax(r) <= 1
    assert np.nanmin(r) >= -1
    found = correlated(pair(a, a)).pearson
    assert found.histogram.sum() + found.n_undefined == 31 * 31


@pytest.fixture(scope="module")
def with_ties() -> tuple[np.ndarray, np.ndarray]:
    """Equal features, features doubled, dead ones: equal r, undefined r."""
    a, b = related(400, 30, 0), related(400, 40, 1)
    b[:, 20:30] = b[:, 10:0:-1]
    b[:, 30:34] = 2 * b[:, :4]
    b[:, 35] = 0
    a[:, 4] = 0
    a[:, 20] = a[:, 3]
    return a, b


@pytest.mark.parametrize("lengths", [(100, 0, 300), (50,) * 8], ids=["three, one empty", "eight"])
def test_shards_of_any_number_and_order_equal_one_pass(pair, with_ties, lengths):
    in_one_pass = correlated(pair(*with_ties))
    sums = pair(*with_ties, *lengths)
    assert len(sums) == len(lengths)
    correlation = correlated(sums, threads=2, block_features=7)
    assert_same(in_one_pass, correlation, within=1e-12)
    assert correlation.pearson.n_undefined == 40 + 30 - 1
    assert_same(correlation, correlated(sums[::-1], threads=2))


def test_the_order_of_shards_changes_no_bit(pair, with_ties):
    parts = pair(*with_ties, 100, 270, 30) + pair(*with_ties, corpus="lua")
    first = correlated(parts)
    for order in list(permutations(parts))[1::5]:
        assert_same(first, correlated(list(order)))


def test_neither_blocks_nor_threads_change_a_bit(pair, with_ties):
    in_one_block = correlated(pair(*with_ties, 150, 250), top_matches=60)
    for block_features, threads in ((1, 1), (7, 2), (30, 40), (10**12, 2)):
        sums = pair(*with_ties, 150, 250)
        found = correlated(sums, top_matches=60, block_features=block_features, threads=threads)
        assert_same(in_one_block, found)


def test_of_equal_matches_the_lower_latents_come_first(pair):
    feature, copies = related(50, 1, 0), np.repeat(related(50, 1, 0), 20, axis=1)
    for a, b, few, many in ((feature, copies, 0, 1), (copies, feature, 1, 0)):
        matches = correlated(pair(a, b), top_matches=4, block_features=3).pearson
        assert matches.partners[few].tolist() == [[0, 1, 2, 3]]
        assert matches.partners[many].tolist() == [[0, -1, -1, -1]] * 20


def test_dense_r_is_a_numpy_file_of_all_pairs(pair, tmp_path, with_ties):
    a, b = with_ties
    sums = pair(a, b, 150, 250)
    dense_pearson(sums, tmp_path / "new" / "dense.npy", 7, 1)
    r = np.load(tmp_path / "new" / "dense.npy")
    assert (r.shape, r.dtype) == ((30, 40), np.float32)
    assert np.allclose(r, numpy_r(a, b), atol=1e-7, equal_nan=True)
    dense_pearson(sums, tmp_path / "again.npy", 30, 1, threads=3)
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "new" / "dense.npy").read_bytes()


def test_a_corpus_may_be_called_jaccard(pair):
    def halves_called(first: str) -> Correlation:
        return correlated(pair(TOY_A[:4], TOY_B[:4], corpus=first) + pair(TOY_A[4:], TOY_B[4:], corpus="words"))

    found, wanted = halves_called("jaccard"), halves_called("lua")
    assert_same(found, wanted._replace(by_corpus=dict(zip(found.corpora, wanted.by_corpus.values(), strict=True))))
    assert found.jaccard.best[0][0, 0] == 1


def test_a_computed_correlation_survives_a_round_trip(pair, tmp_path):
    correlation = correlated([sums for corpus in ("lua", "words") for sums in pair(TOY_A, TOY_B, corpus=corpus)])
    loaded = load_correlation(save_correlation(correlation, tmp_path / "correlations.safetensors"), "b.seed0")
    assert (loaded.names, loaded.corpora) == (("a.seed0", "b.seed0"), ["lua", "words"])
    assert_same(correlation, loaded)


NOTEBOOK = SETTINGS | EVERYTHING | {"progress": False}


@pytest.mark.parametrize(
    "kind", [np.asarray, scipy.sparse.csc_array, scipy.sparse.csr_matrix], ids=lambda kind: kind.__name__
)
def test_arrays_at_hand_are_correlated(pair, with_ties, kind):
    a, b = with_ties
    correlation = correlate(kind(a), kind(b), **NOTEBOOK | {"block_features": 7}, threads=2)
    assert correlation.combined is not None  # its values are for the tests of splits
    expected = correlated(pair(a, b))
    by_corpus = {"corpus": expected.by_corpus["words"]}
    assert_same(correlation, expected._replace(by_corpus=by_corpus, combined=correlation.combined))
    assert (correlation.names, correlation.n_tokens) == (("a.sae", "b.sae"), {"corpus": 400})


def test_the_settings_are_the_config_s_unless_given():
    found = correlate(np.ones((4, 2)), np.eye(4), progress=False)
    assert found.pearson.best[0].shape == (2, 8)
    assert len(found.pearson.histogram) == 200
    assert not found.testable[1].any()  # they fire once, and are to fire on 20 tokens


@pytest.fixture
def folder(tmp_path):
    """Feature shards of one SAE, `features/{model}/{sae}/{corpus}/shard-{number}.safetensors`, from dense arrays."""

    def write(model: str, corpora: dict[str, np.ndarray], n_shards: int = 2) -> Path:
        own = tmp_path / "features" / model / "seed0"
        for corpus, dense in corpora.items():
            rows = np.linspace(0, len(dense), n_shards + 1).astype(int).tolist()
            for number, (first, stop) in enumerate(pairwise(rows)):
                latents = scipy.sparse.csr_array(dense[first:stop])
                header = {"model": model, "sae": "seed0", "corpus": corpus, "ids_sha256": corpus, "n_ctx": 1}
                header |= {"d_sae": dense.shape[1], "first_row": first, "stop_row": stop}
                tokens = np.arange(first, stop), np.ones(stop - first, dtype=bool)
                path = own / corpus / f"shard-{number}.safetensors"
                save_shard(path, latents.indptr, latents.indices, latents.data, *tokens, header)
                path.with_suffix(".manifest.json").write_text("{}")
        return own

    return write


def halves(dense: np.ndarray) -> dict[str, np.ndarray]:
    return {"lua": dense[:150], "words": dense[150:]}


def test_folders_of_shards_are_correlated(pair, folder, with_ties):
    a, b = with_ties
    folders = folder("base", halves(a)), folder("tuned", halves(b))
    found = correlate(*folders, **NOTEBOOK | {"block_features": 7}, threads=2)
    assert (found.names, found.n_tokens) == (("base.seed0", "tuned.seed0"), {"lua": 150, "words": 250})
    wanted = [one for corpus, x in halves(a).items() for one in pair(x, halves(b)[corpus], corpus=corpus)]
    assert_same(found, correlated(wanted)._replace(combined=correlate(a, b, **NOTEBOOK).combined), within=1e-12)
    assert_same(found, correlate(*map(str, folders), **NOTEBOOK))


def test_sums_alone_do_not_show_splits(pair):
    assert correlated(pair(TOY_A, TOY_B)).combined is None


def test_a_folder_and_an_array_are_refused(folder):
    with pytest.raises(InputError, match="must both be arrays or both be folders of feature shards; give two of one"):
        correlate(folder("base", halves(TOY_A)), TOY_A, **NOTEBOOK)


def test_folders_of_different_shards_are_refused(folder, tmp_path):
    a = folder("base", halves(related(400, 3, 0)))
    few, other = folder("few", {"lua": related(150, 3, 0)}), folder("other", {"lua": TOY_A, "python": TOY_A})
    with pytest.raises(
        InputError, match=r"base/seed0' and '.*few/seed0' must hold .* but hold 4 and 2, only one of th"
    ):
        correlate(a, few, **NOTEBOOK)
    with pytest.raises(
        InputError, match=r"hold 4 and 4, only one of them 'python/shard-0\.safetensors'; give the fold"
    ):
        correlate(a, other, **NOTEBOOK)
    for nowhere in (tmp_path / "nowhere", tmp_path / "features" / "nobody"):
        with pytest.raises(InputError, match="hold 0 and 0; give the folders of two SAEs of one run"):
            correlate(nowhere, nowhere, **NOTEBOOK)


def test_folders_of_shards_on_other_tokens_are_refused(folder):
    a, b = folder("base", {"lua": related(150, 3, 0)}), folder("tuned", {"lua": related(140, 3, 0)})
    with pytest.raises(InputError, match=r"base/seed0/lua/shard-0.* \(lua, lua rows 0 to 75\) .*tuned.*rows 0 to 70\)"):
        correlate(a, b, **NOTEBOOK)


def test_a_folder_with_a_shard_of_another_d_sae_is_refused_with_its_name(folder):
    a = folder("base", {"lua": TOY_A, "words": TOY_A[:, :4]})
    with pytest.raises(
        InputError, match=r"same shape, not \(5, 5\) \('.*lua/shard-1.*'\) and \(4, 4\) \('.*words/shard-0.*'\);"
    ):
        correlate(a, a, **NOTEBOOK)


@pytest.mark.parametrize(("side", "value"), [("a", -0.5), ("b", np.nan), ("b", np.inf)])
def test_arrays_with_values_that_are_no_activations_are_refused(value, side):
    wrong = TOY_A.copy()
    wrong[2, 1] = value
    given: dict[str, Latents] = {"a": TOY_A, "b": TOY_A} | {side: wrong}
    with pytest.raises(
        InputError, match=rf"in '{side}' must be finite and above zero .* one is {value}; look at the SA"
    ):
        correlate(**given, **NOTEBOOK)


@pytest.mark.parametrize("wrong", [TOY_A[:4], TOY_A[:, 0]], ids=["other tokens", "one feature alone"])
def test_arrays_of_other_shapes_are_refused(wrong):
    with pytest.raises(
        InputError, match=r"must be \[token, d_sae\] arrays of the same tokens, but .* are \(6, 3\) and"
    ):
        correlate(TOY_B, wrong, **NOTEBOOK)
