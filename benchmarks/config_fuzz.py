"""Classify the outcomes of faulty configs: an error of one sentence, a plan, or a traceback.

    python -m benchmarks.config_fuzz [--n 400] [--seed 0] [--commands 16 | all] [--json FILE] [--errors]

Every mutant (tests/config_mutants.py) goes through Snakemake's reader and through the calls of the Snakefile that make
the plan. Some, or all, also go through `snakemake -n` itself, two at a time. Snakemake reads config files before it
reads the Snakefile, so tracebacks of its own reader are counted separately.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config
from snakemake_interface_common.exceptions import WorkflowError
from tests.config_mutants import Mutant, lay_out, mutants

from saelineage.errors import InputError
from saelineage.plan.load import load_plan

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKES = "Snakemake's traceback"
OUTCOMES = ("error", "plans", "traceback", "too slow", SNAKEMAKES)
SCHEMA = ROOT / "config" / "config.schema.yaml"
MOST_SECONDS, MOST_COMMAND_SECONDS = 10.0, 600.0
LONGEST_ERROR = 1000
AT_ONCE = 2
"""Number of `snakemake -n` processes that run at a time."""


class Outcome(NamedTuple):
    """The outcome of a mutant."""

    what: str
    """One of `OUTCOMES`."""
    message: str
    seconds: float


class TooSlowError(BaseException):
    """Time is up; no `except Exception` catches it."""


class SnakemakeError(Exception):
    """Snakemake's reader failed, and would print a traceback."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooSlowError` in the block when it takes longer."""

    def stop(_signal: int, _frame: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(mutant: Mutant) -> Outcome:
    """Read and plan a config in this process, in a folder laid out for it."""
    start, path = time.perf_counter(), Path("mutant.yaml")
    path.write_bytes(mutant.content)
    what, message = "plans", ""
    try:
        with time_limit(MOST_SECONDS):
            plan = load_plan(as_snakemake_reads(path), [path], SCHEMA)
            plan.comparisons.as_data()
            plan.job_shape()
    except SnakemakeError as error:
        what, message = SNAKEMAKES, str(error)
    except (InputError, WorkflowError) as error:
        message = str(error)
        one_sentence = message.isprintable() and len(message) <= LONGEST_ERROR
        what = "error" if one_sentence else "traceback"
    except TooSlowError:
        what, message = "too slow", f"more than {MOST_SECONDS:g} s"
    except Exception:
        what, message = "traceback", traceback.format_exc()
    return Outcome(what, message, time.perf_counter() - start)


def as_snakemake_reads(path: Path) -> dict:
    """Read a config file as Snakemake does before it reads the Snakefile.

    Raises:
        WorkflowError: if Snakemake would print a message.
        SnakemakeError: if Snakemake would print a traceback.
    """
    config: dict = {}
    try:
        update_config(config, load_configfile(path))
        return config
    except WorkflowError:
        raise
    except Exception as error:
        raise SnakemakeError(f"{type(error).__name__}: {error}"[:300]) from error


def outcomes_of_commands(sample: list[Mutant]) -> Iterator[Outcome]:
    """Run `snakemake -n` on each config, `AT_ONCE` at a time, each in its own folder."""
    folders: SimpleQueue[Path] = SimpleQueue()

    def outcome_of_command(mutant: Mutant) -> Outcome:
        folder = folders.get()
        try:
            return command_outcome(mutant, folder)
        finally:
            folders.put(folder)

    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(AT_ONCE):
            lay_out(Path(place, str(number)))
            folders.put(Path(place, str(number)))
        yield from pool.map(outcome_of_command, sample)


def command_outcome(mutant: Mutant, folder: Path) -> Outcome:
    """Run `snakemake -n` on a config, in a folder laid out for it."""
    start = time.perf_counter()
    (folder / "mutant.yaml").write_bytes(mutant.content)
    command = [sys.executable, "-m", "snakemake", "-n", "-s", str(ROOT / "Snakefile"), "--configfile", "mutant.yaml"]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default"), "--quiet", "host"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOST_COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome("too slow", f"more than {MOST_COMMAND_SECONDS:g} s", time.perf_counter() - start)
    output = done.stdout + done.stderr
    what = "error" if done.returncode else "plans"
    if "Traceback" in output:
        what = SNAKEMAKES if "_get_overwrite_config" in output else "traceback"
    return Outcome(what, output, time.perf_counter() - start)


def table(counts: Counter, kinds: list[str]) -> str:
    """Tabulate kinds of mutants by outcomes, as Markdown."""
    rows = [["kind", *OUTCOMES], ["---", *["---:"] * len(OUTCOMES)]]
    rows += [[kind, *(str(counts[kind, what]) for what in OUTCOMES)] for kind in kinds]
    rows.append(["all", *(str(sum(counts[kind, what] for kind in kinds)) for what in OUTCOMES)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def show(sample: list[Mutant], outcomes: Iterable[Outcome], show_errors: bool) -> list[list[str]]:
    """Print unwanted outcomes and a table; return kind, change and outcome of each mutant."""
    counts: Counter = Counter()
    rows, slowest = [], (0.0, "")
    for mutant, (what, message, seconds) in zip(sample, outcomes, strict=True):
        slowest = max(slowest, (seconds, f"{mutant.kind}, {mutant.what}"))
        counts[mutant.kind, what] += 1
        rows.append([mutant.kind, mutant.what, what])
        if what not in ("error", "plans") or show_errors:
            print(f"{what}: {mutant.kind}, {mutant.what}\n    {message[-1500:].strip()}\n")
    print(f"{table(counts, list(dict.fromkeys(mutant.kind for mutant in sample)))}\n")
    print(f"slowest {slowest[0]:.2f} s ({slowest[1]})\n")
    return rows


def main() -> None:
    """Run the mutants, print the tables, write the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=400, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="16", help="number of mutants for `snakemake -n`, or `all`")
    parser.add_argument("--json", type=Path, help="where to write kind, change and outcome of each mutant")
    parser.add_argument("--errors", action="store_true", help="print every message")
    arguments = parser.parse_args()
    made = mutants(arguments.n, arguments.seed)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        lay_out(Path(folder))
        print(f"{len(made)} configs through the calls of the Snakefile:\n")
        rows = show(made, map(outcome, made), arguments.errors)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"this process reached {peak_mb:.0f} MB\n")
    n = len(made) if arguments.commands == "all" else min(int(arguments.commands), len(made))
    sample = made if n == len(made) else random.Random(arguments.seed).sample(made, n)
    commands = []
    if sample:
        print(f"{len(sample)} of them through `snakemake -n`:\n")
        commands = show(sample, outcomes_of_commands(sample), arguments.errors)
    if arguments.json:
        arguments.json.write_text(json.dumps({"configs": rows, "commands": commands}, indent=1) + "\n")


if __name__ == "__main__":
    main()
