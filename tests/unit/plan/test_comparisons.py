"""Which SAEs are compared: instruments, floors, nulls, controls, and everything a run has to make for them."""

import pytest

from saelineage.plan.comparisons import pair_name
from saelineage.plan.graph import Edge
from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import SaeName


def lineage(*instruments: str, **models: dict) -> dict:
    """base -> lua, stories; lua + stories -> merged."""
    return {
        "corpora": {"english": {}, "lua": {}},
        "tokenizer": {},
        "models": {
            "base": {"pretrain": {"corpora": {"english": 1.0}}},
            "lua": {"finetune": {"parent": "base", "corpora": {"lua": 1.0}}},
            "stories": {"finetune": {"parent": "base", "corpora": {"english": 1.0}}},
            "merged": {"merge": {"parents": ["lua", "stories"], "t": 0.5}},
            **models,
        },
        "activations": {"n_shards": 1, "n_probe_shards": 2},
        "saes": {
            "k": 32,
            "corpora": None,
            "seeds": [0, 1],
            "shuffle_seed": None,
            "anchored": {},
            "one_pass": False,
            "models": {},
        },
        "correlations": {"nulls": []},
        "lineage": {
            "instruments": list(instruments) or ["anchored"],
            "budgets": [],
            "controls": {},
            "token_type": False,
            "readouts": True,
            "ablations": True,
        },
        "sweeps": {},
    }


RANDOM = {"reinitialise": {"like": "base", "seed": 0}}
LUA = Edge("base", "lua")
MERGE = Edge("lua", "merged")


@pytest.mark.parametrize(
    ("instrument", "lua", "merge"),
    [
        ("independent", "base.seed0__lua.seed0", "lua.seed0__merged.seed0"),
        ("same_init", "base.shared0__lua.shared0", "lua.shared0__merged.shared0"),
        ("own_mixture", "base.own0__lua.own0", "lua.own0__merged.own0"),
        ("anchored", "base.seed0__lua.from_base", "lua.from_base__merged.from_lua+stories"),
        ("frozen", "base.seed0__lua.from_base@0", "lua.from_base@0__merged.from_lua+stories@0"),
        ("anchored@500", "base.seed0__lua.from_base@500", "lua.from_base@500__merged.from_lua+stories@500"),
    ],
)
def test_an_instrument_says_which_saes_of_an_edge_are_compared(instrument, lua, merge):
    pairs = [Plan(lineage()).comparisons.edge_pair(instrument, edge) for edge in (LUA, MERGE)]
    assert [pair_name(pair) for pair in pairs] == [lua, merge]


@pytest.mark.parametrize(
    ("instrument", "base", "lua"),
    [
        ("independent", ["base.seed0__base.seed1"], ["lua.seed0__lua.seed1"]),
        ("same_init", ["base.shared0__base.shared0_again"], ["lua.shared0__lua.shared0_again"]),
        ("own_mixture", ["base.own0__base.own1"], ["lua.own0__lua.own1"]),
        ("anchored", ["base.seed0__base.from_base"], ["lua.from_base__lua.from_lua"]),
        ("frozen", ["base.seed0__base.from_base@0"], ["lua.from_base@0__lua.from_lua@0"]),
    ],
)
def test_a_floor_is_what_an_instrument_finds_where_nothing_changed(instrument, base, lua):
    for model, expected in (("base", base), ("lua", lua)):
        pairs = Plan(lineage()).comparisons.floor_pairs(instrument, model)
        assert [pair_name(pair) for pair in pairs] == expected


def test_every_two_seeds_are_a_floor_and_one_seed_has_none():
    config = lineage()
    config["saes"]["seeds"] = [4, 0, 2]
    names = [pair_name(pair) for pair in Plan(config).comparisons.floor_pairs("independent", "lua")]
    assert names == ["lua.seed4__lua.seed0", "lua.seed4__lua.seed2", "lua.seed0__lua.seed2"]
    config["saes"]["seeds"] = [4]
    assert Plan(config).comparisons.floor_pairs("independent", "lua") == []


def test_nulls_are_those_of_the_config_and_models_re_initialised_like_an_ancestor():
    config = lineage(random=RANDOM, stranger={"reinitialise": {"like": "stories", "seed": 0}})
    config["correlations"]["nulls"] = ["shifted", "rotated"]
    found = Plan(config).comparisons.null_pairs("anchored", MERGE)
    assert {null: pair_name(pair) for null, pair in found.items()} == {
        "shifted": "lua.from_base__merged.from_lua+stories_shifted",
        "rotated": "lua.from_base__merged.from_lua+stories_rotated",
        "reinitialised (random)": "lua.from_base__random.from_lua",
    }
    found = Plan(config).comparisons.null_pairs("independent", LUA)
    assert pair_name(found["reinitialised (random)"]) == "base.seed0__random.seed0"


