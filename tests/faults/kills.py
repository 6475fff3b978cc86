"""Run a small lineage, kill it, run it again, and compare it with an undisturbed run."""

import ctypes
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from saelineage.files.atomic import TEMPORARY, sha256_file

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "rules", "envs", "profiles", "workflow", "config")
CONFIG = Path(__file__).with_name("small.yaml")
RESULTS = Path("results/small")
STAGES = (
    *("corpora", "tokens", "models", "activations", "saes", "features", "correlations", "lineage", "behaviour"),
    "report",
)
"""Folders of results, in the order in which jobs fill them."""
UNPROMISED = (
    "logs/",
    "benchmarks/",
    "checkpoints/",
    "report/manifest.json",
    "report/making.html",
)
"""Files that hold times, and so differ from run to run."""
LOOK_SECONDS = 0.1
IN_MODIFY = 2
EVENT = struct.Struct("iIII")
"""Of inotify(7): the watch, the kind of event, a cookie, and the length of the name that follows (#... for nameless
files)."""


class Round(NamedTuple):
    """One kill and its outcome."""

    removed_from: str
    """The first stage that had to run."""
    killed: str
    """`snakemake`, a job's script, or `nothing` if the run ended before."""
    seconds: float
    """From the start to the kill."""
    status: int
    """Exit status of the next plain run."""
    extra: str
    """Further commands that were needed."""
    said: str
    """Its notes on the lock."""
    differ: list[str]
    """Files that differ from those of the undisturbed run."""
    partial: list[str]
    """Files that were seen incomplete under their final names at any time, or were written there."""
    leftovers: list[str]
    """Temporary files that are still there."""


class Undisturbed(NamedTuple):
    """Files of an undisturbed run."""

    digests: dict[str, str]
    """sha256 of every file whose bytes are promised, by path."""
    passing: dict[str, str]
    """sha256 of files that were removed after use."""
    seconds: dict[str, float]
    """From the first file of each stage to the end."""
    in_place: list[str]
    """Files that were written under their final names."""


class Small:
    """A copy of the workflow and a run of it."""

    def __init__(self, folder: Path):
        """Copy the workflow to a new folder."""
        self.folder = folder
        self.results = folder / RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        shutil.copy(CONFIG, folder)
        self.variables = {"NO_COLOR": "1", "PYTHONPATH": str(folder.absolute() / "workflow" / "scripts")}
        """Of the environment of its snakemake, which refuses the library of another checkout."""

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start snakemake with its output in said.txt."""
        command = [sys.executable, "-m", "snakemake", "--configfile", CONFIG.name, "--cores", "2", *arguments]
        environment = os.environ | self.variables
        with open(self.folder / "said.txt", "w") as said:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=said, stderr=said)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run snakemake; return its exit status and output."""
        status = self.start(*arguments).wait()
        return status, self.said()

    def said(self) -> str:
        """The output of the last snakemake."""
        return (self.folder / "said.txt").read_text(errors="replace")

    def files(self) -> dict[str, Path]:
        """Files whose bytes are promised, by their paths below the run's folder."""
        paths = {}
        for parent, folders, names in os.walk(self.results):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(parent, name)
                relative = path.relative_to(self.results).as_posix()
                if not name.startswith(".") and not relative.startswith(UNPROMISED):
                    paths[relative] = path
        return paths

    def digests(self) -> dict[str, str]:
        """sha256 of every file whose bytes are promised."""
        return {name: sha256_file(path) for name, path in self.files().items()}

    def leftovers(self) -> list[str]:
        """Temporary files and folders."""
        return sorted(str(path) for path in self.results.rglob(".*") if TEMPORARY.fullmatch(path.name))

    def jobs(self) -> dict[int, str]:
        """Scripts that run for this folder, by process."""
        running, marker = {}, f"{self.folder}/.snakemake/scripts/"
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = path.read_text(errors="replace").split("\0")
            except OSError:
                continue
            scripts = [argument for argument in arguments if argument.startswith(marker)]
            if scripts:
                running[int(path.parent.name)] = scripts[0].split(".")[-2]
        return running

    def remove_from(self, stage: str) -> None:
        """Delete the results of a stage and of all later stages."""
        stages = STAGES[STAGES.index(stage) :]
        others = [*(["tokenizer"] if "tokens" in stages else []), *(["labels"] if "features" in stages else [])]
        for name in [*stages, *others]:
            shutil.rmtree(self.results / name, ignore_errors=True)

    def finish(self) -> Undisturbed:
        """Run from nothing to the end.

        Raises:
            RuntimeError: if the run fails.
        """
        watch = Watch(self)
        watch.start()
        status, said = self.run()
        seen = watch.stop()
        if status:
            raise RuntimeError(said[-4000:])
        benchmarks = [
            path for path in self.results.glob("benchmarks/*/*") if path.stem != "dag"
        ]  # dag needs no other job
        digests, times = self.digests(), {path: path.stat().st_mtime for path in benchmarks}
        firsts = {stage: min(time for path, time in times.items() if path.parent.name == stage) for stage in STAGES}
        seconds = {stage: max(times.values()) - first + 4.0 for stage, first in firsts.items()}
        passing = {name: min(versions) for name, versions in seen.items() if name not in digests}
        return Undisturbed(digests, passing, seconds, sorted(watch.in_place))


