"""The lineage graph: models, parents, SAEs and the pairs that are compared, from a config alone."""

import hashlib

import pytest

from saelineage.plan.graph import Edge
from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import SaeName, shard_names


def lineage() -> dict:
    """base -> lua, stories; lua + stories -> merged -> polished; foreign stands alone. Listed children first."""
    return {
        "corpora": {"english": {}, "lua": {}, "stories": {}},
        "models": {
            "polished": {"finetune": {"parent": "merged", "corpora": {"english": 1.0}}},
            "merged": {"merge": {"parents": ["lua", "stories"], "t": 0.5}},
            "lua": {"finetune": {"parent": "base", "corpora": {"lua": 1.0}}},
            "stories": {"finetune": {"parent": "base", "corpora": {"stories": 0.5, "lua": 0.5}}},
            "base": {"pretrain": {"corpora": {"english": 1.0}}},
            "foreign": {"hub": {"repo": "a/b", "revision": "main", "parents": []}},
        },
        "saes": {
            "k": 32,
            "corpora": None,
            "seeds": [3, 0],
            "shuffle_seed": None,
            "anchored": {},
            "one_pass": False,
            "models": {},
        },
        "correlations": {"nulls": []},
        "lineage": {"controls": {}, "instruments": ["anchored"], "budgets": []},
    }


def stream(model: str, name: str) -> int:
    """The first 4 bytes of sha256 of "lua/0", most significant first: printf lua/0 | sha256sum."""
    return int(hashlib.sha256(f"{model}/{name}".encode()).hexdigest()[:8], 16)


def test_saes_of_one_pass_share_the_order_of_the_first():
    config = lineage()
    config["saes"] |= {"one_pass": True}
    shuffle_seeds = [Plan(config).saes.settings("lua", sae)["shuffle_seed"] for sae in ("seed3", "seed0", "own3")]
    assert shuffle_seeds == [stream("lua", "3"), stream("lua", "3"), None]
    config["saes"]["shuffle_seed"] = 5
    assert Plan(config).saes.settings("lua", "seed0")["shuffle_seed"] == 5


def test_models_are_ordered_parents_first_and_otherwise_as_listed():
    # Each time the first model in the list whose parents are all there is taken.
    assert Plan(lineage()).graph.ordered == ["base", "lua", "stories", "merged", "polished", "foreign"]


def test_edges_follow_the_order_of_their_children():
    assert Plan(lineage()).graph.edges == [
        Edge("base", "lua"),
        Edge("base", "stories"),
        Edge("lua", "merged"),
        Edge("stories", "merged"),
        Edge("merged", "polished"),
    ]


def test_a_circle_is_named_without_the_models_outside_it():
    config = lineage()
    config["models"]["base"] = {"finetune": {"parent": "polished", "corpora": {}}}
    graph = Plan(config).graph
    with pytest.raises(ValueError, match=r"'base', 'lua', 'merged', 'polished', 'stories'\]"):
        list(graph.ordered)


def test_a_model_has_one_kind_and_models_are_listed_by_kind():
    assert Plan(lineage()).graph.kind("merged") == "merge"
    assert Plan(lineage()).graph.of_kind("finetune") == ["polished", "lua", "stories"]
    assert Plan(lineage()).graph.of_kind("pretrain", "hub", "path") == ["base", "foreign"]


def test_an_sae_is_imported_where_its_settings_say_so_and_trained_otherwise():
    config = lineage()
    assert Plan(config).saes.imported == []
    config["saes"]["models"] = {
        "lua": {"import": {"folder": "a"}, "seed0": {"import": None}},
        "base": {"seed3": {"k": 1}},
    }
    assert Plan(config).saes.imported == [SaeName("lua", "seed3")]
    config["saes"] |= {"import": {"folder": "b"}}
    assert SaeName("lua", "seed0") not in Plan(config).saes.imported
    assert len(Plan(config).saes.imported) == 2 * len(config["models"]) - 1


def test_an_sae_that_starts_from_another_is_never_imported():
    config = lineage()
    config["saes"]["import"] = {"folder": "b"}
    assert Plan(config).saes.settings("lua", "seed3")["import"] == {"folder": "b"}
    assert Plan(config).saes.settings("lua", "from_base")["import"] is None


