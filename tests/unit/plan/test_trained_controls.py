"""Twins and continued models: what they are trained as, which edges they are controls of, and what is refused."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

import saelineage
from saelineage.errors import InputError
from saelineage.plan.checks import check
from saelineage.plan.comparisons import pair_name
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.graph import Edge
from saelineage.plan.plan import Plan
from tests.unit.plan.jobs import Wildcards

SCHEMA = read_schema(Path(saelineage.__file__).parents[3] / "config" / "config.schema.yaml")
CONFIG = yaml.safe_load("""
run: tiny
corpora: {english: {source: sample, kind: english}, lua: {source: sample, kind: lua}}
tokenizer: {source: train, vocab_size: 300, corpora: [english, lua]}
models:
  base: {pretrain: {corpora: {english: 0.75, lua: 0.25}, n_tokens: 100000}}
  lua: {finetune: {parent: base, corpora: {lua: 1.0}, n_tokens: 5000, learning_rate: 0.002}}
  small: {finetune: {parent: base, corpora: {english: 1.0}, epochs: 1, lora: {r: 2}}}
  both: {merge: {parents: [lua, small]}}
  theirs: {hub: {repo: a/b, revision: main, parents: [base]}}
  lua_again: {twin: {of: lua}}
  small_again: {twin: {of: small, seed: 7}}
  more: {continued: {parent: base, like: lua}}
