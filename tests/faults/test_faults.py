"""Faults: the next plain run ends with the files of an undisturbed one, or one error names the file and the remedy."""

import os
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.kills import RESULTS, Small, Undisturbed, kill_round

MOUNT, UNMOUNT = shutil.which("mount") or "mount", shutil.which("umount") or "umount"


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """A file system on a folder."""
    subprocess.run([MOUNT, *arguments, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run([UNMOUNT, "--lazy", str(folder)], check=True)


def flip(path: Path) -> None:
    """Change one byte, and restore its time."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def named(said: str) -> dict[str, str]:
    """The problem of each file that a message names."""
    return dict(re.findall(rf"^'{RESULTS}/(.*)' (.*): rm -f", said, flags=re.MULTILINE))


def delete(small: Small, said: str) -> None:
    """Delete the files that a message says to delete."""
    commands = re.findall(r"^(?:error: )?'.*: rm -f (.*)$", said, flags=re.MULTILINE)
    assert commands
    for path in {path for command in commands for path in shlex.split(command)}:
        (small.folder / path).unlink(missing_ok=True)


def test_no_file_is_written_under_its_final_name(whole: Undisturbed):
    assert whole.in_place == []


@pytest.mark.parametrize("victim", ["snakemake", "job"])
def test_after_a_kill_the_next_plain_run_ends_with_the_same_bytes(small: Small, whole: Undisturbed, victim: str):
    result = kill_round(small, whole, "report", victim, None, random.Random(0))
    assert result.killed != "nothing"
    assert (result.status, result.extra, result.differ) == (0, "", [])
    assert (result.partial, result.leftovers) == ([], [])
    assert ("removed the lock of a killed snakemake" in result.said) == (victim == "snakemake")


def test_damage_is_named_before_any_job_and_by_verify_and_deleting_the_named_files_repairs_the_run(
    small: Small, whole: Undisturbed
):
    os.truncate(small.results / "report/examples/mlp.json", 100)
    flip(small.results / "lineage/mlp/features.parquet")
    shutil.copy2(small.results / "models/base/metrics.json", small.results / "models/left/metrics.json")
    names = ["lineage/mlp/features.parquet", "models/left/metrics.json", "report/examples/mlp.json"]
    status, said = small.run()
    assert status == 1
    assert f"error: files of {RESULTS} are damaged; delete them and run again:" in said
    assert sorted(named(said)) == names
    assert "Traceback" not in said
    assert "rule " not in said
    (small.results / "report/dag.svg").unlink()
    status, said = small.run("verify")
    assert status == 1
    assert sorted(named(said)) == sorted([*names, "report/dag.svg"])
    assert named(said)["lineage/mlp/features.parquet"] == "does not have the sha256 of its manifest"
    assert named(said)["report/examples/mlp.json"].startswith("has 100 bytes, its manifest says ")
    assert named(said)["report/dag.svg"] == "is missing"
    delete(small, said)
    assert small.run()[0] == 0
    assert small.digests() == whole.digests
    status, said = small.run("verify")
    assert status == 0, said
    assert "every file as recorded" in said


def test_two_snakemakes_at_once_on_files_whose_clock_was_set_back(small: Small, whole: Undisturbed):
    chance = random.Random(0)
    for path in small.results.rglob("*"):
        times = path.stat()
        os.utime(path, (times.st_atime, times.st_mtime - chance.choice([0, 3600, 30 * 365 * 86400])))
    (small.results / "report/dag.manifest.json").unlink()
    first, second = small.start(), small.start()
    assert sorted([first.wait(), second.wait()]) == [0, 1]
    assert small.run()[0] == 0
    assert small.digests() == whole.digests


@pytest.mark.usefixtures("mounting")
def test_full_and_read_only_disks_are_reported_with_the_file_and_the_remedy(small: Small, whole: Undisturbed):
    tables = small.results / "report/tables/mlp"
    (small.results / "report/manifest.json").unlink()
    with mounted(tables, "-t", "tmpfs", "-o", "size=12k", "tmpfs"):
        (tables / "kept").touch()  # Snakemake removes empty folders, which a mounted one does not allow
        status, said = small.run()
    assert status == 1
    assert re.search(
        rf"^error: '{RESULTS}/report/tables/mlp/\w+\.csv': No space left on device; free space on its disk", said, re.M
    )
    assert "Traceback" not in said
    with mounted(small.results, "--bind", str(small.results)):
        subprocess.run([MOUNT, "-o", "remount,ro,bind", str(small.results)], check=True)
        status, said = small.run()
    assert status == 1
    assert "Read-only file system" in said or "Write-protected output files" in said
    assert f"{RESULTS}/" in said
    assert "Traceback" not in said
    assert small.run()[0] == 0
    assert small.digests() == whole.digests
