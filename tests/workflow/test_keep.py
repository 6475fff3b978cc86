"""Runs whose dumps come and go: `activations.keep` false and `stream` beside true."""

import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml

from saelineage.files.atomic import read_json, sha256_file
from saelineage.jobs.listing import collect
from saelineage.jobs.manifests import check_run
from tests.workflow.conftest import Checkout

EDGES = [f"results/two/lineage/{hookpoint}/edges/base__left.parquet" for hookpoint in ("early", "late")]
MADE_AGAIN = ("saes", "features", "correlations", "lineage")
LOOK_SECONDS = 0.02
DIFFERENCES = "difference_saes: {seeds: [0]}\n"


class Kept(NamedTuple):
    """A run to the verdicts in another mode, from the same language models."""

    checkout: Checkout
    dumped: list[set[str]]
    """The models that had dumps of train splits, at each look while it ran."""

    @property
    def run(self) -> Path:
        return self.checkout.folder / "results" / "two"


def models_with_dumps(run: Path) -> set[str]:
    return {path.parts[-4] for path in run.glob("activations/*/*/*/train/*.safetensors")}


def run_again(folder: Path, original: Path, keep: str) -> Kept:
    """Copy a finished run without what follows from the dumps, and make that again.

    Crosscoders and difference SAEs need kept dumps.
    """
    checkout = Checkout(folder, original)
    checkout.edit("tiny.yaml", "[independent, crosscoder]", "[independent]")
    checkout.edit("tiny.yaml", DIFFERENCES, "")
    run = folder / "results" / "two"
    for name in MADE_AGAIN:
        shutil.rmtree(run / name)
    for path in run.glob("activations/*/*/*/train"):
        shutil.rmtree(path)
    checkout.edit("tiny.yaml", "max_tokens: 4096", f"max_tokens: 4096\n  keep: {keep}")
    looks, is_over = [], threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_SECONDS):
            looks.append(models_with_dumps(run))

    thread = threading.Thread(target=look)
    thread.start()
    done = checkout.snakemake("--cores", "4", *EDGES)
    is_over.set()
    thread.join()
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return Kept(checkout, looks)