lineage: {instruments: [anchored, independent]}
""")


def plan(config: dict = CONFIG, **models: dict) -> Plan:
    """The plan of the config above with other models, after all checks that need no files."""
    config = deepcopy(config)
    config["models"] |= models
    checked = Plan(load_config(config, SCHEMA))
    check(checked)
    return checked


def error_of(**models: dict) -> str:
    with pytest.raises(InputError) as raised:
        plan(**models)
    return str(raised.value)


def test_a_twin_is_its_model_s_training_from_another_seed():
    graph = plan().graph
    assert graph.settings("lua_again") == graph.settings("lua") | {"seed": 1}
    assert graph.settings("small_again") == graph.settings("small") | {"seed": 7}
    assert (graph.finetuned(with_lora=False), graph.finetuned(with_lora=True)) == (
        ["lua", "lua_again", "more"],
        ["small", "small_again"],
    )
    assert graph.made("lua_again") == "fine-tuned from base like lua, from another seed"
    assert graph.made("small_again").startswith("fine-tuned from base like small, from another seed with LoRA (r = 2")


def test_a_continued_model_has_its_parent_s_corpora_and_all_else_of_the_fine_tune_that_it_is_like():
    graph = plan().graph
    assert graph.settings("more") == graph.settings("lua") | {"corpora": {"english": 0.75, "lua": 0.25}, "seed": 1}
    assert graph.made("more") == "base trained further on its own corpora, like lua"
    # Epochs are no number of tokens on other corpora, so one is given.
    graph = plan(more={"continued": {"parent": "base", "like": "small", "n_tokens": 4096}}).graph
    settings = graph.settings("more")
    assert (settings["n_tokens"], settings["epochs"], settings["lora"]["r"]) == (4096, None, 2)


def test_jobs_of_twins_and_continued_models_get_their_settings_rows_and_parent():
    line = plan()
    for model, corpora in (("lua_again", ["lua"]), ("small_again", ["english"]), ("more", ["english", "lua"])):
        wildcards = Wildcards(model=model)
        assert line.params.model(wildcards) == line.graph.settings(model)
        assert line.paths.training_rows(wildcards) == [f"results/tiny/tokens/{name}/train.npy" for name in corpora]
        assert line.paths.parents(wildcards) == line.paths.model("base")


def test_they_are_outside_the_lineage_and_controls_of_the_edges_to_the_child_or_from_the_parent():
    graph = plan().graph
    assert graph.outside == ["lua_again", "small_again", "more"]
    assert {str(edge): graph.trained_controls(edge) for edge in graph.edges} == {
        "base__lua": {"lua_again": "twin", "more": "continued"},
        "base__small": {"small_again": "twin", "more": "continued"},
        "base__theirs": {"more": "continued"},
        "lua__both": {},
        "small__both": {},
    }


def test_their_saes_are_made_as_the_child_s_and_compared_with_the_parent_s_under_every_instrument():
    comparisons = plan().comparisons
    named = {
        name: {role: pair_name(pair) for role, pair in comparisons.control_pairs(name, Edge("base", "lua")).items()}
        for name in comparisons.instruments
    }
    controls = ("twin (lua_again)", "continued (more)")
    assert [named["anchored"][role] for role in controls] == [
        "base.seed0__lua_again.from_base",
        "base.seed0__more.from_base",
    ]
    assert [named["independent"][role] for role in controls] == [
        "base.seed0__lua_again.seed0",
        "base.seed0__more.seed0",
    ]
    assert {sae.sae for sae in comparisons.saes if sae.model == "lua_again"} == {"from_base", "seed0"}


def test_the_child_s_sae_is_compared_with_theirs_under_the_leading_instrument():
    comparisons = plan().comparisons
    assert comparisons.as_data()["trained_controls"]["base__lua"] == {
        "twins": {
            "lua_again": {
                "parent": "base.seed0__lua_again.from_base",
                "child": "lua.from_base__lua_again.from_base",
            }
        },
        "continued": {"more": {"parent": "base.seed0__more.from_base", "child": "lua.from_base__more.from_base"}},
    }
    assert comparisons.as_data()["trained_controls"]["lua__both"] == {"twins": {}, "continued": {}}
    names = set(map(pair_name, comparisons.pairs))
    assert {"lua.from_base__lua_again.from_base", "theirs.from_base__more.from_base"} <= names
    assert "lua.seed0__lua_again.seed0" not in names


def test_a_twin_s_saes_have_the_settings_of_its_model_s():
    config = deepcopy(CONFIG)
    overrides = {"import": {"folder": "sae"}, "learning_rate": 0.5, "from_base": {"n_tokens": 2048}}
    config["saes"] = {"seeds": [0], "models": {"lua": overrides, "lua_again": {"from_base": {"batch_tokens": 512}}}}
    saes = plan(config).saes
    twin = saes.settings("lua_again", "seed0")
    assert (twin["learning_rate"], twin["import"]) == (0.5, None)  # an SAE from elsewhere is of one model
    assert saes.settings("lua_again", "from_base")["batch_tokens"] == 512
    assert saes.settings("small_again", "seed0")["learning_rate"] == 0.001


NO_FINE_TUNE = "models.again.twin: of: must be made by finetune, because only that can be repeated from a seed"
NO_MIXTURE = (
    "models.again.continued: parent: must be made by pretrain or finetune, because only of these the mixture of "
    "corpora is known"
)
CONTRADICTIONS = {
    "models.again.twin: of: 'luau' is not among models": {"twin": {"of": "luau"}},
    f"{NO_FINE_TUNE}, but 'both' is made by merge; name a fine-tune": {"twin": {"of": "both"}},
    f"{NO_FINE_TUNE}, but 'theirs' is made by": {"twin": {"of": "theirs"}},
    f"{NO_FINE_TUNE}, but 'again' is made by": {"twin": {"of": "again"}},
    "models.again.twin.seed: must differ from that of 'lua', which is 0; give another": {
        "twin": {"of": "lua", "seed": 0}
    },
    "models.again.continued: parent: 'bass' is not among models": {"continued": {"parent": "bass", "like": "lua"}},
    f"{NO_MIXTURE}, but 'theirs' is made by hub; fine-tune 'theirs' on a corpus like its own, and list": {
        "continued": {"parent": "theirs", "like": "lua"}
    },
    f"{NO_MIXTURE}, but 'both' is made by merge; fine-tune": {"continued": {"parent": "both", "like": "lua"}},
    "models.again.continued: like: must be made by finetune, because it gives the settings of the training, but 'b": {
        "continued": {"parent": "base", "like": "base"}
    },
    "models.again.continued: like: must name a fine-tune of n_tokens, but 'small' is trained for epochs": {
        "continued": {"parent": "base", "like": "small"}
    },
    "models.again.continued.seed: must differ from that of 'base', which is 0": {
        "continued": {"parent": "base", "like": "lua", "seed": 0}
    },
    "models.again.continued.n_tokens: must be at least batch_rows x": {
        "continued": {"parent": "base", "like": "lua", "n_tokens": 2047}
    },
}
"""How the message begins, by a model that cannot be."""


def test_a_twin_or_continued_model_of_something_that_cannot_be_repeated_is_refused_with_a_remedy():
    messages = {start: error_of(again=model) for start, model in CONTRADICTIONS.items()}
    assert {start: message for start, message in messages.items() if not message.startswith(start)} == {}
    assert [message for message in messages.values() if "; " not in message] == []


def test_a_twin_or_continued_model_without_an_edge_is_refused():
    random = {"reinitialise": {"like": "base"}}
    scratch = {"finetune": CONFIG["models"]["lua"]["finetune"] | {"parent": "random"}}
    message = error_of(random=random, scratch=scratch, again={"twin": {"of": "scratch"}})
    assert message == (
        "models.again.twin: of: must be a child in the lineage, whose edges 'again' is a control of, but 'scratch' is "
        "not; name another model or leave 'again' out"
    )
    alone = {"pretrain": CONFIG["models"]["base"]["pretrain"]}
    message = error_of(alone=alone, again={"continued": {"parent": "alone", "like": "lua"}})
    assert message.startswith("models.again.continued: parent: must be a parent in the lineage, whose edges 'again' is")


BACK = {"revived": {"of": "lua", "n_tokens": 4096}}
MORE_LUA = {"continued": {"parent": "lua", "like": "lua", "n_tokens": 4096}}


def test_a_revived_model_starts_from_a_fine_tune_and_has_the_corpora_of_its_parent():
    graph = plan(back=BACK, more_lua=MORE_LUA).graph
    changed = {"parent": "lua", "corpora": {"english": 0.75, "lua": 0.25}, "n_tokens": 4096, "seed": 1}
    assert graph.settings("back") == graph.settings("lua") | changed
    assert graph.made("back") == "lua trained further on the corpora of its parent"
    assert {"back", "more_lua"} <= set(graph.outside)
    assert graph.revivals(Edge("base", "lua")) == {"back": "more_lua"}
    assert graph.revivals(Edge("base", "small")) == {}
    assert graph.trained_controls(Edge("lua", "both")) == {}  # the control of a revived model is that alone
    assert plan(more_lua=MORE_LUA).graph.trained_controls(Edge("lua", "both")) == {"more_lua": "continued"}
    # A fine-tune by LoRA is revived by LoRA, for tokens instead of epochs.
    small = {"revived": {"of": "small", "n_tokens": 4096}}
    settings = plan(
        back=small, more=MORE_LUA, longer={"continued": {"parent": "small", "like": "small", "n_tokens": 4096}}
    )
    of_back = settings.graph.settings("back")
    assert (of_back["lora"]["r"], of_back["epochs"], of_back["n_tokens"]) == (2, None, 4096)


def test_the_parent_s_sae_is_compared_with_three_that_are_made_from_the_child_s():
    comparisons = plan(back=BACK, more_lua=MORE_LUA).comparisons
    assert comparisons.as_data()["revivals"] == {
        "base__lua": {
            "back": {
                "revived": "base.seed0__back.from_lua",
                "continued": "base.seed0__more_lua.from_lua",
                "unchanged": "base.seed0__lua.from_lua",
            }
        }
    }
    assert {sae.sae for sae in comparisons.saes if sae.model == "back"} == {"from_lua"}
    assert plan().comparisons.as_data()["revivals"] == {}


def test_independent_saes_of_a_revived_model_are_compared_with_a_second_seed_of_the_child():
    config = deepcopy(CONFIG) | {"lineage": {"instruments": ["independent"]}}
    pairs = plan(config, back=BACK, more_lua=MORE_LUA).comparisons.as_data()["revivals"]["base__lua"]["back"]
    assert pairs == {
        "revived": "base.seed0__back.seed0",
        "continued": "base.seed0__more_lua.seed0",
        "unchanged": "base.seed0__lua.seed1",
    }


NOT_REVIVED = {
    "models.back.revived: of: 'luau' is not among models": {"of": "luau"},
    "models.back.revived: of: must be made by finetune, because only these are trained here from another model, but "
    "'both' is made by merge; name": {"of": "both"},
    "models.back.revived.seed: must differ from that of 'base', which is 0": {"of": "lua", "seed": 0},
    "models.back.revived: must have a continued model of 'lua', like it and with as many tokens, beside it, because "
    "some lost features return by any training, but there is none; add 'lua_continued: {continued: {parent: lua, "
    "like: lua, n_tokens: 8192}}' under models": {"of": "lua", "n_tokens": 8192},
}
"""How the message begins, by a block that cannot be."""


def test_a_revived_model_that_cannot_be_is_refused_with_a_remedy():
    blocks = {start: {"revived": {"n_tokens": 4096} | block} for start, block in NOT_REVIVED.items()}
    messages = {start: error_of(back=block, more_lua=MORE_LUA) for start, block in blocks.items()}
    assert {start: message for start, message in messages.items() if not message.startswith(start)} == {}
    like_another = {"continued": {"parent": "lua", "like": "small", "n_tokens": 4096}}  # by LoRA
    assert "must have a continued model of 'lua', like it" in error_of(back=BACK, more_lua=like_another)
    # The corpora of a model from the hub are not known.
    theirs = {"finetune": CONFIG["models"]["lua"]["finetune"] | {"parent": "theirs"}}
    message = error_of(tuned=theirs, back={"revived": {"of": "tuned", "n_tokens": 4096}})
    assert message.startswith("models.back.revived: of: the parent of 'tuned': must be made by pretrain or finetune")


def test_a_child_without_children_can_be_continued_as_the_control_of_a_revived_one():
    config = deepcopy(CONFIG)
    del config["models"]["both"]
    graph = plan(config, back=BACK, more_lua=MORE_LUA).graph
    assert graph.revivals(Edge("base", "lua")) == {"back": "more_lua"}
    with pytest.raises(InputError, match="must be a parent in the lineage"):
        plan(config, more_lua=MORE_LUA)


def test_siblings_are_other_models_trained_from_the_same_parent_without_twins_and_merges():
    graph = plan(third={"merge": {"parents": ["base", "lua"]}}).graph
    assert {str(edge): graph.siblings(edge) for edge in graph.edges} == {
        "base__lua": ["small", "theirs", "more"],
        "base__small": ["lua", "theirs", "more"],
        "lua__both": [],
        "small__both": [],
        "base__theirs": ["lua", "small", "more"],
        "base__third": ["lua", "small", "theirs", "more"],
        "lua__third": [],
    }
    assert graph.beside_siblings == ["base", "lua", "small", "theirs", "more", "third"]
