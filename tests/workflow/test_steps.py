"""Checkpoints as a lineage: a run with a kept step, from its config to its page, and revisions of one repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from saelineage.files.atomic import read_json
from saelineage.jobs.manifests import check_run
from tests.hub_server import running_hub
from tests.workflow.conftest import Checkout

CONFIG = Path(__file__).with_name("steps.yaml")
LINE = ["base", "left_step2", "left"]
REVISIONS = """
run: far
corpora: {lua: {source: sample, kind: lua, max_bytes: 60000}}
tokenizer: {source: path, path: TOKENIZER}
tokens: {n_ctx: 16}
models: {far: {hub: {repo: own/steps, revisions: [step0, step1000, step2000]}}}
activations: {hookpoint: model.layers.0.mlp.down_proj.input}
"""
TAKEN = [f"results/far/models/far_{revision}/model.safetensors" for revision in ("step0", "step1000", "step2000")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A finished run."""
    checkout = Checkout(tmp_path_factory.mktemp("steps"))
    checkout.config.write_text(CONFIG.read_text())
    done = checkout.snakemake("--cores", "2")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return checkout


@pytest.fixture(scope="module")
def run(checkout: Checkout) -> Path:
    return checkout.folder / "results" / "steps"


def test_one_training_makes_both_models_and_leaves_no_archive(run: Path):
    weights = [(run / "models" / model / "model.safetensors").read_bytes() for model in LINE]
    assert len(set(weights)) == 3
    assert not list((run / "models" / "left").glob("steps*"))
    assert check_run(run).problems == []
    assert read_json(run / "models/left_step2/manifest.json")["settings"] == {"step": 2}


def test_the_kept_model_stands_between_parent_and_fine_tune(run: Path):
    edges = read_json(run / "lineage/mlp/summary.json")["edges"]
    assert [(edge["parent"], edge["child"]) for edge in edges] == [("base", "left_step2"), ("left_step2", "left")]


def test_the_page_shows_what_comes_and_goes_by_step(run: Path):
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert "<h3>base → left_step2 → left</h3>" in page
    assert 'id="plot-survival-left"' in page
    tables = run / "report/tables/mlp"
    steps = pd.read_csv(tables / "steps.csv")
    edges = pd.read_csv(tables / "edges.csv")
    columns = ["parent", "child", "group", "persist_share", "persist_share_n", "no_change_share"]
    pd.testing.assert_frame_equal(steps[columns], edges[columns])
    n_persisting = (steps["persist_share"] * steps["persist_share_n"]).round(6)
    assert (n_persisting + steps["parent_drifted"] + steps["lost"] == steps["persist_share_n"]).all()
    survival = pd.read_csv(tables / "survival.csv")
    own = survival[(survival["group"] == "all") & (survival["born"] == "base")]
    assert own["model"].tolist() == ["left_step2", "left"]
    # From the trajectories of base's features, of which those that fire too rarely have no verdict.
    features = pd.read_parquet(run / "lineage/mlp/features.parquet")
    n_found = [int((features.loc[features["model"] == "base", f"in_{model}"] >= 0).sum()) for model in LINE[1:]]
    verdicts = pd.read_parquet(run / "lineage/mlp/edges/base__left_step2.parquet")
    n = int(((verdicts["side"] == "parent") & (verdicts["verdict"] != "untestable")).sum())
    assert (own["share"] * n).round(6).tolist() == n_found
    assert (own["share_n"] == n).all()


def test_another_step_concerns_the_training_and_what_follows(checkout: Checkout):
    assert checkout.stale_jobs() == set()
    checkout.edit("tiny.yaml", "keep_steps: [2]", "keep_steps: [3]")
    jobs = checkout.stale_jobs()
    checkout.edit("tiny.yaml", "keep_steps: [3]", "keep_steps: [2]")
    assert {("finetune_in_steps", "left"), ("keep_step", "left_step3")} <= jobs
    assert not {rule for rule, _ in jobs} & {"pretrain_model", "tokenize_split"}


def test_a_step_that_is_not_before_the_last_is_refused_before_any_job(checkout: Checkout):
    checkout.edit("tiny.yaml", "keep_steps: [2]", "keep_steps: [10]")
    process = checkout.snakemake("--cores", "1")
    checkout.edit("tiny.yaml", "keep_steps: [10]", "keep_steps: [2]")
    assert process.returncode == 1
    assert "models.left.finetune.keep_steps: must be below 10, the number of steps" in process.stderr
    assert "Traceback" not in process.stderr


def test_revisions_become_a_chain_and_equal_ones_are_warned_of_on_the_terminal(tiny, tmp_path: Path):
    checkout = Checkout(tmp_path / "far")
    checkout.config.write_text(REVISIONS.replace("TOKENIZER", str(tiny.tokenizer)))
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    with running_hub() as hub:
        for revision, model in (("step0", "a"), ("step1000", "b"), ("step2000", "b")):
            files = {name: (tiny.models[model] / name).read_bytes() for name in names}
            hub.push("own/steps", files | {"README.md": revision.encode()}, kind="models")
            hub.revisions["models", "own/steps"][revision] = hub.revisions["models", "own/steps"]["main"]
        environment = hub.environment(tmp_path) | {"PYTHONPATH": str(checkout.folder / "workflow" / "scripts")}
        command = [sys.executable, "-m", "snakemake", "--configfile", "tiny.yaml", "--cores", "1", "--", *TAKEN]
        process = subprocess.run(
            command, cwd=checkout.folder, env=os.environ | environment, capture_output=True, text=True, check=False
        )
    assert process.returncode == 0, (process.stdout + process.stderr)[-4000:]
    pairs = (("far_step2000", "far_step1000"), ("far_step1000", "far_step2000"))  # whichever is written later
    warnings = [f"warning: '{model}' has exactly the weights of '{other}'" for model, other in pairs]
    assert sum(map(process.stderr.count, warnings)) == 1
    found = [json.loads((checkout.folder / path).with_name("manifest.json").read_text())["found"] for path in TAKEN]
    assert len({facts["commit"] for facts in found}) == 3
