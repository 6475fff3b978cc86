"""Matching: what is found on the other side of an edge, splits and merges, shares, agreement."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from saelineage.correlations.assignments import one_to_one
from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import Combined, Correlation
from saelineage.correlations.pearson import correlate
from saelineage.lineage.identified import absent, recurrence
from saelineage.lineage.matching import (
    agreement,
    agreement_share,
    edge_table,
    is_found,
    matched_share,
    matching_shares,
    same_index_rate,
    side_table,
)
from saelineage.lineage.shares import Share, share

NAN = float("nan")
NONE = [NAN, NAN]


def correlation(
    r: list[list[float]],
    names: tuple[str, str] = ("lua.seed0", "stories.seed0"),
    firings: tuple = ((50, 50, 50), (50, 50, 50)),
    combined: Combined | None = None,
) -> Correlation:
    """The result of `correlate` for a matrix of r; NaN rows and columns are untestable features."""
    r = np.array(r)
    finder = MatchFinder(r.shape, top_matches=1, keep_above=0.3, n_bins=4)
    finder.offer(0, r)
    pearson = finder.result()
    return Correlation(
        names=names,
        n_tokens={"words": 1000},
        firings=tuple(np.array([side]) for side in firings),
        testable=(~np.isnan(r).all(axis=1), ~np.isnan(r).all(axis=0)),
        pearson=pearson,
        by_corpus={},
        one_to_one=one_to_one(pearson.kept),
        jaccard=pearson,
        combined=combined,
    )


def divided(r: tuple[list[float], list[float]], whole_of: tuple[list[int], list[int]]) -> Combined:
    """A result of `combined_r`."""
    return Combined(tuple(map(np.array, r)), tuple(map(np.array, whole_of)))


# Parent 0 is child 1 (0.9); parent 1 has 0.79 at most; parent 2 is untestable. Child 0's best is parent 1, child 2's
# parent 0 (0.8). Assigned are 0 to 1 and 1 to 0: 0.9 + 0.79 is more than 0.8 + 0.79.
TOY = [[0.1, 0.9, 0.8], [0.79, 0.2, 0.3], [NAN, NAN, NAN]]


def test_matches_of_parents_by_hand():
    table = side_table(correlation(TOY, firings=((50, 20, 3), (50, 50, 50))), 0, 0.8)
    expected = pd.DataFrame(
        {
            "side": "parent",
            "latent": [0, 1, 2],
            "study_verdict": ["persists", "disappears", "untestable"],
            "kind": ["1:1", "", ""],
            "r": [0.9, 0.79, NAN],
            "match": [1, 0, -1],
            "mutual": [True, True, False],
            "assigned": [1, 0, -1],
            "r_assigned": [0.9, 0.79, NAN],
            "firings": [50, 20, 3],
            "density": [0.05, 0.02, 0.003],
        }
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


def test_matches_of_children_by_hand():
    table = side_table(correlation(TOY, firings=((50, 20, 3), (40, 50, 60))), 1, 0.8)
    # r = 0.8 is a match.
    expected = pd.DataFrame(
        {
            "side": "child",
            "latent": [0, 1, 2],
            "study_verdict": ["emerges", "inherited", "inherited"],
            "kind": ["", "1:1", "1:1"],
            "r": [0.79, 0.9, 0.8],
            "match": [1, 0, 0],
            "mutual": [True, True, False],
            "assigned": [1, 0, -1],
            "r_assigned": [0.79, 0.9, NAN],
            "firings": [40, 50, 60],
            "density": [0.04, 0.05, 0.06],
        }
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


def test_features_without_a_testable_partner_disappear_and_untestable_ones_have_no_match():
    nothing = correlation([[NAN] * 3] * 3)._replace(testable=(np.ones(3, dtype=bool), np.zeros(3, dtype=bool)))
    table = edge_table(nothing, 0.8)
    assert table["study_verdict"].tolist() == ["disappears"] * 3 + ["untestable"] * 3
    assert (table["match"] == -1).all()
    assert table["r"].isna().all()
    assert not table["mutual"].any()
    table = side_table(
        correlation(TOY)._replace(testable=(np.array([False, True, False]), np.ones(3, dtype=bool))), 0, 0.7
    )
    assert table["study_verdict"].tolist() == ["untestable", "persists", "untestable"]
    assert table["match"].tolist() == [-1, 0, -1]
    np.testing.assert_array_equal(table["r"], [NAN, 0.79, NAN])


def test_an_edge_s_table_has_both_sides_of_saes_of_different_size():
    table = edge_table(correlation([row[:2] for row in TOY], firings=((50, 50, 50), (50, 50))), 0.8)
    assert table["side"].tolist() == ["parent"] * 3 + ["child"] * 2
    assert table["latent"].tolist() == [0, 1, 2, 0, 1]
    assert table["study_verdict"].tolist() == ["persists", "disappears", "untestable", "emerges", "inherited"]
    assert table["assigned"].tolist() == [1, 0, -1, 1, 0]
    np.testing.assert_array_equal(table["r_assigned"], [0.9, 0.79, NAN, 0.79, 0.9])


def test_an_sae_paired_with_itself_persists_to_the_last_feature():
    random = np.random.default_rng(0)
    dense = np.where(random.random((500, 12)) < 0.2, random.random((500, 12)), 0)
    dense[:, 7] = 0
    with_itself = correlate(dense, dense, top_matches=2, block_features=5, progress=False)
    table = edge_table(with_itself, 0.8)
    latents = [latent for latent in range(12) if latent != 7]
    for side, yes in (("parent", "persists"), ("child", "inherited")):
        of_side = table[table["side"] == side]
        matched = of_side[of_side["study_verdict"] == yes]
        for column in ("latent", "match", "assigned"):
            assert matched[column].tolist() == latents
        assert (matched["kind"] == "1:1").all()
        assert of_side[of_side["study_verdict"] == "untestable"]["latent"].tolist() == [7]
    assert matched_share(with_itself, 0, 0.8)[:2] == (1.0, 11)


def indicators(n_tokens: int, *spans: tuple[int, int]) -> np.ndarray:
    """Features that fire with 1 on tokens start to stop."""
    acts = np.zeros((n_tokens, len(spans)))
    for latent, (start, stop) in enumerate(spans):
        acts[start:stop, latent] = 1
    return acts


# The parent fires on 0-100 of 1000 tokens, child 1 on 0-50, child 2 on 50-100; child 0 and parent 1 are alone.
WHOLE, HALVES = [(0, 100), (500, 540)], [(700, 740), (0, 50), (50, 100)]


def both_ways(wholes: list, parts: list) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of a split (wholes in the parent) and of the same merge (wholes in the child)."""
    a, b = indicators(1000, *wholes), indicators(1000, *parts)
    return tuple(edge_table(correlate(*pair, progress=False), 0.8) for pair in ((a, b), (b, a)))


