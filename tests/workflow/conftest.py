"""A copy of the workflow with one finished run, shared by the tests of this folder."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import made_once
from tests.hostile import english_with_hostile_text

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "rules", "envs", "profiles", "workflow", "config")
TINY = Path(__file__).with_name("tiny.yaml")
TWO = Path(__file__).with_name("two_hookpoints.yaml")
FRACTIONS = {"validation": 0.2, "probe": 0.2}
"""As in tiny.yaml."""
SECRETS = {
    "HF_TOKEN": "hf_" + "tEsT0nLy" * 4,
    "OPENAI_API_KEY": "sk-test-" + "oNlYt3sT" * 4,
    "AWS_SECRET_ACCESS_KEY": "tEsT+oNlY/" * 4,
}
"""In the environment of every run of these tests; they must appear nowhere else."""
DRY_JOB = r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    log: \S*/logs/\w+/(\S+)\.log"


class Checkout:
    """A copy of the workflow in a folder of its own.

    Args:
        folder: of the copy; it may exist.
        original: a checkout to copy with all its results, links and times.
    """

    def __init__(self, folder: Path, original: Path | None = None):
        self.folder = folder
        self.config = folder / "tiny.yaml"
        if original:
            shutil.copytree(original, folder, symlinks=True, dirs_exist_ok=True)
        else:
            self._write()

    def _write(self) -> None:
        """Copy the workflow and write the inputs of the tiny run."""
        self.folder.mkdir(exist_ok=True)
        for part in PARTS:
            source = ROOT / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, self.folder / part)
        shutil.copy(TINY, self.config)
        (self.folder / "english.jsonl").write_text(english_with_hostile_text(150_000, FRACTIONS), encoding="ascii")

    def snakemake(
        self, *arguments: str, config: Path | None = None, library: Path | None = None
    ) -> subprocess.CompletedProcess:
        """Run snakemake on the tiny config, with the copy's library or another one."""
        command = [sys.executable, "-m", "snakemake", "--configfile", str(config or self.config), *arguments]
        python_path = str(library or self.folder / "workflow" / "scripts")
        environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": python_path} | SECRETS
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def stale_jobs(self, config: Path | None = None, targets: Iterable[str] = ()) -> set[tuple[str, str]]:
        """The jobs of a dry run, without `all`: the rule, and the name of the log file."""
        done = self.snakemake("--dry-run", *targets, config=config)
        assert done.returncode == 0, done.stderr + done.stdout
        return set(re.findall(DRY_JOB, done.stdout + done.stderr, flags=re.MULTILINE))

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text that must be there."""
        file = self.folder / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))


def run_two(folder: Path) -> None:
    """Run two_hookpoints.yaml from nothing to the end."""
    checkout = Checkout(folder)
    checkout.config.write_text(TWO.read_text())
    done = checkout.snakemake("--cores", "2")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="session")
def two_hookpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run at two hookpoints, to be copied and not changed."""
    return made_once(tmp_path_factory, "two_hookpoints", run_two)[0]


def run_tiny(folder: Path) -> None:
    """Run the tiny config from nothing to the end."""
    done = Checkout(folder).snakemake("--cores", "2")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with a complete tiny run; each process of a test session has its own copy."""
    original, _ = made_once(tmp_path_factory, "tiny_run", run_tiny)
    return Checkout(tmp_path_factory.mktemp("finished"), original)
