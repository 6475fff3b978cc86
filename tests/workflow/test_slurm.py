"""The small lineage on a real SLURM of one node with two fake GPUs, as `snakemake --profile slurm` runs it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.kills import CONFIG, ROOT, Small, Undisturbed
from tests.slurm.cluster import Cluster, require_slurm, slurm

# The profile's settings, without long waits, because the jobs of these tests take seconds.
IMPATIENT = ROOT / "tests" / "slurm" / "impatient.py"
QUICK = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
GPU_LOGS = {
    "pretrain_model": "models/{0}.log",
    "finetune_model": "models/{0}.log",
    "dump_activations": "activations/{0}.train.{1}.log",
    "dump_probe": "activations/{0}.probe.{1}.log",
    "train_sae": "saes/{0}.{1}.{2}.log",
}
"""Logs of rules with a GPU and without a group, from their wildcards."""
GPU_SEEN = re.compile(r" computing on the CPU; GPUs asked for: 1, CUDA_VISIBLE_DEVICES: (\S+)\n")
MEMORY = "mem_mb=memory(run.needs.reading_all),"
TOO_LITTLE = "mem_mb=lambda wildcards, attempt: 100 * 2 ** (attempt - 1),"
"""For the tokenizer's rule: 100 MB, then twice as much at each further attempt."""
ENDS_WITHIN_SECONDS = 500


