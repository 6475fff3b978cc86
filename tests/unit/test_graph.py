"""The lineage graph: models, parents, SAEs and the pairs that are compared, from a config alone."""

import hashlib

import pytest

from saelineage import graph
from saelineage.graph import Edge, Sae


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
        "saes": {"k": 32, "corpora": None, "seeds": [3, 0], "seed_per_model": False, "one_pass": False, "models": {}},
        "correlations": {"nulls": []},
    }


def test_saes_of_one_pass_share_the_order_of_the_first():
    config = lineage()
    config["saes"] |= {"one_pass": True, "shuffle_seed": None}
    assert [graph.sae_settings(config, "lua", sae)["shuffle_seed"] for sae in ("seed3", "seed0")] == [3, 3]
    config["saes"]["shuffle_seed"] = 5
    assert graph.sae_settings(config, "lua", "seed0")["shuffle_seed"] == 5


def test_models_are_ordered_parents_first_and_otherwise_as_listed():
    # Each time the first model in the list whose parents are all there is taken.
    assert graph.ordered_models(lineage()) == ["base", "lua", "stories", "merged", "polished", "foreign"]


def test_edges_follow_the_order_of_their_children():
    assert graph.edges(lineage()) == [
        Edge("base", "lua"),
        Edge("base", "stories"),
        Edge("lua", "merged"),
        Edge("stories", "merged"),
        Edge("merged", "polished"),
    ]


def test_a_circle_is_named_without_the_models_outside_it():
    config = lineage()
    config["models"]["base"] = {"finetune": {"parent": "polished", "corpora": {}}}
    with pytest.raises(
        ValueError, match=r"^models \['base', 'lua', 'merged', 'polished', 'stories'\] descend from each"
    ):
        graph.ordered_models(config)


def test_a_model_has_one_kind_and_models_are_listed_by_kind():
    assert graph.kind(lineage(), "merged") == "merge"
    assert graph.models_of_kind(lineage(), "finetune") == ["polished", "lua", "stories"]
    assert graph.models_of_kind(lineage(), "pretrain", "hub", "path") == ["base", "foreign"]


def test_the_shape_of_a_run_knows_its_jobs_and_not_their_settings():
    config = lineage() | {"tokenizer": {}, "activations": {"n_shards": 1, "n_probe_shards": 2}, "sweeps": {}}
    shape = graph.job_shape(config)
    assert shape["models"]["merged"] == ["merge", None, ["lua", "stories"], ["lua", "stories"]]
    assert shape["shards"] == [1, 2]
    config["saes"]["k"] = 48
    assert graph.job_shape(config) == shape
    config["saes"]["seeds"] = [3]
    assert graph.job_shape(config) != shape


def test_an_sae_is_imported_where_its_settings_say_so_and_trained_otherwise():
    config = lineage()
    assert graph.imported_saes(config) == []
    config["saes"]["models"] = {
        "lua": {"import": {"folder": "a"}, "seed0": {"import": None}},
        "base": {"seed3": {"k": 1}},
    }
    assert graph.imported_saes(config) == [Sae("lua", "seed3")]
    assert graph.trained_saes(config) == [sae for sae in graph.all_saes(config) if str(sae) != "lua.seed3"]
    config["saes"] |= {"import": {"folder": "b"}}
    assert [str(sae) for sae in graph.trained_saes(config)] == ["lua.seed0"]


def test_the_shape_of_a_run_knows_which_saes_are_imported_and_not_from_where():
    config = lineage() | {"tokenizer": {}, "activations": {"n_shards": 1, "n_probe_shards": 2}, "sweeps": {}}
    trained = graph.job_shape(config)
    config["saes"]["models"] = {"lua": {"seed0": {"import": {"folder": "a"}}}}
    shape = graph.job_shape(config)
    assert (trained["imported_saes"], shape["imported_saes"]) == ([], ["lua.seed0"])
    assert trained["saes"].keys() - shape["saes"].keys() == {"lua.seed0"}
    config["saes"]["models"]["lua"]["seed0"]["import"]["folder"] = "b"
    assert graph.job_shape(config) == shape


def test_parents_come_in_the_order_of_the_config():
    assert {model: graph.parents(lineage(), model) for model in lineage()["models"]} == {
        "polished": ["merged"],
        "merged": ["lua", "stories"],
        "lua": ["base"],
        "stories": ["base"],
        "base": [],
        "foreign": [],
    }


def test_ancestors_are_nearest_first_and_each_once():
    assert graph.ancestors(lineage(), "polished") == ["merged", "lua", "stories", "base"]
    assert graph.ancestors(lineage(), "base") == []


def test_the_common_ancestor_is_the_nearest_model_that_all_parents_descend_from():
    config = lineage()
    assert graph.common_ancestor(config, "merged") == "base"
    # `longer` descends from lua, `stories` does not: base is still the nearest of both.
    config["models"]["longer"] = {"finetune": {"parent": "lua", "corpora": {}}}
    config["models"]["late"] = {"merge": {"parents": ["longer", "stories"]}}
    assert graph.common_ancestor(config, "late") == "base"
    # Two children of lua: lua, and not base behind it.
    config["models"]["other"] = {"finetune": {"parent": "lua", "corpora": {}}}
    config["models"]["siblings"] = {"merge": {"parents": ["longer", "other"]}}
    assert graph.common_ancestor(config, "siblings") == "lua"


