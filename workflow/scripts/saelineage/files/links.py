"""Links in folders from strangers, which could have any file of the reader's opened, or shown in a report."""

import os
from pathlib import Path


def leads_out(path: Path | str, folder: Path | str) -> str | None:
    """Where a file of a folder really lies, if that is outside of it, and None for every other file.

    A snapshot in the Hugging Face cache, `{repo}/snapshots/{commit}`, has links to the same repository's
    `{repo}/blobs`, which are as good as files.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    inside = [root, *(os.path.join(repo, "blobs") for repo in _repositories(Path(root)))]
    return None if any(os.path.commonpath([real, place]) == place for place in inside) else real


def _repositories(folder: Path) -> list[Path]:
    """The repository of the cache in which a folder lies, where it does."""
    return [above.parent for above in folder.parents if above.name == "snapshots" and "--" in above.parent.name]