def test_a_feature_whose_tokens_two_features_share_is_split_and_read_backwards_merged():
    split, merged = both_ways(WHOLE, HALVES)
    # r of the whole with a half: (0.05 - 0.1 * 0.05) / sqrt(0.09 * 0.0475) = 0.688; R of both is 1.
    r = 0.045 / np.sqrt(0.09 * 0.0475)
    assert split["study_verdict"].tolist() == ["persists", "disappears", "emerges", "inherited", "inherited"]
    assert split["kind"].tolist() == ["split", "", "", "split", "split"]
    assert split["r"].tolist()[3:] == pytest.approx([r, r])
    assert (split["match"].tolist()[0], split["match"].tolist()[3:]) == (1, [0, 0])
    assert merged["study_verdict"].tolist() == ["disappears", "persists", "persists", "inherited", "emerges"]
    assert merged["kind"].tolist() == ["", "merged", "merged", "merged", ""]
    # A feature that is not a part is in no split, whichever latent the whole is.
    split, _ = both_ways(WHOLE[::-1], HALVES)
    assert split["kind"].tolist() == ["", "split", "", "split", "split"]


def test_splits_and_merges_count_in_shares_and_are_not_absent():
    halved = correlate(indicators(1000, *WHOLE), indicators(1000, *HALVES), progress=False)
    assert matched_share(halved, 0, 0.8)[:2] == (1 / 2, 2)
    assert matched_share(halved, 1, 0.8)[:2] == (2 / 3, 3)
    assert is_found(halved, 0, 0.8).tolist() == [True, False]
    assert absent([halved], halved.names[1], 0.8).tolist() == [True, False, False]
    # A feature that is only found in parts is not identified.
    assert recurrence([halved], halved.names[0], 0.8).tolist() == [0.0, 0.0]
    # Where nobody looked for parts, nothing is split.
    assert (edge_table(halved, 0.8)["kind"] == "split").sum() == 3
    assert (edge_table(halved._replace(combined=None), 0.8)["kind"] == "").all()


