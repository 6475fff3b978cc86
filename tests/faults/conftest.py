"""A small finished run to break, and the digests of its files."""

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
    """A copy of the run, the digests of its files, and the run itself, which must not change."""
    original, whole = small_run
    small = Small(tmp_path_factory.mktemp("small"))
    restore(small, original)
    return small, whole, original


def restore(small: Small, original: Path) -> None:
    """Replace a broken run by the whole one."""
    shutil.rmtree(small.folder)
    shutil.copytree(original, small.folder, symlinks=True)


@pytest.fixture
def small(undisturbed: tuple[Small, Undisturbed, Path]) -> Iterator[Small]:
    """The run, restored after a test that leaves it broken."""
    small, whole, original = undisturbed
    yield small
    if small.digests() != whole.digests:
        restore(small, original)


@pytest.fixture
def whole(undisturbed: tuple[Small, Undisturbed, Path]) -> Undisturbed:
    """The files of the undisturbed run."""
    return undisturbed[1]


@pytest.fixture
def mounting() -> None:
    """Skip a test that mounts file systems if that is not allowed."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small or read-only file system needs root")
