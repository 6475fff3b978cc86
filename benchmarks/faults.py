"""Kill a random job, or snakemake itself, at random moments of a small run, and compare the results of the next run.

    python -m benchmarks.faults [--rounds 50] [--seed 0] [--folder FOLDER] [--json FILE]
    python -m benchmarks.faults --verify [--gigabytes 2] [--json FILE]

In each round the results of a random stage and of all later stages are deleted (early stages more rarely, because they
take longer), snakemake is started, `kill -9` hits it or one of its jobs, and snakemake is run again. All promised bytes
are then compared with those of an undisturbed run. Meanwhile each file is read as soon as it has its final name. With
`--verify`, the reading speed of `snakemake verify` on files of random bytes is measured instead.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tests.faults.kills import STAGES, Round, Small, kill_round

from saelineage.jobs.job import job
from saelineage.jobs.manifests import check_run

FILE_BYTES = 64 << 20
LINE = "{:>5}  {:<13} {:<20} {:>6}  {:>6}  {:<9} {:<7} {:<7} {}"


def kill_rounds(folder: Path, n_rounds: int, seed: int) -> list[Round]:
    """Run undisturbed, then round after round; a line is printed for each."""
    chance, small = random.Random(seed), Small(folder)
    whole = small.finish()
    rarely = [1 / whole.seconds[stage] for stage in STAGES]
    print(f"undisturbed: {whole.seconds['corpora']:.0f} s, {len(whole.digests)} files; seed {seed}")
    print(LINE.format("round", "deleted from", "killed", "after", "status", "extra", "equal", "partial", "note"))
    rounds = []
    for number in range(1, n_rounds + 1):
        (stage,), victim = chance.choices(STAGES, rarely), chance.choice(("snakemake", "job"))
        result = kill_round(small, whole, stage, victim, chance.uniform(0.0, 0.9) * whole.seconds[stage], chance)
        print(line(number, result), flush=True)
        rounds.append(result)
        if result.differ:
            print("       differ:", *result.differ[:10])
    return rounds


def line(number: int, result: Round) -> str:
    """A row of the table."""
    equal, partial = "no" if result.differ else "yes", len(result.partial) + len(result.leftovers)
    row = (number, result.removed_from, result.killed, f"{result.seconds:.1f}", result.status, result.extra or "-")
    return LINE.format(*row, equal, partial, result.said)


def summary(rounds: list[Round]) -> str:
    """Totals over all rounds, in a sentence."""
    snakemake = sum(found.killed == "snakemake" for found in rounds)
    jobs = sum(found.killed not in ("snakemake", "nothing") for found in rounds)
    well = sum(found.status == 0 and not found.extra for found in rounds)
    equal, seen = sum(not found.differ for found in rounds), sum(bool(found.partial) for found in rounds)
    left = sum(bool(found.leftovers) for found in rounds)
    return (
        f"{len(rounds)} rounds: snakemake killed in {snakemake}, a job in {jobs}; next plain run ended well in {well}, "
        f"all bytes equal in {equal}, something half-written seen in {seen}, temporary files left in {left}"
    )


def verify_speed(folder: Path, gigabytes: float) -> dict[str, float]:
    """Seconds per GB of `check_run`, with one thread and with two, on files of random bytes just written.

    Wall time and processor time; the first is longer if others use the machine.
    """
    chance, speeds = np.random.default_rng(0), {}
    for number in range(max(1, round(gigabytes * 1e9 / FILE_BYTES))):
        path = folder / f"{number}.bin"
        path.write_bytes(chance.bytes(FILE_BYTES))
        _record(path)
    for threads in (1, 2):
        started, processor = time.monotonic(), time.process_time()
        check = check_run(folder, threads)
        assert not check.problems
        gigabytes = check.n_bytes / 1e9
        speeds[f"{threads} threads"] = (time.monotonic() - started) / gigabytes
        speeds[f"{threads} threads, processor"] = (time.process_time() - processor) / gigabytes
    return speeds


def _record(path: Path) -> None:
    """Write the manifest of one file, as the job that wrote it would."""
    outputs, params = [str(path), str(path.with_suffix(".manifest.json"))], SimpleNamespace(code="", items={}.items)
    script = SimpleNamespace(log=[os.devnull], output=outputs, input=[], params=params, wildcards={}, threads=1)
    with job(script):
        pass


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; by default a temporary folder")
    parser.add_argument("--verify", action="store_true", help="measure verify instead")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    measured: dict[str, float] | list[dict[str, Any]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.verify:
            measured = speeds = verify_speed(folder, given.gigabytes)
            print(", ".join(f"{name}: {seconds:.2f} s per GB" for name, seconds in speeds.items()))
        else:
            rounds = kill_rounds(folder, given.rounds, given.seed)
            print(summary(rounds))
            measured = [result._asdict() for result in rounds]
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
