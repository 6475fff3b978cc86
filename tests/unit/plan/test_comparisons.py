"""The pairs of SAEs that are compared: instruments, seeds, controls, and the SAEs that a run makes for them."""

from collections.abc import Iterable

from saelineage.plan.comparisons import Pair, pair_name
from saelineage.plan.graph import Edge
from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import SaeName
from tests.unit.plan.lineages import RANDOM, diamond, stream

LUA = Edge("base", "lua")
MERGE = Edge("lua", "merged")


def names(pairs: Iterable[Pair]) -> list[str]:
    return [pair_name(pair) for pair in pairs]


def test_an_instrument_decides_which_saes_of_an_edge_are_compared():
    expected = {
        "independent": ["base.seed0__lua.seed0", "lua.seed0__merged.seed0"],
        "same_init": ["base.shared0__lua.shared0", "lua.shared0__merged.shared0"],
        "own_mixture": ["base.own0__lua.own0", "lua.own0__merged.own0"],
        "anchored": ["base.seed0__lua.from_base", "lua.from_base__merged.from_lua+stories"],
        "frozen": ["base.seed0__lua.from_base@0", "lua.from_base@0__merged.from_lua+stories@0"],
        "anchored@500": ["base.seed0__lua.from_base@500", "lua.from_base@500__merged.from_lua+stories@500"],
    }
    comparisons = Plan(diamond()).comparisons
    pairs = {name: [comparisons.edge_pair(name, edge) for edge in (LUA, MERGE)] for name in expected}
    assert {name: names(of_edges) for name, of_edges in pairs.items()} == expected


def test_a_no_change_control_compares_two_saes_of_one_model():
    expected = {
        "independent": ["base.seed0__base.seed1", "lua.seed0__lua.seed1"],
        "same_init": ["base.shared0__base.shared0_again", "lua.shared0__lua.shared0_again"],
        "own_mixture": ["base.own0__base.own1", "lua.own0__lua.own1"],
        "anchored": ["base.seed0__base.from_base", "lua.from_base__lua.from_lua"],
        "frozen": ["base.seed0__base.from_base@0", "lua.from_base@0__lua.from_lua@0"],
    }
    comparisons = Plan(diamond()).comparisons
    controls = {
        name: comparisons.no_change_pairs(name, "base") + comparisons.no_change_pairs(name, "lua") for name in expected
    }
    assert {name: names(pairs) for name, pairs in controls.items()} == expected


def test_every_two_seeds_are_a_control_and_those_with_the_leading_sae_are_its_own():
    config = diamond("independent")
    config["saes"]["seeds"] = [4, 0, 2]
    comparisons = Plan(config).comparisons
    assert names(comparisons.no_change_pairs("independent", "lua")) == [
        "lua.seed4__lua.seed0",
        "lua.seed4__lua.seed2",
        "lua.seed0__lua.seed2",
    ]
    assert sorted(names(comparisons.leading_no_change_pairs("lua"))) == ["lua.seed4__lua.seed0", "lua.seed4__lua.seed2"]
    config["saes"]["seeds"] = [4]
    assert Plan(config).comparisons.no_change_pairs("independent", "lua") == []
    assert Plan(config).comparisons.leading_no_change_pairs("lua") == []


def test_the_no_change_control_of_the_leading_sae_is_among_the_pairs_of_the_run():
    expected = {
        # The leading SAE of lua is from_base. from_lua starts from it.
        "anchored": ["base.seed0__base.from_base", "lua.from_base__lua.from_lua"],
        "independent": ["base.seed0__base.seed1", "lua.seed0__lua.seed1"],
        "same_init": ["base.shared0__base.shared0_again", "lua.shared0__lua.shared0_again"],
    }
    for name, controls in expected.items():
        comparisons = Plan(diamond(name)).comparisons
        pairs = comparisons.leading_no_change_pairs("base") + comparisons.leading_no_change_pairs("lua")
        assert names(pairs) == controls
        assert set(pairs) <= set(comparisons.pairs)