class Watch(threading.Thread):
    """A thread that reads every file under its final name, and notes files that are written in place.

    Files are read as soon as they are seen, and again whenever they have changed. The kernel reports writes in place
    (inotify), because polling would miss them; a folder is watched from the moment it is seen.
    """

    def __init__(self, small: Small):
        super().__init__(daemon=True)
        self.small = small
        self.seen: dict[str, set[str]] = {}
        self.in_place: set[str] = set()
        self._read: set[tuple] = set()
        self._is_stopped = threading.Event()
        self._system = ctypes.CDLL(None, use_errno=True)
        self._events = self._system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders: dict[int, str] = {}

    def run(self) -> None:
        """Poll until stopped."""
        while not self._is_stopped.wait(LOOK_SECONDS):
            self._look_for_writers()
            for name, path in self.small.files().items():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    version = (name, status.st_ino, status.st_size, status.st_mtime_ns)
                    if version not in self._read:
                        self.seen.setdefault(name, set()).add(sha256_file(path))
                        self._read.add(version)

    def stop(self) -> dict[str, set[str]]:
        """Stop; return all digests that each file was seen with."""
        self._is_stopped.set()
        self.join()
        os.close(self._events)
        return self.seen

    def _look_for_writers(self) -> None:
        """Note writes in the folders watched so far, then watch new folders."""
        with suppress(BlockingIOError):
            data = os.read(self._events, 1 << 20)
            while data:
                watch, _, _, length = EVENT.unpack_from(data)
                name = data[EVENT.size : EVENT.size + length].rstrip(b"\0").decode()
                path = f"{self._folders.get(watch, '')}/{name}".removeprefix("/")
                if name and not name.startswith((".", "#")) and not path.startswith(UNPROMISED):
                    self.in_place.add(path)
                data = data[EVENT.size + length :]
        for parent, folders, _ in os.walk(self.small.results):
            folders[:] = [name for name in folders if not name.startswith(".")]
            watch = self._system.inotify_add_watch(self._events, parent.encode(), IN_MODIFY)
            self._folders[watch] = Path(parent).relative_to(self.small.results).as_posix().removeprefix(".")


def kill_round(
    small: Small, whole: Undisturbed, stage: str, victim: str, moment: float | None, chance: random.Random
) -> Round:
    """Delete the results from a stage on, run, kill in the middle, run again.

    Args:
        small: a finished run; finished again afterwards.
        whole: the files of the undisturbed run.
        stage: the first stage that has to run.
        victim: `snakemake` or `job`.
        moment: of the kill, in seconds after the start; None: as soon as a job runs.
        chance: draws one of the running jobs.
    """
    small.remove_from(stage)
    watch = Watch(small)
    watch.start()
    started, process = time.monotonic(), small.start()
    killed = _kill(small, process, victim, moment, chance)
    seconds = time.monotonic() - started
    process.wait()
    status, said = small.run()
    extra = ""
    if status != 0:
        small.run("--unlock")
        again, _ = small.run()
        extra = "--unlock" if again == 0 else f"--unlock, and still {again}"
    right, digests = whole.passing | whole.digests, small.digests()
    partial = {name for name, seen in watch.stop().items() if seen - {right.get(name)}} | watch.in_place
    names = digests.keys() | whole.digests.keys()
    differ = sorted(name for name in names if digests.get(name) != whole.digests.get(name))
    notes = [line.removeprefix("note: ") for line in said.splitlines() if line.startswith("note: ")]
    return Round(stage, killed, seconds, status, extra, "; ".join(notes), differ, sorted(partial), small.leftovers())


def _kill(small: Small, process: subprocess.Popen, victim: str, moment: float | None, chance: random.Random) -> str:
    """Kill one process at a moment, or the first job after it; return its name."""
    end = time.monotonic() + (moment or 0.0)
    while process.poll() is None:
        jobs = small.jobs() if time.monotonic() >= end else {}
        if victim == "snakemake" and (jobs or (moment is not None and time.monotonic() >= end)):
            process.send_signal(signal.SIGKILL)
            return "snakemake"
        if jobs:
            pid = chance.choice(sorted(jobs))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return jobs[pid]
        time.sleep(0.02)
    return "nothing"
