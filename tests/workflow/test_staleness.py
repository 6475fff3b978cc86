"""Which jobs an edit makes stale: exactly those it concerns."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from saelineage.plan.load import load_plan
from saelineage.plan.strict_yaml import read_yaml
from tests.workflow.conftest import Checkout

SCRIPTS = "workflow/scripts/saelineage"
PLUMBING = (
    *("errors", "jobs/checkpoints", "jobs/code_digest", "jobs/commands", "jobs/gpus", "jobs/job", "jobs/locks"),
    "jobs/manifests",
)

AFTER_VERDICTS = {
    *("trace_lineage", "ablate_groups", "rank_features", "compare_losses", "collect_examples", "write_dashboards"),
    *("act_on_features", "contrast_models", "count_followed", "write_report"),
}
"""Rules of the jobs that give verdicts or read them."""


@pytest.fixture
def edited(finished: Checkout) -> Iterator[Checkout]:
    """The finished checkout, whose edits are undone after the test."""
    before = {
        path: path.read_bytes() for path in finished.folder.rglob("*") if path.is_file() and "results" not in path.parts
    }
    yield finished
    for path, content in before.items():
        if ".snakemake" not in path.parts and not (path.exists() and path.read_bytes() == content):
            path.write_bytes(content)


def rules(jobs: set[tuple[str, str]]) -> set[str]:
    return {rule for rule, _ in jobs}


def names(jobs: set[tuple[str, str]], *chosen: str) -> set[str]:
    """The names of the jobs of some rules, without the run's only hookpoint."""
    return {name.removeprefix("mlp.") for rule, name in jobs if rule in chosen}


def add_code(path: Path) -> None:
    """Add a statement to a module, which changes what it means, though not what it computes."""
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")


def compared_with(checkout: Checkout, sae: str) -> set[str]:
    """The SAEs that are correlated with one SAE, from either side."""
    config = read_yaml(str(checkout.config))
    config["corpora_dir"] = str(checkout.folder)
    plan = load_plan(config, [str(checkout.config)], str(checkout.folder / "config/config.schema.yaml"))
    return {a for a, partners in plan.comparisons.partners.items() if sae in [a, *map(str, partners)]}


def test_one_saes_k_concerns_that_sae_and_what_follows(edited: Checkout):
    expected = compared_with(edited, "left.seed1")
    edited.edit("tiny.yaml", "batch_tokens: 512", "batch_tokens: 512, models: {left: {seed1: {k: 9}}}")
    jobs = edited.stale_jobs()
    assert names(jobs, "train_sae") == {"left.seed1"}
    assert names(jobs, "measure_model") == {"metrics.left"}
    assert names(jobs, "encode_features") == {"left.seed1.00000-of-00001"}
    assert names(jobs, "correlate_features") == expected
    # The other seed, and the leading SAEs of neighbours, whose features may recur here.
    assert {"left.seed0", "left.from_base", "merged.from_left+right"} <= expected
    assert rules(jobs) & {"pretrain_model", "finetune_model", "dump_activations", "dump_probe", "sweep_merge"} == set()
    assert {"trace_lineage", "write_report"} <= rules(jobs)
    assert "draw_dag" not in rules(jobs)


def test_a_figure_concerns_the_report_alone(edited: Checkout):
    add_code(edited.folder / SCRIPTS / "report/figures.py")
    assert rules(edited.stale_jobs()) == {"write_report"}


def test_plumbing_comments_moves_and_touches_concern_nothing(edited: Checkout):
    folder = edited.folder / SCRIPTS
    for name in PLUMBING:
        add_code(folder / f"{name}.py")
    sae = folder / "saes/sae.py"
    sae.write_text("# a comment\n" + sae.read_text().replace('"""Sparse', '"""Very sparse', 1))
    (folder / "moved").mkdir()
    moved = (folder / "correlations/bootstrap.py").rename(folder / "moved" / "resampling.py")
    for path in (edited.folder / "workflow").rglob("*.py"):
        path.write_text(path.read_text().replace("saelineage.correlations.bootstrap", "saelineage.moved.resampling"))
    jobs = edited.stale_jobs()
    moved.unlink()
    moved.parent.rmdir()
    assert jobs == set()


def test_a_constant_of_verdicts_concerns_verdicts_and_what_follows(edited: Checkout):
    add_code(edited.folder / SCRIPTS / "lineage/evidence.py")
    assert rules(edited.stale_jobs()) == AFTER_VERDICTS


def test_the_saes_code_retrains_saes_and_no_language_model(edited: Checkout):
    add_code(edited.folder / SCRIPTS / "saes/sae.py")
    jobs = edited.stale_jobs()
    assert len(names(jobs, "train_sae")) == 19
    untouched = {"pretrain_model", "finetune_model", "merge_models", "dump_activations"}
    assert rules(jobs) & untouched == set()


def test_a_fine_tunes_learning_rate_concerns_it_the_merge_and_what_follows(edited: Checkout):
    edited.edit("tiny.yaml", "left: {finetune: {parent: base,", "left: {finetune: {learning_rate: 0.002, parent: base,")
    jobs = edited.stale_jobs()
    assert names(jobs, "pretrain_model", "finetune_model", "merge_models") == {"left", "merged"}
    assert {name.split(".")[0] for name in names(jobs, "train_sae")} == {"left", "merged"}
    assert "prepare_corpus" not in rules(jobs)


def test_the_parent_s_sae_concerns_those_that_start_from_it(edited: Checkout):
    edited.edit("tiny.yaml", "batch_tokens: 512", "batch_tokens: 512, models: {base: {seed0: {k: 9}}}")
    assert names(edited.stale_jobs(), "train_sae") == {
        *("base.seed0", "base.from_base", "left.from_base", "left.from_left", "right.from_base", "right.from_right"),
        *("merged.from_left+right", "merged.from_left", "merged.from_right"),
        *("base.reset_base", "left.reset_left", "right.reset_right"),
    }


def test_the_threshold_concerns_verdicts_alone(edited: Checkout):
    edited.edit("tiny.yaml", "lineage: {", "lineage: {threshold: 0.7, ")
    # Matches by the original study's protocol are counted against the threshold too.
    assert rules(edited.stale_jobs()) == AFTER_VERDICTS | {"match_token_types"}


def test_one_sae_can_be_asked_for_alone(finished: Checkout):
    done = finished.snakemake("-n", "--force", "results/tiny/saes/mlp/left/seed0/sae_weights.safetensors")
    assert done.returncode == 0
    assert "train_sae" in done.stdout + done.stderr
    assert "pretrain_model" not in done.stdout + done.stderr


def test_a_run_that_was_copied_without_snakemakes_records_says_so(finished: Checkout, tmp_path: Path):
    said = "note: results/tiny is here without Snakemake's records of it (.snakemake/metadata)"
    copy = Checkout(tmp_path / "copy", finished.folder)
    assert said not in copy.snakemake("-n", "--quiet", "rules").stderr
    shutil.rmtree(copy.folder / ".snakemake")
    assert said in copy.snakemake("-n", "--quiet", "rules").stderr
