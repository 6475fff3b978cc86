"""Models that are steps of one training: short forms, their place in the lineage, and what is refused."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

import saelineage
from saelineage.errors import InputError
from saelineage.plan.checks import check
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.graph import Edge
from saelineage.plan.plan import Plan
from saelineage.plan.steps import LONGEST_NAME, MOST_MODELS
from tests.unit.plan.jobs import Wildcards

SCHEMA = read_schema(Path(saelineage.__file__).parents[3] / "config" / "config.schema.yaml")
CONFIG = yaml.safe_load("""
run: tiny
corpora: {english: {source: sample, kind: english}, lua: {source: sample, kind: lua}}
tokenizer: {source: train, vocab_size: 300, corpora: [english, lua]}
tokens: {n_ctx: 10}
models:
  base: {pretrain: {corpora: {english: 0.75, lua: 0.25}, n_tokens: 100000}}
  lua: {finetune: {parent: base, corpora: {lua: 1.0}, n_tokens: 4000, batch_rows: 4, keep_steps: [50, 5]}}
  small: {finetune: {parent: base, corpora: {english: 1.0}, epochs: 1}}
  far: {hub: {repo: a/b, revisions: [step0, Stage1/step_1000, main]}}
  mine: {path: {folders: [out/checkpoint-500, out/checkpoint-1000/], follow_links: true, parents: [base]}}
