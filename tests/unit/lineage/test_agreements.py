"""Agreement of other ways of comparing with an edge's verdicts, and the features on which all agree."""

import numpy as np
import pandas as pd

from saelineage.lineage.agreements import add_agreement, agreement_rows, all_agree, own_verdicts, ways
from saelineage.lineage.matching import edge_table
from saelineage.lineage.trajectories import feature_table
from tests.unit.lineage.pairs import diagonal
from tests.unit.lineage.test_evidence import COMPARISON, PAIRS, compared

PERSISTS, DISAPPEARS, UNTESTABLE = "persists", "disappears", "untestable"
TABLE = edge_table(PAIRS["base.a__lua.b"].correlation, 0.8).assign(
    identified=[True, False, False, True] * 2, recurrence=1.0
)
"""Three of four persist."""


def found(side: int, comparisons: list[dict], pairs: dict, table: pd.DataFrame = TABLE) -> dict[str, np.ndarray]:
    return ways(comparisons[0], table, comparisons, pairs.__getitem__, 0.8, side)


def test_instruments_agree_on_the_features_of_a_side_whose_sae_is_the_same():
    pairs = PAIRS | {
        # Of the four, the leading's third persists; here it does not: 3 of 4 verdicts are equal.
        "base.a__lua.d": compared(diagonal(0.9, 0.9, 0.1, 0.1), "base.a__lua.d"),
        "base.x__lua.y": compared(diagonal(0.9, 0.9, 0.1, 0.1), "base.x__lua.y"),
        "base.x__lua.b": compared(diagonal(0.9, 0.9, 0.9, 0.9), "base.x__lua.b"),
    }
    comparisons = [
        COMPARISON,
        COMPARISON | {"instrument": "independent", "pair": "base.a__lua.d"},
        COMPARISON | {"instrument": "same_init", "pair": "base.x__lua.y"},
        COMPARISON | {"instrument": "frozen", "pair": "base.x__lua.b"},
        COMPARISON | {"instrument": "own_mixture", "child": "stories"},
    ]
    of_parent = found(0, comparisons, pairs)
    assert of_parent.keys() == {"independent"}
    identified, every = agreement_rows(TABLE, of_parent, 0)
    # By chance (3 x 2 + 1 x 2) / 16 = 0.5, so kappa = (0.75 - 0.5) / (1 - 0.5).
    assert every == {
        **{"side": "parent", "instrument": "independent", "group": "all"},
        **{"n": 4, "share": 0.75, "kappa": 0.5},
    }
    # On the first and the last, which are identified, both say the same.
    assert (identified["group"], identified["n"], identified["share"]) == ("identified", 2, 1.0)
    (_, of_child) = agreement_rows(TABLE, found(1, comparisons, pairs), 1)
    assert (of_child["side"], of_child["instrument"], of_child["share"]) == ("child", "frozen", 0.75)
    assert [row["group"] for row in agreement_rows(TABLE.assign(recurrence=np.nan), of_parent, 0)] == ["all"]


def test_any_seed_of_the_child_may_have_the_parent_s_feature():
    pairs = PAIRS | {
        "base.a__lua.s0": compared(diagonal(0.9, 0.1, 0.1, 0.1), "base.a__lua.s0"),
        "lua.s1__base.a": compared(diagonal(0.1, 0.9, 0.1, 0.9), "lua.s1__base.a"),
    }
    several = COMPARISON | {"seeds_of_child": ["base.a__lua.s0", "lua.s1__base.a"]}
    # The leading has the first three, some seed the first two and the last.
    assert found(0, [several], pairs)["any seed"].tolist() == [PERSISTS, PERSISTS, DISAPPEARS, PERSISTS]
    assert found(1, [several], pairs) == {}
    assert found(0, [COMPARISON | {"seeds_of_child": ["base.a__lua.s0"]}], pairs) == {}


def test_a_crosscoder_is_one_more_way_for_both_sides():
    verdicts = ["persists", "rotated", "disappears", "emerges", "persists", "emerges", "unmatched", "disappears"]
    table = TABLE.assign(crosscoder=verdicts)
    assert found(0, [COMPARISON], PAIRS, table)["crosscoder"].tolist() == [PERSISTS, PERSISTS, DISAPPEARS, UNTESTABLE]
    of_child = found(1, [COMPARISON], PAIRS, table)["crosscoder"]
    assert of_child.tolist() == [PERSISTS, DISAPPEARS, UNTESTABLE, UNTESTABLE]
    # The parent's third and the child's second are found by the run; the fourth, which is not, has no second opinion.
    marks = add_agreement(table, [found(side, [COMPARISON], PAIRS, table) for side in (0, 1)])["all_agree"]
    assert marks.tolist() == [True, True, False, pd.NA, True, False, pd.NA, pd.NA]


def test_features_on_which_all_agree_who_can_tell():
    own = np.array([PERSISTS, PERSISTS, DISAPPEARS, DISAPPEARS, UNTESTABLE, PERSISTS])
    others = [
        np.array([PERSISTS, PERSISTS, DISAPPEARS, UNTESTABLE, PERSISTS, UNTESTABLE]),
        np.array([PERSISTS, DISAPPEARS, UNTESTABLE, DISAPPEARS, PERSISTS, UNTESTABLE]),
    ]
    assert list(all_agree(own, others)) == [True, False, True, True, pd.NA, pd.NA]
    assert list(all_agree(own, [])) == [pd.NA] * 6


def test_own_verdicts_are_the_study_s():
    assert own_verdicts(TABLE, 0).tolist() == own_verdicts(TABLE, 1).tolist() == [PERSISTS] * 3 + [DISAPPEARS]


def test_a_feature_is_marked_if_all_agree_on_every_edge_that_can_tell():
    n = {"latent": range(4), "sae": "a", "firings": 1, "density": 0.1}
    edges = {
        ("base", "lua"): [True, True, False, pd.NA, *[pd.NA] * 4],
        ("base", "stories"): [True, pd.NA, True, pd.NA, *[pd.NA] * 4],
    }
    tables = {
        edge: TABLE.assign(verdict=UNTESTABLE, all_agree=pd.array(marks, dtype="boolean"))
        for edge, marks in edges.items()
    }
    features = feature_table(tables, ["base"], {"base": pd.DataFrame(n)})
    assert features["all_agree"].tolist() == [True, True, False, pd.NA]
