"""The lineage graph: models, their kinds, parents, ancestors and corpora."""

import pytest

from saelineage.errors import InputError
from saelineage.plan.graph import Edge
from saelineage.plan.plan import Plan
from tests.unit.plan.lineages import MERGE, deep


def test_models_are_ordered_parents_first_and_edges_follow_their_children():
    graph = Plan(deep()).graph
    # Each time the first model in the list whose parents are all there is taken.
    assert graph.ordered == ["base", "lua", "stories", "merged", "polished", "foreign"]
    assert graph.edges == [
        Edge("base", "lua"),
        Edge("base", "stories"),
        Edge("lua", "merged"),
        Edge("stories", "merged"),
        Edge("merged", "polished"),
    ]
    assert (graph.roots, graph.connected) == (["base", "foreign"], ["base", "lua", "stories", "merged", "polished"])


def test_a_cycle_is_reported_without_the_models_outside_it():
    config = deep()
    config["models"]["base"] = {"finetune": {"parent": "polished", "corpora": {}}}
    graph = Plan(config).graph
    with pytest.raises(ValueError, match=r"\['base', 'lua', 'merged', 'polished', 'stories'\]"):
        _ = graph.ordered


def test_a_model_has_one_kind_and_models_are_listed_by_kind():
    graph = Plan(deep()).graph
    assert graph.kind("merged") == "merge"
    assert graph.of_kind("finetune") == ["polished", "lua", "stories"]
    assert graph.of_kind("pretrain", "hub", "path") == ["base", "foreign"]


def test_parents_are_in_the_order_of_the_config_and_ancestors_nearest_first():
    graph = Plan(deep()).graph
    assert {model: graph.parents(model) for model in graph.models} == {
        "polished": ["merged"],
        "merged": ["lua", "stories"],
        "lua": ["base"],
        "stories": ["base"],
        "base": [],
        "foreign": [],
    }
    assert graph.ancestors("polished") == ["merged", "lua", "stories", "base"]
    assert graph.ancestors("base") == []


def test_the_common_ancestor_is_the_nearest_model_that_all_parents_are_or_descend_from():
    config = deep()
    config["models"] |= {
        "longer": {"finetune": {"parent": "lua", "corpora": {}}},
        "other": {"finetune": {"parent": "lua", "corpora": {}}},
        "late": {"merge": {"parents": ["longer", "stories"]}},
        "siblings": {"merge": {"parents": ["longer", "other"]}},
        "soup": {"merge": {"parents": ["base", "lua"]}},
        "strange": {"merge": {"parents": ["lua", "foreign"]}},
    }
    graph = Plan(config).graph
    expected = {
        "merged": "base",
        "late": "base",  # `longer` descends from lua, `stories` does not
        "siblings": "lua",  # two children of lua: not base behind it
        "soup": "base",  # a model merged with its own fine-tune
        "strange": None,
        "base": None,
    }
    assert {model: graph.common_ancestor(model) for model in expected} == expected


def test_a_merge_has_the_training_corpora_of_its_parents_and_a_mixture_those_of_all_ancestors():
    graph = Plan(deep()).graph
    assert {model: graph.training_corpora(model) for model in graph.models} == {
        "polished": ["english"],
        "merged": ["lua", "stories"],
        "lua": ["lua"],
        "stories": ["stories", "lua"],
        "base": ["english"],
        "foreign": [],
    }
    assert graph.mixture("base") == ["english"]
    assert graph.mixture("lua") == ["english", "lua"]
    assert graph.mixture("merged") == ["english", "lua", "stories"]
    assert graph.mixture("foreign") == ["english", "lua", "stories"]  # nothing is known


def test_re_initialised_models_their_descendants_and_controls_are_outside_the_lineage():
    config = deep()
    config["models"] |= {
        "random": {"reinitialise": {"like": "base", "seed": 0}},
        "scratch": {"finetune": {"parent": "random", "corpora": {"lua": 1.0}}},
    }
    config["lineage"]["controls"] = {"lua": ["foreign"]}
    graph = Plan(config).graph
    assert graph.outside == ["foreign", "random", "scratch"]
    assert graph.edges == Plan(deep()).graph.edges
    assert graph.lineage == ["base", "lua", "stories", "merged", "polished"]
    assert graph.parents("scratch") == ["random"]


def test_models_are_described_by_how_they_were_made():
    graph = Plan(deep()).graph
    assert graph.made("merged") == "merged from lua and stories by slerp (t = 0.5)"
    assert graph.made("foreign") == "imported from the hub"


def test_differences_are_taken_from_the_nearest_model_that_all_changed_parents_descend_from():
    ties = MERGE | {"method": "ties", "t": None}

    def base_of(**changes: object) -> str | None:
        return Plan(deep() | {"models": deep()["models"] | {"m": {"merge": ties | changes}}}).graph.merge_base("m")

    assert base_of() == "base"
    assert base_of(parents=["lua"]) == "base"
    assert base_of(parents=["polished"]) == "merged"
    assert base_of(base="stories") == "stories"
    assert base_of(method="slerp") is None
    assert base_of(method="linear", lines={"alpha": 0.5, "beta": 0.5}) == "base"
    assert base_of(method="transfer", parents=["foreign", "lua"]) == "base"
    with pytest.raises(InputError, match=r"models\.m\.merge\.base: must be given, because no model .* base and lua"):
        base_of(parents=["base", "lua"])


def test_what_a_merge_needs_is_its_parents_and_its_base():
    models = deep()["models"] | {"m": {"merge": MERGE | {"method": "ties", "t": None, "base": "foreign"}}}
    graph = Plan(deep() | {"models": models}).graph
    assert graph.needed("m") == ["lua", "stories", "foreign"]
    assert graph.parents("m") == ["lua", "stories"]


def test_a_base_comes_before_the_merge_and_kept_steps_are_no_base():
    late = {"finetune": {"parent": "base", "corpora": {"english": 1.0}}}
    ties = MERGE | {"method": "ties", "t": None}
    models = {"m": {"merge": ties | {"base": "late"}}, **deep()["models"], "late": late}
    ordered = Plan(deep() | {"models": models}).graph.ordered
    assert ordered.index("late") < ordered.index("m")
    kept = {"kept": {"of": "lua", "step": 5}}
    graph = Plan(deep() | {"models": deep()["models"] | {"lua5": kept, "m": {"merge": ties}}}).graph
    assert graph.ancestors("lua")[0] == "lua5"
    assert graph.merge_base("m") == "base"
