"""Locks: one Snakemake on a run, no job without its Snakemake, and no lock that outlives its process."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import saelineage
from saelineage.errors import InputError
from saelineage.files.atomic import HOST
from saelineage.jobs import commands, locks
from saelineage.jobs.locks import (
    claim,
    in_job,
    is_free,
    jobs_lock,
    note_at_end,
    process_name,
    remove_stale,
    run_lock,
)

SCRIPTS = str(Path(saelineage.__file__).parent.parent)
CLAIM = "claim('demo', Path('state'))"
JOB = "announce('demo', Path('state')); work = in_job(); work.__enter__()"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Wait briefly, in a new folder; release the locks that this process takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locks, "CLAIM_SECONDS", 0.1)
    monkeypatch.setattr(locks, "JOBS_SECONDS", 0.1)
    monkeypatch.delenv(commands.OPTIONS, raising=False)
    yield
    for file in locks._held:
        file.close()
    locks._held.clear()


@pytest.fixture
def start() -> Iterator[Callable]:
    """Start Python processes that do something with locks, and wait until they have."""
    started = []

    def run(code: str, **environment: str) -> subprocess.Popen:
        whole = (
            f"from pathlib import Path; from saelineage.jobs.locks import *; {code}; print('done', flush=True); input()"
        )
        command = [sys.executable, "-c", whole]
        environment = os.environ | {"PYTHONPATH": SCRIPTS} | environment
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "done\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def snakemake_lock(*runs: str, number: int = 0) -> Path:
    """A list of files as Snakemake writes it."""
    path = Path(f"state/locks/{number}.output.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(["english.jsonl\n", *(f"results/{run}/lineage/summary.json\n" for run in runs or ["demo"])])
    )
    return path


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_run_that_another_process_works_on_is_refused_with_its_name(start: Callable):
    other = start(CLAIM)
    with pytest.raises(InputError, match=rf"results/demo .*process {other.pid} on {HOST}.*wait for it.*--nolock"):
        claim("demo", Path("state"))
    claim("another", Path("state"))


def test_a_run_is_free_again_when_the_process_that_held_it_is_killed(start: Callable):
    kill(start(CLAIM))
    claim("demo", Path("state"))
    mine = {"process": os.getpid(), "host": HOST, "jobs_are_local": True}
    assert json.loads(run_lock("demo", Path("state")).read_text()) == mine


def test_a_run_is_free_while_nobody_works_on_it(start: Callable):
    assert is_free("demo", Path("state"))
    assert not run_lock("demo", Path("state")).exists()
    process = start(CLAIM)
    assert not is_free("demo", Path("state"))
    kill(process)
    assert is_free("demo", Path("state"))


def test_where_nothing_is_locked_there_is_nothing_to_say():
    assert remove_stale("demo", Path("state")) is None


def killed_snakemake(start: Callable, *runs: str) -> tuple[subprocess.Popen, Path]:
    """A Snakemake that wrote its list, began, and was killed; and the list."""
    lock, process = snakemake_lock(*runs), start(CLAIM)
    kill(process)
    return process, lock


def in_use(run: str, process: subprocess.Popen) -> str:
    owner = f"process {process.pid} on {HOST}"
    return f"results/{run} is in use by another snakemake ({owner}); wait for it to end, or stop it"


def test_the_lock_of_a_killed_snakemake_is_removed(start: Callable):
    killed, lock = killed_snakemake(start)
    said = remove_stale("demo", Path("state"))
    assert said == f"removed the lock of a killed snakemake (process {killed.pid} on {HOST}) on results/demo"
    assert not lock.exists()


def test_the_lock_of_a_living_snakemake_stays(start: Callable):
    lock, other = snakemake_lock(), start(CLAIM)
    assert remove_stale("demo", Path("state")) == in_use("demo", other)
    assert lock.exists()


def test_the_lock_of_another_run_stays():
    lock = snakemake_lock("another")
    assert remove_stale("demo", Path("state")) is None
    assert lock.exists()


def test_the_lock_of_a_living_snakemake_stays_where_it_reads_another_run(start: Callable):
    lock, reader = snakemake_lock("demo", "another"), start(CLAIM.replace("demo", "another"))
    assert remove_stale("demo", Path("state")) == in_use("another", reader)
    assert lock.exists()


def test_the_lock_of_a_snakemake_that_claimed_nothing_stays_and_the_command_is_given(start: Callable):
    _, older = killed_snakemake(start)
    lock = snakemake_lock(number=1)
    said = str(remove_stale("demo", Path("state")))
    assert "--no-hooks" in said
    assert said.endswith("then run `snakemake --unlock`")
    assert lock.exists()
    assert older.exists()


def test_a_snakemake_that_is_just_starting_is_waited_for_and_named(start: Callable, monkeypatch: pytest.MonkeyPatch):
    # Snakemake writes its lists first, and claims the run when its hook onstart runs.
    lock, waits = snakemake_lock(), []
    monkeypatch.setattr(locks, "_wait_for", lambda is_so, _: waits.append(start(CLAIM)) or is_so())
    assert remove_stale("demo", Path("state")) == in_use("demo", waits[0])
    assert lock.exists()


def test_a_snakemake_that_was_refused_says_at_its_end_who_holds_the_run(start: Callable):
    assert note_at_end("demo", Path("state")) is None
    lock, other = snakemake_lock(), start(CLAIM)
    assert note_at_end("demo", Path("state")) == in_use("demo", other)
    kill(other)
    lock.unlink()
    lock = snakemake_lock()
    claim("demo", Path("state"))
    assert note_at_end("demo", Path("state")) is None
    assert lock.exists()


def test_the_command_that_unlocks_a_run_names_its_config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(commands.OPTIONS, "--configfile tiny.yaml")
    snakemake_lock()
    said = str(remove_stale("demo", Path("state")))
    assert said.endswith("then run `snakemake --unlock --configfile tiny.yaml`")


def test_where_locks_are_unknown_the_command_is_given_and_a_run_is_not_said_to_be_free(
    start: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    killed, lock = killed_snakemake(start)

    def no_locks(_file: object, _kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    said = str(remove_stale("demo", Path("state")))
    assert f"(process {killed.pid} on {HOST}): 'state/saelineage/demo.lock' cannot be locked here" in said
    assert said.endswith("then run `snakemake --unlock`")
    assert lock.exists()
    assert not is_free("demo", Path("state"))
    claim("demo", Path("state"))
    assert "cannot be locked (Function not implemented)" in caplog.text


def test_a_lock_stays_while_jobs_of_the_killed_snakemake_run(start: Callable):
    killed, lock = killed_snakemake(start)
    job = start(JOB)
    said = str(remove_stale("demo", Path("state")))
    assert said.startswith(f"jobs of a killed snakemake (process {killed.pid} on {HOST}) are still running for results")
    assert said.endswith("wait for them to end or kill them, and run again")
    assert lock.exists()
    kill(job)
    assert remove_stale("demo", Path("state")).startswith("removed the lock")


@pytest.mark.parametrize("owner", [{"host": "elsewhere", "jobs_are_local": True}, {"jobs_are_local": False}])
def test_a_lock_whose_jobs_may_run_elsewhere_stays_and_the_command_is_given(owner: dict):
    lock, path = snakemake_lock(), run_lock("demo", Path("state"))
    path.parent.mkdir()
    path.write_text(json.dumps({"process": 1, "host": HOST} | owner))
    said = str(remove_stale("demo", Path("state")))
    assert "scancel --name" in said
    assert said.endswith("then run `snakemake --unlock`")
    assert lock.exists()


def test_jobs_share_their_lock_even_if_that_needs_a_file_open_for_reading(start: Callable):
    # NFS makes locks of a whole file from locks of its bytes, which need a file open for reading to be shared.
    start(JOB)
    with jobs_lock("demo", Path("state")).open("rb") as file:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with locks._opened(Path("state/shared")) as file:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_job_ends_when_its_snakemake_is_killed(start: Callable):
    snakemake = start("pass")
    variables = {locks.SNAKEMAKE: process_name(snakemake.pid), locks.JOBS_LOCK: str(jobs_lock("demo", Path("state")))}
    job = start("work = in_job(); work.__enter__()", **variables)
    time.sleep(1.5 * locks.WATCH_SECONDS)
    assert job.poll() is None
    kill(snakemake)
    assert job.wait(timeout=10.0 * locks.WATCH_SECONDS) == 1


def test_a_job_that_begins_after_its_snakemake_has_gone_does_nothing(start: Callable):
    snakemake = start("pass")
    variables = {locks.SNAKEMAKE: process_name(snakemake.pid), locks.JOBS_LOCK: str(jobs_lock("demo", Path("state")))}
    kill(snakemake)
    job = start("print('done', flush=True); in_job().__enter__(); Path('worked').touch()", **variables)
    assert job.wait(timeout=10.0) == 1
    assert not Path("worked").exists()


def test_a_job_of_a_snakemake_on_another_host_goes_on(start: Callable):
    variables = {locks.SNAKEMAKE: "elsewhere pid:[1] 1 1", locks.JOBS_LOCK: str(jobs_lock("demo", Path("state")))}
    job = start("work = in_job(); work.__enter__()", **variables)
    time.sleep(1.5 * locks.WATCH_SECONDS)
    assert job.poll() is None


def test_outside_a_run_a_job_holds_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(locks.SNAKEMAKE, raising=False)
    with in_job():
        assert list(Path().iterdir()) == []


def test_no_process_that_has_ended_has_a_name(start: Callable):
    process = start("pass")
    assert process_name(process.pid).split()[2] == str(process.pid)
    process.kill()
    time.sleep(0.2)
    assert process_name(process.pid) is None  # a zombie, because nobody has waited for it yet
    process.wait()
    assert process_name(process.pid) is None
