"""Names of SAEs decide where training starts, the seeds and the settings."""

from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import SaeName, shard_names
from tests.unit.plan.lineages import deep, stream


def test_a_model_has_an_sae_for_each_seed_in_the_config_s_order():
    assert Plan(deep()).saes.of_seeds("lua") == [SaeName("lua", "seed3"), SaeName("lua", "seed0")]
    assert str(SaeName("base", "seed3")) == "base.seed3"


def test_anchored_saes_form_a_chain_from_the_root_s_first_sae():
    plan = Plan(deep())
    assert [str(plan.saes.anchor(model)) for model in plan.graph.lineage] == [
        "base.seed3",
        "lua.from_base",
        "stories.from_base",
        "merged.from_lua+stories",
        "polished.from_merged",
        "foreign.seed3",
    ]
    assert str(plan.saes.anchor("lua", "@500")) == "lua.from_base@500"
    assert str(plan.saes.anchor("base", "@500")) == "base.seed3"


def test_an_sae_starts_from_the_saes_of_the_models_in_its_name_with_the_same_budget():
    expected = {
        "seed3": [],
        "own3": [],
        "from_base": ["base.seed3"],
        "from_lua+stories@0": ["lua.from_base@0", "stories.from_base@0"],
        "from_merged": ["merged.from_lua+stories"],
    }
    saes = Plan(deep()).saes
    assert {name: [str(start) for start in saes.starts(SaeName("lua", name))] for name in expected} == expected


def test_a_reset_control_starts_where_the_no_change_control_does():
    config = deep()
    config["saes"]["anchored"] = {"learning_rate": 0.01}
    config["lineage"]["reset_share"] = 0.25
    saes = Plan(config).saes
    for model, name in (("lua", "reset_lua"), ("base", "reset_base@500")):
        unchanged = name.replace("reset", "from")
        assert saes.starts(SaeName(model, name)) == saes.starts(SaeName(model, unchanged))
        settings = saes.settings(model, name)
        assert settings.pop("reset_share") == 0.25
        assert settings | {"seed": 0} == saes.settings(model, unchanged) | {"seed": 0}
        assert settings["seed"] == stream(model, name)
    assert "reset_share" not in saes.settings("lua", "from_lua")


def test_two_steps_change_the_text_and_the_model_one_at_a_time():
    config = deep()
    config["saes"]["anchored"] = {"n_tokens": 500}
    config["lineage"]["stages"] = True
    saes = Plan(config).saes
    steps = [SaeName(*step) for step in (("lua", "data_polished"), ("polished", "data+model_lua"))]
    steps += [SaeName(*step) for step in (("stories", "model_base"), ("stories", "model+data_base"))]
    assert [str(start) for step in steps for start in saes.starts(step)] == [
        "lua.from_base",
        "lua.data_polished",
        "base.seed3",
        "stories.model_base",
    ]
    settings = [saes.settings(*step) for step in steps]
    # The text of polished is english, that of base is english, that of stories is stories and lua.
    assert [of_sae["corpora"] for of_sae in settings] == [["english"], ["english"], ["english"], ["stories", "lua"]]
    assert [of_sae["n_tokens"] for of_sae in settings] == [500] * 4
    config["lineage"]["stages"] = {"polished": ["lua"]}
    assert Plan(config).saes.settings("polished", "data+model_lua")["corpora"] == ["lua"]


def test_settings_of_an_sae_come_before_those_of_its_model_before_those_of_the_stage():
    config = deep()
    config["saes"] |= {"batch_tokens": 1024, "learning_rate": 0.001}
    config["saes"]["models"] = {"lua": {"k": 48, "batch_tokens": 64, "seed0": {"k": 96}}, "base": {"corpora": ["lua"]}}

    def settings(model: str, sae: str) -> dict:
        all_settings = Plan(config).saes.settings(model, sae)
        return {key: all_settings[key] for key in ("k", "batch_tokens", "learning_rate", "corpora")}

    stage = {"k": 32, "batch_tokens": 1024, "learning_rate": 0.001, "corpora": ["english", "lua", "stories"]}
    assert settings("stories", "seed0") == stage
    assert settings("lua", "seed3") == stage | {"k": 48, "batch_tokens": 64}
    assert settings("lua", "seed0") == stage | {"k": 96, "batch_tokens": 64}
    assert settings("base", "seed0") == stage | {"corpora": ["lua"]}


def test_reading_settings_does_not_change_the_config():
    config = deep()
    Plan(config).saes.settings("lua", "seed0")
    assert config == deep()


def test_saes_that_start_from_another_have_the_anchored_settings_and_the_budget_of_their_name():
    config = deep()
    config["saes"] |= {"n_tokens": None, "learning_rate": 0.1, "import": {"folder": "b"}}
    config["saes"]["anchored"] = {"n_tokens": 500, "learning_rate": 0.01}
    config["saes"]["models"] = {"lua": {"learning_rate": 0.2, "from_base": {"n_tokens": 700}}}

    def budget(model: str, sae: str) -> tuple:
        settings = Plan(config).saes.settings(model, sae)
        return settings["n_tokens"], settings["learning_rate"], settings["import"]

    assert budget("lua", "seed3") == (None, 0.2, {"folder": "b"})
    assert budget("stories", "from_base") == (500, 0.01, None)
    assert budget("lua", "from_base") == (700, 0.01, None)
    assert budget("lua", "from_base@900") == (900, 0.01, None)
    assert budget("lua", "from_base@0") == (0, 0.01, None)


