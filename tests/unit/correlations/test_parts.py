"""Multiple correlations of features with their parts on the other side."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from saelineage.correlations import parts as splits
from saelineage.correlations.matches import Combined, Correlation
from saelineage.correlations.pair_sums import ShardSums
from saelineage.correlations.parts import combined_r, multiple_r
from saelineage.correlations.pearson import correlate, correlate_sums
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard

NAN = float("nan")
SETTINGS = {"min_firings": 5, "top_matches": 2, "keep_above": 0.3, "n_bins": 10, "block_features": 1000}
Pair = tuple[FeatureShard, FeatureShard]


def indicators(*spans: tuple[int, int]) -> np.ndarray:
    """Features that fire with 1 on tokens start to stop of 1000."""
    acts = np.zeros((1000, len(spans)))
    for latent, (start, stop) in enumerate(spans):
        acts[start:stop, latent] = 1
    return acts


def shards_of(a: np.ndarray, b: np.ndarray, corpus: str = "words", first: int = 0) -> Pair:
    """The same tokens of two SAEs; `first` is their first token row."""
    pair = FeatureShard.of_array(a, "a"), FeatureShard.of_array(b, "b")
    for shard in pair:
        shard.corpus, shard.first_row, shard.stop_row = corpus, first, first + len(a)
        shard.positions = shard.positions + first
    return pair


def correlation(shards: list[Pair]) -> Correlation:
    return correlate_sums([ShardSums(*pair) for pair in shards], **SETTINGS)


def combined(a: np.ndarray, b: np.ndarray) -> Combined:
    pair = shards_of(a, b)
    return combined_r(correlation([pair]), [pair])


def lists(found: Combined) -> tuple[list[list[int]], list[list[int]]]:
    """The features with an R, and whole_of, per side."""
    return [np.flatnonzero(~np.isnan(r)).tolist() for r in found.r], [own.tolist() for own in found.whole_of]


def numpy_r(whole: np.ndarray, parts: np.ndarray) -> float:
    """The correlation of a feature with its least squares fit."""
    design = np.column_stack([np.ones(len(parts)), parts])
    return float(np.corrcoef(design @ np.linalg.lstsq(design, whole, rcond=None)[0], whole)[0, 1])


def test_two_halves_make_up_a_feature_exactly():
    # r of the whole with a half: (0.05 - 0.1 * 0.05) / sqrt(0.09 * 0.0475) = 0.688; of the halves -0.0025 / 0.0475 =
    # -0.0526. R^2 = 2 * 0.4737 / (1 - 0.0526) = 1, where the sum of squares is 0.947.
    found = combined(indicators((0, 100), (500, 540)), indicators((700, 740), (0, 50), (50, 100)))
    np.testing.assert_allclose(found.r[0], [1, NAN], atol=1e-12)
    np.testing.assert_array_equal(found.r[1], [NAN, NAN, NAN])
    assert [own.tolist() for own in found.whole_of] == [[-1, -1], [-1, 0, 0]]


def test_merges_are_splits_with_sides_exchanged():
    a, b = indicators((0, 100), (500, 540), (200, 300)), indicators((700, 740), (0, 50), (50, 90), (200, 260))
    split, merged = combined(a, b), combined(b, a)
    assert lists(split) == ([[0], []], [[-1, -1, -1], [-1, 0, 0, -1]])
    assert lists(merged) == ([[], [0]], [[-1, 0, 0, -1], [-1, -1, -1]])
    # Of 90 of the whole's 100 tokens: cov 0.09 - 0.1 * 0.09 = 0.081; R = 0.081 / sqrt(0.09 * 0.09 * 0.91).
    assert split.r[0][0] == pytest.approx(0.9 / np.sqrt(0.91), abs=1e-12)
    assert merged.r[1][0] == split.r[0][0]


def test_splits_and_merges_of_one_pair_are_found_at_once():
    a, b = indicators((0, 100), (200, 250), (250, 300)), indicators((200, 300), (0, 40), (40, 100))
    assert lists(combined(a, b)) == ([[0], [0]], [[-1, 0, 0], [-1, 0, 0]])


def test_r_is_that_of_a_least_squares_fit():
    random = np.random.default_rng(0)
    strength = np.exp(random.normal(0, 0.3, (1000, 4))).astype(np.float32).astype(float)
    a = indicators((0, 120)) * strength[:, :1]
    b = indicators((0, 45), (40, 85), (80, 130)) * strength[:, 1:]
    found = combined(a, b)
    assert found.r[0][0] == pytest.approx(numpy_r(a[:, 0], b), abs=1e-10)
    assert 0.8 < found.r[0][0] < 0.95
    assert found.whole_of[1].tolist() == [0, 0, 0]


def test_three_parts_of_which_one_goes_beyond():
    # The best weights are those of a mean on each part's own tokens: 1, 1 and 30 / 36 on 70-106, 0 elsewhere. The
    # fit's variance is (70 + 30^2 / 36) / 1000 - 0.1^2 = 0.085; R = sqrt(0.085 / 0.09).
    found = combined(indicators((0, 100)), indicators((0, 35), (35, 70), (70, 106)))
    assert found.r[0][0] == pytest.approx(np.sqrt(0.085 / 0.09), abs=1e-12)


def test_a_single_part_has_no_r_together():
    assert lists(combined(indicators((0, 100)), indicators((0, 50)))) == ([[], []], [[-1], [-1]])


def test_a_repeated_part_adds_nothing():
    # The lower of the two equal ones is used; two equal ones are no two parts.
    assert lists(combined(indicators((0, 100)), indicators((0, 50), (0, 50)))) == ([[], []], [[-1], [-1, -1]])
    found = combined(indicators((0, 100)), indicators((0, 50), (0, 50), (50, 100)))
    assert found.r[0].tolist() == pytest.approx([1])
    assert found.whole_of[1].tolist() == [0, -1, 0]


@pytest.mark.parametrize(
    ("other", "used"),
    [
        # r of the two: (0.015 - 0.06 * 0.06) / 0.0564 = 0.2021, (0.014 - 0.0036) / 0.0564 = 0.184.
        ((45, 105), False),
        ((46, 106), True),
    ],
)
def test_parts_are_nearly_uncorrelated(other, used):
    found = combined(indicators((0, 106)), indicators((0, 60), other))
    assert found.whole_of[1].tolist() == ([0, 0] if used else [-1, -1])
    assert np.isnan(found.r[0][0]) == (not used)


def test_of_correlated_candidates_the_one_with_the_largest_r_is_taken():
    # The second stands for the first and the third in part; it has the largest r with the whole, and nothing is left.
    found = combined(indicators((0, 100)), indicators((0, 40), (20, 80), (60, 100)))
    assert lists(found) == ([[], []], [[-1], [-1, -1, -1]])
    # Here the others have larger ones.
    found = combined(indicators((0, 100)), indicators((0, 45), (25, 65), (55, 100)))
    assert lists(found) == ([[0], []], [[-1], [0, -1, 0]])


def test_a_candidate_must_be_nearly_uncorrelated_with_every_part():
    # The third and the second both fire on 60-85: r = (0.025 - 0.035 * 0.04) / sqrt(0.0338 * 0.0384) = 0.655.
    found = combined(indicators((0, 100)), indicators((0, 45), (45, 85), (60, 95)))
    assert found.whole_of[1].tolist() == [0, 0, -1]


def test_two_overlapping_features_that_go_beyond_stand_for_half_of_the_variance_only():
    # Each fires on 60 of the whole's 100 tokens and on 40 others; on 20 both do. r = 0.05 / 0.09 = 0.556 with the
    # whole, 0.01 / 0.09 = 0.111 of each other; R^2 = 2 * 0.3086 / 1.111 = 0.5556.
    b = np.maximum(indicators((0, 60), (40, 100)), indicators((200, 240), (240, 280)))
    assert combined(indicators((0, 100)), b).r[0][0] == pytest.approx(np.sqrt(5 / 9), abs=1e-12)


def test_a_feature_is_a_part_of_its_best_match_only():
    # Child 1 fires within both parents, mostly within parent 1: parent 0 has child 0 alone.
    a, b = indicators((0, 100), (50, 130)), indicators((0, 50), (60, 130))
    assert lists(combined(a, b)) == ([[], []], [[-1, -1], [-1, -1]])


def test_the_parts_with_the_largest_r_are_used(monkeypatch):
    monkeypatch.setattr(splits, "MAX_PARTS", 2)
    # Two of 30 tokens have r = 0.027 / sqrt(0.09 * 0.0291) = 0.528, that of 34 tokens 0.563. The last of the equal ones
    # is left out. The fit is 1 on 64 of the whole's 100 tokens: R = 0.9 * 0.064 / sqrt(0.09 * 0.064 * 0.936).
    found = combined(indicators((0, 100)), indicators((0, 30), (30, 60), (66, 100)))
    assert found.whole_of[1].tolist() == [0, -1, 0]
    assert found.r[0][0] == pytest.approx(0.9 * 0.064 / np.sqrt(0.09 * 0.064 * 0.936), abs=1e-12)


def test_features_that_explain_less_than_a_sixth_of_the_whole_are_no_parts():
    # r of 17 of the whole's 100 tokens is (0.017 - 0.1 * 0.017) / sqrt(0.09 * 0.017 * 0.983) = 0.395, of 18 0.406.
    for n_tokens, parts in ((17, [-1] * 4), (18, [0] * 4)):
        spans = [(start, start + n_tokens) for start in range(0, 4 * n_tokens, n_tokens)]
        assert combined(indicators((0, 100)), indicators(*spans)).whole_of[1].tolist() == parts


def test_a_rare_specific_feature_that_vanishes_is_no_part_of_its_general_one():
    # The general feature fires on 100 tokens, its latent in the parent on the 85 where the specific one does not.
    parent, child = indicators((0, 85), (85, 100)), indicators((0, 100))
    # r of the specific latent: (0.015 - 0.1 * 0.015) / sqrt(0.09 * 0.015 * 0.985) = 0.370, of the general one 0.914.
    assert lists(combined(parent, child)) == ([[], []], [[-1, -1], [-1]])


def test_r_with_uncorrelated_ones_is_the_root_of_the_sum_of_squares():
    assert multiple_r(np.array([0.6, 0.48]), np.eye(2)) == pytest.approx(np.hypot(0.6, 0.48))
    assert multiple_r(np.array([0.6]), np.eye(1)) == pytest.approx(0.6)


def test_one_that_is_a_sum_of_others_adds_nothing():
    # The third is (first + second) / sqrt(2), so its r is 0.6 * sqrt(2); R is that of the first two.
    half = np.sqrt(0.5)
    between = np.array([[1, 0, half], [0, 1, half], [half, half, 1]])
    assert multiple_r(np.array([0.6, 0.6, 1.2 * half]), between) == pytest.approx(0.6 * np.sqrt(2))
    assert multiple_r(np.array([0.6, 0.6]), np.ones((2, 2))) == pytest.approx(0.6)


def test_r_never_leaves_its_range():
    # Rounding may leave c' C^-1 c a little above 1.
    assert multiple_r(np.array([0.8, 0.6 + 1e-9]), np.eye(2)) == 1.0


def related(n_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four features, and for each three that share out its tokens between them, all with weak firings elsewhere."""
    random = np.random.default_rng(seed)
    a = np.where(random.random((n_tokens, 4)) < 0.2, 1 + random.random((n_tokens, 4)), 0)
    which = random.integers(0, 3, (n_tokens, 4))
    b = np.concatenate([np.where(which == part, a, 0) for part in range(3)], axis=1)
    b = b + np.where(random.random(b.shape) < 0.1, 0.3 * random.random(b.shape), 0)
    return tuple(side.astype(np.float32).astype(float) for side in (a, b))


