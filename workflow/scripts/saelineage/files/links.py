"""Symlinks that point out of their folder.

In a third-party folder, such a link could make the workflow open any file of the user's or show it in a report.
"""

import os
from pathlib import Path


def leads_out(path: Path | str, folder: Path | str) -> str | None:
    """Return the real path of a file in a folder if it lies outside that folder, and None otherwise.

    A snapshot in the Hugging Face cache, `{repo}/snapshots/{commit}`, links to `{repo}/blobs` of the same repository.
    These links count as inside.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    inside = [root, *(os.path.join(repo, "blobs") for repo in _repositories(Path(root)))]
    return None if any(os.path.commonpath([real, place]) == place for place in inside) else real


def _repositories(folder: Path) -> list[Path]:
    """Repositories of the Hugging Face cache that contain a folder: one or none."""
    return [above.parent for above in folder.parents if above.name == "snapshots" and "--" in above.parent.name]
