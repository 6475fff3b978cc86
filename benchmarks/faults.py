"""Kill a random job, or snakemake itself, at random moments of a small run, and compare what the next run ends with.

    python benchmarks/faults.py [--rounds 50] [--seed 0] [--folder FOLDER] [--json FILE]
    python benchmarks/faults.py --verify [--gigabytes 2]

In each round the results of a random stage (the longer what follows takes, the more rarely) and of all that follow are
deleted, snakemake is started, `kill -9` hits it or one of its jobs, and snakemake is run again as anyone would. All
promised bytes are then compared with those of an undisturbed run; all the time, each file is read as soon as it has its
final name. With `--verify`, how fast `snakemake verify` reads: files of random bytes are written with their manifests
and checked.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "workflow" / "scripts"), str(ROOT)]

from tests.faults.kills import STAGES, Round, Small, kill_round  # noqa: E402

from saelineage.jobs.manifests import check_run, record_job  # noqa: E402

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
        found = kill_round(small, whole, stage, victim, chance.uniform(0.0, 0.9) * whole.seconds[stage], chance)
        print(line(number, found), flush=True)
        rounds.append(found)
        if found.differ:
            print("       differ:", *found.differ[:10])
    return rounds


def line(number: int, found: Round) -> str:
    """A row of the table."""
    equal, partial = "no" if found.differ else "yes", len(found.partial) + len(found.leftovers)
    row = (number, found.removed_from, found.killed, f"{found.seconds:.1f}", found.status, found.extra or "-", equal)
    return LINE.format(*row, partial, found.said)


def summary(rounds: list[Round]) -> str:
    """What all rounds amount to."""
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

    Time by the clock and of the processor; the first is longer where others use the machine.
    """
    chance, found = np.random.default_rng(0), {}
    for number in range(max(1, round(gigabytes * 1e9 / FILE_BYTES))):
        path = folder / f"{number}.bin"
        path.write_bytes(chance.bytes(FILE_BYTES))
        _record(path)
    for threads in (1, 2):
        started, processor = time.monotonic(), time.process_time()
        check = check_run(folder, threads)
        assert not check.problems
        gigabytes = check.n_bytes / 1e9
        found[f"{threads} threads"] = (time.monotonic() - started) / gigabytes
        found[f"{threads} threads, processor"] = (time.process_time() - processor) / gigabytes
    return found


def _record(path: Path) -> None:
    """Write the manifest of one file."""
    outputs, params = [str(path), str(path.with_suffix(".manifest.json"))], SimpleNamespace(code="", items={}.items)
    record_job(SimpleNamespace(output=outputs, input=[], params=params, wildcards={}, threads=1))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to, kept; otherwise a temporary folder")
    parser.add_argument("--verify", action="store_true", help="measure verify instead")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.verify:
            found = verify_speed(folder, given.gigabytes)
            print(", ".join(f"{name}: {seconds:.2f} s per GB" for name, seconds in found.items()))
        else:
            rounds = kill_rounds(folder, given.rounds, given.seed)
            print(summary(rounds))
            found = [one._asdict() for one in rounds]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
