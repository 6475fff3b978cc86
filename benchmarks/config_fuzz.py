"""What becomes of configs with something wrong in them: an error of one sentence, a plan, or a traceback.

    python benchmarks/config_fuzz.py [--n 400] [--seed 0] [--commands 16 | all] [--json FILE] [--errors]

Every mutant (tests/config_mutants.py) goes through Snakemake's reader, then through what the Snakefile calls, and its
comparisons are planned; some, or all, also go through `snakemake -n` itself, two at a time. Snakemake reads the files
before it looks at the Snakefile: what its reader breaks off over, with a traceback of its own, is counted apart.
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
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "workflow" / "scripts"), str(ROOT)]

from snakemake.common.configfile import load_configfile  # noqa: E402
from snakemake.utils import update_config  # noqa: E402
from snakemake_interface_common.exceptions import WorkflowError  # noqa: E402
from tests.config_mutants import Mutant, lay_out, mutants  # noqa: E402

from saelineage.errors import InputError  # noqa: E402
from saelineage.plan import comparisons  # noqa: E402
from saelineage.plan.config import check_files, load_config, read_yaml  # noqa: E402

SNAKEMAKES = "Snakemake's traceback"
OUTCOMES = ("error", "plans", "traceback", "too slow", SNAKEMAKES)
SCHEMA = ROOT / "config" / "config.schema.yaml"
MOST_SECONDS, MOST_COMMAND_SECONDS = 10.0, 600.0
LONGEST_ERROR = 1000
AT_ONCE = 2
"""`snakemake -n` that run at a time."""


class Outcome(NamedTuple):
    """What became of a mutant."""

    what: str
    """One of `OUTCOMES`."""
    message: str
    seconds: float


class TooSlowError(BaseException):
    """Time is up; no `except Exception` catches it."""


class SnakemakeError(Exception):
    """Snakemake's reader broke off, and would print a traceback."""


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
    """What becomes of a config in this process, in a folder laid out for it."""
    start, path = time.perf_counter(), Path("mutant.yaml")
    path.write_bytes(mutant.content)
    what, message = "plans", ""
    try:
        with time_limit(MOST_SECONDS):
            given = as_snakemake_reads(path)
            plan(given, path)
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
    """What Snakemake hands on of a config file, before it looks at the Snakefile.

    Raises:
        WorkflowError: what it says in a sentence of its own.
        SnakemakeError: what it prints as a traceback.
    """
    config: dict = {}
    try:
        update_config(config, load_configfile(path))
        return config
    except WorkflowError:
        raise
    except Exception as error:
        raise SnakemakeError(f"{type(error).__name__}: {error}"[:300]) from error


def plan(given: dict, path: Path) -> None:
    """What the Snakefile does with a config before there is a job: `config.check_config`, and planning."""
    read_yaml(path)
    config = check_files(load_config(given, schema()))
    comparisons.plan(config)
    comparisons.job_shape(config)


@cache
def schema() -> dict:
    """The schema, which is read once here and in every Snakemake."""
    return read_yaml(SCHEMA)


def outcomes_of_commands(found: list[Mutant]) -> Iterator[Outcome]:
    """What `snakemake -n` makes of each, `AT_ONCE` at a time, each in a folder of its own."""
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
        yield from pool.map(outcome_of_command, found)


def command_outcome(mutant: Mutant, folder: Path) -> Outcome:
    """What `snakemake -n` makes of a config, in a folder laid out for it."""
    start = time.perf_counter()
    (folder / "mutant.yaml").write_bytes(mutant.content)
    command = [sys.executable, "-m", "snakemake", "-n", "-s", str(ROOT / "Snakefile"), "--configfile", "mutant.yaml"]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default"), "--quiet", "host"]
    options = {"capture_output": True, "text": True, "errors": "replace", "timeout": MOST_COMMAND_SECONDS}
    try:
        done = subprocess.run(command, cwd=folder, check=False, **options)
    except subprocess.TimeoutExpired:
        return Outcome("too slow", f"more than {MOST_COMMAND_SECONDS:g} s", time.perf_counter() - start)
    said = done.stdout + done.stderr
    what = "error" if done.returncode else "plans"
    if "Traceback" in said:
        what = SNAKEMAKES if "_get_overwrite_config" in said else "traceback"
    return Outcome(what, said, time.perf_counter() - start)


def table(counts: Counter, kinds: list[str]) -> str:
    """Kinds by outcomes, as Markdown."""
    rows = [["kind", *OUTCOMES], ["---", *["---:"] * len(OUTCOMES)]]
    rows += [[kind, *(str(counts[kind, found]) for found in OUTCOMES)] for kind in kinds]
    rows.append(["all", *(str(sum(counts[kind, found] for kind in kinds)) for found in OUTCOMES)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def show(found: list[Mutant], outcomes: Iterable[Outcome], show_errors: bool) -> list[list[str]]:
    """Kind, what was done and outcome of some mutants; those that should not be are printed on the way."""
    counts: Counter = Counter()
    rows, slowest = [], (0.0, "")
    for mutant, (what, message, seconds) in zip(found, outcomes, strict=True):
        slowest = max(slowest, (seconds, f"{mutant.kind}, {mutant.what}"))
        counts[mutant.kind, what] += 1
        rows.append([mutant.kind, mutant.what, what])
        if what not in ("error", "plans") or show_errors:
            print(f"{what}: {mutant.kind}, {mutant.what}\n    {message[-1500:].strip()}\n")
    print(f"{table(counts, list(dict.fromkeys(mutant.kind for mutant in found)))}\n")
    print(f"slowest {slowest[0]:.2f} s ({slowest[1]})\n")
    return rows


def main() -> None:
    """Parse the arguments, run the mutants, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=400, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="16", help="how many of them also go through `snakemake -n`, or `all`")
    parser.add_argument("--json", type=Path, help="where to write kind, what was done and outcome of each")
    parser.add_argument("--errors", action="store_true", help="print every message")
    arguments = parser.parse_args()
    found = mutants(arguments.n, arguments.seed)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        lay_out(Path(folder))
        print(f"{len(found)} configs through what the Snakefile calls:\n")
        rows = show(found, map(outcome, found), arguments.errors)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"this process reached {peak_mb:.0f} MB\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))
    n = len(found) if arguments.commands == "all" else min(int(arguments.commands), len(found))
    sample = found if n == len(found) else random.Random(arguments.seed).sample(found, n)
    if sample:
        print(f"{len(sample)} of them through `snakemake -n`:\n")
        show(sample, outcomes_of_commands(sample), arguments.errors)


if __name__ == "__main__":
    main()
