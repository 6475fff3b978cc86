"""Token types: the original study's correlation, with the fault that it is a control for."""

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from tokenizers import Tokenizer, decoders, models

from saelineage.correlations.matches import match_tensors
from saelineage.correlations.pearson import correlate
from saelineage.correlations.token_types import (
    TokenTypeMatches,
    TypeMeans,
    as_correlation,
    compare_token_types,
    load_token_type_matches,
    match_token_types,
    save_token_type_matches,
    shards_of_tokens,
    token_types,
    type_means,
    types_of_vocabulary,
)
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, shifted
from saelineage.lineage.matching import DISAPPEARS, PERSISTS, UNTESTABLE, side_table
from saelineage.tokens import load_tokenizer

SETTINGS = {"top_matches": 2, "keep_above": 0.3, "n_bins": 10}


def means_of(dense: np.ndarray, name: str = "m.seed0") -> TypeMeans:
    """Means [type, d_sae] that are at hand; 0 where a feature does not fire on a type."""
    return TypeMeans(name, (("words", "00 rows 0 to 9"),), scipy.sparse.csr_array(dense.astype(np.float64)))


def all_r(a: np.ndarray, b: np.ndarray, **changes: int) -> np.ndarray:
    """r of all pairs, [d_sae_a, d_sae_b], put together from the partners."""
    found = match_token_types(means_of(a), means_of(b), **SETTINGS | {"top_matches": b.shape[1]} | changes)
    r = np.full((a.shape[1], b.shape[1]), np.nan)
    for row, (values, partners) in enumerate(zip(found.best[0], found.partners[0], strict=True)):
        r[row, partners[partners >= 0]] = values[partners >= 0]
    return r


def sparse_means(seed: int, n_types: int = 12, d_sae: int = 15) -> np.ndarray:
    """Random means of features that fire on half of the types; one never fires, one does not vary."""
    random = np.random.default_rng(seed)
    found = random.gamma(2, 1, (n_types, d_sae)) * (random.random((n_types, d_sae)) < 0.5)
    found[:, 0] = 0.0
    found[:, 1] = np.where(found[:, 1] > 0, 0.7, 0.0)
    return found


