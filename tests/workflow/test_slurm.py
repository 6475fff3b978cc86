"""The small lineage on a real SLURM of one node with two fake GPUs, as `snakemake --profile slurm` runs it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.kills import CONFIG, ROOT, Small, Undisturbed
from tests.slurm.cluster import Cluster, require_slurm, slurm

# As the profile is, but for what makes a user wait: jobs of these tests take seconds.
IMPATIENT = ROOT / "tests" / "slurm" / "impatient.py"
QUICK = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
GPU_LOGS = {
    "pretrain_model": "models/{0}.log",
    "finetune_model": "models/{0}.log",
    "dump_activations": "activations/{0}.train.{1}.log",
    "dump_probe": "activations/{0}.probe.{1}.log",
    "train_sae": "saes/{0}.{1}.log",
}
"""Logs of rules whose jobs have a GPU and are alone in a job of SLURM, from their wildcards."""
GPU_SEEN = re.compile(r" computing on the CPU; GPUs asked for: 1, CUDA_VISIBLE_DEVICES: (\S+)\n")
TOO_LITTLE = "mem_mb=memory(lambda *_: sizes.Need((80 - sizes.BASE_MB) * 2**20 / sizes.MARGIN)),"
"""In the rule of the tokenizer: 80 MB, then twice as much at each further attempt, in whole hundreds."""
ENDS_WITHIN_SECONDS = 500


class Run(NamedTuple):
    """A run that has ended."""

    small: Small
    output: str
    jobs: list[dict[str, str]]
    """What SLURM was given."""

    def jobs_of(self, rule: str) -> list[dict[str, str]]:
        """Jobs of SLURM that run a rule, in the order that they were submitted in."""
        found = [job for job in self.jobs if rule in job["comment"]]
        return sorted(found, key=lambda job: int(job["id"]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    require_slurm()
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm(Path(folder)) as found:
        yield found


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
    """A run through SLURM, in a session of its own; nothing of it is left behind the block."""
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
    """What a function returns as soon as that is something true, while a run goes on."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, small.said()[-6000:]
        assert time.monotonic() < ends, small.said()[-6000:]
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """From nothing to the page; the tokenizer gets too little memory, and a training is sent back to the queue."""
    small = checkout(tmp_path_factory.mktemp("submitted"))
    edit(small.folder / "rules/tokens.smk", "mem_mb=memory(reading_all),", TOO_LITTLE)
    with submitted(cluster, small) as process:
        requeue_training(cluster, small, process)
        process.wait(timeout=ENDS_WITHIN_SECONDS)
    assert process.returncode == 0, small.said()[-6000:]
    return Run(small, small.said(), cluster.queue("all"))


def requeue_training(cluster: Cluster, small: Small, process: subprocess.Popen) -> None:
    """Have SLURM end the pretraining in its middle and start it again."""
    checkpoints = small.results / "checkpoints/models/base"
    wait_for(lambda: list(checkpoints.glob("*/checkpoint-[3-9]")), small, process)
    (job,) = [job for job in cluster.queue() if "pretrain_model" in job["comment"]]
    cluster.ask("scontrol", "requeue", job["id"])
    # SLURM lets a job rest for two minutes before it starts again; nobody waits for that here.
    wait_for(lambda: [one for one in cluster.queue("pending") if one["id"] == job["id"]], small, process)
    cluster.ask("scontrol", "update", f"JobId={job['id']}", "StartTime=now")


def test_a_run_through_slurm_gives_the_bytes_of_a_local_run(ran: Run, small_run: tuple[Path, Undisturbed]):
    found, whole = ran.small.digests(), small_run[1].digests
    assert found.keys() == whole.keys()
    differ = {name for name in found if found[name] != whole[name]}
    assert differ <= {"report/dag.manifest.json"}  # holds the digest of the rules, one of which has too little memory
    assert {"report/dag.svg", "report/data/left/table.js", "lineage/summary.json"} <= found.keys()
    assert ran.small.leftovers() == []


