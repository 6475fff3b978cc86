"""Checkpoints of training jobs: one folder for each job and everything that decides it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from saelineage.files.atomic import sha256_file, write_json
from saelineage.jobs.checkpoints import checkpoint_folder


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The `snakemake` of a training script, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/rows.npy").write_bytes(b"rows")

    def make(name: str = "models/lua", **settings: object) -> SimpleNamespace:
        log = [f"results/demo/logs/{name}.log"]
        return SimpleNamespace(params={"model": settings}, input=["results/rows.npy"], threads=2, log=log)

    return make


def interrupted(job: SimpleNamespace) -> Path:
    """The folder of a job that fails when it has written something there."""

    def run() -> None:
        with checkpoint_folder(job) as folder:
            (folder / "checkpoint-5").mkdir(parents=True, exist_ok=True)
            raise KeyboardInterrupt(folder)

    with pytest.raises(KeyboardInterrupt) as caught:
        run()
    return caught.value.args[0]


def test_checkpoints_outlive_an_interrupted_job_and_are_removed_by_a_finished_one(job):
    folder = interrupted(job(seed=0))
    assert folder.parent == Path("results/demo/checkpoints/models/lua")
    assert (folder / "checkpoint-5").is_dir()
    with checkpoint_folder(job(seed=0)) as again:
        assert again == folder
        assert (folder / "checkpoint-5").is_dir()
    assert not Path("results/demo/checkpoints/models/lua").exists()


def test_a_job_that_never_wrote_a_checkpoint_ends_as_well(job):
    with checkpoint_folder(job("saes/lua.seed0", seed=0)) as folder:
        assert not folder.exists()


def test_a_finished_job_leaves_the_checkpoints_of_others(job):
    kept = [interrupted(job(seed=0)), interrupted(job("saes/lua.seed1", seed=0))]
    with checkpoint_folder(job("saes/lua.seed0", seed=0)) as folder:
        folder.mkdir(parents=True)
    assert all(path.is_dir() for path in kept)


def test_checkpoints_of_other_settings_inputs_or_threads_are_another_folder(job):
    folders = [interrupted(job(seed=0)), interrupted(job(seed=1))]
    more_threads = job(seed=0)
    more_threads.threads = 3
    folders.append(interrupted(more_threads))
    Path("results/rows.npy").write_bytes(b"other rows")
    folders.append(interrupted(job(seed=0)))
    assert len(set(folders)) == 4


def test_a_finished_job_removes_the_checkpoints_of_its_earlier_settings(job):
    earlier = interrupted(job(seed=0))
    with checkpoint_folder(job(seed=1)):
        assert earlier.is_dir()
    assert not earlier.exists()


def test_an_input_s_digest_is_taken_from_its_manifest(job):
    plain = interrupted(job(seed=0))
    recorded = {"sha256": sha256_file("results/rows.npy"), "bytes": 4}
    manifest = {"inputs": {}, "wildcards": {}}
    write_json("results/rows.manifest.json", manifest | {"files": {"rows.npy": recorded}})
    assert interrupted(job(seed=0)) == plain
    write_json("results/rows.manifest.json", manifest | {"files": {"rows.npy": recorded | {"sha256": "other"}}})
    assert interrupted(job(seed=0)) != plain