def original_r(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The original's way, pair by pair: the types on which both fire, two at least, and scipy's r of them."""
    r = np.full((a.shape[1], b.shape[1]), np.nan)
    for row, of_a in enumerate(a.T):
        for column, of_b in enumerate(b.T):
            both = (of_a > 0) & (of_b > 0)
            if both.sum() > 1 and len(set(of_a[both])) > 1 and len(set(of_b[both])) > 1:
                r[row, column] = scipy.stats.pearsonr(of_a[both], of_b[both]).statistic
    return r


def word_tokenizer(vocabulary: dict[str, int], decoder: decoders.Decoder) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="cat"))  # noqa: S106 - a token of text
    tokenizer.decoder = decoder
    return tokenizer


def test_ids_that_decode_to_one_string_are_one_type_and_ids_may_have_holes():
    # "Cat" is written as "cat"; there is no id 3.
    tokenizer = word_tokenizer({"dog": 0, "cat": 1, "Cat": 4, "owl": 2}, decoders.Replace("C", "c"))
    types, strings = types_of_vocabulary(tokenizer)
    assert types.tolist() == [0, 1, 2, -1, 1]
    assert strings == ["dog", "cat", "owl"]
    by_position, strings = token_types(np.array([[4, 2], [1, 4]], dtype=np.uint16), tokenizer)
    assert by_position.tolist() == [1, 2, 1, 1]
    assert strings == ["dog", "cat", "owl"]


def test_a_decoder_that_strips_the_space_in_front_makes_one_type_of_two_tokens():
    types, strings = types_of_vocabulary(word_tokenizer({"▁cat": 0, "cat": 1}, decoders.Metaspace()))
    assert (types.tolist(), strings) == ([0, 0], ["cat"])


def test_special_tokens_are_types_of_their_own_and_parts_of_characters_are_one(tiny):
    tokenizer = load_tokenizer(tiny.tokenizer)
    types, strings = types_of_vocabulary(tokenizer)
    special = [types[tokenizer.token_to_id(token)] for token in ("<s>", "</s>", "<pad>")]
    assert [strings[number] for number in special] == ["<s>", "</s>", "<pad>"]
    # A byte-level vocabulary has all 256 bytes. Those from 0x80 on are 128 parts of characters, and no token of these
    # texts joins any.
    assert (types == strings.index("\N{REPLACEMENT CHARACTER}")).sum() == 128
    assert len(strings) == tiny.d_vocab - 127


def test_an_id_that_the_tokenizer_does_not_have_is_refused():
    tokenizer = word_tokenizer({"dog": 0, "cat": 1, "Cat": 4, "owl": 2}, decoders.Replace("C", "c"))
    for unknown in (3, 9):
        with pytest.raises(InputError, match=f"but {unknown} is none of its 4"):
            token_types(np.array([[0, unknown]]), tokenizer)


def test_means_are_over_the_tokens_on_which_a_feature_fires(write_features):
    # Types of the five tokens: 0 1 0 0 1. Feature 0 fires on type 0 with 2 and 4, mean 3, and on type 1 with 5, mean 5;
    # feature 1 on type 0 only, with 1; feature 2 never.
    dense = np.array([[2, 1, 0], [5, 0, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    found = type_means([write_features(dense)], {"words": np.array([0, 1, 0, 0, 1])}, 3)
    assert found.means.toarray().tolist() == [[3, 1, 0], [5, 0, 0], [0, 0, 0]]
    assert found.means.nnz == 3
    assert found.means.dtype == np.float64
    assert (found.name, found.covered) == ("m.seed0", (("words", "00000000 rows 0 to 5"),))


def test_tokens_that_are_not_compared_do_not_count(write_features):
    shard = write_features(np.array([[2], [4], [9]], dtype=np.float32))
    shard.compared = np.array([True, True, False])
    assert type_means([shard], {"words": np.array([0, 0, 0])}, 1).means.toarray().tolist() == [[3]]
    shard.compared = np.zeros(3, dtype=bool)
    assert type_means([shard], {"words": np.array([0, 0, 0])}, 1).means.nnz == 0


def test_shards_and_corpora_add_up_to_one_mean(write_features):
    # Feature 0 on type 1: 1 and 2 in the first shard, 6 in the second, 7 in the other corpus: 16 / 4 = 4.
    first = write_features(np.array([[1, 0], [2, 3]], dtype=np.float32), "one")
    second = write_features(np.array([[6, 0], [0, 8]], dtype=np.float32), "two", first_row=2)
    other = write_features(np.array([[7, 0]], dtype=np.float32), "three", corpus="sums")
    types = {"words": np.array([1, 1, 1, 0]), "sums": np.array([1])}
    found = type_means(iter([first, second, other]), types, 2)
    assert found.means.toarray().tolist() == [[0, 8], [4, 3]]
    assert [corpus for corpus, _ in found.covered] == ["sums", "words", "words"]


def test_sums_are_float64(write_features):
    # 2^24 + 1 + 1 + 1 = 16777219, a quarter of which is 4194304.75; in float32 the ones are lost.
    dense = np.array([[2.0**24], [1], [1], [1]], dtype=np.float32)
    assert type_means([write_features(dense)], {"words": np.zeros(4, dtype=np.int64)}, 1).means[0, 0] == 4194304.75


def test_shifted_documents_give_their_activations_to_other_types(write_features):
    # Two rows of two tokens: row 0 gets the features of row 1, and the other way round; types stay where they were.
    shard = write_features(np.array([[1], [2], [3], [4]], dtype=np.float32), n_ctx=2, stop_row=2)
    found = type_means([shifted(shard)], {"words": np.array([0, 1, 2, 3])}, 4)
    assert found.means.toarray().ravel().tolist() == [3, 4, 1, 2]


def test_r_by_hand_over_types_on_which_both_fire():
    # Both fire on types 1, 2 and 3: x = 1, 2, 3 and y = 1, 3, 2. Deviations -1, 0, 1 and -1, 1, 0: r = 1 / 2.
    # With the zeros of types 0 and 4 it would be: x = 5 1 2 3 0, y = 0 1 3 2 6, sums 11, 12, products 13,
    # squares 39, 50, r = (65 - 132) / sqrt((195 - 121) (250 - 144)) = -0.76.
    x, y = np.array([[5, 1, 2, 3, 0]]).T, np.array([[0, 1, 3, 2, 6]]).T
    assert all_r(x, y) == pytest.approx(np.array([[0.5]]), abs=1e-15)


def test_all_pairs_are_what_the_original_computes_pair_by_pair():
    a, b = sparse_means(0), sparse_means(1, d_sae=11)
    expected = original_r(a, b)
    assert np.isnan(expected).any()
    assert np.nanmin(expected) < -0.5
    np.testing.assert_allclose(all_r(a, b), expected, rtol=0, atol=1e-12)


def test_over_two_types_r_is_1_or_minus_1_whatever_the_activations():
    x, y = np.array([[1.0, 7.3, 0]]).T, np.array([[4.0, 4.1, 9], [4.1, 4.0, 9]]).T
    assert all_r(x, y) == pytest.approx(np.array([[1.0, -1.0]]), abs=1e-15)
    assert np.isnan(all_r(x, y, min_types=3)).all()


@pytest.mark.parametrize("min_types", [4, 6])
def test_below_the_least_number_of_types_r_is_undefined(min_types):
    a, b = sparse_means(2), sparse_means(3)
    together = (a > 0).T.astype(int) @ (b > 0)
    expected = np.where(together >= min_types, original_r(a, b), np.nan)
    np.testing.assert_allclose(all_r(a, b, min_types=min_types), expected, rtol=0, atol=1e-12)


def test_a_feature_that_never_fires_or_does_not_vary_has_no_r():
    # Feature 1 differs in the last bit only, which is rounding; feature 2 varies, but not on types 0 and 1.
    a = np.array([[0, 0.1, 3], [0, np.nextafter(0.1, 1), 3], [0, 0.1, 4]])
    b = np.array([[1.0, 1], [2, 2], [3, 0]])
    r = all_r(a, b)
    assert np.isnan(r[:2]).all()
    assert r[2, 0] == pytest.approx(np.sqrt(3) / 2)  # deviations -1, -1, 2 and -1, 0, 1: 3 / sqrt(6 * 2)
    assert np.isnan(r[2, 1])


def test_activations_far_from_zero_do_not_cancel():
    # Sums of squares of 1e9 + 1, 2, 3 keep no digit of deviations below 64.
    x, y = 1e9 + np.array([[1.0, 2, 3, 4]]).T, 1e9 + np.array([[1.0, 3, 2, 4]]).T
    assert all_r(x, y) == pytest.approx(np.array([[0.8]]), abs=1e-12)  # 4 / 5, as of 1 2 3 4 and 1 3 2 4


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_independent_features_match_at_the_rate_that_the_docs_give(n):
    # r sqrt((n - 2) / (1 - r^2)) is distributed as Student's t with n - 2 degrees of freedom (Fisher 1915).
    documented = {2: 0.5, 3: 0.205, 5: 0.052, 10: 0.0027}[n]
    if n > 2:
        assert scipy.stats.t.sf(0.8 * np.sqrt((n - 2) / (1 - 0.8**2)), n - 2) == pytest.approx(documented, rel=0.02)
    random = np.random.default_rng(n)
    a, b = (20 + random.standard_normal((n, 250)) for _ in range(2))
    histogram = match_token_types(means_of(a), means_of(b), top_matches=1, keep_above=1.0, n_bins=20).histogram
    # 62,500 pairs; with n = 10 that is 169 +- 13 of them
    assert histogram[18:].sum() / 250**2 == pytest.approx(documented, rel=0.2)


def test_with_many_candidates_ten_types_give_false_matches_to_every_feature():
    assert 16_384 * scipy.stats.t.sf(0.8 * np.sqrt(8 / 0.36), 8) == pytest.approx(45, abs=0.5)


@pytest.mark.parametrize(("block_features", "threads"), [(4, 3), (1000, 2)])
def test_blocks_and_threads_change_no_bit(block_features, threads):
    a, b = means_of(sparse_means(4)), means_of(sparse_means(5))
    whole = match_tensors(match_token_types(a, b, **SETTINGS), "r")
    parts = match_tensors(match_token_types(a, b, **SETTINGS, block_features=block_features, threads=threads), "r")
    for name, array in whole.items():
        assert np.array_equal(array, parts[name], equal_nan=array.dtype.kind == "f"), name


def test_what_both_sides_keep_with_the_types_behind_each_best_match():
    # a0 and b1 share types 0, 1, 2 (r = 1), a0 and b0 types 2, 3 (r = -1); a1 shares type 3 alone with b0: no r.
    a = np.array([[1, 0], [2, 0], [3, 0], [4, 5]])
    b = np.array([[0, 2], [0, 4], [7, 6], [6, 0]])
    found = compare_token_types(means_of(a, "base.seed0"), means_of(b, "lua.seed1"), **SETTINGS)
    assert found.names == ("base.seed0", "lua.seed1")
    assert found.matches.partners[0].tolist() == [[1, 0], [-1, -1]]
    assert found.matches.best[0][0].tolist() == pytest.approx([1, -1])
    assert found.matches.n_undefined == 2
    assert [n.tolist() for n in found.n_types_of_best] == [[3, -1], [2, 3]]
    assert found.one_to_one.tolist() == [1, -1]


def test_matches_come_back_from_their_file(tmp_path):
    found = compare_token_types(means_of(sparse_means(6), "a.s"), means_of(sparse_means(7), "b.s"), **SETTINGS)
    path = tmp_path / "matches.safetensors"
    save_token_type_matches(found, path)
    loaded = load_token_type_matches(path)
    assert loaded.names == found.names
    assert np.array_equal(loaded.one_to_one, found.one_to_one)
    for mine, theirs in zip(loaded.n_types_of_best, found.n_types_of_best, strict=True):
        assert np.array_equal(mine, theirs)
    theirs = match_tensors(found.matches, "r")
    for name, array in match_tensors(loaded.matches, "r").items():
        assert np.array_equal(array, theirs[name], equal_nan=array.dtype.kind == "f"), name


def test_a_damaged_file_is_refused(tmp_path):
    found = compare_token_types(means_of(sparse_means(6)), means_of(sparse_means(7)), **SETTINGS)
    path = tmp_path / "matches.safetensors"
    save_token_type_matches(found, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"matches\.safetensors' must hold .*delete it"):
        load_token_type_matches(path)


def of_latents(latents: dict[str, np.ndarray]) -> TokenTypeMatches:
    """Of latents [token, d_sae] of two SAEs, where each token is a type."""
    n = len(latents["a"])
    a, b = (
        type_means([FeatureShard.of_array(own, name)], {"corpus": np.arange(n)}, n) for name, own in latents.items()
    )
    return compare_token_types(a, b, **SETTINGS)


def test_verdicts_can_be_drawn_as_from_a_correlation():
    # Feature 0 of a shares types 0 and 1 with feature 0 of b, where both rise, and fires on its own on types 2 and 3:
    # a match for the original, r = -0.35 for us. Feature 1 falls where its only partner rises. Feature 2 fires once.
    a = np.array([[1, 0, 0], [2, 0, 0], [9, 0, 0], [9, 0, 0], [0, 2, 0], [0, 1, 5]])
    b = np.array([[1, 0], [2, 0], [0, 0], [0, 0], [0, 1], [0, 2]])
    ours = correlate(a, b, **SETTINGS, min_firings=1, progress=False)
    found = of_latents({"a": a, "b": b})
    theirs = as_correlation(found, ours)
    assert side_table(ours, 0, 0.8)["study_verdict"].tolist() == [DISAPPEARS, DISAPPEARS, PERSISTS]
    table = side_table(theirs, 0, 0.8)
    assert table["study_verdict"].tolist() == [PERSISTS, DISAPPEARS, UNTESTABLE]
    assert table["match"].tolist() == [0, 1, -1]
    assert theirs.one_to_one.tolist() == [0, -1, -1]
    assert [testable.tolist() for testable in theirs.testable] == [[True, True, False], [True, True]]
    assert theirs.jaccard is ours.jaccard
    assert ours.combined is not None
    assert theirs.combined is None


def test_matches_and_a_correlation_of_other_saes_do_not_go_together():
    latents = {"a": sparse_means(0), "b": sparse_means(1)}
    ours = correlate(latents["a"], latents["b"], **SETTINGS, progress=False)
    found = of_latents(latents)
    with pytest.raises(InputError, match=r"but are of \('c.sae', 'b.sae'\) and \('a.sae', 'b.sae'\)"):
        as_correlation(found._replace(names=("c.sae", "b.sae")), ours)
    with pytest.raises(InputError, match="must be of the same SAEs"):
        as_correlation(of_latents({"a": latents["a"][:, 1:], "b": latents["b"]}), ours)


def test_shards_that_do_not_go_together_are_refused(write_features):
    dense, types = np.ones((2, 3), dtype=np.float32), {"words": np.array([0, 1, 0, 1])}
    shard = write_features(dense, "one")
    other = write_features(dense, "two", first_row=2, sae="seed1")
    with pytest.raises(InputError, match=r"must be of the SAE 'm.seed0' with 3 latents.* but is of 'm.seed1'"):
        type_means([shard, other], types, 2)
    with pytest.raises(InputError, match="give every shard once"):
        type_means([shard, shard], types, 2)
    with pytest.raises(InputError, match="need at least one feature shard"):
        type_means([], types, 2)


def test_positions_without_a_type_are_refused(write_features):
    for types in ({"words": np.array([0])}, {"sums": np.array([0, 1])}):
        with pytest.raises(InputError, match=r"position 1 of 'words'.*the types of [01] positions"):
            type_means([write_features(np.ones((2, 3), dtype=np.float32))], types, 2)


def test_shards_of_other_tokens_are_refused(write_features, write_tokens):
    rows = write_tokens([[0, 5], [0, 6]])
    dense = np.ones((2, 3), dtype=np.float32)
    good = write_features(dense, "good", ids_sha256=rows.digest)
    assert [shard.path for shard in shards_of_tokens([good.path], {"words": rows})] == [good.path]
    wrong = write_features(dense, "wrong")
    with pytest.raises(InputError, match=r"wrong.safetensors' must hold features of the tokens of 'words'"):
        list(shards_of_tokens([good.path, wrong.path], {"words": rows}))
    with pytest.raises(InputError, match="not given"):
        list(shards_of_tokens([good.path], {"sums": rows}))


def test_means_over_other_types_or_tokens_are_refused():
    a, b = means_of(sparse_means(0)), means_of(sparse_means(1))
    with pytest.raises(InputError, match="over the same types and tokens"):
        match_token_types(a, b._replace(covered=(("words", "ff rows 0 to 9"),)))
    with pytest.raises(InputError, match=r"12 types and 1 shards and those of 'm.seed0' over 11"):
        match_token_types(a, b._replace(means=b.means[1:]))
    with pytest.raises(InputError, match=r"min_types must be at least 2.* but is 1"):
        match_token_types(a, b, min_types=1)