def test_an_sae_that_starts_from_another_keeps_its_architecture_and_sparsity_unless_told_otherwise():
    config = deep()
    config["saes"] |= {"architecture": "topk", "k": 32, "target_l0": None, "sparsity_coefficient": 1.0}
    config["saes"]["models"] = {"base": {"k": 6, "learning_rate": 0.5}, "stories": {"k": 48}}
    config["saes"]["learning_rate"] = 0.1
    saes = Plan(config).saes
    assert saes.settings("lua", "from_base")["k"] == 6
    assert saes.settings("merged", "from_lua+stories")["k"] == 6  # along the chain
    assert saes.settings("stories", "from_base")["k"] == 48  # the config's word for that model
    assert saes.settings("lua", "seed0")["k"] == 32
    assert saes.settings("lua", "from_base")["learning_rate"] == 0.05  # how it is trained is its own affair
    assert "from_start" not in saes.settings("lua", "from_base")


def test_an_sae_that_starts_from_another_has_a_share_of_the_learning_rate_unless_the_config_gives_one():
    config = deep()
    config["saes"] |= {"learning_rate": 0.1, "anchored_rate": 0.25}
    config["saes"]["models"] = {"lua": {"learning_rate": 0.2, "from_lua": {"learning_rate": 0.3}}}

    def rates() -> list[float]:
        saes = [
            ("base", "seed3"),
            ("stories", "from_base"),
            ("lua", "from_base"),
            ("lua", "from_lua"),
            ("lua", "seed3"),
        ]
        return [Plan(config).saes.settings(*sae)["learning_rate"] for sae in saes]

    assert rates() == [0.1, 0.025, 0.05, 0.3, 0.2]
    config["saes"]["anchored"] = {"learning_rate": 0.01}
    assert rates() == [0.1, 0.01, 0.01, 0.3, 0.2]


def test_what_only_an_imported_sae_s_files_tell_is_left_to_its_training():
    config = deep()
    config["saes"] |= {"architecture": "topk", "k": 32, "target_l0": None, "sparsity_coefficient": 1.0}
    config["saes"]["models"] = {"base": {"import": {"folder": "theirs"}}, "stories": {"from_base": {"k": 48}}}
    saes = Plan(config).saes
    assert saes.settings("lua", "from_base")["from_start"] == ["architecture", "k", "target_l0"]
    assert saes.settings("merged", "from_lua+stories")["from_start"] == ["architecture", "k", "target_l0"]
    assert saes.settings("stories", "from_base")["from_start"] == ["architecture", "target_l0"]
    config["saes"]["anchored"] = {"sparsity_coefficient": 0.5}  # a coefficient without a target
    assert Plan(config).saes.settings("lua", "from_base")["from_start"] == ["architecture", "k"]
    assert "from_start" not in saes.settings("base", "seed3")


def test_a_seed_starts_another_stream_in_every_model():
    plan = Plan(deep())
    saes = [sae for model in plan.graph.models for sae in plan.saes.of_seeds(model)]
    seeds = {str(sae): plan.saes.settings(*sae)["seed"] for sae in saes}
    assert len(set(seeds.values())) == len(seeds)
    assert seeds["lua.seed0"] == stream("lua", "0")


def test_a_shared_seed_is_one_stream_for_all_models_and_again_has_another_order():
    saes = Plan(deep()).saes
    settings = [saes.settings(model, name) for model, name in (("base", "shared3"), ("lua", "shared3"))]
    settings += [saes.settings("lua", "shared3_again")]
    seeds = [(of_sae["seed"], of_sae["shuffle_seed"]) for of_sae in settings]
    assert seeds == [(3, None), (3, None), (3, stream("lua", "shared3_again"))]


def test_an_sae_on_its_model_s_own_mixture_has_a_stream_of_its_own():
    settings = Plan(deep()).saes.settings("lua", "own3")
    assert (settings["corpora"], settings["seed"]) == (["english", "lua"], stream("lua", "own3"))


def test_saes_of_one_pass_have_the_order_of_the_first():
    config = deep()
    config["saes"] |= {"one_pass": True}
    shuffle_seeds = [Plan(config).saes.settings("lua", sae)["shuffle_seed"] for sae in ("seed3", "seed0", "own3")]
    assert shuffle_seeds == [stream("lua", "3"), stream("lua", "3"), None]
    config["saes"]["shuffle_seed"] = 5
    assert Plan(config).saes.settings("lua", "seed0")["shuffle_seed"] == 5


def test_an_sae_is_imported_if_its_settings_say_so():
    config = deep()
    assert Plan(config).saes.imported == []
    config["saes"]["models"] = {
        "lua": {"import": {"folder": "a"}, "seed0": {"import": None}},
        "base": {"seed3": {"k": 1}},
    }
    assert Plan(config).saes.imported == [SaeName("lua", "seed3")]
    config["saes"] |= {"import": {"folder": "b"}}
    imported = Plan(config).saes.imported
    assert SaeName("lua", "seed0") not in imported
    assert len(imported) == 2 * len(config["models"]) - 1


def test_shards_are_numbered_from_zero_and_padded():
    assert shard_names(1) == ["00000-of-00001"]
    assert shard_names(3) == ["00000-of-00003", "00001-of-00003", "00002-of-00003"]