def test_parts_of_a_split_are_nearly_uncorrelated_and_make_up_the_whole():
    for parts, is_split in [
        # One part is not enough: r = 0.688 alone.
        ([(0, 50)], False),
        # Of the second's tokens 39 of 50 are the whole's: r = 0.034 / sqrt(0.09 * 0.0475) = 0.520. Parts have
        # r = -0.0526 with each other: R^2 = (0.688^2 + 0.52^2 + 2 * 0.0526 * 0.688 * 0.52) / (1 - 0.0526^2) = 0.784.
        ([(0, 50), (61, 111)], True),
        # 25 of 50: r = 0.306, R = 0.769.
        ([(0, 50), (75, 125)], False),
        # Parts may overlap a little: their r is 0.007 / sqrt(0.0564 * 0.0475) = 0.135.
        ([(0, 60), (50, 100)], True),
        # But not by much: (0.025 - 0.065 * 0.06) / sqrt(0.0608 * 0.0564) = 0.360.
        ([(0, 65), (40, 100)], False),
        # Of the whole's tokens 60 are parts': R = (0.06 - 0.006) / sqrt(0.09 * 0.0564) = 0.758.
        ([(0, 40), (40, 60)], False),
        # Five fifths: r = (0.02 - 0.1 * 0.02) / sqrt(0.09 * 0.0196) = 0.43; R is 1.
        (list(pairwise(range(0, 120, 20))), True),
    ]:
        split, merged = both_ways([(0, 100)], parts)
        assert split["kind"].tolist() == (["split"] if is_split else [""]) * (1 + len(parts)), parts
        assert merged["kind"].tolist() == (["merged"] if is_split else [""]) * (1 + len(parts)), parts


def test_features_that_fire_on_all_of_a_feature_and_on_as_much_else_are_no_split():
    # Either child fires on 55 of the parent's 100 tokens, on 10 of them with the other, and on 45 others, on 10 of
    # them with the other again: r = 0.5 with the parent, 0.111 with each other; R^2 = 0.5 / 1.111 = 0.45.
    children = np.maximum(indicators(1000, (0, 55), (45, 100)), indicators(1000, (200, 245), (235, 280)))
    table = edge_table(correlate(indicators(1000, (0, 100)), children, progress=False), 0.8)
    assert table["kind"].tolist() == [""] * 3


def test_a_split_needs_r_at_the_threshold_and_well_above_the_best_match():
    for r, combined, kinds in [
        # A small companion of a match makes no split.
        ([0.9, 0.35], 0.949, ["1:1", "1:1", ""]),
        ([0.9, 0.35], 0.951, ["split"] * 3),
        ([0.6, 0.5], 0.8, ["split"] * 3),
        ([0.6, 0.5], 0.799, [""] * 3),
    ]:
        parts = divided(([combined], NONE), ([-1], [0, 0]))
        pair = correlation([r], firings=((100,), (70, 30)), combined=parts)
        assert edge_table(pair, 0.8)["kind"].tolist() == kinds, (r, combined)


