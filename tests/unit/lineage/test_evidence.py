"""The evidence for a share: its controls, matchings, intervals over documents, agreement, sources."""

import numpy as np
import pytest

from saelineage.correlations.bootstrap import Replicates, widening
from saelineage.lineage import evidence
from saelineage.lineage.evidence import Compared
from saelineage.lineage.shares import share
from saelineage.lineage.verdicts import Rules
from tests.unit.lineage.pairs import NAN, correlation, diagonal

RULES = Rules(threshold=0.8, drifted_from=0.5, readout_from=0.8, relocated_below=0.5, identified_from=1.0)
FIVE = np.full(4, 5)
"""Every feature fires in all documents."""


def compared(r: list[list[float]], pair: str, replicates: list[list[float]] | None = None) -> Compared:
    """A pair with its best r in every replicate, or with those given for both sides."""
    matched = correlation(r, tuple(pair.split("__")))
    best = np.nan_to_num(matched.pearson.best[0][:, 0]) if replicates is None else np.array(replicates)
    best = np.atleast_2d(best).astype(np.float32)
    best = np.repeat(best, 2, axis=0) if len(best) == 1 else best
    return Compared(matched, Replicates(matched.names, {"words": 5}, 0, (best, best), (FIVE, FIVE)), (FIVE, FIVE), None)


PAIRS = {
    # Three of four persist: 0.9, 0.85, 0.8 and 0.5.
    "base.a__lua.b": compared(
        diagonal(0.9, 0.85, 0.8, 0.5), "base.a__lua.b", [[0.9, 0.85, 0.8, 0.5], [0.9, 0.85, 0.7, 0.5]]
    ),
    # The unchanged model: all testable three match.
    "base.a__base.c": compared(
        diagonal(0.95, 0.9, 0.9, NAN), "base.a__base.c", [[0.95, 0.9, 0.9, 0.0], [0.95, 0.9, 0.7, 0.0]]
    ),
    # A random control with one match in four.
    "base.a__lua.b_shifted": compared(diagonal(0.82, 0.2, 0.2, 0.2), "base.a__lua.b_shifted"),
    # Other seeds: of the parent's features the first and the last recur, of the child's the first two.
    "base.a__base.s": compared(diagonal(0.9, 0.7, 0.7, 0.8), "base.a__base.s"),
    "lua.b__lua.s": compared(diagonal(0.9, 0.9, 0.7, 0.7), "lua.b__lua.s"),
}
COMPARISON = {
    "parent": "base",
    "child": "lua",
    "instrument": "anchored",
    "pair": "base.a__lua.b",
    "no_change": ["base.a__base.c"],
    "recurs": {"parent": ["base.a__base.s"], "child": ["lua.b__lua.s"]},
    "seeds": {"base": ["base.a__base.c"], "lua": []},
    "seeds_of_child": [],
    "controls": {"shifted": "base.a__lua.b_shifted"},
    "by_seed": [],
}


def weigh(**changes) -> dict:
    return evidence.weigh(COMPARISON | changes, PAIRS.__getitem__, RULES)


def test_shares_of_all_features_come_with_their_controls_n_interval_and_area():
    edge = weigh()
    shares = edge["groups"]["all"]
    assert (shares["persist_share"], shares["persist_share_n"]) == (0.75, 4)
    assert shares["persist_share_interval"] == list(share(3, 4).interval)
    assert (shares["inherited_share"], shares["inherited_share_n"]) == (0.75, 4)
    # Both directions of the unchanged model: 3 of 3 twice.
    assert (shares["no_change_share"], shares["no_change_share_n"]) == (1.0, 6)
    assert shares["control_shares"] == {"shifted": 0.25}
    # The only corpus has the shares of all.
    (of_corpus,) = shares["corpora"].values()
    assert of_corpus == {name: value for name, value in shares.items() if name in of_corpus}
    assert len(of_corpus) == 9
    assert (edge["two_seed_share"], edge["child_two_seed_share"]) == (1.0, None)
    assert edge["auc"] == pytest.approx((0.9 + 0.85 + 0.8 + 0.5) / 4)
    assert edge["no_change_auc"] == pytest.approx((0.95 + 0.9 + 0.9) / 3)