def test_random_controls_are_those_of_the_config_and_models_re_initialised_like_an_ancestor():
    config = diamond(random=RANDOM, stranger={"reinitialise": {"like": "stories", "seed": 0}})
    config["correlations"]["random_controls"] = ["shifted", "rotated"]
    comparisons = Plan(config).comparisons
    controls = comparisons.control_pairs("anchored", MERGE)
    assert {control: pair_name(pair) for control, pair in controls.items()} == {
        "shifted": "lua.from_base__merged.from_lua+stories_shifted",
        "rotated": "lua.from_base__merged.from_lua+stories_rotated",
        "reinitialised (random)": "lua.from_base__random.from_lua",
    }
    assert (
        pair_name(comparisons.control_pairs("independent", LUA)["reinitialised (random)"]) == "base.seed0__random.seed0"
    )
    saes = comparisons.saes
    config["correlations"]["random_controls"] = []
    assert Plan(config).comparisons.saes == saes  # random controls of the child's features need no SAE of their own


def test_a_control_is_compared_on_the_edges_to_its_child_only():
    config = diamond(random=RANDOM, scratch={"finetune": {"parent": "random", "corpora": {"lua": 1.0}}})
    config["lineage"]["controls"] = {"lua": ["scratch"]}
    comparisons = Plan(config).comparisons
    controls = comparisons.control_pairs("frozen", LUA)
    assert {role: pair_name(pair) for role, pair in controls.items()} == {
        "reinitialised (random)": "base.seed0__random.from_base@0",
        "control (scratch)": "base.seed0__scratch.from_base@0",
    }
    assert comparisons.control_pairs("frozen", Edge("base", "stories")).keys() == {"reinitialised (random)"}


def test_a_merge_is_also_anchored_to_each_parent_alone():
    comparisons = Plan(diamond()).comparisons
    assert comparisons.anchored_alone(MERGE) == (SaeName("lua", "from_base"), SaeName("merged", "from_lua"))
    assert comparisons.anchored_alone(LUA) is None


def test_a_feature_is_identified_by_other_seeds_of_its_model_and_robust_if_no_sae_of_the_other_has_it():
    independent = Plan(diamond("independent")).comparisons
    assert names(independent.recurrence_pairs(LUA)) == ["base.seed0__base.seed1", "lua.seed0__lua.seed1"]
    assert {side: names(pairs) for side, pairs in independent.absence_pairs(LUA).items()} == {
        "parent": ["base.seed0__lua.seed0", "base.seed0__lua.seed1"],
        "child": ["lua.seed0__base.seed0", "lua.seed0__base.seed1"],
    }
    anchored = Plan(diamond("anchored")).comparisons
    assert names(anchored.recurrence_pairs(LUA)) == [
        "base.seed0__base.seed1",
        "lua.from_base__lua.seed0",
        "lua.from_base__lua.seed1",
    ]
    assert names(anchored.absence_pairs(LUA)["parent"]) == [
        "base.seed0__lua.from_base",
        "base.seed0__lua.seed0",
        "base.seed0__lua.seed1",
    ]


def test_rows_name_the_seeds_that_identify_features_only_where_these_are_correlated():
    rows = {
        (row["instrument"], row["child"]): row
        for row in Plan(diamond("anchored", "independent", "same_init")).comparisons.rows
    }
    anchored = rows["anchored", "lua"]
    assert anchored["recurs"]["parent"] == ["base.seed0__base.seed1"]
    assert anchored["recurs"]["child"] == ["lua.from_base__lua.seed0", "lua.from_base__lua.seed1"]
    assert anchored["seeds_of_child"] == ["base.seed0__lua.seed0", "base.seed0__lua.seed1"]
    # A merge's features by those of the merge.
    assert rows["anchored to lua alone", "merged"]["recurs"]["child"] == []
    assert rows["independent", "lua"]["recurs"]["child"] == ["lua.seed0__lua.seed1"]
    # Nothing compares a shared initialisation with seeds of its own.
    assert rows["same_init", "lua"]["recurs"] == {"parent": [], "child": []}
    config = diamond("anchored")
    config["saes"]["seeds"] = [0]
    assert Plan(config).comparisons.rows[0]["recurs"] == {"parent": [], "child": ["lua.from_base__lua.seed0"]}