def test_a_better_match_that_belongs_to_another_feature_prevents_a_split():
    # Parent 0 is closest to child 2 (0.9), whose best is parent 1 (0.95). Its parts 0 and 1 have R = 0.9.
    r, firings = [[0.6, 0.6, 0.9], [0.0, 0.0, 0.95]], ((100, 100), (50, 50, 100))
    parts = divided(([0.9, NAN], [NAN] * 3), ([-1, -1], [0, 0, -1]))
    pair = correlation(r, firings=firings, combined=parts)
    assert edge_table(pair, 0.8)["kind"].tolist() == ["1:1", "1:1", "", "", "1:1"]
    # Without the better match the parts make a split.
    r[0][2] = 0.7
    pair = correlation(r, firings=firings, combined=parts)
    assert edge_table(pair, 0.8)["kind"].tolist() == ["split", "1:1", "split", "split", "1:1"]


def test_of_a_split_and_a_merge_the_one_with_the_larger_r_counts():
    # Parent 0 is split in both children, and child 0 merged of both parents.
    for split, merged, kinds in [
        (0.85, 0.875, ["merged", "merged", "merged", "split"]),
        (0.875, 0.85, ["split", "merged", "split", "split"]),
        # On a tie the split counts.
        (0.85, 0.85, ["split", "merged", "split", "split"]),
    ]:
        combined = divided(([split, NAN], [merged, NAN]), ([0, 0], [0, 0]))
        table = edge_table(correlation([[0.75, 0.4], [0.4, 0.0]], firings=((90, 20), (90, 30)), combined=combined), 0.8)
        assert table["kind"].tolist() == kinds
        assert table["study_verdict"].tolist() == ["persists", "persists", "inherited", "inherited"]


def test_wilson_s_interval():
    assert share(8, 10).value == 0.8
    assert share(8, 10).interval == pytest.approx((0.490, 0.943), abs=5e-4)
    # At 0 of n the upper bound is z^2 / (n + z^2) = 3.8415 / 13.8415.
    assert share(0, 10).interval == pytest.approx((0, 0.27753), abs=1e-5)
    assert share(10, 10).interval == pytest.approx((0.72247, 1), abs=1e-5)
    assert share(0, 10).interval[0] >= 0
    assert share(10, 10).interval[1] <= 1
    assert share(0, 0) == Share(None, 0, None)


def test_untestable_features_are_in_no_share():
    assert matched_share(correlation(TOY), 0, 0.8)[:2] == (1 / 2, 2)
    assert matched_share(correlation(TOY), 1, 0.8)[:2] == (2 / 3, 3)


def test_a_share_may_be_taken_among_some_of_the_features():
    some = np.array([True, False, True])  # the last is untestable
    assert matched_share(correlation(TOY), 0, 0.8, some)[:2] == (1.0, 1)
    assert matched_share(correlation(TOY), 1, 0.8, some)[:2] == (1 / 2, 2)
    assert matched_share(correlation(TOY), 0, 0.8, ~some)[:2] == (0.0, 1)


def test_the_agreement_of_seeds_runs_over_both_directions_and_all_pairs():
    # TOY: 1 of 2 and 2 of 3. The diagonal: 3 of 3 and 3 of 3.
    diagonal = correlation([[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]])
    seeds = agreement_share([correlation(TOY), diagonal], 0.8)
    assert (seeds.value, seeds.n) == (9 / 11, 11)
    assert seeds.interval == share(9, 11).interval
    assert agreement_share([], 0.8) == Share(None, 0, None)