def test_shares_of_identified_features_are_those_that_other_seeds_have():
    shares = weigh()["groups"]["identified"]
    # The parent's first (0.9) and last (0.5); the child's first (0.9) and second (0.85).
    assert (shares["persist_share"], shares["persist_share_n"]) == (0.5, 2)
    assert (shares["inherited_share"], shares["inherited_share_n"]) == (1.0, 2)
    # The last is untestable in the unchanged model, which is read on the parent's SAE alone.
    assert (shares["no_change_share"], shares["no_change_share_n"]) == (1.0, 1)
    assert shares["control_shares"] == {"shifted": 0.5}
    assert shares["relative_persistence"] == 0.5
    assert shares["document_interval"] == pytest.approx([0.5, 0.5])


def test_without_other_seeds_no_feature_is_known_to_be_identified():
    assert weigh(recurs={"parent": [], "child": ["lua.b__lua.s"]})["groups"]["identified"] is None
    shares = weigh(recurs={"parent": ["base.a__base.s"], "child": []})["groups"]["identified"]
    assert (shares["persist_share"], shares["persist_share_n"]) == (0.5, 2)
    assert (shares["inherited_share"], shares["inherited_share_n"]) == (None, 0)


def test_shares_over_seeds_are_of_pairs_that_share_no_sae():
    # Three of four in a and b, two of four in s and t; identified are the first and last (0.9, 0.5), and in s none.
    pairs = PAIRS | {"base.s__lua.t": compared(diagonal(0.9, 0.9, 0.1, 0.1), "base.s__lua.t")}
    known, unknown = ({"parent": recurs, "child": []} for recurs in (["base.a__base.s"], []))
    by_seed = [{"pair": "base.a__lua.b", "recurs": known}, {"pair": "base.s__lua.t", "recurs": unknown}]
    shares = evidence.weigh(COMPARISON | {"by_seed": by_seed}, pairs.__getitem__, RULES)["over_seeds"]
    assert shares["all"] == {"n": 2, "mean": 0.625, "least": 0.5, "largest": 0.75, "interval": None}
    assert shares["identified"] == {"n": 1, "mean": 0.5, "least": 0.5, "largest": 0.5, "interval": None}
    assert weigh()["over_seeds"] == {"identified": None, "all": None}


def test_a_control_that_is_itself_a_seed_does_not_choose_the_features_that_it_is_read_on():
    # Seeds s and t are the control and identify as well. Read on s, features count that t has (the first two): s has
    # one of them. Read on t, those that s has (first and last): t has one of them. Together 2 of 4.
    pairs = PAIRS | {"base.a__base.t": compared(diagonal(0.9, 0.9, 0.1, 0.1), "base.a__base.t")}
    seeds = ["base.a__base.s", "base.a__base.t"]
    changes = {"no_change": seeds, "recurs": {"parent": seeds, "child": ["lua.b__lua.s"]}}
    shares = evidence.weigh(COMPARISON | changes, pairs.__getitem__, RULES)["groups"]["identified"]
    assert (shares["no_change_share"], shares["no_change_share_n"]) == (0.5, 4)
    # With one other seed nothing is left to choose them.
    changes = {"no_change": seeds[:1], "recurs": {"parent": seeds[:1], "child": ["lua.b__lua.s"]}}
    assert weigh(**changes)["groups"]["identified"]["no_change_share"] is None


def test_relative_persistence_is_the_share_over_its_control_document_by_document():
    shares = weigh()["groups"]["all"]
    assert shares["relative_persistence"] == 0.75
    # Replicates: 3/4 over 3/3, and 2/4 over 2/3; so shares of 0.75 and 0.5, and ratios of 0.75 twice.
    # Their 95 % reach 0.95 x 0.125 on either side of 0.625, which is 0.125 below the share; at most all match.
    assert shares["document_interval"] == pytest.approx([0.75 - 0.95 * 0.125 * widening(5), 1.0])
    assert shares["relative_persistence_interval"] == pytest.approx([0.75, 0.75])


def test_without_a_control_no_share_is_relative():
    edge = weigh(no_change=[])
    shares = edge["groups"]["all"]
    assert (shares["no_change_share"], edge["no_change_auc"]) == (None, None)
    assert (shares["relative_persistence"], shares["relative_persistence_interval"]) == (None, None)
    assert shares["document_interval"] is not None