def test_a_merge_and_its_controls_are_compared_with_their_parents_and_common_ancestor():
    config = diamond("anchored", linear={"merge": diamond()["models"]["merged"]["merge"] | {"method": "linear"}})
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


def test_each_pair_is_correlated_in_one_direction_only():
    comparisons = Plan(diamond("anchored", "independent", "frozen")).comparisons
    assert len({frozenset(pair) for pair in comparisons.pairs}) == len(comparisons.pairs)
    # The child's side asks for the reverse of this pair; an edge is correlated with its parent first.
    assert (SaeName("base", "seed0"), SaeName("lua", "seed0")) in comparisons.pairs
    partners = [(name, str(b)) for name, saes in comparisons.partners.items() for b in saes]
    assert sorted(partners) == sorted((str(a), str(b)) for a, b in comparisons.pairs)


def test_the_data_for_the_lineage_name_exactly_the_pairs_that_are_correlated():
    config = diamond("anchored", "independent", "same_init", random=RANDOM)
    config["lineage"]["budgets"] = [500]
    config["correlations"]["random_controls"] = ["shifted"]
    comparisons = Plan(config).comparisons
    data = comparisons.as_data()
    named = {row["pair"] for row in data["comparisons"]}
    for row in data["comparisons"]:
        named |= {*row["no_change"], *row["controls"].values(), *row["seeds_of_child"]}
        named |= {name for pairs in (*row["seeds"].values(), *row["recurs"].values()) for name in pairs}
        named |= {of_seed["pair"] for of_seed in row["by_seed"]}
    for sides in data["absence"].values():
        named |= {name for pairs in sides.values() for name in pairs}
    named |= {name for source in data["sources"].values() for name in source["pairs"].values()}
    assert named == set(names(comparisons.pairs))


def test_an_edge_of_independent_saes_is_compared_seed_by_seed():
    rows = {row["instrument"]: row for row in Plan(diamond("anchored", "independent")).comparisons.rows[:2]}
    assert rows["anchored"]["by_seed"] == []
    assert rows["independent"]["by_seed"] == [
        {
            "pair": f"base.seed{seed}__lua.seed{seed}",
            "recurs": {"parent": ["base.seed0__base.seed1"], "child": ["lua.seed0__lua.seed1"]},
        }
        for seed in (0, 1)
    ]
    anchored = Plan(diamond("anchored")).comparisons
    assert not any("lua.seed1" in name and "base.seed1" in name for name in names(anchored.pairs))


def test_the_first_instrument_leads_and_each_edge_has_a_row_for_each_instrument():
    data = Plan(diamond("anchored", "independent")).comparisons.as_data()
    assert data["leading"] == "anchored"
    assert data["saes"] == {
        "base": "seed0",
        "lua": "from_base",
        "stories": "from_base",
        "merged": "from_lua+stories",
    }
    rows = [(row["parent"], row["child"], row["instrument"]) for row in data["comparisons"]]
    assert rows[:2] == [("base", "lua", "anchored"), ("base", "lua", "independent")]
    assert rows[4:6] == [("lua", "merged", "anchored"), ("lua", "merged", "anchored to lua alone")]
    assert len(rows) == 4 * 2 + 2


def test_a_run_has_the_saes_of_all_seeds_those_compared_and_those_that_others_start_from():
    config = diamond("frozen", random=RANDOM)
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


def test_imported_saes_are_not_trained():
    config = diamond("independent")
    config["saes"]["models"] = {"lua": {"import": {"folder": "a"}, "seed0": {"import": None}}}
    comparisons = Plan(config).comparisons
    assert set(comparisons.saes) - set(comparisons.trained_saes) == {SaeName("lua", "seed1")}


