"""Difference SAEs of a run: the pairs of models, the SAEs that they are compared with, settings and refusals."""

from copy import deepcopy

import pytest

from saelineage.errors import InputError
from saelineage.plan.checks import check
from saelineage.plan.config import load_config
from saelineage.plan.plan import Plan
from tests.unit.plan.jobs import Wildcards
from tests.unit.plan.test_trained_controls import CONFIG, SCHEMA


def plan(seeds: tuple[int, ...] = (0,), training: dict | None = None, **blocks: dict) -> Plan:
    """The plan of base -> lua, small -> both with twins and the continued model `more`, after all checks."""
    config = deepcopy(CONFIG) | blocks
    config["difference_saes"] = {"seeds": list(seeds), "training": training or {}}
    checked = Plan(load_config(config, SCHEMA))
    check(checked)
    return checked


def test_there_are_none_without_seeds():
    saes = plan(()).difference_saes
    assert (saes.differences, saes.models, saes.corpora) == ({}, [], [])
    assert plan(()).paths.of_differences("{parent}") == []


def test_every_edge_has_them_and_every_continued_parent():
    roles = {name: pair.role for name, pair in plan().difference_saes.differences.items()}
    edges = ("base__lua", "base__small", "lua__both", "small__both", "base__theirs")
    assert roles == dict.fromkeys(edges, "edge") | {"base__more": "continued"}


def test_directions_are_compared_with_the_leading_saes_and_a_second_one_of_the_parent():
    saes = plan().difference_saes
    compared = {name: {role: str(sae) for role, sae in saes.compared(name).items()} for name in saes.differences}
    second = "base.from_base"
    assert compared["base__lua"] == {"parent": "base.seed0", "child": "lua.from_base", "unchanged": second}
    assert compared["base__more"] == {"parent": "base.seed0", "child": "more.from_base", "unchanged": second}
    assert compared["lua__both"]["child"] == "both.from_lua+small"
    of_one_seed = plan(lineage={"instruments": ["independent"]}, saes={"seeds": [3]}).difference_saes
    assert list(of_one_seed.compared("base__lua")) == ["parent", "child"]
    existing = set(plan().comparisons.saes)
    assert all(sae in existing for name in saes.differences for sae in saes.compared(name).values())


def test_settings_are_those_of_saes_unless_training_has_others():
    saes = plan((0, 1), {"k": 7}, saes={"k": 5, "expansion_factor": 2}).difference_saes
    first, second = (saes.settings("base__lua", seed) for seed in saes.seeds)
    assert (first["k"], first["expansion_factor"], first["corpora"]) == (7, 2, ["english", "lua"])
    seeds = {first["seed"], second["seed"], saes.settings("base__small", "seed0")["seed"]}
    assert len(seeds) == 3
    assert first["shuffle_seed"] == first["seed"]


def test_corpora_that_they_alone_are_trained_on_are_dumped():
    own = {"saes": {"corpora": ["english"]}}
    assert plan((), **own).trained_corpora == ["english"]
    both = plan((0,), {"corpora": ["lua"]}, **own)
    assert both.trained_corpora == ["english", "lua"]
    job = Wildcards(parent="base", child="lua", seed="seed0")
    (dump,) = both.paths.difference_dump("child")(job)
    assert dump == "results/tiny/activations/{hookpoint}/lua/lua/train/shard-00000-of-00001.safetensors"


def test_a_run_keeps_the_folders_and_tables_of_all():
    manifests = plan((0, 1)).places["mlp"].paths.manifests()
    for seed in ("seed0", "seed1"):
        assert f"results/tiny/difference_saes/mlp/base__more/{seed}/manifest.json" in manifests
        assert f"results/tiny/lineage/mlp/differences/lua__both.{seed}.manifest.json" in manifests


@pytest.mark.parametrize("keep", [False, "stream"])
def test_they_need_kept_dumps(keep: bool | str):
    message = rf"activations.keep: must be true for difference_saes.seeds.*not {keep}; set it to true"
    with pytest.raises(InputError, match=message):
        plan(activations={"keep": keep})
    assert plan((), activations={"keep": keep}).difference_saes.seeds == []


def test_they_are_not_imported():
    with pytest.raises(InputError, match=r"difference_saes\.training\.import: must be null"):
        plan((0,), {"import": {"folder": "saes/theirs"}})