def test_shards_of_any_number_and_order_equal_one_pass():
    a, b = related(400, 0)
    one = combined(a, b)
    assert lists(one) == ([[0, 1, 2, 3], []], [[-1] * 4, [0, 1, 2, 3] * 3])
    np.testing.assert_allclose(one.r[0], [numpy_r(a[:, i], b[:, i::4]) for i in range(4)], atol=1e-12)
    shards = [
        shards_of(a[start:stop], b[start:stop], first=start) for start, stop in ((0, 150), (150, 150), (150, 400))
    ]
    for order in (shards, shards[::-1]):
        found = combined_r(correlation(shards), order)
        np.testing.assert_allclose(found.r[0], one.r[0], rtol=0, atol=1e-12)
        assert lists(found) == lists(one)


def test_r_is_over_all_corpora():
    a, b = related(500, 0)
    b[300:] *= 2  # so that R over both is no mean of theirs
    shards = [shards_of(a[:300], b[:300], "words"), shards_of(a[300:], b[300:], "lua")]
    found = combined_r(correlation(shards), shards)
    np.testing.assert_allclose(found.r[0], [numpy_r(a[:, i], b[:, i::4]) for i in range(4)], atol=1e-12)


def test_tokens_left_out_on_either_side_are_not_compared():
    a, b = related(300, 0)
    one, other = shards_of(a, b)
    one.compared[:50], other.compared[40:90] = False, False
    found = combined_r(correlation([(one, other)]), [(one, other)])
    np.testing.assert_allclose(found.r[0], combined(a[90:], b[90:]).r[0], rtol=0, atol=1e-12)


