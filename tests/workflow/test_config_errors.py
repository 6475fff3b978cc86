"""Mistakes in a config end before the first job, in one sentence."""

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
        ("run: tiny", "run: ../tiny", "run: '../tiny' does not match"),
        ("run: tiny", "run: tiny\nrun: other", "key 'run' stands twice"),
        ("k: 8", "kk: 8", "saes: unknown key 'kk'"),
        ("lua: 1.0", "luau: 1.0", "models.left.finetune.corpora: 'luau' is not among corpora"),
        ("kind: lua", "kind: ruby", "corpora.lua.kind: 'ruby' is not one of"),
    ],
)
def test_a_mistake_is_named_before_any_job(checkout: Checkout, tmp_path: Path, old: str, new: str, message: str):
    config = tmp_path / "config.yaml"
    text = TINY.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    done = checkout.snakemake("--cores", "1", config=config)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (checkout.folder / "results").exists()


def test_a_mistake_in_the_default_config_is_named_though_snakemake_itself_could_not_read_it(tmp_path: Path):
    checkout = Checkout(tmp_path / "checkout")
    with (checkout.folder / "config" / "config.yaml").open("ab") as file:
        file.write("# café\n".encode("latin-1"))
    command = [sys.executable, "-m", "snakemake", "-n"]
    done = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "config file 'config/config.yaml' must be YAML in UTF-8, but: 'utf-8' codec" in said
    assert "Traceback" not in said


def test_a_config_given_by_hand_replaces_the_default_lineage(checkout: Checkout):
    done = checkout.snakemake("-n", "--quiet", "rules")
    assert done.returncode == 0
    assert "baby_python" not in done.stdout + done.stderr


def test_a_model_from_a_folder_is_made_from_that_folders_files(checkout: Checkout):
    theirs = checkout.folder / "theirs"
    theirs.mkdir()
    for name in ("config.json", "model.safetensors", "training.log"):
        (theirs / name).write_text("{}")
    config = checkout.folder / "own.yaml"
    text = TINY.read_text()
    config.write_text(text.replace("  left:", "  theirs: {path: {folder: theirs, parents: [base]}}\n  left:", 1))
    done = checkout.snakemake("-n", "results/tiny/models/theirs/model.safetensors", config=config)
    assert done.returncode == 0, done.stderr
    # The log that lies beside is no part of the model, so a change to it makes nothing stale.
    assert "input: theirs/config.json, theirs/model.safetensors, results/tiny/tokenizer" in done.stdout + done.stderr
