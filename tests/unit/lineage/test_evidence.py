"""What stands beside a share: floors, nulls, matchings, intervals over documents, agreement, sources."""

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
    """A pair with the best r that it has in every replicate, or those given for both sides."""
    found = correlation(r, tuple(pair.split("__")))
    best = np.nan_to_num(found.pearson.best[0][:, 0]) if replicates is None else np.array(replicates)
    best = np.atleast_2d(best).astype(np.float32)
    best = np.repeat(best, 2, axis=0) if len(best) == 1 else best
    return Compared(found, Replicates(found.names, {"words": 5}, 0, (best, best)), None)


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


def test_shares_stand_beside_their_floors_with_n_and_interval():
    found = weigh()
    assert (found["persist_share"], found["persist_share_n"]) == (0.75, 4)
    assert found["persist_share_interval"] == list(share(3, 4).interval)
    assert (found["inherited_share"], found["inherited_share_n"]) == (0.75, 4)
    # Both directions of the floor: 3 of 3 twice.
    assert (found["floor_share"], found["floor_share_n"]) == (1.0, 6)
    assert (found["seed_floor_share"], found["child_seed_floor_share"]) == (1.0, None)


def test_relative_persistence_is_the_share_over_its_floor_document_by_document():
    found = weigh()
    assert found["relative_persistence"] == 0.75
    # Replicates: 3/4 over 3/3, and 2/4 over 2/3; so shares of 0.75 and 0.5, and ratios of 0.75 twice.
    assert found["document_interval"] == pytest.approx([0.5 + 0.025 * 0.25, 0.75 - 0.025 * 0.25])
    assert found["relative_persistence_interval"] == pytest.approx([0.75, 0.75])


def test_without_a_floor_nothing_is_relative():
    found = weigh(floors=[])
    assert (found["floor_share"], found["floor_auc"]) == (None, None)
    assert (found["relative_persistence"], found["relative_persistence_interval"]) == (None, None)
    assert found["document_interval"] is not None


def test_each_matching_has_its_own_floor():
    found = weigh()["matchings"]
    assert {rule: shares["persist_share"] for rule, shares in found.items()} == {
        "best": 0.75,
        "mutual": 0.75,
        "assignment": 0.75,
    }
    assert {rule: shares["floor_share"] for rule, shares in found.items()} == dict.fromkeys(found, 1.0)


def test_the_original_s_protocol_has_its_own_floor():
    pairs = {
        name: one._replace(by_types=correlation(diagonal(1, 1, 1, 1), one.correlation.names))
        for name, one in PAIRS.items()
    }
    found = evidence.weigh(COMPARISON, pairs.__getitem__, 0.8)["matchings"]["token_type"]
    assert (found["persist_share"], found["floor_share"], found["floor_share_n"]) == (1.0, 1.0, 8)


def test_a_null_has_a_threshold_at_which_one_in_a_hundred_matches():
    found = weigh()["nulls"]["shifted"]
    assert (found["persist_share"], found["persist_share_n"]) == (0.25, 4)
    # Of four features none may match: just above the largest, 0.82, where 0.9 and 0.85 of the edge are left.
    assert found["threshold_at_1_percent"] == pytest.approx(0.82)
    assert found["threshold_at_1_percent"] > 0.82
    assert found["persist_share_there"] == 0.5
    assert found["auc"] == pytest.approx((0.82 + 0.2 + 0.2 + 0.2) / 4)


def test_the_area_under_the_curve_is_the_mean_r():
    found = weigh()
    assert found["auc"] == pytest.approx((0.9 + 0.85 + 0.8 + 0.5) / 4)
    assert found["floor_auc"] == pytest.approx((0.95 + 0.9 + 0.9) / 3)


def test_curves_have_a_line_for_the_edge_its_floor_and_each_null():
    table = evidence.curves(COMPARISON, PAIRS.__getitem__)
    assert table["name"].unique().tolist() == ["edge", "floor", "shifted"]
    at = table[np.isclose(table["threshold"], 0.8)].set_index("name")
    assert at["share"].to_dict() == {"edge": 0.75, "floor": 1.0, "shifted": 0.25}
    assert at["n"].to_dict() == {"edge": 4, "floor": 6, "shifted": 4}


def test_a_seed_floor_that_is_not_the_instrument_s_floor_has_a_line_of_its_own():
    pairs = PAIRS | {"base.a__base.s": compared(diagonal(0.9, 0.2, 0.2, 0.2), "base.a__base.s")}
    comparison = COMPARISON | {"seeds": {"base": ["base.a__base.s"], "lua": []}}
    table = evidence.curves(comparison, pairs.__getitem__)
    assert table["name"].unique().tolist() == ["edge", "floor", "seed floor", "shifted"]
    at = table[np.isclose(table["threshold"], 0.8)].set_index("name")["share"]
    assert (at["floor"], at["seed floor"]) == (1.0, 0.25)
    assert evidence.weigh(comparison, pairs.__getitem__, 0.8)["seed_floor_auc"] == pytest.approx(1.5 / 4)


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
    found = evidence.agreements({"leading": "anchored", "comparisons": rows}, pairs.__getitem__, 0.8)
    assert [row["instrument"] for row in found] == ["independent"]
    # By chance (3 x 2 + 1 x 2) / 16 = 0.5, so kappa = (0.75 - 0.5) / (1 - 0.5).
    assert (found[0]["n"], found[0]["share"], found[0]["kappa"]) == (4, 0.75, 0.5)


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
    assert {name: one["share"] for name, one in shares.items()} == {
        "lua": 0.25, "stories": 0.0, "base": 0.25, "both": 0.25, "new": 0.25
    }  # fmt: skip


def test_an_untestable_feature_has_no_source():
    pairs = {name: correlation(diagonal(0.9, 0.9, 0.9, NAN), (f"{name}.a", "merged.b")) for name in ("lua", "stories")}
    table = evidence.sources("merged", pairs, ["lua", "stories"], 0.8)
    assert table["source"].tolist() == ["both", "both", "both", "untestable"]
    assert evidence.source_shares(table, ["lua"])["both"] == evidence.named("share", share(3, 3))
