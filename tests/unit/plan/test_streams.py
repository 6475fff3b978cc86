"""Which SAEs one job trains while it reads their model, and in which order of tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import SaeName
from saelineage.plan.sizes import (
    DumpSize,
    ModelSize,
    SaeSize,
    forward_flop,
    sae_training_bytes,
    sae_training_flop,
    stream_bytes,
)
from saelineage.plan.turns import ALL
from tests.unit.plan.jobs import InputFiles, Wildcards
from tests.unit.plan.lineages import deep, diamond


def plan(config: dict, keep: object = "stream", **saes: object) -> Plan:
    config["activations"]["keep"] = keep
    config["saes"] |= saes
    return Plan(config)


def part(run: Plan, model: str, sae: str) -> str:
    return str(run.parts.part("mlp", SaeName(model, sae)))


def test_saes_that_start_from_others_of_their_model_come_after_them():
    run = plan(diamond())
    parts = {str(sae): part(run, *sae) for sae in run.comparisons.trained_saes}
    assert {name for name, of_sae in parts.items() if of_sae == "2"} == {
        *("base.from_base", "lua.from_lua", "stories.from_stories"),
    }
    assert parts["base.seed0"] == parts["lua.from_base"] == parts["merged.from_lua+stories"] == "1"
    assert run.parts.members(Wildcards(model="lua", part="1"))["mlp"] == [
        SaeName("lua", name) for name in ("seed0", "seed1", "from_base")
    ]


@pytest.mark.parametrize("instrument", ["anchored", "independent", "same_init", "own_mixture", "frozen"])
def test_no_part_waits_for_itself(instrument: str):
    config = diamond(instrument)
    config["lineage"] |= {"reset_control": True, "second_anchor": True, "stages": True}
    run = plan(config)
    needs = {(sae.model, part(run, *sae)): set() for sae in run.comparisons.trained_saes}
    for sae in run.comparisons.trained_saes:
        for start in run.saes.starts(sae):
            assert (start.model, part(run, *start)) != (sae.model, part(run, *sae))
            needs[sae.model, part(run, *sae)].add((start.model, part(run, *start)))
    left = dict(needs)
    while left:
        ready = [name for name, needed in left.items() if not needed & left.keys()]
        assert ready, left
        for name in ready:
            del left[name]


def test_orders_of_tokens_are_those_that_the_names_promise():
    run = plan(diamond("same_init"))
    seeds = {
        (model, name): run.parts.part("mlp", SaeName(model, name)).seed(model)
        for model in ("base", "lua")
        for name in ("seed0", "seed1", "shared0", "shared0_again")
    }
    assert seeds["base", "shared0"] == seeds["lua", "shared0"]  # one order for all models
    assert seeds["base", "seed0"] == seeds["base", "seed1"]  # one reading of the model
    different = {seeds[key] for key in seeds if key[1] != "seed1"}
    assert len(different) == 5  # seed0, again: one for each model; shared: one for both


def test_a_shuffle_seed_and_corpora_of_their_own_make_another_part():
    run = plan(diamond(), models={"lua": {"seed1": {"shuffle_seed": 5}, "seed0": {"corpora": ["lua"]}}})
    assert part(run, "lua", "seed1") == "1-shuffled-5"
    assert run.parts.seed(Wildcards(model="lua", part="1-shuffled-5")) == 5
    assert part(run, "lua", "seed0") == "1-on-lua"
    assert run.parts.corpora(Wildcards(model="lua", part="1-on-lua")) == ["lua"]
    assert run.parts.corpora(Wildcards(model="lua", part="1")) == list(run.config["corpora"])
    assert run.stream_rows(Wildcards(model="lua", part="1-on-lua")) == [f"results/{run.name}/tokens/lua/train.npy"]


def test_a_stream_holds_a_buffer_and_all_its_saes(tmp_path: Path):
    config = diamond()
    config["activations"] |= {"max_tokens": 400}
    run = plan(config, n_tokens=None, batch_tokens=32, expansion_factor=2.0)
    save_file({"lm_head.weight": np.zeros((100, 6), np.float32)}, tmp_path / "model.safetensors")
    sizes = {"hidden_size": 6, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    for name, n in (("a", 1000), ("b", 100)):
        (tmp_path / f"{name}.npy").write_bytes(b"x" * 2 * n)
    files = [str(tmp_path / name) for name in ("config.json", "model.safetensors")]
    inputs = InputFiles(model=files, tokens=[str(tmp_path / "a.npy"), str(tmp_path / "b.npy")], starts=[])
    need = run.needs.streaming(run.parts.settings, run.parts.hookpoints)(Wildcards(model="base", part="1"), inputs)
    model, sae = ModelSize(600, 2, 6, 24, 100), SaeSize(24, 48)
    # Two SAEs; 300 of the 500 tokens are in the buffer, in float16.
    held = stream_bytes(model, 4 * 16, DumpSize(300, 24), "float16")
    assert need.n_bytes == held + 2 * sae_training_bytes(sae, 32)
    assert need.flop == forward_flop(model, 500) + 2 * sae_training_flop(sae, 500)
    # 2 bytes for each number and 4 for each norm, beside the model and a batch with a copy.
    wider = stream_bytes(model, 4 * 16, DumpSize(400, 24), "float16")
    assert wider - held == 100 * (2 * 24 + 4)


def test_dumps_that_go_have_turns_in_the_order_of_the_lineage():
    run = plan(deep(), keep=False)
    priority = {model: run.turns.dump_priority(Wildcards(model=model)) for model in run.graph.models}
    assert priority["base"] > priority["lua"] > priority["merged"] > priority["polished"]
    assert run.turns.training_priority > max(priority.values())
    assert min(priority.values()) > 0
    assert (run.turns.of_dump, run.turns.of_training) == (ALL, 1)
    for keep in (True, "stream"):
        kept = plan(deep(), keep=keep).turns
        assert (kept.of_dump, kept.of_training, kept.training_priority) == (0, 0, 0)
        assert kept.dump_priority(Wildcards(model="base")) == 0


def test_only_kept_dumps_have_manifests_to_ask_for():
    for keep, n_dumps in ((True, 8), (False, 0), ("stream", 0)):
        manifests = plan(diamond(), keep=keep).manifests()
        assert sum("/activations/" in path and "/train/" in path for path in manifests) == n_dumps
        assert any("/activations/" in path and "/probe/" in path for path in manifests)
