"""Which jobs an edit makes stale: exactly those it concerns."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.conftest import Checkout

SCRIPTS = "workflow/scripts/saelineage"
PLUMBING = ("errors", "jobs/checkpoints", "jobs/code_digest", "jobs/gpus", "jobs/job", "jobs/locks", "jobs/manifests")


@pytest.fixture
def edited(finished: Checkout) -> Iterator[Checkout]:
    """The finished checkout, whose edits are taken back after the test."""
    before = {
        path: path.read_bytes() for path in finished.folder.rglob("*") if path.is_file() and "results" not in path.parts
    }
    yield finished
    for path, content in before.items():
        if ".snakemake" not in path.parts and not (path.exists() and path.read_bytes() == content):
            path.write_bytes(content)


def rules(jobs: set[tuple[str, str]]) -> set[str]:
    return {rule for rule, _ in jobs}


def test_nothing_is_stale_after_a_run(finished: Checkout):
    assert finished.stale_jobs() == set()


def test_one_saes_k_concerns_that_sae_and_what_follows(edited: Checkout):
    edited.edit("tiny.yaml", "batch_tokens: 512", "batch_tokens: 512, models: {left: {seed1: {k: 9}}}")
    jobs = edited.stale_jobs()
    assert {name for rule, name in jobs if rule in ("train_sae", "evaluate_sae")} == {
        "left.seed1",
        "evaluate.left.seed1",
    }
    assert {name for rule, name in jobs if rule == "encode_features"} == {"left.seed1.00000-of-00001"}
    # The other seed, and what should recur in this one or be absent from it.
    assert {name for rule, name in jobs if rule == "correlate_features"} == {
        "left.seed0__left.seed1",
        "left.from_base__left.seed1",
        "base.seed0__left.seed1",
        "merged.from_left+right__left.seed1",
    }
    assert rules(jobs) & {"pretrain_model", "finetune_model", "dump_activations", "dump_probe", "sweep_merge"} == set()
    assert {"trace_lineage", "write_report"} <= rules(jobs)
    assert "draw_dag" not in rules(jobs)


def test_a_figure_concerns_the_report_alone(edited: Checkout):
    path = edited.folder / SCRIPTS / "report/figures.py"
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")
    assert rules(edited.stale_jobs()) == {"write_report"}


@pytest.mark.parametrize(
    "name", ["errors", "jobs/job", "jobs/locks", "jobs/manifests", "jobs/checkpoints", "jobs/gpus", "jobs/code_digest"]
)
def test_plumbing_concerns_nothing(edited: Checkout, name: str):
    path = edited.folder / SCRIPTS / f"{name}.py"
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")
    assert edited.stale_jobs() == set()


def test_a_module_that_moves_concerns_nothing(edited: Checkout):
    folder = edited.folder / SCRIPTS
    (folder / "moved").mkdir()
    (folder / "correlations/bootstrap.py").rename(folder / "moved" / "resampling.py")
    for path in (edited.folder / "workflow").rglob("*.py"):
        path.write_text(path.read_text().replace("saelineage.correlations.bootstrap", "saelineage.moved.resampling"))
    jobs = edited.stale_jobs()
    (folder / "moved" / "resampling.py").unlink()
    (folder / "moved").rmdir()
    assert jobs == set()


def test_a_constant_of_verdicts_concerns_verdicts_and_what_follows(edited: Checkout):
    path = edited.folder / SCRIPTS / "lineage/evidence.py"
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")
    assert rules(edited.stale_jobs()) == {
        *("trace_lineage", "ablate_groups", "collect_examples", "write_dashboards", "write_report")
    }


def test_a_comment_or_docstring_concerns_nothing(edited: Checkout):
    path = edited.folder / SCRIPTS / "saes/sae.py"
    path.write_text("# a comment\n" + path.read_text().replace('"""Sparse', '"""Very sparse', 1))
    assert edited.stale_jobs() == set()


def test_the_saes_code_retrains_saes_and_no_language_model(edited: Checkout):
    path = edited.folder / SCRIPTS / "saes/sae.py"
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")
    jobs = edited.stale_jobs()
    assert len([rule for rule, _ in jobs if rule == "train_sae"]) == 16
    assert (
        rules(jobs) & {"pretrain_model", "finetune_model", "merge_models", "evaluate_model", "dump_activations"}
        == set()
    )


def test_a_fine_tunes_learning_rate_concerns_it_the_merge_and_what_follows(edited: Checkout):
    edited.edit("tiny.yaml", "left: {finetune: {parent: base,", "left: {finetune: {learning_rate: 0.002, parent: base,")
    jobs = edited.stale_jobs()
    assert {name for rule, name in jobs if rule in ("pretrain_model", "finetune_model", "merge_models")} == {
        "left",
        "merged",
    }
    assert {name.split(".")[0] for rule, name in jobs if rule == "train_sae"} == {"left", "merged"}
    assert "prepare_corpus" not in rules(jobs)


def test_the_parent_s_sae_concerns_those_that_start_from_it(edited: Checkout):
    edited.edit("tiny.yaml", "batch_tokens: 512", "batch_tokens: 512, models: {base: {seed0: {k: 9}}}")
    trained = {name for rule, name in edited.stale_jobs() if rule == "train_sae"}
    in_the_chain = {
        "base.seed0",
        "base.from_base",
        "left.from_base",
        "left.from_left",
        "right.from_base",
        "right.from_right",
    }
    assert trained == in_the_chain | {"merged.from_left+right", "merged.from_left", "merged.from_right"}


def test_the_threshold_concerns_verdicts_alone(edited: Checkout):
    edited.edit("tiny.yaml", "lineage: {", "lineage: {threshold: 0.7, ")
    # What is kept of the original study's protocol depends on it too.
    assert rules(edited.stale_jobs()) == {
        *("match_token_types", "trace_lineage", "ablate_groups", "collect_examples", "write_dashboards", "write_report")
    }


def test_a_touched_script_concerns_nothing(edited: Checkout):
    for path in sorted(Path(edited.folder, "workflow/scripts").glob("*.py")):
        path.touch()
    assert edited.stale_jobs() == set()


def test_one_sae_can_be_asked_for_alone(finished: Checkout):
    done = finished.snakemake("-n", "--force", "results/tiny/saes/left/seed0/sae_weights.safetensors")
    assert done.returncode == 0
    assert "train_sae" in done.stdout + done.stderr
    assert "pretrain_model" not in done.stdout + done.stderr
