"""Symlinks that point out of their folder.

In a third-party folder, such a link could make the workflow open any file of the user's or show it in a report.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_followed: ContextVar[frozenset[str]] = ContextVar("followed", default=frozenset())
"""Real paths of folders whose links may lead anywhere."""


@contextmanager
def links_followed(folder: Path | str, follow: bool) -> Iterator[None]:
    """Within the block, links in a folder may lead out of it, if its user says that they are their own (`follow`)."""
    token = _followed.set(_followed.get() | ({os.path.realpath(folder)} if follow else set()))
    try:
        yield
    finally:
        _followed.reset(token)


def leads_out(path: Path | str, folder: Path | str) -> str | None:
    """Return the real path of a file in a folder if it lies outside that folder, and None otherwise.

    A snapshot in the Hugging Face cache, `{repo}/snapshots/{commit}`, links to `{repo}/blobs` of the same repository.
    These links count as inside, and so does every link of a folder whose links are followed (`links_followed`).
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if root in _followed.get():
        return None
    inside = [root, *(os.path.join(repo, "blobs") for repo in _repositories(Path(root)))]
    return None if any(os.path.commonpath([real, place]) == place for place in inside) else real


def _repositories(folder: Path) -> list[Path]:
    """Repositories of the Hugging Face cache that contain a folder: one or none."""
    return [above.parent for above in folder.parents if above.name == "snapshots" and "--" in above.parent.name]
