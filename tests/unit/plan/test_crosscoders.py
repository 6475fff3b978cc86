"""The crosscoders of a run: what they read, the SAEs that their verdicts stand beside, and what is kept."""

from copy import deepcopy

from saelineage.plan.checks import check
from saelineage.plan.config import load_config
from saelineage.plan.plan import Plan
from tests.unit.plan.jobs import Wildcards
from tests.unit.plan.test_trained_controls import CONFIG, SCHEMA

EDGES = ["base__lua", "base__small", "lua__both", "small__both", "base__theirs"]


def plan(over: str = "lineage", training: dict | None = None, **blocks: dict) -> Plan:
    """The plan of base -> lua, small -> both with twins and the continued model `more`, after all checks."""
    config = deepcopy(CONFIG) | blocks
    config["lineage"] = config.get("lineage", {}) | {"instruments": ["independent", "crosscoder"]}
    config["crosscoder"] = {"over": over, "seeds": [0, 1], "training": training or {}}
    checked = Plan(load_config(config, SCHEMA))
    check(checked)
    return checked


def test_edges_stand_beside_the_crosscoder_of_the_first_seed():
    assert {tuple(name) for name in plan().crosscoders.first_of_edges.values()} == {("lineage", "seed0")}
    of_edges = plan("edge").crosscoders.first_of_edges
    assert {edge: tuple(name) for edge, name in of_edges.items()} == {edge: (edge, "seed0") for edge in EDGES}


def test_verdicts_are_compared_with_those_of_the_saes_that_lead_on_the_same_edges():
    everything = plan()
    assert {sae.model for sae in everything.compared_with("lineage")} == {"base", "lua", "small", "both", "theirs"}
    pair = everything.comparisons.edge_pair("independent", everything.graph.edges[0])
    of_edge = plan("edge")
    assert of_edge.compared_with(EDGES[0]) == list(pair)
    job = Wildcards(group=EDGES[0], seed="seed0")
    shards = of_edge.places["mlp"].paths.matched_features(job)
    assert {path.split("/")[4] for path in shards} == {"base", "lua"}


def test_corpora_that_crosscoders_alone_are_trained_on_are_dumped():
    own = {"saes": {"corpora": ["english"]}}
    assert plan(**own).trained_corpora == ["english"]
    assert plan(training={"corpora": ["lua"]}, **own).trained_corpora == ["english", "lua"]


def test_a_run_keeps_latents_verdicts_and_matches_of_all():
    manifests = plan().places["mlp"].paths.manifests()
    for seed in ("seed0", "seed1"):
        latents = f"results/tiny/crosscoders/mlp/lineage/{seed}/latents"
        assert sum(path.startswith(latents) for path in manifests) == 2  # corpora, of one shard
        for kind in ("", ".matches", ".ablations"):
            assert f"results/tiny/lineage/mlp/crosscoders/lineage.{seed}{kind}.manifest.json" in manifests
