"""A GPU for each job."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from saelineage.jobs.gpus import claim_device, installed_gpus, see_one_gpu

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow" / "scripts"
JOB = """
import os, sys
from pathlib import Path
from saelineage.jobs.gpus import see_one_gpu
see_one_gpu(sys.argv[2].split(","), Path(sys.argv[1]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start_job(tmp_path: Path):
    """Start processes that take one of the devices `0,1` and keep it until they are ended."""
    started = []

    def start(visible: str | None = None, **variables: str) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        environment |= {"PYTHONPATH": str(SCRIPTS)} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {}) | variables
        command = [sys.executable, "-c", JOB, str(tmp_path / "claims"), "0,1"]
        started.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for job in started:
        job.kill()
        job.communicate()


def test_jobs_that_run_at_once_get_different_gpus(start_job):
    jobs = [start_job(), start_job()]
    assert sorted(job.stdout.readline().strip() for job in jobs) == ["0", "1"]


def test_a_job_waits_while_all_gpus_are_taken_and_gets_the_one_of_a_killed_job(start_job):
    jobs = [start_job(), start_job()]
    taken = [job.stdout.readline().strip() for job in jobs]
    third = start_job()
    with pytest.raises(subprocess.TimeoutExpired):
        third.wait(timeout=0.5)
    os.set_blocking(third.stdout.fileno(), False)
    assert not third.stdout.readline()
    os.set_blocking(third.stdout.fileno(), True)
    jobs[1].kill()
    assert third.stdout.readline().strip() == taken[1]


def test_one_of_the_gpus_that_a_scheduler_left_visible_is_taken(start_job):
    jobs = [start_job("GPU-5a, GPU-7c"), start_job("GPU-5a, GPU-7c")]
    assert sorted(job.stdout.readline().strip() for job in jobs) == ["GPU-5a", "GPU-7c"]


def test_jobs_that_a_scheduler_gave_devices_of_one_name_run_at_once(start_job):
    # On a cluster every job may call its own device 0.
    jobs = [start_job("0", SLURM_JOB_ID=number) for number in ("7", "8")]
    assert [job.stdout.readline().strip() for job in jobs] == ["0", "0"]


def test_a_device_that_the_user_chose_is_given_to_one_job_at_a_time(start_job):
    first, second = start_job("1"), start_job("1")
    taken = select.select([first.stdout, second.stdout], [], [])[0][0]
    with pytest.raises(subprocess.TimeoutExpired):
        (second if taken is first.stdout else first).wait(timeout=0.5)
    assert not select.select([second.stdout if taken is first.stdout else first.stdout], [], [], 0.0)[0]


def test_where_the_user_wants_no_gpu_none_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    see_one_gpu(["0", "1"], tmp_path / "claims")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not (tmp_path / "claims").exists()


def test_without_gpus_nothing_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    see_one_gpu([], tmp_path / "claims")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_gpus_are_counted_as_cuda_numbers_them(tmp_path):
    for name in ("nvidia3", "nvidia7", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert installed_gpus(tmp_path) == ["0", "1"]


def test_a_claim_is_for_this_user_alone_and_follows_no_link(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "0.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        claim_device(["0"], tmp_path / "claims")
    assert not (tmp_path / "elsewhere").exists()
