"""One Snakemake at a time on a run, no job without its Snakemake, and no lock that a killed one leaves behind.

Snakemake writes lists of files under `.snakemake/locks`; whoever finds its own files there takes it for a second
Snakemake at work, also when the first was killed. Here a Snakemake holds a lock of the operating system while it runs
jobs (`claim`), and every job holds another (`in_job`): both are gone when the process is, however it ended. Where
neither is held, Snakemake's lists mean nothing any more and are removed (`remove_stale`).
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

DECIDES_RESULTS = False

logger = logging.getLogger(__name__)

STATE = Path(".snakemake")
SNAKEMAKE, JOBS_LOCK = "SAELINEAGE_SNAKEMAKE", "SAELINEAGE_JOBS_LOCK"
"""Environment variables by which jobs know the Snakemake that they are for, and the lock that they hold."""
NOBODY, SOMEBODY, UNKNOWN = "nobody", "somebody", "unknown"
WATCH_SECONDS = 0.5
CLAIM_SECONDS, JOBS_SECONDS = 1.0, 10.0
"""How long a run is waited for that somebody may just be looking at; and the jobs of a Snakemake that was killed."""

_held: list[BinaryIO] = []
"""Kept open as long as the process lives."""


def claim(run: str, state: Path = STATE, jobs_are_local: bool = True) -> None:
    """Hold a run for as long as this process lives.

    Args:
        run: its name.
        state: Snakemake's folder.
        jobs_are_local: whether jobs end with this process, which those of a cluster do not.

    Raises:
        InputError: if another process holds it.
    """
    path = run_lock(run, state)
    file = _opened(path)
    if not _wait_for(lambda: _got(file), CLAIM_SECONDS):
        raise InputError(
            f"results/{run} is being worked on by another snakemake ({owner_of(path)}); wait for it to end, or stop it "
            "(dry runs, `verify` and `jobs` take --nolock meanwhile)"
        )
    file.truncate(0)
    file.write(json.dumps({"process": os.getpid(), "host": HOST, "jobs_are_local": jobs_are_local}).encode())
    _held.append(file)


def remove_stale(run: str, state: Path = STATE) -> str | None:
    """Remove Snakemake's own locks on a run if the one that wrote them is provably gone, and its jobs are.

    Returns:
        What was done, or why nothing was and what to do; None where nothing is locked.
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
            f"jobs of a snakemake that is gone ({owner_of(path)}) still run for results/{run}; "
            "wait for them to end or kill them, and run again"
        )
    try:
        for lock in stale:
            lock.unlink(missing_ok=True)
    except OSError as error:
        return f"the lock of a snakemake that is gone ({owner_of(path)}) stays on results/{run}: {error.strerror}"
    return f"removed the lock on results/{run} of a snakemake that is gone ({owner_of(path)})"


def announce(run: str, state: Path = STATE) -> None:
    """Tell the jobs that this process starts which process they are for, and what they hold."""
    os.environ |= {SNAKEMAKE: process_name(os.getpid()) or "", JOBS_LOCK: str(jobs_lock(run, state))}


def is_free(run: str, state: Path = STATE) -> bool:
    """Whether it is certain that no Snakemake works on a run."""
    return _holder(run_lock(run, state)) is NOBODY


@contextmanager
def in_job() -> Iterator[None]:
    """Hold the jobs' lock, and end when this job's Snakemake is gone: the next one will run it again.

    Nothing is done in a process that no Snakemake has started.
    """
    if not os.environ.get(SNAKEMAKE):
        yield
        return
    with _opened(Path(os.environ[JOBS_LOCK])) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:
            logger.warning("'%s' cannot be locked, for its file system knows no locks", file.name)
        _end_if_gone(os.environ[SNAKEMAKE], os.getppid())
        threading.Thread(target=_end_with, args=(os.environ[SNAKEMAKE], os.getppid()), daemon=True).start()
        yield


