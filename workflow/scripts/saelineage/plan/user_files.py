"""The files of a `files` corpus. The Snakefile lists them as inputs, so nothing heavy is imported here."""

from collections.abc import Iterable
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.links import leads_out

TEXT_SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


def find_files(corpus: str, settings: dict, corpora_dir: str) -> list[str]:
    """List the files of a `files` corpus, sorted.

    A link in a folder may not lead out of it (see `links`), because the author of the folder could then have any file
    of the reader's shown in a report. A file or folder that the config names itself may be a link.

    Raises:
        InputError: if the file or folder does not exist, the glob matches nothing, or a file has an unknown ending or
            is a link that leads out of its folder.
    """
    key = f"corpora.{corpus}.path"
    root = Path(corpora_dir, settings["path"])
    try:
        if not root.exists():
            raise InputError(
                f"{key}: '{root}' does not exist (corpora_dir is '{corpora_dir}'); correct the path or corpora_dir"
            )
        files = [root] if root.is_file() else _files_in(root, settings["glob"], f"corpora.{corpus}.glob")
    except OSError as error:
        raise InputError(f"{key}: '{str(root)[:200]}' cannot be read ({error.strerror}); correct the path") from error
    if not files:
        raise InputError(f"{key}: no file in '{root}' matches '{settings['glob']}'; correct corpora.{corpus}.glob")
    if root.is_file() and not root.name.endswith(TEXT_SUFFIXES):
        raise InputError(f"{key}: '{root}' must be one of {', '.join(TEXT_SUFFIXES)}; convert it or correct the path")
    if root.is_dir():
        _require_inside(files, root, key)
    require_no_braces(map(str, files), key)
    return [str(path) for path in files]


def require_no_braces(paths: Iterable[str], key: str) -> None:
    """Refuse paths with braces, which Snakemake reads as wildcards.

    Raises:
        InputError: with the first such path.
    """
    braced = next((path for path in paths if "{" in path or "}" in path), None)
    if braced is not None:
        raise InputError(
            f"{key}: '{braced}' must be without braces, because Snakemake reads them as wildcards; rename it"
        )


def _files_in(root: Path, pattern: str, key: str) -> list[Path]:
    try:
        return sorted(path for path in root.glob(pattern) if path.is_file() and not _is_hidden(path, root))
    except (ValueError, NotImplementedError) as error:  # pathlib raises the latter for absolute patterns
        raise InputError(
            f"{key}: '{pattern}' must be a pattern of files in '{root}', but: {str(error).rstrip('.')}; "
            "write one like **/*.txt"
        ) from error


def _require_inside(files: list[Path], root: Path, key: str) -> None:
    for path in files:
        if (real := leads_out(path, root)) is not None:
            raise InputError(
                f"{key}: '{path}' is a link that leads out of '{root}', to '{real}'; put a copy there, or take it out"
            )


def _is_hidden(path: Path, root: Path) -> bool:
    """True if the name of a file, or of a folder between `root` and it, begins with a dot, like .git."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