def test_short_jobs_share_a_job_of_slurm(ran: Run):
    # Of 30 jobs 2 are local; 3 + 4 + 2 + 2 + 2 of those of one group are one job of SLURM each.
    assert len([job for job in ran.jobs if job["state"] == "COMPLETED"]) == 30 - 2 - (2 + 3 + 1 + 1 + 1)
    assert {job["comment"] for job in ran.jobs if "_wildcards_" not in job["comment"]} == {
        "rule_tokens_tokenize_split",
        "rule_measures_measure_model",
        "rule_features_encode_features",
        "rule_pairs_correlate_features_sum_products",
        "rule_labels_label_features",
    }
    failed = {job["comment"] for job in ran.jobs if job["state"] != "COMPLETED"}
    assert failed == {"rule_make_tokenizer_wildcards_small"}
    assert "localrule draw_dag:" in ran.output  # Snakemake inside Snakemake
    assert "localrule write_report:" in ran.output


def test_gpu_jobs_that_run_at_once_have_gpus_of_their_own(ran: Run):
    used = [found for job in ran.jobs if (found := times_and_gpu(ran, job))]
    assert len(used) == 2 + 4 + 2  # trainings of models, dumps, trainings of SAEs
    assert {gpu for _, _, gpu in used} == {"0", "1"}
    at_once = [(a, b) for a, b in combinations(used, 2) if a[0] < b[1] and b[0] < a[1]]
    assert at_once
    assert all(a[2] != b[2] for a, b in at_once)


def times_and_gpu(run: Run, job: dict[str, str]) -> tuple[str, str, str] | None:
    """When SLURM began and ended a job, in whole seconds, and the GPU that the job saw; None of one without a GPU."""
    rule, _, names = job["comment"].removeprefix("rule_").partition("_wildcards_small_")
    if rule not in GPU_LOGS:
        return None
    log = run.small.results / "logs" / GPU_LOGS[rule].format(*names.split("_"))
    return job["start"], job["end"], GPU_SEEN.search(log.read_text())[1]


def test_a_job_killed_for_memory_is_tried_again_with_more(ran: Run):
    tries = ran.jobs_of("make_tokenizer")
    memory = [int(job["memory"].removesuffix("M")) for job in tries]
    assert len(memory) > 1
    assert memory == sorted(set(memory))
    assert [job["state"] for job in tries][-1] == "COMPLETED"
    kept = [path.read_text() for path in (ran.small.folder / "results" / "slurm").rglob("*.log")]
    assert any("exceeded memory limit" in log for log in kept)


def test_a_training_that_slurm_starts_again_goes_on_from_its_checkpoint(ran: Run):
    log = (ran.small.results / "logs/models/base.log").read_text()
    resumed = re.search(r"resuming from \S*/checkpoint-(\d+)", log)
    assert 3 <= int(resumed[1]) < 40  # steps of 512 tokens each
    assert len(ran.jobs_of("pretrain_model")) == 1


def test_ctrl_c_leaves_no_job_behind_and_no_lock(cluster: Cluster, tmp_path: Path):
    small = checkout(tmp_path / "small")
    edit(  # so that it runs when it is to be cancelled
        small.folder / "workflow/scripts/prepare_corpus.py",
        'if __name__ == "__main__":\n',
        'if __name__ == "__main__":\n    __import__("time").sleep(300)\n',
    )
    with submitted(cluster, small) as process:
        job, *_ = wait_for(lambda: cluster.queue("running"), small, process)
        # Snakemake knows of it
        wait_for(lambda: f"SLURM jobid {job['id']}" in small.said(), small, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 1
        cluster.wait_until_idle()
    assert {one["state"] for one in cluster.queue("all") if one["id"] == job["id"]} == {"CANCELLED"}
    assert not list((small.folder / ".snakemake" / "locks").glob("*"))