class Run(NamedTuple):
    """A run that has ended."""

    small: Small
    output: str
    jobs: list[dict[str, str]]
    """Jobs that SLURM was given."""

    def jobs_of(self, rule: str) -> list[dict[str, str]]:
        """Jobs of SLURM that run a rule, in the order of submission."""
        return sorted((job for job in self.jobs if rule in job["comment"]), key=lambda job: int(job["id"]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    require_slurm()
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm(Path(folder)) as started:
        yield started


def checkout(folder: Path) -> Small:
    """A copy of the workflow in which nothing has run."""
    small = Small(folder)
    (folder / "slurm").symlink_to("profiles/slurm")
    return small


def edit(path: Path, old: str, new: str) -> None:
    """Replace a piece of text that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@contextmanager
def submitted(cluster: Cluster, small: Small) -> Iterator[subprocess.Popen]:
    """Start a run through SLURM in a new session; end it, and cancel its jobs, after the block."""
    command = [sys.executable, str(IMPATIENT), "--profile", "slurm", "--configfile", CONFIG.name, *QUICK]
    with (small.folder / "said.txt").open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=small.folder,
            env=cluster.environment | small.variables,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        cluster.cancel_all()


def wait_for(condition: Callable, small: Small, process: subprocess.Popen, seconds: float = 200.0):
    """Wait, while a run goes on, until a function returns something true; return that."""
    ends = time.monotonic() + seconds
    while not (result := condition()):
        assert process.poll() is None, small.said()[-6000:]
        assert time.monotonic() < ends, small.said()[-6000:]
        time.sleep(0.1)
    return result


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run from nothing to the page. The tokenizer gets too little memory, and a training is requeued."""
    small = checkout(tmp_path_factory.mktemp("submitted"))
    edit(small.folder / "rules/tokens.smk", MEMORY, TOO_LITTLE)
    with submitted(cluster, small) as process:
        requeue_training(cluster, small, process)
        process.wait(timeout=ENDS_WITHIN_SECONDS)
    assert process.returncode == 0, small.said()[-6000:]
    return Run(small, small.said(), cluster.queue("all"))


def requeue_training(cluster: Cluster, small: Small, process: subprocess.Popen) -> None:
    """Let SLURM end the pretraining in the middle and start it again."""
    checkpoints = small.results / "checkpoints/models/base"
    wait_for(lambda: list(checkpoints.glob("*/checkpoint-[3-9]")), small, process)
    (job,) = [job for job in cluster.queue() if "pretrain_model" in job["comment"]]
    cluster.ask("scontrol", "requeue", job["id"])
    # SLURM holds a requeued job for two minutes; do not wait for that.
    wait_for(lambda: [queued for queued in cluster.queue("pending") if queued["id"] == job["id"]], small, process)
    cluster.ask("scontrol", "update", f"JobId={job['id']}", "StartTime=now")


def test_a_run_through_slurm_gives_the_bytes_of_a_local_run(ran: Run, small_run: tuple[Path, Undisturbed]):
    digests, whole = ran.small.digests(), small_run[1].digests
    assert digests.keys() == whole.keys()
    differ = {name for name in digests if digests[name] != whole[name]}
    assert differ <= {"report/dag.manifest.json"}  # holds the digest of the rules, one of which has too little memory
    assert {"report/dag.svg", "report/data/mlp/left/table.js", "lineage/mlp/summary.json"} <= digests.keys()
    assert ran.small.leftovers() == []


def test_short_jobs_share_a_job_of_slurm(ran: Run):
    # Of 33 jobs 2 are local. The groups tokens (3 jobs), measures (2), features (2) and labels (2) are one job each.
    assert len([job for job in ran.jobs if job["state"] == "COMPLETED"]) == 33 - 2 - (2 + 1 + 1 + 1)
    comments = {job["comment"] for job in ran.jobs}
    assert comments >= {
        "rule_tokens_tokenize_split",
        "rule_measures_measure_model",
        "rule_features_encode_features",
        "rule_correlations_correlate_features",
        "rule_labels_label_features",
    }
    assert not any(comment.startswith("rule_tokenize_split") for comment in comments)
    failed = {job["comment"] for job in ran.jobs if job["state"] != "COMPLETED"}
    assert failed == {"rule_make_tokenizer"}
    assert "localrule draw_dag:" in ran.output  # Snakemake inside Snakemake
    assert "localrule write_report:" in ran.output


def test_gpu_jobs_that_run_at_once_have_different_gpus(ran: Run):
    used = [times for job in ran.jobs if (times := times_and_gpu(ran, job))]
    assert len(used) == 2 + 4 + 2  # trainings of models, dumps, trainings of SAEs
    assert {gpu for _, _, gpu in used} == {"0", "1"}
    at_once = [(a, b) for a, b in combinations(used, 2) if a[0] < b[1] and b[0] < a[1]]
    assert at_once
    assert all(a[2] != b[2] for a, b in at_once)


def times_and_gpu(run: Run, job: dict[str, str]) -> tuple[str, str, str] | None:
    """Start and end of a job in whole seconds, and the GPU that it saw; None for a job without a GPU."""
    rule, _, names = job["comment"].removeprefix("rule_").partition("_wildcards_")
    if rule not in GPU_LOGS:
        return None
    log = run.small.results / "logs" / GPU_LOGS[rule].format(*names.split("_"))
    return job["start"], job["end"], GPU_SEEN.search(log.read_text())[1]


def test_a_job_killed_for_memory_is_retried_with_more(ran: Run):
    tries = ran.jobs_of("make_tokenizer")
    memory = [int(job["memory"].removesuffix("M")) for job in tries]
    assert len(memory) > 1
    assert memory == sorted(set(memory))
    assert [job["state"] for job in tries][-1] == "COMPLETED"
    kept = [path.read_text() for path in (ran.small.folder / "results" / "slurm").rglob("*.log")]
    assert any("exceeded memory limit" in log for log in kept)


def test_a_training_that_slurm_restarts_resumes_from_its_checkpoint(ran: Run):
    log = (ran.small.results / "logs/models/base.log").read_text()
    resumed = re.search(r"resuming from \S*/checkpoint-(\d+)", log)
    assert 3 <= int(resumed[1]) < 40  # steps of 512 tokens each
    assert len(ran.jobs_of("pretrain_model")) == 1


def preparing(cluster: Cluster) -> list[dict[str, str]]:
    """The running job that prepares the corpus."""
    return [job for job in cluster.queue("running") if "prepare_corpus" in job["comment"]]


def press_ctrl_c(process: subprocess.Popen) -> int:
    """Press Ctrl-C, and again if Snakemake loses it, as it may while it handles the end of a job; the exit status."""
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=30)
    return process.wait(timeout=1)


def test_ctrl_c_leaves_no_job_behind_and_no_lock(cluster: Cluster, tmp_path: Path):
    small = checkout(tmp_path / "small")
    edit(  # so that it is still running when it is cancelled
        small.folder / "workflow/scripts/prepare_corpus.py",
        'if __name__ == "__main__":\n',
        'if __name__ == "__main__":\n    __import__("time").sleep(300)\n',
    )
    with submitted(cluster, small) as process:
        (job,) = wait_for(lambda: preparing(cluster), small, process)
        # The plugin registers a submission a moment after it says so, and a Ctrl-C in between cancels nothing: the job
        # then ends by itself, because Snakemake's temporary folder is gone. The end of the local job comes later.
        wait_for(lambda: f"SLURM jobid {job['id']}" in small.said(), small, process)
        wait_for(lambda: "(Rule: draw_dag)" in small.said(), small, process)
        assert press_ctrl_c(process) == 1
        cluster.wait_until_idle()
    ended = [ended for ended in cluster.queue("all") if ended["id"] == job["id"]]
    print(small.said()[-6000:], (cluster.folder / "slurmctld.log").read_text()[-3000:], sep="\n\n")
    assert [job["state"] for job in ended] == ["CANCELLED"]
    assert not list((small.folder / ".snakemake" / "locks").glob("*"))