def test_parents_come_in_the_order_of_the_config():
    assert {model: Plan(lineage()).graph.parents(model) for model in lineage()["models"]} == {
        "polished": ["merged"],
        "merged": ["lua", "stories"],
        "lua": ["base"],
        "stories": ["base"],
        "base": [],
        "foreign": [],
    }


def test_ancestors_are_nearest_first_and_each_once():
    assert Plan(lineage()).graph.ancestors("polished") == ["merged", "lua", "stories", "base"]
    assert Plan(lineage()).graph.ancestors("base") == []


def test_the_common_ancestor_is_the_nearest_model_that_all_parents_descend_from():
    config = lineage()
    assert Plan(config).graph.common_ancestor("merged") == "base"
    # `longer` descends from lua, `stories` does not: base is still the nearest of both.
    config["models"]["longer"] = {"finetune": {"parent": "lua", "corpora": {}}}
    config["models"]["late"] = {"merge": {"parents": ["longer", "stories"]}}
    assert Plan(config).graph.common_ancestor("late") == "base"
    # Two children of lua: lua, and not base behind it.
    config["models"]["other"] = {"finetune": {"parent": "lua", "corpora": {}}}
    config["models"]["siblings"] = {"merge": {"parents": ["longer", "other"]}}
    assert Plan(config).graph.common_ancestor("siblings") == "lua"


def test_a_model_merged_with_its_own_fine_tune_has_itself_for_a_base():
    config = lineage()
    config["models"]["soup"] = {"merge": {"parents": ["base", "lua"]}}
    assert Plan(config).graph.common_ancestor("soup") == "base"


def test_there_may_be_no_common_ancestor():
    config = lineage()
    config["models"]["strange"] = {"merge": {"parents": ["lua", "foreign"]}}
    assert Plan(config).graph.common_ancestor("strange") is None
    assert Plan(config).graph.common_ancestor("base") is None


def test_training_corpora_of_a_merge_are_those_of_its_parents_each_once():
    found = {model: Plan(lineage()).graph.training_corpora(model) for model in lineage()["models"]}
    assert found == {
        "polished": ["english"],
        "merged": ["lua", "stories"],
        "lua": ["lua"],
        "stories": ["stories", "lua"],
        "base": ["english"],
        "foreign": [],
    }


def test_a_model_has_an_sae_for_each_seed_the_first_one_first():
    assert Plan(lineage()).saes.of_seeds("lua") == [SaeName("lua", "seed3"), SaeName("lua", "seed0")]
    assert str(SaeName("base", "seed3")) == "base.seed3"


def test_controls_are_the_re_initialised_what_descends_from_them_and_those_named():
    config = lineage()
    config["models"] |= {
        "random": {"reinitialise": {"like": "base", "seed": 0}},
        "scratch": {"finetune": {"parent": "random", "corpora": {"lua": 1.0}}},
    }
    config["lineage"]["controls"] = {"lua": ["foreign"]}
    assert Plan(config).graph.outside == ["foreign", "random", "scratch"]
    assert Plan(config).graph.edges == Plan(lineage()).graph.edges
    assert Plan(config).graph.lineage == ["base", "lua", "stories", "merged", "polished"]
    assert Plan(config).graph.parents("scratch") == ["random"]


def test_a_mixture_is_what_a_model_and_its_ancestors_were_trained_on():
    assert Plan(lineage()).graph.mixture("base") == ["english"]
    assert Plan(lineage()).graph.mixture("lua") == ["english", "lua"]
    assert Plan(lineage()).graph.mixture("merged") == ["english", "lua", "stories"]
    assert Plan(lineage()).graph.mixture("foreign") == ["english", "lua", "stories"]  # nobody knows


def test_anchored_saes_form_a_chain_from_the_root_s_first():
    config = lineage()
    assert [str(Plan(config).saes.anchor(model)) for model in Plan(config).graph.lineage] == [
        "base.seed3",
        "lua.from_base",
        "stories.from_base",
        "merged.from_lua+stories",
        "polished.from_merged",
        "foreign.seed3",
    ]
    assert str(Plan(config).saes.anchor("lua", "@500")) == "lua.from_base@500"
    assert str(Plan(config).saes.anchor("base", "@500")) == "base.seed3"


