"""Which files a `files` corpus is read from: light enough for the Snakefile, which names them as inputs."""

from pathlib import Path

from saelineage.errors import InputError

TEXT_SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


def find_files(corpus: str, settings: dict, corpora_dir: str) -> list[str]:
    """The files that a `files` corpus names, sorted.

    Raises:
        InputError: if there is no such file or folder, the glob finds nothing, or a file's kind is unknown.
    """
    key = f"corpora.{corpus}.path"
    root = Path(corpora_dir, settings["path"])
    if not root.exists():
        raise InputError(
            f"{key}: '{root}' does not exist (corpora_dir is '{corpora_dir}'); correct the path or corpora_dir"
        )
    if root.is_file():
        files = [root]
    else:
        files = sorted(path for path in root.glob(settings["glob"]) if path.is_file() and not _is_hidden(path, root))
    if not files:
        raise InputError(f"{key}: no file in '{root}' matches '{settings['glob']}'; correct corpora.{corpus}.glob")
    unknown = [path for path in files if root.is_file() and not path.name.endswith(TEXT_SUFFIXES)]
    if unknown:
        raise InputError(
            f"{key}: '{unknown[0]}' must be one of {', '.join(TEXT_SUFFIXES)}; convert it or correct the path"
        )
    return [str(path) for path in files]


def _is_hidden(path: Path, root: Path) -> bool:
    """Whether a file or a folder on the way to it has a dot before its name, as .git has."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
