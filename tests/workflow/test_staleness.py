"""Which jobs an edit makes stale: exactly those it concerns."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.conftest import Checkout

SCRIPTS = "workflow/scripts/saelineage"


@pytest.fixture
def edited(finished: Checkout) -> Iterator[Checkout]:
    """The finished checkout, whose edits are taken back after the test."""
    before = {
        path: path.read_bytes() for path in finished.folder.rglob("*") if path.is_file() and "results" not in path.parts
    }
    yield finished
    for path, content in before.items():
        if path.exists() and ".snakemake" not in path.parts and path.read_bytes() != content:
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
    assert {name for rule, name in jobs if rule == "encode_features"} == {
        "left.seed1.00000-of-00002",
        "left.seed1.00001-of-00002",
    }
    assert {name for rule, name in jobs if rule == "correlate_features"} == {"left.seed0__left.seed1"}
    assert rules(jobs) & {"pretrain_model", "finetune_model", "dump_activations", "dump_probe", "sweep_merge"} == set()
    assert {"trace_lineage", "write_report"} <= rules(jobs)
    assert "draw_dag" not in rules(jobs)


def test_a_figure_concerns_the_report_alone(edited: Checkout):
    path = edited.folder / SCRIPTS / "figures.py"
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")
    assert rules(edited.stale_jobs()) == {"write_report"}


def test_a_comment_or_docstring_concerns_nothing(edited: Checkout):
    path = edited.folder / SCRIPTS / "saes.py"
    path.write_text("# a comment\n" + path.read_text().replace('"""Sparse', '"""Very sparse', 1))
    assert edited.stale_jobs() == set()


def test_the_saes_code_retrains_saes_and_no_language_model(edited: Checkout):
    path = edited.folder / SCRIPTS / "saes.py"
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")
    jobs = edited.stale_jobs()
    assert len([rule for rule, _ in jobs if rule == "train_sae"]) == 8
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


def test_the_threshold_concerns_the_lineage_alone(edited: Checkout):
    edited.edit("tiny.yaml", "threads:", "lineage: {threshold: 0.7}\nthreads:")
    assert rules(edited.stale_jobs()) == {"trace_lineage", "collect_examples", "write_report"}


def test_a_touched_script_concerns_nothing(edited: Checkout):
    for path in sorted(Path(edited.folder, "workflow/scripts").glob("*.py")):
        path.touch()
    assert edited.stale_jobs() == set()


def test_one_sae_can_be_asked_for_alone(finished: Checkout):
    done = finished.snakemake("-n", "--force", "results/tiny/saes/left/seed0/sae_weights.safetensors")
    assert done.returncode == 0
    assert "train_sae" in done.stdout + done.stderr
    assert "pretrain_model" not in done.stdout + done.stderr
