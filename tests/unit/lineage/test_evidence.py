"""The evidence for a share: floors, nulls, matchings, intervals over documents, agreement, sources."""

import numpy as np
import pytest

from saelineage.correlations.bootstrap import Replicates
from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import Correlation
from saelineage.lineage import evidence
from saelineage.lineage.evidence import Compared
from saelineage.lineage.verdicts import share

NAN = float("nan")


def correlation(r: list[list[float]], names: tuple[str, str]) -> Correlation:
    """A 4 x 4 matrix of r of features that fire 50 times; NaN rows and columns are untestable features."""
    r = np.array(r)
    finder = MatchFinder(r.shape, top_matches=2, keep_above=0.3, n_bins=4)
    finder.offer(0, r)
    return Correlation(
        names=names,
        n_tokens={"words": 1000},
        firings=(np.full((1, 4), 50), np.full((1, 4), 50)),
        testable=(~np.isnan(r).all(axis=1), ~np.isnan(r).all(axis=0)),
        pearson=finder.result(),
        by_corpus={},
        one_to_one=np.array([0, 1, 2, -1]),
        jaccard=finder.result(),
    )


def diagonal(*values: float) -> list[list[float]]:
    """Features match those of equal number, and no others; NaN makes both untestable."""
    r = np.full((4, 4), 0.1)
    np.fill_diagonal(r, values)
    untestable = np.isnan(values)
    r[untestable], r[:, untestable] = NAN, NAN
    return r.tolist()


def compared(r: list[list[float]], pair: str, replicates: list[list[float]] | None = None) -> Compared:
    """A pair with its best r in every replicate, or with those given for both sides."""
    matched = correlation(r, tuple(pair.split("__")))
    best = np.nan_to_num(matched.pearson.best[0][:, 0]) if replicates is None else np.array(replicates)
    best = np.atleast_2d(best).astype(np.float32)
    best = np.repeat(best, 2, axis=0) if len(best) == 1 else best
    return Compared(matched, Replicates(matched.names, {"words": 5}, 0, (best, best)), None)


PAIRS = {
    # Three of four persist: 0.9, 0.85, 0.8 and 0.5.
    "base.a__lua.b": compared(
        diagonal(0.9, 0.85, 0.8, 0.5), "base.a__lua.b", [[0.9, 0.85, 0.8, 0.5], [0.9, 0.85, 0.7, 0.5]]
    ),
    # The floor: all testable three match.
    "base.a__base.c": compared(
        diagonal(0.95, 0.9, 0.9, NAN), "base.a__base.c", [[0.95, 0.9, 0.9, 0.0], [0.95, 0.9, 0.7, 0.0]]
    ),
    # A null with one match in four.
    "base.a__lua.b_shifted": compared(diagonal(0.82, 0.2, 0.2, 0.2), "base.a__lua.b_shifted"),
}
COMPARISON = {
    "parent": "base",
    "child": "lua",
    "instrument": "anchored",
    "pair": "base.a__lua.b",
    "floors": ["base.a__base.c"],
    "seeds": {"base": ["base.a__base.c"], "lua": []},
    "nulls": {"shifted": "base.a__lua.b_shifted"},
}


def weigh(**changes) -> dict:
    return evidence.weigh(COMPARISON | changes, PAIRS.__getitem__, 0.8)


def test_shares_come_with_their_floors_n_interval_and_area():
    edge = weigh()
    assert (edge["persist_share"], edge["persist_share_n"]) == (0.75, 4)
    assert edge["persist_share_interval"] == list(share(3, 4).interval)
    assert (edge["inherited_share"], edge["inherited_share_n"]) == (0.75, 4)
    # Both directions of the floor: 3 of 3 twice.
    assert (edge["no_change_share"], edge["floor_share_n"]) == (1.0, 6)
    assert (edge["two_seed_share"], edge["child_two_seed_share"]) == (1.0, None)
    assert edge["auc"] == pytest.approx((0.9 + 0.85 + 0.8 + 0.5) / 4)
    assert edge["no_change_auc"] == pytest.approx((0.95 + 0.9 + 0.9) / 3)


def test_relative_persistence_is_the_share_over_its_floor_document_by_document():
    edge = weigh()
    assert edge["relative_persistence"] == 0.75
    # Replicates: 3/4 over 3/3, and 2/4 over 2/3; so shares of 0.75 and 0.5, and ratios of 0.75 twice.
    assert edge["document_interval"] == pytest.approx([0.5 + 0.025 * 0.25, 0.75 - 0.025 * 0.25])
    assert edge["relative_persistence_interval"] == pytest.approx([0.75, 0.75])


def test_without_a_floor_no_share_is_relative():
    edge = weigh(floors=[])
    assert (edge["no_change_share"], edge["no_change_auc"]) == (None, None)
    assert (edge["relative_persistence"], edge["relative_persistence_interval"]) == (None, None)
    assert edge["document_interval"] is not None


def test_each_matching_has_its_own_floor():
    matchings = weigh()["matchings"]
    assert {rule: shares["persist_share"] for rule, shares in matchings.items()} == {
        "best": 0.75,
        "mutual": 0.75,
        "assignment": 0.75,
    }
    assert {rule: shares["no_change_share"] for rule, shares in matchings.items()} == dict.fromkeys(matchings, 1.0)


