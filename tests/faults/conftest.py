"""A small finished run to break, and what its files are."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kills import Small, Undisturbed


@pytest.fixture(scope="session")
def undisturbed(
    small_run: tuple[Path, Undisturbed], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Small, Undisturbed, Path]:
    """A copy of the run, what its files are, and the run itself, which stays as it is."""
    original, whole = small_run
    small = Small(tmp_path_factory.mktemp("small"))
    restore(small, original)
    return small, whole, original


def restore(small: Small, original: Path) -> None:
    """Put the whole run where another or a broken one is."""
    shutil.rmtree(small.folder)
    shutil.copytree(original, small.folder, symlinks=True)


@pytest.fixture
def small(undisturbed: tuple[Small, Undisturbed, Path]) -> Iterator[Small]:
    """The run; where a test leaves it broken, the others get it whole."""
    small, whole, original = undisturbed
    yield small
    if small.digests() != whole.digests:
        restore(small, original)


@pytest.fixture
def whole(undisturbed: tuple[Small, Undisturbed, Path]) -> Undisturbed:
    """What the run's files are when nothing happens to it."""
    return undisturbed[1]


@pytest.fixture
def mounting() -> None:
    """Skip a test that mounts file systems where that is not allowed."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small or read-only file system needs root")