def test_shares_by_three_rules():
    # Both parents are closest to child 0, which is closest to parent 1. Assigned are 0.95 + 0.85, because 0.9 + 0.81
    # is less. Parent 2 has 0.7 only, mutually; parent 3 is untestable.
    r = [[0.9, 0.85, 0.0], [0.95, 0.81, 0.0], [0.0, 0.0, 0.7], [NAN] * 3]
    table = edge_table(correlation(r, firings=([50] * 4, [50] * 3)), 0.8)
    assert {rule: matched[:2] for rule, matched in matching_shares(table, 0.8, "parent").items()} == {
        "best": (2 / 3, 3),
        "mutual": (1 / 3, 3),
        "assignment": (2 / 3, 3),
    }
    # Parent 0 is assigned child 1 (0.85), parent 1 child 0 (0.95).
    shares = {threshold: matching_shares(table, threshold, "parent") for threshold in (0.85, 0.86)}
    assert (shares[0.85]["assignment"].value, shares[0.86]["assignment"].value) == (2 / 3, 1 / 3)
    # Child 1's best, 0.85, is not mutual.
    assert {rule: matched.value for rule, matched in matching_shares(table, 0.8, "child").items()} == {
        "best": 2 / 3,
        "mutual": 1 / 3,
        "assignment": 2 / 3,
    }
    # No rule counts splits.
    split, _ = both_ways(WHOLE, HALVES)
    assert [matched[:2] for matched in matching_shares(split, 0.8, "parent").values()] == [(0.0, 2)] * 3


def test_agreement_by_hand():
    # Of 10 features testable in both, 6 persist in both, 2 disappear in both: p_o = 0.8. The first has 7 and 3, the
    # second 7 and 3: p_e = (49 + 9) / 100 = 0.58; kappa = 0.22 / 0.42.
    first = ["persists"] * 7 + ["disappears"] * 3 + ["untestable", "persists"]
    second = ["persists"] * 6 + ["disappears"] + ["persists"] + ["disappears"] * 2 + ["persists", "untestable"]
    figures = agreement(np.array(first), np.array(second))
    assert (figures["n"], figures["share"]) == (10, 0.8)
    assert figures["kappa"] == pytest.approx(0.22 / 0.42)


def test_agreement_among_some_of_the_features():
    first, second = np.array(["persists", "disappears", "persists"]), np.array(["persists", "persists", "disappears"])
    assert agreement(first, second, np.array([True, False, True])) == {"n": 2, "share": 0.5, "kappa": 0.0}


def test_full_agreement_has_kappa_one_and_full_disagreement_of_halves_minus_one():
    verdicts = np.array(["persists", "disappears"])
    assert agreement(verdicts, verdicts) == {"n": 2, "share": 1.0, "kappa": 1.0}
    assert agreement(verdicts, verdicts[::-1]) == {"n": 2, "share": 0.0, "kappa": -1.0}


def test_kappa_is_undefined_where_only_one_verdict_is_given():
    verdicts = np.array(["persists", "persists"])
    figures = agreement(verdicts, verdicts)
    assert (figures["n"], figures["share"]) == (2, 1.0)
    assert np.isnan(figures["kappa"])
    nothing = agreement(np.array(["persists"]), np.array(["untestable"]))
    assert nothing["n"] == 0
    assert np.isnan([nothing["share"], nothing["kappa"]]).all()


def test_agreement_is_between_verdicts_on_one_sae():
    with pytest.raises(ValueError, match="are on 1 and 2 features"):
        agreement(np.array(["persists"]), np.array(["persists", "persists"]))


def test_the_same_index_rate_counts_matches_on_the_diagonal():
    # 0 is 0; 1 is 2; 2 has no match; 3 is 3 by 0.8; 4 is 1, but untestable on the other side; 5 is beyond it.
    r = np.full((6, 5), 0.1)
    for pair, value in {(0, 0): 0.9, (1, 2): 0.95, (3, 3): 0.8, (4, 1): 0.9, (5, 1): 0.99}.items():
        r[pair] = value
    r[:, 4] = NAN
    pair = correlation(r.tolist(), firings=([50] * 6, [50] * 5))
    assert same_index_rate(pair, 0.8)[:2] == (2 / 3, 3)
    assert same_index_rate(pair, 0.81)[:2] == (1 / 2, 2)
    assert same_index_rate(pair, 0.995) == Share(None, 0, None)