def test_the_original_protocol_has_its_own_floor():
    pairs = {
        name: pair._replace(by_types=correlation(diagonal(1, 1, 1, 1), pair.correlation.names))
        for name, pair in PAIRS.items()
    }
    shares = evidence.weigh(COMPARISON, pairs.__getitem__, 0.8)["matchings"]["token_type"]
    assert (shares["persist_share"], shares["no_change_share"], shares["floor_share_n"]) == (1.0, 1.0, 8)
    pairs["base.a__base.c"] = PAIRS["base.a__base.c"]
    with pytest.raises(ValueError, match=r"'base\.a', 'base\.c'.*plan token types for both"):
        evidence.weigh(COMPARISON, pairs.__getitem__, 0.8)


def test_a_null_has_a_threshold_at_which_one_in_a_hundred_matches():
    null = weigh()["nulls"]["shifted"]
    assert (null["persist_share"], null["persist_share_n"]) == (0.25, 4)
    # Of four features none may match: just above the largest, 0.82, where 0.9 and 0.85 of the edge are left.
    assert null["threshold_at_1_percent"] == pytest.approx(0.82)
    assert null["threshold_at_1_percent"] > 0.82
    assert null["persist_share_there"] == 0.5
    assert null["auc"] == pytest.approx((0.82 + 0.2 + 0.2 + 0.2) / 4)


def test_curves_have_a_line_for_the_edge_its_floor_and_each_null():
    table = evidence.curves(COMPARISON, PAIRS.__getitem__)
    assert table["name"].unique().tolist() == ["edge", "floor", "shifted"]
    at = table[np.isclose(table["threshold"], 0.8)].set_index("name")
    assert at["share"].to_dict() == {"edge": 0.75, "floor": 1.0, "shifted": 0.25}
    assert at["n"].to_dict() == {"edge": 4, "floor": 6, "shifted": 4}


def test_a_seed_floor_that_differs_from_the_instrument_s_floor_has_a_line():
    pairs = PAIRS | {"base.a__base.s": compared(diagonal(0.9, 0.2, 0.2, 0.2), "base.a__base.s")}
    comparison = COMPARISON | {"seeds": {"base": ["base.a__base.s"], "lua": []}}
    table = evidence.curves(comparison, pairs.__getitem__)
    assert table["name"].unique().tolist() == ["edge", "floor", "two seeds", "shifted"]
    at = table[np.isclose(table["threshold"], 0.8)].set_index("name")["share"]
    assert (at["floor"], at["two seeds"]) == (1.0, 0.25)
    assert evidence.weigh(comparison, pairs.__getitem__, 0.8)["two_seed_auc"] == pytest.approx(1.5 / 4)


def test_instruments_agree_on_the_parent_s_features_where_its_sae_is_the_same():
    pairs = PAIRS | {
        # Of the four, the leading's third persists; here it does not: 3 of 4 verdicts are equal.
        "base.a__lua.d": compared(diagonal(0.9, 0.9, 0.1, 0.1), "base.a__lua.d"),
        "base.x__lua.y": compared(diagonal(0.9, 0.9, 0.1, 0.1), "base.x__lua.y"),
    }
    rows = [
        COMPARISON,
        COMPARISON | {"instrument": "independent", "pair": "base.a__lua.d"},
        COMPARISON | {"instrument": "same_init", "pair": "base.x__lua.y"},
    ]
    agreements = evidence.agreements({"leading": "anchored", "comparisons": rows}, pairs.__getitem__, 0.8)
    assert [row["instrument"] for row in agreements] == ["independent"]
    # By chance (3 x 2 + 1 x 2) / 16 = 0.5, so kappa = (0.75 - 0.5) / (1 - 0.5).
    assert (agreements[0]["n"], agreements[0]["share"], agreements[0]["kappa"]) == (4, 0.75, 0.5)


def test_sources_of_a_merge_by_hand():
    pairs = {
        "lua": correlation(diagonal(0.9, 0.9, 0.1, 0.1), ("lua.a", "merged.b")),
        "stories": correlation(diagonal(0.9, 0.1, 0.1, 0.1), ("stories.a", "merged.b")),
        "base": correlation(diagonal(0.9, 0.1, 0.9, 0.1), ("base.a", "merged.b")),
    }
    table = evidence.sources("merged", pairs, ["lua", "stories"], 0.8)
    assert table["source"].tolist() == ["both", "lua", "base", "new"]
    assert table["r_stories"].tolist() == [0.9, 0.1, 0.1, 0.1]
    shares = evidence.source_shares(table, ["lua", "stories", "base"])
    assert {name: of_source["share"] for name, of_source in shares.items()} == {
        "lua": 0.25, "stories": 0.0, "base": 0.25, "both": 0.25, "new": 0.25
    }  # fmt: skip


def test_an_untestable_feature_has_no_source():
    pairs = {name: correlation(diagonal(0.9, 0.9, 0.9, NAN), (f"{name}.a", "merged.b")) for name in ("lua", "stories")}
    table = evidence.sources("merged", pairs, ["lua", "stories"], 0.8)
    assert table["source"].tolist() == ["both", "both", "both", "untestable"]
    assert evidence.source_shares(table, ["lua"])["both"] == evidence.named("share", share(3, 3))
