"""The folders that a job's files lie in."""

from collections.abc import Iterable
from pathlib import Path


def folders_of(paths: Iterable[str]) -> list[Path]:
    """The folders of files, each once, in order."""
    return list(dict.fromkeys(Path(path).parent for path in paths))