def test_a_control_is_compared_in_its_child_s_place_alone():
    config = lineage(random=RANDOM, scratch={"finetune": {"parent": "random", "corpora": {"lua": 1.0}}})
    config["lineage"]["controls"] = {"lua": ["scratch"]}
    found = Plan(config).comparisons.null_pairs("frozen", LUA)
    assert {null: pair_name(pair) for null, pair in found.items()} == {
        "reinitialised (random)": "base.seed0__random.from_base@0",
        "control (scratch)": "base.seed0__scratch.from_base@0",
    }
    assert Plan(config).comparisons.null_pairs("frozen", Edge("base", "stories")).keys() == {"reinitialised (random)"}


def test_a_model_s_leading_sae_is_shown_beside_another_seed_s_or_its_floor_s():
    assert Plan(lineage("anchored")).comparisons.other_pairs("base") == [
        (SaeName("base", "seed0"), SaeName("base", "seed1"))
    ]
    config = lineage("same_init")
    assert Plan(config).comparisons.other_pairs("base") == [
        (SaeName("base", "shared0"), SaeName("base", "shared0_again"))
    ]
    config = lineage("independent")
    config["saes"]["seeds"] = [0]
    assert Plan(config).comparisons.other_pairs("base") == []


@pytest.mark.parametrize(
    ("instrument", "base", "lua"),
    [
        # The leading SAE of lua is from_base: it is compared with what trains on from it.
        ("anchored", ["base.seed0__base.from_base"], ["lua.from_base__lua.from_lua"]),
        ("independent", ["base.seed0__base.seed1"], ["lua.seed0__lua.seed1"]),
        ("same_init", ["base.shared0__base.shared0_again"], ["lua.shared0__lua.shared0_again"]),
    ],
)
def test_the_leading_sae_where_nothing_changed_is_among_the_pairs_of_the_run(instrument, base, lua):
    config = lineage(instrument)
    for model, expected in (("base", base), ("lua", lua)):
        pairs = Plan(config).comparisons.no_change_pairs(model)
        assert [pair_name(pair) for pair in pairs] == expected
        assert set(pairs) <= set(Plan(config).comparisons.pairs)


def test_of_several_seeds_the_leading_one_s_pairs_show_where_nothing_changed():
    config = lineage("independent")
    config["saes"]["seeds"] = [4, 0, 2]
    # 0 beside 2 is a floor too, but says nothing of the leading SAE.
    names = [pair_name(pair) for pair in Plan(config).comparisons.no_change_pairs("lua")]
    assert sorted(names) == ["lua.seed4__lua.seed0", "lua.seed4__lua.seed2"]
    config["saes"]["seeds"] = [4]
    assert Plan(config).comparisons.no_change_pairs("lua") == []


def test_a_merge_is_also_anchored_to_each_parent_alone():
    assert Plan(lineage()).comparisons.anchored_alone(MERGE) == (
        SaeName("lua", "from_base"),
        SaeName("merged", "from_lua"),
    )
    assert Plan(lineage()).comparisons.anchored_alone(LUA) is None


def test_features_should_recur_in_their_model_s_other_seeds_and_be_absent_from_all_of_the_other_model():
    def names(config: dict, edge: Edge) -> dict:
        found = Plan(config).comparisons.recurrence_pairs(edge)
        return {
            side: {what: [f"{a}-{b}" for a, b in pairs] for what, pairs in both.items()} for side, both in found.items()
        }

    assert names(lineage("independent"), LUA) == {
        "parent": {
            "recurs": ["base.seed0-base.seed1"],
            "absent": ["base.seed0-lua.seed0", "base.seed0-lua.seed1"],
        },
        "child": {"recurs": ["lua.seed0-lua.seed1"], "absent": ["lua.seed0-base.seed0", "lua.seed0-base.seed1"]},
    }
    anchored = names(lineage("anchored"), LUA)
    assert anchored["parent"] == {
        "recurs": ["base.seed0-base.seed1"],
        "absent": ["base.seed0-lua.from_base", "base.seed0-lua.seed0", "base.seed0-lua.seed1"],
    }
    assert anchored["child"]["recurs"] == ["lua.from_base-lua.seed0", "lua.from_base-lua.seed1"]


def test_a_merge_s_features_may_come_from_its_parents_or_from_what_both_descend_from():
    found = Plan(lineage("independent")).comparisons.source_pairs("merged")
    assert {name: pair_name(pair) for name, pair in found.items()} == {
        "lua": "lua.seed0__merged.seed0",
        "stories": "stories.seed0__merged.seed0",
        "base": "base.seed0__merged.seed0",
    }
    assert Plan(lineage()).comparisons.merges == ["merged"]


def test_merges_that_stand_in_a_merge_s_place_have_sources_too():
    config = lineage("anchored", linear={"merge": {"parents": ["lua", "stories"], "method": "linear", "t": 0.5}})
    config["lineage"]["controls"] = {"merged": ["linear"]}
    sources = Plan(config).comparisons.as_data()["sources"]
    assert list(sources) == ["merged", "linear"]
    assert sources["linear"] == {
        "parents": ["lua", "stories"],
        "pairs": {
            "lua": "lua.from_base__linear.from_lua+stories",
            "stories": "stories.from_base__linear.from_lua+stories",
            "base": "base.seed0__linear.from_lua+stories",
        },
    }