def test_pairs_are_multiplied_a_few_at_a_time(monkeypatch):
    a, b = related(400, 0)
    one = combined(a, b)
    monkeypatch.setattr(splits, "ENTRIES_AT_ONCE", 70)  # a pair has about that many
    np.testing.assert_array_equal(combined(a, b).r[0], one.r[0])


def test_dead_features_have_no_parts():
    found = combined(np.zeros((50, 3)), np.zeros((50, 2)))
    assert lists(found) == ([[], []], [[-1] * 3, [-1] * 2])


def test_shards_are_let_go_before_the_next_are_asked_for():
    a, b = related(300, 0)
    found = correlation([shards_of(a, b)])

    def loaded() -> Iterator[Pair]:
        before: list[weakref.ref] = []
        for start in range(0, 300, 100):
            assert all(shard() is None for shard in before)
            pair = shards_of(a[start : start + 100], b[start : start + 100], first=start)
            before = [weakref.ref(shard) for shard in pair]
            yield pair
            del pair

    np.testing.assert_allclose(combined_r(found, loaded()).r[0], combined(a, b).r[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("given", [[], [0], [0, 1, 1]], ids=len)
def test_shards_other_than_the_correlation_s_are_refused(given):
    a, b = related(300, 0)
    shards = [shards_of(a[:100], b[:100]), shards_of(a[100:], b[100:], first=100)]
    n_tokens = sum(len(shards[number][0].positions) for number in given)
    with pytest.raises(
        InputError, match=rf"{{'words': 300}} by corpus, but the shards have {{'words': {n_tokens}}}; give every shard"
    ):
        combined_r(correlation(shards), [shards[number] for number in given])


def test_shards_of_other_saes_sizes_or_corpora_are_refused():
    a, b = related(300, 0)
    found = correlation([shards_of(a, b)])
    renamed = shards_of(a, b)
    renamed[1].model = "c"
    for wrong in (renamed, shards_of(b, a), shards_of(a, b, "lua"), shards_of(a, b[:, :11])):
        with pytest.raises(
            InputError, match=r"that were correlated, \('a.sae', 'b.sae'\) .* 'a' and '[bc]' are of .*;"
        ):
            combined_r(found, [wrong])


def test_shards_of_other_tokens_than_each_other_are_refused():
    a, b = related(300, 0)
    found = correlation([shards_of(a, b)])
    with pytest.raises(InputError, match="features must come from the same tokens"):
        combined_r(found, [(shards_of(a, b)[0], shards_of(a, b, first=1)[1])])


def test_arrays_at_hand_have_their_splits():
    a, b = related(400, 0)
    found = correlate(a, b, **SETTINGS, progress=False)
    assert found.combined is not None
    for mine, theirs in zip(found.combined.r, combined(a, b).r, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert lists(found.combined) == lists(combined(a, b))
