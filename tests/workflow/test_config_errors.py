"""Mistakes in a config end Snakemake with one sentence before the first job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import TINY, Checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("mistakes"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("parent: base", "parent: bass", "models.left.finetune: parent: 'bass' is not among models"),
        ("run: tiny", "run: tiny\nrun: other", "key 'run' occurs twice"),
        ("k: 8", "kk: 8", "saes: unknown key 'kk'"),
    ],
    ids=["check", "reader", "schema"],
)
def test_a_mistake_is_named_before_any_job(checkout: Checkout, tmp_path: Path, old: str, new: str, message: str):
    config = tmp_path / "config.yaml"
    text = TINY.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    process = checkout.snakemake("--cores", "1", config=config)
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not (checkout.folder / "results").exists()


@pytest.mark.parametrize(
    ("target", "remedies"),
    [
        ("saes/mlp/left/seed7/cfg.json", ["'results/tiny/saes/mlp/left/'", "seed0"]),
        ("saes/mlp/left/seed0/weights.safetensors", ["sae_weights.safetensors", "cfg.json"]),
    ],
)
def test_a_target_that_no_rule_makes_is_refused_with_those_that_there_are(
    checkout: Checkout, target: str, remedies: list[str]
):
    process = checkout.snakemake("-n", f"results/tiny/{target}")
    assert process.returncode == 1
    said = process.stdout + process.stderr
    assert [remedy for remedy in remedies if remedy not in said] == []
    assert "Traceback" not in said


def test_targets_that_are_made_on_request_and_rules_are_no_mistake(checkout: Checkout):
    done = checkout.snakemake("-n", "verify", "jobs", "results/tiny/lineage/mlp/seeds.json")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistake_in_the_default_config_is_named_even_if_snakemake_cannot_read_the_file(tmp_path: Path):
    checkout = Checkout(tmp_path / "checkout")
    with (checkout.folder / "config" / "config.yaml").open("ab") as file:
        file.write("# café\n".encode("latin-1"))
    command = [sys.executable, "-m", "snakemake", "-n"]
    environment = os.environ | {"PYTHONPATH": str(checkout.folder / "workflow" / "scripts")}
    process = subprocess.run(command, cwd=checkout.folder, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    output = process.stdout + process.stderr
    assert "config file 'config/config.yaml' must be YAML in UTF-8, but: 'utf-8' codec" in output
    assert "Traceback" not in output


def test_a_given_config_file_replaces_the_default_lineage(checkout: Checkout):
    process = checkout.snakemake("-n", "--quiet", "rules")
    assert process.returncode == 0
    assert "baby_python" not in process.stdout + process.stderr


def test_a_model_from_a_folder_depends_on_the_folder_s_model_files_only(checkout: Checkout):
    theirs = checkout.folder / "theirs"
    theirs.mkdir()
    for name in ("config.json", "model.safetensors", "training.log"):
        (theirs / name).write_text("{}")
    config = checkout.folder / "own.yaml"
    text = TINY.read_text()
    config.write_text(text.replace("  left:", "  theirs: {path: {folder: theirs, parents: [base]}}\n  left:", 1))
    process = checkout.snakemake("-n", "results/tiny/models/theirs/model.safetensors", config=config)
    assert process.returncode == 0, process.stderr
    # The log is not part of the model, so a change to it makes nothing stale.
    inputs = "input: theirs/config.json, theirs/model.safetensors, results/tiny/tokenizer"
    assert inputs in process.stdout + process.stderr


def test_nested_values_of_the_command_line_are_read_as_in_a_file(checkout: Checkout):
    done = checkout.snakemake(
        "-n", "--quiet", "rules", "--config", "saes={k: 9, seeds: [0]}", "labels={min_firings: 3}"
    )
    assert done.returncode == 0, done.stderr
    wrong = checkout.snakemake("-n", "--quiet", "rules", "--config", "saes={k: eight}")
    assert wrong.returncode == 1
    assert "saes.k: 'eight' is not of type 'integer'" in wrong.stdout + wrong.stderr


def test_the_workflow_can_be_used_from_another_folder(checkout: Checkout, tmp_path: Path):
    command = [sys.executable, "-m", "snakemake", "-s", str(checkout.folder / "Snakefile"), "-n", "--quiet", "rules"]
    environment = os.environ | {"PYTHONPATH": str(checkout.folder / "workflow" / "scripts")}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert str(checkout.folder / "config" / "config.yaml") in process.stdout + process.stderr


def test_a_python_in_a_folder_with_a_space_is_named_before_any_job(checkout: Checkout, tmp_path: Path):
    python = tmp_path / "my env" / "bin" / "python"
    python.parent.parent.symlink_to(sys.prefix)
    command = [str(python), "-m", "snakemake", "--cores", "1", "--configfile", str(checkout.config)]
    environment = os.environ | {"PYTHONPATH": str(checkout.folder / "workflow" / "scripts")}
    process = subprocess.run(command, cwd=checkout.folder, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert f"without quoting it, but it is at '{python}'; make the virtual environment elsewhere" in process.stderr
    assert not (checkout.folder / "results").exists()