def test_an_sae_starts_from_the_anchors_of_the_models_in_its_name_at_its_own_budget():
    config = lineage()
    starts = {name: [str(start) for start in Plan(config).saes.starts(name)] for name in (
        "seed3", "own3", "from_base", "from_lua+stories@0", "from_merged"
    )}  # fmt: skip
    assert starts == {
        "seed3": [],
        "own3": [],
        "from_base": ["base.seed3"],
        "from_lua+stories@0": ["lua.from_base@0", "stories.from_base@0"],
        "from_merged": ["merged.from_lua+stories"],
    }


def test_what_an_sae_starts_from_decides_its_budget():
    config = lineage()
    config["saes"] |= {"n_tokens": None, "learning_rate": 0.1}
    config["saes"]["anchored"] = {"n_tokens": 500, "learning_rate": 0.01}
    config["saes"]["models"] = {"lua": {"learning_rate": 0.2, "from_base": {"n_tokens": 700}}}

    def budget(model: str, sae: str) -> tuple:
        settings = Plan(config).saes.settings(model, sae)
        return settings["n_tokens"], settings["learning_rate"]

    assert budget("lua", "seed3") == (None, 0.2)
    assert budget("stories", "from_base") == (500, 0.01)
    assert budget("lua", "from_base") == (700, 0.01)
    assert budget("lua", "from_base@900") == (900, 0.01)
    assert budget("lua", "from_base@0") == (0, 0.01)


def test_a_shared_seed_is_one_stream_for_all_models_and_again_in_another_order():
    config = lineage()
    found = [Plan(config).saes.settings(model, "shared3") for model in ("base", "lua")]
    assert [(one["seed"], one["shuffle_seed"]) for one in found] == [(3, None), (3, None)]
    again = Plan(config).saes.settings("lua", "shared3_again")
    assert (again["seed"], again["shuffle_seed"]) == (3, stream("lua", "shared3_again"))


def test_an_sae_on_its_model_s_own_mixture_has_its_own_stream():
    found = Plan(lineage()).saes.settings("lua", "own3")
    assert (found["corpora"], found["seed"]) == (["english", "lua"], stream("lua", "own3"))


def test_an_sae_has_its_own_settings_before_its_models_before_the_stages():
    config = lineage()
    config["saes"] |= {"batch_tokens": 1024, "learning_rate": 0.001}
    config["saes"]["models"] = {"lua": {"k": 48, "batch_tokens": 64, "seed0": {"k": 96}}, "base": {"corpora": ["lua"]}}

    def settings(model: str, sae: str) -> dict:
        found = Plan(config).saes.settings(model, sae)
        return {key: found[key] for key in ("k", "batch_tokens", "learning_rate", "corpora")}

    stage = {"k": 32, "batch_tokens": 1024, "learning_rate": 0.001, "corpora": ["english", "lua", "stories"]}
    assert settings("stories", "seed0") == stage
    assert settings("lua", "seed3") == stage | {"k": 48, "batch_tokens": 64}
    assert settings("lua", "seed0") == stage | {"k": 96, "batch_tokens": 64}
    assert settings("base", "seed0") == stage | {"corpora": ["lua"]}


def test_settings_of_one_sae_leave_the_config_as_it_was():
    config = lineage()
    Plan(config).saes.settings("lua", "seed0")
    assert config == lineage()


def test_a_seed_starts_another_stream_in_every_model():
    config = lineage()
    saes = [sae for model in config["models"] for sae in Plan(config).saes.of_seeds(model)]
    seeds = {str(sae): Plan(config).saes.settings(*sae)["seed"] for sae in saes}
    assert len(set(seeds.values())) == len(seeds)
    assert seeds["lua.seed0"] == stream("lua", "0")


def test_shards_are_numbered_from_zero_and_padded():
    assert shard_names(1) == ["00000-of-00001"]
    assert shard_names(3) == ["00000-of-00003", "00001-of-00003", "00002-of-00003"]