def test_each_matching_has_its_own_control():
    matchings = weigh()["matchings"]
    assert {rule: shares["persist_share"] for rule, shares in matchings.items()} == {
        "best": 0.75,
        "mutual": 0.75,
        "assignment": 0.75,
    }
    assert {rule: shares["no_change_share"] for rule, shares in matchings.items()} == dict.fromkeys(matchings, 1.0)


def test_the_original_protocol_has_its_own_control():
    pairs = {
        name: pair._replace(by_types=correlation(diagonal(1, 1, 1, 1), pair.correlation.names))
        for name, pair in PAIRS.items()
    }
    shares = evidence.weigh(COMPARISON, pairs.__getitem__, RULES)["matchings"]["token_type"]
    assert (shares["persist_share"], shares["no_change_share"], shares["no_change_share_n"]) == (1.0, 1.0, 8)
    pairs["base.a__base.c"] = PAIRS["base.a__base.c"]
    with pytest.raises(ValueError, match=r"'base\.a', 'base\.c'.*plan token types for both"):
        evidence.weigh(COMPARISON, pairs.__getitem__, RULES)


def test_a_control_has_a_threshold_at_which_one_in_a_hundred_matches():
    control = weigh()["controls"]["shifted"]
    assert (control["persist_share"], control["persist_share_n"]) == (0.25, 4)
    # Of four features none may match: just above the largest, 0.82, where 0.9 and 0.85 of the edge are left.
    assert control["threshold_at_1_percent"] == pytest.approx(0.82)
    assert control["threshold_at_1_percent"] > 0.82
    assert control["persist_share_there"] == 0.5
    assert control["auc"] == pytest.approx((0.82 + 0.2 + 0.2 + 0.2) / 4)


def test_curves_have_a_line_for_the_edge_and_each_control():
    table = evidence.curves(COMPARISON, PAIRS.__getitem__)
    assert table["name"].unique().tolist() == ["edge", "no change", "shifted"]
    at = table[np.isclose(table["threshold"], 0.8)].set_index("name")
    assert at["share"].to_dict() == {"edge": 0.75, "no change": 1.0, "shifted": 0.25}
    assert at["n"].to_dict() == {"edge": 4, "no change": 6, "shifted": 4}


def test_two_seeds_that_differ_from_the_no_change_control_have_a_line():
    pairs = PAIRS | {"base.a__base.s": compared(diagonal(0.9, 0.2, 0.2, 0.2), "base.a__base.s")}
    comparison = COMPARISON | {"seeds": {"base": ["base.a__base.s"], "lua": []}}
    table = evidence.curves(comparison, pairs.__getitem__)
    assert table["name"].unique().tolist() == ["edge", "no change", "two seeds", "shifted"]
    at = table[np.isclose(table["threshold"], 0.8)].set_index("name")["share"]
    assert (at["no change"], at["two seeds"]) == (1.0, 0.25)
    assert evidence.weigh(comparison, pairs.__getitem__, RULES)["two_seed_auc"] == pytest.approx(1.5 / 4)


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


def test_a_feature_of_some_of_three_parents_is_that_of_several():
    rows = {"a": (0.9, 0.9, 0.9, 0.1), "b": (0.9, 0.9, 0.1, 0.1), "c": (0.9, 0.1, 0.1, 0.1)}
    pairs = {name: correlation(diagonal(*r), (f"{name}.a", "merged.b")) for name, r in rows.items()}
    assert evidence.sources("merged", pairs, list(rows), 0.8)["source"].tolist() == ["both", "several", "a", "new"]


def test_an_untestable_feature_has_no_source():
    pairs = {name: correlation(diagonal(0.9, 0.9, 0.9, NAN), (f"{name}.a", "merged.b")) for name in ("lua", "stories")}
    table = evidence.sources("merged", pairs, ["lua", "stories"], 0.8)
    assert table["source"].tolist() == ["both", "both", "both", "untestable"]
    assert evidence.source_shares(table, ["lua"])["both"] == evidence.named("share", share(3, 3))
