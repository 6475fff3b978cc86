"""Identified features of a parent are known under every budget, also where those of the child are not."""

from types import SimpleNamespace

from saelineage.lineage.evidence import identified
from saelineage.lineage.verdicts import Rules
from tests.unit.lineage.pairs import correlation, diagonal

PAIRS = {
    "base.seed0__lua.from_base@500": correlation(diagonal(0.9, 0.9, 0.9, 0.9), ("base.seed0", "lua.from_base@500")),
    "base.seed0__base.seed1": correlation(diagonal(0.9, 0.5, 0.9, 0.5), ("base.seed0", "base.seed1")),
}
RULES = Rules(threshold=0.8, drifted_from=0.5, readout_from=0.8, relocated_below=0.5, identified_from=1.0)


def marked(parent: list[str], child: list[str]) -> tuple | None:
    comparison = {"pair": "base.seed0__lua.from_base@500", "recurs": {"parent": parent, "child": child}}
    return identified(comparison, lambda pair: SimpleNamespace(correlation=PAIRS[pair]), RULES)


def test_the_parent_s_identified_features_are_marked_and_none_of_a_child_without_other_seeds():
    of_parent, of_child = marked(["base.seed0__base.seed1"], [])
    assert of_parent.tolist() == [True, False, True, False]
    assert of_child.tolist() == [False] * 4


def test_without_other_seeds_of_the_parent_nothing_is_marked():
    assert marked([], []) is None
