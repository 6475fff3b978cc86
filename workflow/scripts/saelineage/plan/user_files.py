"""The files of a `files` corpus. The Snakefile lists them as inputs, so nothing heavy is imported here."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.links import leads_out
from saelineage.plan.text_formats import ACCEPTED, is_accepted, is_no_text, text_format

EVERY_FILE = "**/*"
"""The default of `glob`."""
ABOUT_THE_TABLES = ("readme", "license", "licence", "changelog", "citation", "code_of_conduct", "contributing")
"""Beginnings of the names of files that lie beside tables and are no part of the corpus."""
MARKDOWN = ".md"
"""Ending of dataset cards and other notes, where there are fewer of them than tables."""
MOST_SHOWN = 3
"""Limit on the files that a note names."""


def find_files(corpus: str, settings: dict, corpora_dir: str) -> list[str]:
    """List the files of a `files` corpus, sorted: tables, or texts, but not both.

    With the default glob some files are left out, as `left_out` says: images, archives and others that are no text,
    beside tables README and LICENSE files and the like, and beside more texts the .json files, such as package.json.

    A link in a folder may not lead out of it (see `links`), because the author of the folder could then have any file
    of the reader's shown in a report. A file or folder that the config names itself may be a link.

    Raises:
        InputError: if the file or folder does not exist, the glob matches nothing, no text or both tables and texts,
            or a file has an unknown ending or is a link that leads out of its folder.
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
    if root.is_file() and not is_accepted(root):
        raise InputError(f"{key}: '{root}' must be one of {ACCEPTED}; convert it or correct the path")
    if root.is_dir():
        _require_inside(files, root, key)
        if settings["glob"] == EVERY_FILE:
            files = _of_the_corpus(files)
        _require_text(files, root, corpus)
        _require_one_kind(files, root, corpus)
    _require_plain_parquet(files, key)
    require_no_braces(map(str, files), key)
    return [str(path) for path in files]


def left_out(corpus: str, settings: dict, corpora_dir: str) -> str | None:
    """A sentence on the files of a `files` corpus that the default glob leaves out; None if it leaves out none."""
    root = Path(corpora_dir, settings["path"])
    if root.is_file() or settings["glob"] != EVERY_FILE:
        return None
    files = _files_in(root, EVERY_FILE, f"corpora.{corpus}.glob")
    kept = set(_of_the_corpus(files))
    unread = [str(path.relative_to(root)) for path in files if path not in kept]
    if not unread:
        return None
    kind = "tables" if text_format(min(kept)).is_table else "texts"
    more = f" and {len(unread) - MOST_SHOWN} more" if len(unread) > MOST_SHOWN else ""
    return (
        f"corpora.{corpus}.path: '{root}' is read as a folder of {kind}, so {len(unread)} of its {len(files)} files "
        f"are left out ({', '.join(unread[:MOST_SHOWN])}{more}); to read others, name them with corpora.{corpus}.glob"
    )


def require_content(files: Iterable[str], key: str) -> None:
    """Refuse files that are all of zero bytes; whether others hold text is seen when they are read.

    Raises:
        InputError: with the first of them.
    """
    paths = [Path(file) for file in files]
    if all(path.stat().st_size == 0 for path in paths):
        others = f" like all of the {len(paths)} files" if len(paths) > 1 else ""
        raise InputError(
            f"{key}: must hold text, but '{paths[0]}' is empty{others}; correct the path, or fetch the text again"
        )


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


def _of_the_corpus(files: list[Path]) -> list[Path]:
    """Leave out .json files beside more texts; or beside tables the texts about them, as far as names tell.

    Every other ending of a table says that it is one. A .json file may be: a folder of code has its package.json. Files
    that are no text (images, archives) are left out beside others.
    """
    files = [path for path in files if not is_no_text(path)] or files
    tables, texts = _tables_and_texts(files)
    if not tables:
        return files
    others = [path for path in texts if not path.name.lower().startswith(ABOUT_THE_TABLES)]
    if all(path.suffix.lower() == ".json" for path in tables) and len(others) > len(tables):
        return texts
    cards = [path for path in others if path.suffix.lower() == MARKDOWN]
    notes = set(texts) - set(others) | set(cards if len(cards) <= len(tables) else [])
    return [path for path in files if path not in notes]


def _require_text(files: list[Path], root: Path, corpus: str) -> None:
    """Refuse images, archives and the like, where they were asked for or are all there is."""
    if other := next((path for path in files if is_no_text(path)), None):
        raise InputError(
            f"corpora.{corpus}.path: '{root}' must hold texts or tables, but '{other.relative_to(root)}' is neither, "
            f"by its ending; put texts there, unpacked, or name them with corpora.{corpus}.glob, such as **/*.txt"
        )


def _require_one_kind(files: list[Path], root: Path, corpus: str) -> None:
    """Refuse tables among texts: a table that is none, or a text about tables, would be read as documents."""
    tables, texts = _tables_and_texts(files)
    if tables and texts:
        raise InputError(
            f"corpora.{corpus}.path: '{root}' must hold either tables or texts, but '{tables[0].relative_to(root)}' is "
            f"a table and '{texts[0].relative_to(root)}' a text; name the files of one kind with "
            f"corpora.{corpus}.glob, such as {_pattern(texts if len(texts) > len(tables) else tables)}"
        )


def _tables_and_texts(files: list[Path]) -> tuple[list[Path], list[Path]]:
    tables = [path for path in files if text_format(path).is_table]
    return tables, [path for path in files if not text_format(path).is_table]


def _pattern(files: list[Path]) -> str:
    """A glob of all files with the endings of most of some files, or with their name if they have none."""
    patterns = []
    for path in files:
        endings = "".join(path.suffixes[-2:] if text_format(path).compression else path.suffixes[-1:])
        patterns.append(f"**/*{endings}" if endings else f"**/{path.name}")
    return Counter(patterns).most_common(1)[0][0]


def _require_plain_parquet(files: list[Path], key: str) -> None:
    packed = (path for path in files if text_format(path).kind == "parquet" and text_format(path).compression)
    if (path := next(packed, None)) is not None:
        raise InputError(f"{key}: '{path}' must be decompressed, because parquet is read from its end; decompress it")


def _require_inside(files: list[Path], root: Path, key: str) -> None:
    for path in files:
        if (real := leads_out(path, root)) is not None:
            raise InputError(
                f"{key}: '{path}' is a link that leads out of '{root}', to '{real}'; put a copy there, or take it out"
            )


def _is_hidden(path: Path, root: Path) -> bool:
    """True if the name of a file, or of a folder between `root` and it, begins with a dot, like .git."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