def test_a_model_merged_with_its_own_fine_tune_has_itself_for_a_base():
    config = lineage()
    config["models"]["soup"] = {"merge": {"parents": ["base", "lua"]}}
    assert graph.common_ancestor(config, "soup") == "base"


def test_there_may_be_no_common_ancestor():
    config = lineage()
    config["models"]["strange"] = {"merge": {"parents": ["lua", "foreign"]}}
    assert graph.common_ancestor(config, "strange") is None
    assert graph.common_ancestor(config, "base") is None


def test_training_corpora_of_a_merge_are_those_of_its_parents_each_once():
    found = {model: graph.training_corpora(lineage(), model) for model in lineage()["models"]}
    assert found == {
        "polished": ["english"],
        "merged": ["lua", "stories"],
        "lua": ["lua"],
        "stories": ["stories", "lua"],
        "base": ["english"],
        "foreign": [],
    }


def test_the_first_seed_of_the_config_is_compared_along_the_lineage():
    assert graph.saes(lineage(), "lua") == [Sae("lua", "seed3"), Sae("lua", "seed0")]
    assert graph.edge_pair(lineage(), Edge("base", "lua")) == (Sae("base", "seed3"), Sae("lua", "seed3"))
    assert str(Sae("base", "seed3")) == "base.seed3"


def test_every_two_seeds_of_a_model_are_a_pair():
    config = lineage()
    config["saes"]["seeds"] = [0, 1, 2]
    assert [f"{a.sae}-{b.sae}" for a, b in graph.seed_pairs(config, "lua")] == [
        "seed0-seed1",
        "seed0-seed2",
        "seed1-seed2",
    ]


def test_all_pairs_are_the_edges_then_the_seed_pairs_then_the_nulls():
    config = {
        "models": {
            "base": {"pretrain": {"corpora": {}}},
            "lua": {"finetune": {"parent": "base", "corpora": {}}},
            "random": {"reinitialise": {"like": "base", "seed": 0}},
        },
        "saes": {"seeds": [0, 1]},
        "correlations": {"nulls": ["shifted", "rotated"]},
    }
    assert [f"{a}__{b}" for a, b in graph.all_pairs(config)] == [
        "base.seed0__lua.seed0",
        "base.seed0__base.seed1",
        "lua.seed0__lua.seed1",
        "random.seed0__random.seed1",
        "base.seed0__lua.seed0_shifted",
        "base.seed0__lua.seed0_rotated",
        "base.seed0__random.seed0",
    ]
    assert [str(sae) for sae in graph.saes(config, "lua")] == ["lua.seed0", "lua.seed1"]


def test_an_edge_s_nulls_are_those_of_the_config_and_the_models_re_initialised_like_its_parent():
    config = lineage()
    config["models"] |= {"random": {"reinitialise": {"like": "lua", "seed": 0}}}
    config["correlations"]["nulls"] = ["shifted"]
    lua = {null: f"{a}__{b}" for null, (a, b) in graph.null_pairs(config, Edge("lua", "merged")).items()}
    assert lua == {"shifted": "lua.seed3__merged.seed3_shifted", "reinitialised (random)": "lua.seed3__random.seed3"}
    assert graph.null_pairs(config, Edge("base", "lua")).keys() == {"shifted"}
    assert graph.parents(config, "random") == []


def test_an_sae_has_its_own_settings_before_its_models_before_the_stages():
    config = lineage()
    config["saes"] |= {"batch_tokens": 1024, "learning_rate": 0.001}
    config["saes"]["models"] = {"lua": {"k": 48, "batch_tokens": 64, "seed0": {"k": 96}}, "base": {"corpora": ["lua"]}}
    stage = {"batch_tokens": 1024, "learning_rate": 0.001, "corpora": ["english", "lua", "stories"]}
    assert graph.sae_settings(config, "stories", "seed0") == stage | {"k": 32, "seed": 0}
    assert graph.sae_settings(config, "lua", "seed3") == stage | {"k": 48, "batch_tokens": 64, "seed": 3}
    assert graph.sae_settings(config, "lua", "seed0") == stage | {"k": 96, "batch_tokens": 64, "seed": 0}
    assert graph.sae_settings(config, "base", "seed0") == stage | {"k": 32, "corpora": ["lua"], "seed": 0}


def test_settings_of_one_sae_leave_the_config_as_it_was():
    config = lineage()
    graph.sae_settings(config, "lua", "seed0")
    assert config == lineage()


def test_a_seed_per_model_starts_another_stream_in_every_model_and_for_every_seed():
    config = lineage()
    config["saes"]["seed_per_model"] = True
    seeds = {str(sae): graph.sae_settings(config, *sae)["seed"] for sae in graph.all_saes(config)}
    assert len(set(seeds.values())) == len(seeds)
    # The first 4 bytes of sha256 of "lua/0", most significant first: printf lua/0 | sha256sum
    assert seeds["lua.seed0"] == int(hashlib.sha256(b"lua/0").hexdigest()[:8], 16)


def test_shards_are_numbered_from_zero_and_padded():
    assert graph.shard_names(1) == ["00000-of-00001"]
    assert graph.shard_names(3) == ["00000-of-00003", "00001-of-00003", "00002-of-00003"]