@pytest.fixture(scope="module")
def temporary(two_hookpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return run_again(tmp_path_factory.mktemp("false"), two_hookpoints, "false")


@pytest.fixture(scope="module")
def streamed(two_hookpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return run_again(tmp_path_factory.mktemp("stream"), two_hookpoints, "stream\n  buffer_tokens: 2000")


def test_one_model_has_dumps_at_a_time_and_none_is_left(temporary: Kept):
    looks = [models for models in temporary.dumped if models]
    assert set().union(*looks) == {"base", "left"}
    assert all(len(models) == 1 for models in looks)
    assert models_with_dumps(temporary.run) == set()
    assert not list(temporary.run.glob("activations/*/*/*/train/*"))
    assert len(list(temporary.run.glob("activations/*/*/*/probe/*.safetensors"))) == 4


def test_verdicts_are_equal_byte_for_byte_whether_dumps_are_kept_or_not(temporary: Kept, two_hookpoints: Path):
    kept = two_hookpoints / "results" / "two"
    for pattern in ("saes/*/*/*/*.safetensors", "features/**/*.safetensors"):
        paths = [path.relative_to(kept) for path in sorted(kept.glob(pattern))]
        assert paths
        assert [sha256_file(temporary.run / path) for path in paths] == [sha256_file(kept / path) for path in paths]
    tables = [path.relative_to(kept) for path in sorted(kept.glob("lineage/*/edges/*.parquet"))]
    assert len(tables) == 2
    for path in tables:  # the run that keeps its dumps has a crosscoder too
        table = pd.read_parquet(kept / path).drop(columns=["crosscoder", "all_agree"])
        pd.testing.assert_frame_equal(pd.read_parquet(temporary.run / path).drop(columns="all_agree"), table)


def test_nothing_is_left_to_do_and_nothing_is_missed(temporary: Kept, streamed: Kept):
    for kept in (temporary, streamed):
        assert kept.checkout.stale_jobs(targets=EDGES) == set()
        assert check_run(kept.run).problems == []


def test_deleted_dumps_are_shown_as_made(temporary: Kept, monkeypatch: pytest.MonkeyPatch):
    folder = temporary.checkout.folder
    monkeypatch.setenv("PYTHONPATH", str(folder / "workflow" / "scripts"))
    jobs = collect(yaml.safe_load(temporary.checkout.config.read_text()), folder, workflow=folder)
    dumps = [job for job in jobs if job["rule"] == "dump_activations"]
    assert [(job["name"], job["state"]) for job in dumps] == [("base", "fresh"), ("left", "fresh")]
    assert all(file["temporary"] and file["bytes"] is None for job in dumps for file in job["files"])


def test_one_saes_setting_makes_its_model_s_dumps_again_and_no_other(temporary: Kept):
    temporary.checkout.edit("tiny.yaml", "models: {left: {k: 3}}", "models: {left: {seed0: {k: 1}, k: 3}}")
    jobs = temporary.checkout.stale_jobs()
    temporary.checkout.edit("tiny.yaml", "models: {left: {seed0: {k: 1}, k: 3}}", "models: {left: {k: 3}}")
    assert {name for rule, name in jobs if rule == "dump_activations"} == {"left.train.00000-of-00001"}
    # Snakemake takes a dump that is made again as changed, so all SAEs of this model are trained, to the same bytes.
    assert {name for rule, name in jobs if rule == "train_sae"} == {"early.left.seed0", "late.left.seed0"}


def test_a_new_model_in_the_lineage_leaves_the_saes_of_others_alone(temporary: Kept):
    left = "left: {finetune: {parent: base, corpora: {lua: 1.0}, n_tokens: 2560}}"
    new = left.replace("left", "middle").replace("2560", "1280")
    temporary.checkout.edit("tiny.yaml", left, f"{new}\n  {left}")
    jobs = temporary.checkout.stale_jobs()
    temporary.checkout.edit("tiny.yaml", f"{new}\n  {left}", left)
    trained = {name for rule, name in jobs if rule in ("dump_activations", "train_sae")}
    assert trained == {"middle.train.00000-of-00001", "early.middle.seed0", "late.middle.seed0"}


@pytest.mark.parametrize(("before", "after"), [("true", "false"), ("false", "true")])
def test_keeping_dumps_or_not_trains_nothing_again(
    temporary: Kept, two_hookpoints: Path, tmp_path: Path, before: str, after: str
):
    original = two_hookpoints if before == "true" else temporary.checkout.folder
    checkout = Checkout(tmp_path / "copy", original)
    text = checkout.config.read_text().replace("[independent, crosscoder]", "[independent]").replace(DIFFERENCES, "")
    text = text.replace(f"\n  keep: {before}", "")
    checkout.config.write_text(text.replace("max_tokens: 4096", f"max_tokens: 4096\n  keep: {after}"))
    rules = {rule for rule, _ in checkout.stale_jobs(targets=EDGES)}
    assert rules == ({"trace_lineage"} if before == "true" else set())  # the crosscoder's verdicts go with it


def test_a_stream_dumps_the_probe_alone(streamed: Kept):
    assert all(models == set() for models in streamed.dumped)
    assert len(list(streamed.run.glob("activations/*/*/*/probe/*.safetensors"))) == 4
    assert not (streamed.run / "streams").exists() or not list((streamed.run / "streams").rglob("*.tar"))


def test_one_job_trains_a_model_s_saes_of_both_hookpoints(streamed: Kept):
    logs = sorted(path.stem for path in (streamed.run / "logs/streams").iterdir())
    assert logs == ["base.1", "left.1"]
    for hookpoint, k in {"early": 4, "late": 3}.items():
        folder = streamed.run / f"saes/{hookpoint}/left/seed0"
        config = read_json(folder / "cfg.json")
        assert (config["k"], config["metadata"]["saelineage"]["sae"]) == (k, "seed0")
        assert (folder / "training.csv").read_text().count("\n") > 1