def process_name(pid: int) -> str | None:
    """Host, process namespace, id and start: what no two processes have in common. None where it is gone or unknown."""
    try:
        # Behind the command in brackets, which may hold anything: state, parent ..., and as 20th the start.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{HOST} {namespace} {pid} {fields[19]}"


def run_lock(run: str, state: Path = STATE) -> Path:
    """What the Snakemake that works on a run holds."""
    return state / "saelineage" / f"{run}.lock"


def jobs_lock(run: str, state: Path = STATE) -> Path:
    """What the jobs of a run hold together."""
    return state / "saelineage" / f"{run}.jobs"


def owner_of(path: Path) -> str:
    """The process that last held a run, in words."""
    found = _record(path)
    return f"process {found['process']} on {found['host']}" if found else "process unknown"


def _end_with(snakemake: str, parent: int) -> None:
    """End this process when its Snakemake or its parent is gone."""
    while _end_if_gone(snakemake, parent):
        time.sleep(WATCH_SECONDS)


def _end_if_gone(snakemake: str, parent: int) -> bool:
    """End this process if its Snakemake or its parent is gone; False where they cannot be seen, being elsewhere."""
    place, pid, _ = snakemake.rsplit(" ", 2)
    if not (process_name(os.getpid()) or "").startswith(f"{place} "):
        return False
    if process_name(int(pid)) != snakemake or os.getppid() != parent:
        logger.error("snakemake (process %s) is gone, so this job ends; run snakemake again", pid)
        os._exit(1)
    return True


def _may_be_alive(run: str, state: Path, lists: Sequence[Path]) -> str | None:
    """Why it is not certain that the Snakemake which wrote some lists is gone, with what to do; None where it is."""
    path = run_lock(run, state)
    holder, found = _holder(path), _record(path)
    unlock = "then run `snakemake --unlock`"
    if holder is SOMEBODY:
        return f"results/{run} is being worked on by another snakemake ({owner_of(path)})"
    if holder is UNKNOWN:
        return (
            f"whether a snakemake ({owner_of(path)}) works on results/{run} cannot be seen, for '{path}' cannot be "
            f"locked here; be sure that none does, {unlock}"
        )
    if found.get("host", HOST) != HOST or not found.get("jobs_are_local", True):
        return (
            f"results/{run} was locked by a snakemake ({owner_of(path)}) whose jobs may still wait or run elsewhere; "
            f"cancel them (on SLURM `scancel --name` with the run ID at the top of its log), {unlock}"
        )
    begun = path.stat().st_mtime_ns if path.exists() else 0
    if any(one.exists() and one.stat().st_mtime_ns > begun for one in lists):
        return (
            f"results/{run} was locked by a snakemake that had not begun, or was started with --no-hooks; be sure that "
            f"it is gone, {unlock}"
        )
    return None


def _record(path: Path) -> dict:
    """What `claim` wrote; nothing where there is none, or not all of it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _opened(path: Path) -> BinaryIO:
    """A file to lock; NFS locks for one process only what is open for writing, for several what is for reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a+b", buffering=0)


def _got(file: BinaryIO) -> bool:
    """Whether a file could be locked for this process alone.

    A file system without locks gives them all: there nobody is kept out, and nothing is proved.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("'%s' cannot be locked (%s): nothing keeps a second snakemake out", file.name, error.strerror)
    return True


def _holder(path: Path) -> str:
    """Whether processes hold a lock, whichever kind: NOBODY, SOMEBODY, or UNKNOWN where that cannot be seen."""
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
    """Whether something becomes so in time."""
    end = time.monotonic() + most_seconds
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _runs_in(lock: Path) -> set[str]:
    """The runs that one of Snakemake's lists holds files of."""
    try:
        with open(lock, encoding="utf-8", errors="replace") as file:
            return {line.split("/")[1] for line in file if line.startswith("results/") and line.count("/") > 1}
    except OSError:
        return set()  # its Snakemake has just ended, or is somebody else's