""")
FAR = ["far_step0", "far_stage1-step-1000", "far_main"]
LUA = ["lua_step5", "lua_step50", "lua"]


def plan(**models: dict) -> Plan:
    """The plan of the config above with other models, after all checks that need no files."""
    config = deepcopy(CONFIG)
    config["models"] |= models
    checked = Plan(load_config(config, SCHEMA))
    check(checked)
    return checked


def error_of(**models: dict) -> str:
    with pytest.raises(InputError) as raised:
        plan(**models)
    return str(raised.value)


def test_each_revision_is_a_model_and_the_child_of_the_one_before():
    graph = plan().graph
    assert [graph.parents(model) for model in FAR] == [[], FAR[:1], FAR[1:2]]
    blocks = [{"repo": "a/b", "revision": "step0", "parents": []}]
    blocks += [{"repo": "a/b", "revision": "Stage1/step_1000", "parents": ["far_step0"]}]
    blocks += [{"repo": "a/b", "revision": "main", "parents": ["far_stage1-step-1000"]}]
    assert [graph.block(model) for model in FAR] == blocks
    assert "far" not in graph.models


def test_folders_are_named_by_their_last_part_and_the_first_has_the_parents_that_are_given():
    graph = plan().graph
    names = [model for model in graph.models if model.startswith("mine")]
    assert names == ["mine_checkpoint-500", "mine_checkpoint-1000"]
    assert [graph.parents(model) for model in names] == [["base"], names[:1]]
    assert [graph.block(model)["folder"] for model in names] == ["out/checkpoint-500", "out/checkpoint-1000/"]
    assert all(graph.block(model)["follow_links"] for model in names)


def test_a_fine_tune_descends_from_its_last_kept_step_and_the_first_from_its_parent():
    graph = plan().graph
    assert [graph.parents(model) for model in LUA] == [["base"], ["lua_step5"], ["lua_step50"]]
    assert [graph.made_from(model) for model in LUA] == [["base"]] * 3
    assert graph.models[1:4] == LUA
    assert [graph.training_corpora(model) for model in LUA] == [["lua"]] * 3
    assert graph.made("lua_step50") == "kept at step 50 of the training of lua"
    assert graph.made("lua") == "fine-tuned from lua_step50"


def test_the_training_job_gets_the_steps_in_order_and_starts_from_the_parent():
    line = plan()
    lua = Wildcards(model="lua")
    assert line.params.model(lua) == line.graph.settings("lua") | {"keep_steps": [5, 50]}
    assert line.paths.parents(lua) == line.paths.model("base")
    assert "keep_steps" not in line.params.model(Wildcards(model="small"))  # as before there were any
    kept = Wildcards(model="lua_step5")
    assert line.params.kept_step(kept) == 5
    archive = "results/tiny/models/lua/steps"
    assert line.paths.training_kept_from(kept) == [f"{archive}.tar", f"{archive}.manifest.json"]
    assert line.graph.finetuned(with_lora=False) == ["small"]
    assert line.graph.finetuned(with_lora=False, with_steps=True) == ["lua"]


def test_edges_of_steps_are_edges_of_the_lineage_with_saes_anchored_along_them():
    line = plan()
    edges = [Edge(*pair) for pair in zip(["base", *LUA[:-1]], LUA, strict=True)]
    assert [edge for edge in line.graph.edges if edge.child in LUA] == edges
    pairs = [line.comparisons.edge_pair("anchored", edge) for edge in edges]
    assert [str(child) for _, child in pairs] == [
        "lua_step5.from_base",
        "lua_step50.from_lua_step5",
        "lua.from_lua_step50",
    ]


def test_lines_are_chains_of_three_models_or_more_and_end_at_merges():
    assert plan().graph.lines == [
        ["base", *LUA],
        FAR,
        ["base", "mine_checkpoint-500", "mine_checkpoint-1000"],
    ]
    # lua and small part at base: the line to small has two models. What comes of a merge begins a line of its own.
    merged = {"both": {"merge": {"parents": ["lua", "small"]}}}
    after = {name: {"path": {"folder": name, "parents": [of]}} for name, of in (("one", "both"), ("two", "one"))}
    assert ["both", "one", "two"] in plan(**merged, **after).graph.lines
    assert all("both" not in line for line in plan(**merged).graph.lines)


def test_other_blocks_may_name_the_steps():
    config = deepcopy(CONFIG)
    config["saes"] = {"models": {"lua_step5": {"k": 3}}}
    config["models"]["random"] = {"reinitialise": {"like": "far_step0"}}
    config["lineage"] = {"controls": {"lua_step50": ["small"]}}
    checked = Plan(load_config(config, SCHEMA))
    check(checked)
    assert checked.saes.settings("lua_step5", "seed0")["k"] == 3
    assert "control (small)" in checked.comparisons.control_pairs("anchored", Edge("lua_step5", "lua_step50"))
    assert checked.graph.like("random") == "far_step0"


def test_an_expanded_config_stays_as_it_is():
    # Jobs plan again from the config that the first plan gave them.
    filled = load_config(CONFIG, SCHEMA)
    assert load_config(filled, SCHEMA) == filled


def test_a_place_is_named_once_or_several_times_and_not_both():
    assert error_of(far={"hub": {"repo": "a/b"}}) == (
        "models.far.hub: must name one revision, or several under revisions, got ['repo']; give one of the two"
    )
    both = {"folder": "a", "folders": ["b"]}
    assert "models.mine.path: must name one folder, or several under folders, got" in error_of(mine={"path": both})


def test_two_models_of_one_name_are_refused():
    assert error_of(lua_step5={"hub": {"repo": "a/b", "revision": "main"}}) == (
        "models.lua_step5: every model must have a name of its own, but this is 'lua_step5', as is "
        "models.lua.finetune.keep_steps: 5; rename one, or leave one out"
    )
    same = {"repo": "a/b", "revisions": ["step/1", "step-1"]}
    assert "models.far.hub.revisions: 'step-1': every model must have a name" in error_of(far={"hub": same})


def test_revisions_that_give_no_name_are_refused():
    for revision in ("模型", "x" * LONGEST_NAME):
        message = error_of(far={"hub": {"repo": "a/b", "revisions": [revision]}})
        assert message.startswith(f"models.far.hub.revisions: '{revision}': must give a name of letters and digits")


def test_the_limits_are_those_of_the_schema_and_hold_for_all_steps_together():
    models = SCHEMA["properties"]["models"]
    assert (SCHEMA["$defs"]["name"]["maxLength"], models["maxProperties"]) == (LONGEST_NAME, MOST_MODELS)
    many = {"repo": "a/b", "revisions": [f"step{step}" for step in range(MOST_MODELS)]}
    assert "models: there must be at most 200, but with all revisions" in error_of(far={"hub": many})


def kept(**settings: object) -> dict:
    return {"lua": {"finetune": CONFIG["models"]["lua"]["finetune"] | settings}}


def test_a_step_that_is_not_before_the_last_is_refused_before_the_first_job():
    # 4,000 tokens are 400 rows of 10 and 100 steps of 4 rows.
    assert plan(**kept(keep_steps=[99])).graph.kept_steps("lua") == [99]
    assert error_of(**kept(keep_steps=[5, 100])) == (
        "models.lua.finetune.keep_steps: must be below 100, the number of steps, because 'lua' is the model of the "
        "last one, but 100 is not; lower it, or train for longer"
    )


def test_what_cannot_be_kept_or_compared_is_refused():
    assert "but 'lua' has lora; leave out keep_steps or lora" in error_of(**kept(lora={"r": 2}))
    for of in ("base", "far_main", "lua_step5"):
        assert f"but '{of}' is made by" in error_of(early={"kept": {"of": of, "step": 3}})
    assert "two of step 5; leave one out" in error_of(early={"kept": {"of": "lua", "step": 5}})
    assert "is compared with its own step 50" in error_of(again={"twin": {"of": "lua"}})
    more = {"parent": "base", "like": "lua"}
    assert "give the n_tokens of that step here" in error_of(more={"continued": more})
    controls = plan(more={"continued": more | {"n_tokens": 200}}).graph.trained_controls(Edge("base", "lua_step5"))
    assert controls == {"more": "continued"}


def test_a_kept_model_that_is_written_out_has_a_name_of_its_own():
    graph = plan(early={"kept": {"step": 20, "of": "lua"}}).graph
    assert [graph.parents(model) for model in ("early", "lua_step50")] == [["lua_step5"], ["early"]]
    assert graph.kept_steps("lua") == [5, 20, 50]
