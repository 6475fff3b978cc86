"""One Snakemake at a time on a run, no job without its Snakemake, and no stale locks of a killed Snakemake.

Snakemake writes lists of files under `.snakemake/locks`. The next Snakemake that finds its files there refuses to
start, even if the first was killed. Here a Snakemake also holds an operating-system lock while it runs jobs (`claim`),
and every job holds another (`in_job`). The kernel releases both however a process ends. If neither is held, Snakemake's
lists are stale and are removed (`remove_stale`).
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from saelineage.errors import InputError
from saelineage.files.atomic import HOST
from saelineage.jobs.commands import command

DECIDES_RESULTS = False

logger = logging.getLogger(__name__)

STATE = Path(".snakemake")
SNAKEMAKE, JOBS_LOCK = "SAELINEAGE_SNAKEMAKE", "SAELINEAGE_JOBS_LOCK"
"""Environment variables that tell jobs the name of their Snakemake and the lock to hold."""
NOBODY, SOMEBODY, UNKNOWN = "nobody", "somebody", "unknown"
WATCH_SECONDS = 0.5
CLAIM_SECONDS, JOBS_SECONDS = 1.0, 10.0
"""Longest waits: for a run that another process may only be looking at, and for the jobs of a killed Snakemake."""

_held: list[BinaryIO] = []
"""Lock files, kept open until the process ends."""


def claim(run: str, state: Path = STATE, jobs_are_local: bool = True) -> None:
    """Hold a run until this process ends.

    Args:
        run: its name.
        state: Snakemake's folder.
        jobs_are_local: true if jobs end with this process; jobs on a cluster do not.

    Raises:
        InputError: if another process holds it.
    """
    path = run_lock(run, state)
    file = _opened(path)
    if not _wait_for(lambda: _got(file), CLAIM_SECONDS):
        raise InputError(f"{_in_use(run, path)} (for dry runs, `verify` and `jobs` in the meantime, add --nolock)")
    file.truncate(0)
    file.write(json.dumps({"process": os.getpid(), "host": HOST, "jobs_are_local": jobs_are_local}).encode())
    _held.append(file)


def remove_stale(run: str, state: Path = STATE) -> str | None:
    """Remove Snakemake's own locks on a run if the Snakemake that wrote them and its jobs are provably gone.

    Returns:
        A sentence: locks were removed, or the reason why not and the next step. None if nothing is locked.
    """
    stale = {path: runs for path in sorted(state.glob("locks/*.lock")) if run in (runs := _runs_in(path))}
    if not stale:
        return None
    path = run_lock(run, state)
    for name in sorted(set().union(*stale.values())):
        if reason := _may_be_alive(name, state, list(stale)):
            return reason
    if not _wait_for(lambda: _holder(jobs_lock(run, state)) is NOBODY, JOBS_SECONDS):
        return (
            f"jobs of a killed snakemake ({owner_of(path)}) are still running for results/{run}; "
            "wait for them to end or kill them, and run again"
        )
    try:
        for lock in stale:
            lock.unlink(missing_ok=True)
    except OSError as error:
        return f"the lock of a killed snakemake ({owner_of(path)}) on results/{run} cannot be removed: {error.strerror}"
    return f"removed the lock of a killed snakemake ({owner_of(path)}) on results/{run}"


def note_at_end(run: str, state: Path = STATE) -> str | None:
    """A sentence on the Snakemake that kept this one from a run; None if there is none, or this one held the run.

    Snakemake's own message names nobody. If the other one wrote its lists after this one had begun, `remove_stale` at
    the beginning said nothing either.
    """
    return None if _held else remove_stale(run, state)


def announce(run: str, state: Path = STATE) -> None:
    """Tell the jobs that this process starts the name of their Snakemake and the lock to hold."""
    os.environ |= {SNAKEMAKE: process_name(os.getpid()) or "", JOBS_LOCK: str(jobs_lock(run, state))}


def is_free(run: str, state: Path = STATE) -> bool:
    """True if it is certain that no Snakemake is working on a run."""
    return _holder(run_lock(run, state)) is NOBODY


@contextmanager
def in_job() -> Iterator[None]:
    """Hold the jobs' lock, and end this process when its Snakemake is gone; the next Snakemake runs the job again.

    Does nothing in a process that was not started by a Snakemake.
    """
    if not os.environ.get(SNAKEMAKE):
        yield
        return
    with _opened(Path(os.environ[JOBS_LOCK])) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:
            logger.warning("'%s' cannot be locked, because its file system does not support locks", file.name)
        _end_if_gone(os.environ[SNAKEMAKE], os.getppid())
        threading.Thread(target=_end_with, args=(os.environ[SNAKEMAKE], os.getppid()), daemon=True).start()
        yield


def process_name(pid: int) -> str | None:
    """Host, namespace, id and start time: unique to one process. None if it is gone or cannot be seen."""
    try:
        # After the command in brackets, which may hold any character: state, parent, ..., and 20th the start time.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{HOST} {namespace} {pid} {fields[19]}"


def run_lock(run: str, state: Path = STATE) -> Path:
    """The lock file of the Snakemake that works on a run."""
    return state / "saelineage" / f"{run}.lock"


def jobs_lock(run: str, state: Path = STATE) -> Path:
    """The lock file that the jobs of a run share."""
    return state / "saelineage" / f"{run}.jobs"


def launcher_socket(run: str, state: Path = STATE) -> Path:
    """The socket of the launcher that the Snakemake working on a run has."""
    return state / "saelineage" / f"{run}.socket"


def owner_of(path: Path) -> str:
    """The process that last held a run, in words."""
    owner = _record(path)
    return f"process {owner['process']} on {owner['host']}" if owner else "process unknown"


def _end_with(snakemake: str, parent: int) -> None:
    """Wait until the Snakemake or the parent of this process is gone, then end the process."""
    while _end_if_gone(snakemake, parent):
        time.sleep(WATCH_SECONDS)


def _end_if_gone(snakemake: str, parent: int) -> bool:
    """End this process if its Snakemake or its parent is gone; False if they are on another host and cannot be seen."""
    place, pid, _ = snakemake.rsplit(" ", 2)
    if not (process_name(os.getpid()) or "").startswith(f"{place} "):
        return False
    if process_name(int(pid)) != snakemake or os.getppid() != parent:
        logger.error("snakemake (process %s) is gone, so this job ends; run snakemake again", pid)
        os._exit(1)
    return True


def _may_be_alive(run: str, state: Path, lists: Sequence[Path]) -> str | None:
    """A reason why the Snakemake that wrote some lists may still be at work, and the next step; None if it is gone."""
    path = run_lock(run, state)
    holder, owner = _holder(path), _record(path)
    unlock = f"then run `{command('--unlock')}`"
    if holder is SOMEBODY:
        return _in_use(run, path)
    if holder is UNKNOWN:
        return (
            f"results/{run} may be in use by a snakemake ({owner_of(path)}): '{path}' cannot be locked here, so this "
            f"cannot be seen; make sure that it is not, {unlock}"
        )
    if owner.get("host", HOST) != HOST or not owner.get("jobs_are_local", True):
        return (
            f"results/{run} was locked by a snakemake ({owner_of(path)}) whose jobs may still be queued or running; "
            f"cancel them (on SLURM `scancel --name` with the run ID at the top of its log), {unlock}"
        )
    begun = path.stat().st_mtime_ns if path.exists() else 0
    if any(lock.exists() and lock.stat().st_mtime_ns > begun for lock in lists):
        if _wait_for(lambda: _holder(path) is SOMEBODY, CLAIM_SECONDS):  # it has just written its lists
            return _in_use(run, path)
        return (
            f"results/{run} was locked by a snakemake that had not started yet, or was started with --no-hooks; make "
            f"sure that it is gone, {unlock}"
        )
    return None


def _in_use(run: str, path: Path) -> str:
    return f"results/{run} is in use by another snakemake ({owner_of(path)}); wait for it to end, or stop it"


def _record(path: Path) -> dict:
    """The record that `claim` wrote; empty if it is absent or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _opened(path: Path) -> BinaryIO:
    """Open a file to lock. NFS needs it open for writing for an exclusive lock, and for reading for a shared one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a+b", buffering=0)


def _got(file: BinaryIO) -> bool:
    """Try to lock a file for this process alone.

    On a file system without locks every attempt succeeds, with a warning: no other process is kept out.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("'%s' cannot be locked (%s), so a second snakemake is not kept out", file.name, error.strerror)
    return True


def _holder(path: Path) -> str:
    """See if any process holds a lock of either kind: NOBODY, SOMEBODY, or UNKNOWN if locks do not work here."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return NOBODY
    except BlockingIOError:
        return SOMEBODY
    except OSError:
        return UNKNOWN
    return NOBODY


def _wait_for(is_so: Callable[[], bool], most_seconds: float) -> bool:
    """Wait until a condition holds; False if it does not in time."""
    end = time.monotonic() + most_seconds
    while not (holds := is_so()) and time.monotonic() < end:
        time.sleep(0.05)
    return holds


def _runs_in(lock: Path) -> set[str]:
    """The runs whose files are on one of Snakemake's lists."""
    try:
        with open(lock, encoding="utf-8", errors="replace") as file:
            return {line.split("/")[1] for line in file if line.startswith("results/") and line.count("/") > 1}
    except OSError:
        return set()  # its Snakemake has just ended, or belongs to another user