def test_saes_that_are_only_in_controls_are_not_measured():
    comparisons = Plan(diamond("anchored", "same_init", random=RANDOM)).comparisons
    assert sorted(map(str, set(comparisons.saes) - set(comparisons.measured_saes))) == [
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


def test_the_shape_of_a_run_depends_on_its_jobs_and_not_on_their_settings():
    config = diamond("independent")
    shape = Plan(config).job_shape()
    assert shape["models"]["merged"] == ["merge", None, ["lua", "stories"], ["lua", "english"]]
    assert shape["shards"] == [1, 2]
    assert shape["imported_saes"] == {"mlp": []}
    config["saes"]["k"] = 48
    assert Plan(config).job_shape() == shape
    # An imported SAE has another job than a trained one, whatever its source.
    config["saes"]["models"] = {"lua": {"seed0": {"import": {"folder": "a"}}}}
    with_import = Plan(config).job_shape()
    assert with_import["imported_saes"] == {"mlp": ["lua.seed0"]}
    assert shape["saes"]["mlp"].keys() - with_import["saes"]["mlp"].keys() == {"lua.seed0"}
    config["saes"]["models"]["lua"]["seed0"]["import"]["folder"] = "b"
    assert Plan(config).job_shape() == with_import
    config["lineage"]["instruments"] = ["anchored"]
    assert Plan(config).job_shape() != with_import


def test_a_reset_control_is_compared_with_the_parent_s_sae_under_each_anchored_budget():
    config = diamond("anchored", "independent", "frozen")
    config["lineage"] |= {"reset_control": True, "budgets": [500]}
    comparisons = Plan(config).comparisons
    pairs = [comparisons.reset_pair(name, "lua") for name in comparisons.instruments]
    assert [pair and pair_name(pair) for pair in pairs] == [
        "lua.from_base__lua.reset_lua",
        None,
        None,
        "lua.from_base@500__lua.reset_lua@500",
    ]
    assert {SaeName("lua", "reset_lua"), SaeName("base", "reset_base@500")} < set(comparisons.saes)
    assert not {SaeName("merged", "reset_merged")} & set(comparisons.saes)  # merged has no child
    rows = {(row["parent"], row["instrument"]): row["reset"] for row in comparisons.as_data()["comparisons"]}
    control = {"pair": "base.seed0__base.reset_base", "share": 0.5, "seed": stream("base", "reset_base")}
    assert rows["base", "anchored"] == control
    assert rows["base", "frozen"] is None
    config["lineage"]["reset_control"] = False
    assert all(row["reset"] is None for row in Plan(config).comparisons.rows)


def test_edges_to_models_with_text_of_their_own_have_two_steps():
    config = diamond("anchored")
    config["lineage"]["stages"] = True
    comparisons = Plan(config).comparisons
    assert list(map(str, comparisons.staged_edges)) == ["base__lua", "base__stories"]
    assert comparisons.as_data()["stages"]["base__lua"] == {
        "data_model": ["base.seed0__base.data_lua", "base.data_lua__lua.data+model_base"],
        "model_data": ["base.seed0__lua.model_base", "lua.model_base__lua.model+data_base"],
    }
    config["lineage"]["stages"] = {"stories": ["lua"]}
    assert list(map(str, Plan(config).comparisons.staged_edges)) == ["base__stories"]
    config["lineage"]["stages"] = False
    assert Plan(config).comparisons.as_data()["stages"] == {}


def test_a_second_chain_begins_with_the_root_s_second_seed():
    config = diamond("anchored")
    config["lineage"]["second_anchor"] = True
    plan = Plan(config)
    data = plan.comparisons.as_data()["second_anchor"]
    assert data["base__lua"] == {"edge": "base.seed1__lua.second_base", "parents": "base.seed0__base.seed1"}
    assert data["lua__merged"] == {
        "edge": "lua.second_base__merged.second_lua+stories",
        "parents": "lua.from_base__lua.second_base",
    }
    starts = [plan.saes.starts(SaeName(*sae)) for sae in (("lua", "second_base"), ("merged", "second_lua+stories"))]
    assert starts == [[("base", "seed1")], [("lua", "second_base"), ("stories", "second_base")]]
    config["lineage"]["second_anchor"] = False
    assert Plan(config).comparisons.as_data()["second_anchor"] == {}