def test_each_pair_is_correlated_once_whichever_way_round():
    pairs = Plan(lineage("anchored", "independent", "frozen")).comparisons.pairs
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    # The child's side asks for this one the other way round; the edge, parent first, is what is made.
    assert (SaeName("base", "seed0"), SaeName("lua", "seed0")) in pairs


def test_the_plan_names_no_pair_that_is_not_correlated():
    config = lineage("anchored", "independent", "same_init", random=RANDOM)
    config["lineage"]["budgets"] = [500]
    config["correlations"]["nulls"] = ["shifted"]
    made = {pair_name(pair) for pair in Plan(config).comparisons.pairs}
    plan = Plan(config).comparisons.as_data()
    wanted = {row["pair"] for row in plan["comparisons"]}
    for row in plan["comparisons"]:
        wanted |= {*row["floors"], *row["nulls"].values(), *(name for names in row["seeds"].values() for name in names)}
    for both in plan["recurrence"].values():
        wanted |= {name for side in both.values() for names in side.values() for name in names}
    wanted |= {name for found in plan["sources"].values() for name in found["pairs"].values()}
    assert wanted == made


def test_a_plan_leads_with_the_first_instrument_and_has_a_row_for_each_edge_and_instrument():
    plan = Plan(lineage("anchored", "independent")).comparisons.as_data()
    assert plan["leading"] == "anchored"
    assert plan["saes"] == {
        "base": "seed0",
        "lua": "from_base",
        "stories": "from_base",
        "merged": "from_lua+stories",
    }
    rows = [(row["parent"], row["child"], row["instrument"]) for row in plan["comparisons"]]
    assert rows[:2] == [("base", "lua", "anchored"), ("base", "lua", "independent")]
    assert rows[4:6] == [("lua", "merged", "anchored"), ("lua", "merged", "anchored to lua alone")]
    assert len(rows) == 4 * 2 + 2


def test_all_saes_are_the_seeds_of_the_lineage_what_is_compared_and_what_those_start_from():
    config = lineage("frozen", random=RANDOM)
    config["saes"]["seeds"] = [0]
    assert [str(sae) for sae in Plan(config).comparisons.saes] == [
        "base.seed0",
        "base.from_base@0",
        "lua.seed0",
        "lua.from_base@0",
        "lua.from_lua@0",
        "stories.seed0",
        "stories.from_base@0",
        "stories.from_stories@0",
        "merged.seed0",
        "merged.from_lua+stories@0",
        "random.from_base@0",
        "random.from_lua@0",
        "random.from_stories@0",
    ]


def test_nulls_add_no_sae():
    config = lineage("anchored")
    before = Plan(config).comparisons.saes
    config["correlations"]["nulls"] = ["shifted", "rotated"]
    assert Plan(config).comparisons.saes == before


def test_saes_that_are_imported_are_not_trained():
    config = lineage("independent")
    config["saes"]["models"] = {"lua": {"import": {"folder": "a"}, "seed0": {"import": None}}}
    trained = Plan(config).comparisons.trained_saes
    assert [sae for sae in Plan(config).comparisons.saes if sae not in trained] == [SaeName("lua", "seed1")]


def test_the_shape_of_a_run_knows_its_jobs_and_not_their_settings():
    config = lineage()
    shape = Plan(config).job_shape()
    assert shape["models"]["merged"] == ["merge", None, ["lua", "stories"], ["lua", "english"]]
    assert shape["shards"] == [1, 2]
    config["saes"]["k"] = 48
    assert Plan(config).job_shape() == shape
    config["lineage"]["instruments"] = ["independent"]
    assert Plan(config).job_shape() != shape


def test_the_shape_of_a_run_knows_which_saes_are_imported_and_not_from_where():
    config = lineage("independent")
    trained = Plan(config).job_shape()
    config["saes"]["models"] = {"lua": {"seed0": {"import": {"folder": "a"}}}}
    shape = Plan(config).job_shape()
    assert (trained["imported_saes"], shape["imported_saes"]) == ([], ["lua.seed0"])
    assert trained["saes"].keys() - shape["saes"].keys() == {"lua.seed0"}
    config["saes"]["models"]["lua"]["seed0"]["import"]["folder"] = "b"
    assert Plan(config).job_shape() == shape


def test_saes_that_are_only_floors_or_controls_are_not_measured():
    config = lineage("anchored", "same_init", random=RANDOM)
    left_out = set(Plan(config).comparisons.saes) - set(Plan(config).comparisons.measured_saes)
    assert sorted(map(str, left_out)) == [
        "base.from_base",
        "base.shared0_again",
        "lua.from_lua",
        "lua.shared0_again",
        "random.from_base",
        "random.from_lua",
        "random.from_stories",
        "random.shared0",
        "stories.from_stories",
        "stories.shared0_again",
    ]
