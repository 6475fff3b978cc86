"""Every YAML block of the README and the documents is a config that can be planned, alone or laid over a small one.

A block with `run` is a whole config, and its files are checked too. Any other block holds some of the keys of a config.
It is laid over `AROUND`: its blocks replace those there, and models that it names and does not make are added.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from saelineage.plan.brought import check_on_disk
from saelineage.plan.checks import check
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.load import load_plan
from saelineage.plan.plan import Plan
from saelineage.plan.strict_yaml import read_yaml
from tests.hub_server import SCRIPTS
from tests.unit.plan.test_compare import write_model

ROOT = SCRIPTS.parents[1]
SCHEMA = ROOT / "config" / "config.schema.yaml"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
AROUND = {
    "run": "around",
    "corpora": {name: {"source": "stdlib"} for name in ("english", "python", "lua")},
    "tokenizer": {"source": "train", "vocab_size": 384, "corpora": ["english"]},
    "models": {"base": {"pretrain": {"corpora": {"english": 1.0}, "n_tokens": 20480}}},
}
TUNED = {"finetune": {"parent": "base", "corpora": {"lua": 1.0}, "n_tokens": 20480}}
"""A model that a block names and does not make."""
ONE_MODEL, MODELS = ("parent", "base", "of", "like", "model"), ("parents",)
"""Keys whose values are names of models."""


def blocks(text: str) -> list[str]:
    return re.findall(r"^```ya?ml\n(.+?)^```", text, flags=re.DOTALL | re.MULTILINE)


BLOCKS = {
    f"{path.relative_to(ROOT)}:{number}": block
    for path in DOCUMENTS
    for number, block in enumerate(blocks(path.read_text(encoding="utf-8")), start=1)
}


def named_models(block: object) -> Iterator[str]:
    """Names of models that a part of a config mentions."""
    for key, value in block.items() if isinstance(block, dict) else []:
        yield from [value] if key in ONE_MODEL and isinstance(value, str) else []
        yield from value if key in MODELS else []
        yield from value if key == "models" else []
        yield from named_models(value)


def around(block: dict) -> dict:
    """A fragment, laid over the small config."""
    made = block.get("models", {})
    kept = [f"{name}_" for name in made]  # such as lua_step50 of lua
    missing = [name for name in named_models(block) if name not in made and not name.startswith(tuple(kept))]
    added = {name: AROUND["models"].get(name, TUNED) for name in ["base", *missing] if name not in made}
    return AROUND | block | {"models": added | made}


def planned(path: Path, folder: Path) -> Plan:
    """The plan of a block in a file, after the checks that need no network."""
    config = read_yaml(path)
    if "run" in config:
        for block in config["models"].values():
            if "path" in block:
                (folder / block["path"]["folder"]).mkdir(parents=True)
                write_model(block["path"]["folder"], max_position_embeddings=128, num_hidden_layers=24)
        for corpus in config["corpora"].values():
            (folder / corpus["path"]).write_text(json.dumps({"text": "a"}))
        plan = load_plan(config, [path], SCHEMA)
        assert check_on_disk(plan, lambda path: False) == []
        return plan
    plan = Plan(load_config(around(config), read_schema(SCHEMA)))
    for place in plan.places.values():
        check(place)
    return plan


@pytest.mark.parametrize("name", BLOCKS)
def test_a_config_in_a_document_can_be_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("block.yaml").write_text(BLOCKS[name], encoding="utf-8")
    assert planned(Path("block.yaml"), tmp_path).graph.models


def test_the_readme_has_the_config_of_a_merge_of_several_parents():
    (readme,) = [name for name in BLOCKS if name.startswith("README.md")]
    assert "merged: {path: {folder: models/merged, parents: [a, b, c]}}" in BLOCKS[readme]


def test_a_fragment_gets_the_models_that_it_names():
    block = {"models": {"both": {"merge": {"parents": ["code", "stories"]}}}, "sweeps": {"s": {"model": "both"}}}
    assert list(around(block)["models"]) == ["base", "code", "stories", "both"]
    steps = {"models": {"run": {"hub": {"revisions": ["a"]}}, "next": {"path": {"parents": ["run_a"]}}}}
    assert list(around(steps)["models"]) == ["base", "run", "next"]
