"""Corpora: documents from four sources, without exact duplicates, dealt to splits by a hash of each document.

The hash also decides the order of a split, so that the first documents of a split are drawn from the whole corpus.
"""

import hashlib
import logging
import os
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow
import pyarrow.parquet

from saelineage.corpora.messages import conversation
from saelineage.corpora.samples.kinds import sample_documents
from saelineage.corpora.sorting import DigestSorter
from saelineage.corpora.tables import MOST_DOCUMENT_BYTES, missing_column, table_cells, too_long, whole_text
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path
from saelineage.files.hub import first_line, is_connection_error
from saelineage.plan.text_formats import text_format

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "probe")
TEXT, MESSAGES = "text", "messages"
"""Columns that hold the documents of a split: texts, or the messages of conversations as JSON."""
SCHEMA = pyarrow.schema([("document", pyarrow.string()), (TEXT, pyarrow.large_string())])
STDLIB_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
STDLIB_BYTES_PER_FILE = range(200, 100_001)
WRITE_DOCUMENTS = 1000
BYTES_PER_CHARACTER = 4
"""Most bytes of one character in UTF-8."""
RETRY_SECONDS = 2.0


class Null(NamedTuple):
    """A row of a table without a text, which is skipped and counted."""

    where: str
    """File and row, in words."""


Document = TypeVar("Document", bound=str | Null)


def read_documents(corpus: str, settings: dict, files: list[str]) -> Iterator[str | Null]:
    """Read the documents of a corpus in a fixed order, unchanged, until `max_bytes` of text.

    With `max_bytes`, files are read in an order that mixes them (`mixed`), so that those read are not the first.
    Rows of tables whose text is null are yielded as `Null`. A conversation is the JSON of its messages.

    Args:
        corpus: the corpus's name, for error messages.
        settings: its block in the config.
        files: for a `files` corpus, the files to read, from `plan.user_files.find_files`.

    Raises:
        InputError: if a file, column or encoding differs from what the config says.
    """
    source = settings["source"]
    if source == "sample":
        return sample_documents(settings["kind"], settings["max_bytes"], settings["seed"])
    documents: Iterator[str | Null]
    if source == "stdlib":
        documents = stdlib_documents()
    elif source == "files":
        ordered = files if settings["max_bytes"] is None else mixed(files)
        documents = (text for file in ordered for text in file_documents(corpus, Path(file), settings))
    else:
        documents = hub_documents(corpus, settings)
    return up_to_bytes(documents, settings["max_bytes"])


def write_splits(
    documents: Iterable[str | Null], fractions: dict, paths: dict[str, Path], corpus: str, column: str = TEXT
) -> dict:
    """Write documents to one parquet file per split, dropping nulls, blank ones and exact duplicates.

    The documents of a split are in the order of their digests: a random order that depends on the documents alone, not
    on the order in which they come. Memory holds a part of the texts (`sorting.DigestSorter`), and every digest.

    Lone surrogates are replaced first (`without_lone_surrogates`), so the digest of a document is that of its final
    text.

    Args:
        documents: the texts.
        fractions: share of documents in `validation` and in `probe`; the rest is `train`.
        paths: the file of each split.
        corpus: the corpus's name, for error messages.
        column: the column of the documents, which says what they are: `TEXT` or `MESSAGES`.

    Returns:
        `splits`: `documents` and UTF-8 `bytes` per split. `duplicates` and `empty`: documents dropped. `nulls`: rows
        without a text. `surrogates`: documents with lone surrogates, including dropped ones.

    Raises:
        InputError: if a split stays empty.
    """
    splits = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    n_duplicates, n_empty, n_nulls, n_surrogates = 0, 0, 0, 0
    schema = pyarrow.schema([SCHEMA.field("document"), SCHEMA.field(TEXT).with_name(column)])
    seen: set[bytes] = set()
    with ExitStack() as stack:
        temporary = {split: stack.enter_context(atomic_path(paths[split])) for split in SPLITS}
        writers = {
            split: stack.enter_context(pyarrow.parquet.ParquetWriter(temporary[split], schema)) for split in SPLITS
        }
        sorters = {split: stack.enter_context(DigestSorter(temporary[split].parent)) for split in SPLITS}
        for original in documents:
            if isinstance(original, Null):
                if not n_nulls:
                    logger.warning("%s has no text (null); such rows are skipped and counted", original.where)
                n_nulls += 1
                continue
            text = without_lone_surrogates(original)
            n_surrogates += text != original
            if not text.strip():
                n_empty += 1
                continue
            digest = document_digest(text)
            if digest in seen:
                n_duplicates += 1
                continue
            seen.add(digest)
            split = split_of(digest, fractions)
            sorters[split].add(digest, text)
            splits[split]["documents"] += 1
            splits[split]["bytes"] += len(text.encode())
        _require_documents(splits, n_empty, n_nulls, corpus)
        for split in SPLITS:
            _write_documents(writers[split], sorters[split])
    dropped = {"duplicates": n_duplicates, "empty": n_empty, "nulls": n_nulls}
    return dropped | {"surrogates": n_surrogates, "splits": splits}


def without_lone_surrogates(text: str) -> str:
    """Replace each lone surrogate by U+FFFD, because JSON can express it but UTF-8 and tokenizers cannot.

    A surrogate pair becomes the one character that it encodes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def document_digest(text: str) -> bytes:
    """First 16 bytes of the sha256 of a document's UTF-8 text; the text must have no lone surrogates."""
    return hashlib.sha256(text.encode()).digest()[:16]


def split_of(digest: bytes, fractions: dict) -> str:
    """Split of a document: a function of its content alone, so equal texts are in the same split."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < fractions["probe"]:
        return "probe"
    return "validation" if position < fractions["probe"] + fractions["validation"] else "train"


def read_split(path: Path | str) -> Iterator[str]:
    """Yield the documents of one split in file order; memory holds one batch of them."""
    column = MESSAGES if holds_conversations(path) else TEXT
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=WRITE_DOCUMENTS, columns=[column]):
            yield from batch.column(column).to_pylist()


def count_documents(path: Path | str) -> int:
    """Number of documents of one split."""
    return pyarrow.parquet.read_metadata(path).num_rows


def holds_conversations(path: Path | str) -> bool:
    """True if the documents of a split are conversations."""
    return MESSAGES in pyarrow.parquet.read_schema(path).names


def up_to_bytes(documents: Iterable[Document], max_bytes: int | None) -> Iterator[Document]:
    """Yield documents up to and including the one that reaches `max_bytes` of UTF-8 text; None yields all."""
    passed = 0
    for text in documents:
        yield text
        passed += 0 if isinstance(text, Null) else n_bytes(text)
        if max_bytes is not None and passed >= max_bytes:
            return


def mixed(files: list[str]) -> list[str]:
    """Files in the order of the hashes of their names, from the folder on that they have in common."""
    folder = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    return sorted(files, key=lambda file: hashlib.sha256(os.path.relpath(file, folder or ".").encode()).digest())


def stdlib_documents() -> Iterator[str]:
    """Yield the source files of the running interpreter's standard library, in an order that mixes its packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = [path for path in root.rglob("*.py") if not STDLIB_SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    for path in sorted(sources, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()):
        if path.is_file() and path.stat().st_size in STDLIB_BYTES_PER_FILE:
            yield path.read_text(encoding="utf-8")


def file_documents(corpus: str, path: Path, settings: dict) -> Iterator[str | Null]:
    """Yield the documents of one file: a table (see `tables`), or text with any other ending (.txt, .lua, .md ...).

    A byte order mark at the start of a file is dropped, and all line endings of a text file become line feeds. All
    other characters are kept, including control characters.

    Raises:
        InputError: naming corpus, file and key, if the file is not of the format of its name, or a document has more
            than `MOST_DOCUMENT_BYTES`.
    """
    try:
        for number, text in enumerate(_documents_in(corpus, path, settings), start=1):
            if not isinstance(text, Null):
                _require_short(text, corpus, f"document {number} of '{path}'")
            yield text
    except FileNotFoundError as error:
        raise InputError(f"corpora.{corpus}.path: '{path}' does not exist; correct the path") from error
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"corpus '{corpus}': '{path}' cannot be read ({first_line(error)}); fetch it again or correct "
            f"corpora.{corpus}.path"
        ) from error


def n_bytes(text: str) -> int:
    """Bytes of a text in UTF-8, counting 3 for a lone surrogate."""
    return len(text.encode("utf-8", "surrogatepass"))


def hub_documents(corpus: str, settings: dict) -> Iterator[str | Null]:
    """Stream a text column from the hub, and resume at the same row after a lost connection.

    Raises:
        InputError: if the dataset, split or column does not exist, or the connection stays lost after all retries.
    """
    from datasets.exceptions import DatasetsError  # imported here because it takes a second
    from huggingface_hub.errors import HfHubHTTPError

    wrong_requests = (DatasetsError, HfHubHTTPError, FileNotFoundError, RuntimeError, ValueError)
    repo, revision, column = settings["repo"], settings["revision"], column_of(settings)
    rows_read, failures = 0, 0
    while True:
        try:
            for row in _hub_rows(settings, rows_read):
                rows_read += 1
                failures = 0
                where = f"row {rows_read} of '{repo}'"
                if column not in row:
                    raise InputError(missing_column(corpus, where, column, sorted(row)))
                text = _document_of(row[column], settings, corpus, where)
                if not isinstance(text, Null):
                    _require_short(text, corpus, where)
                yield text
                if rows_read == settings["max_rows"]:
                    return
            return
        except InputError:
            raise
        except Exception as error:
            if not is_connection_error(error):
                if not isinstance(error, wrong_requests):
                    raise
                raise InputError(
                    f"corpus '{corpus}': hub dataset '{repo}' at revision '{revision}' cannot be read "
                    f"({first_line(error)}); correct corpora.{corpus}.repo, .revision, .config or .split"
                ) from error
            failures += 1
            if failures > settings["retries"]:
                raise InputError(
                    f"corpus '{corpus}': the connection to hub dataset '{repo}' was lost after {rows_read} rows and "
                    f"{settings['retries']} retries failed ({first_line(error)}); "
                    f"run again, or raise corpora.{corpus}.retries"
                ) from error
            logger.warning("connection lost after %d rows (%s); trying again", rows_read, first_line(error))
            time.sleep(RETRY_SECONDS * failures)


def _hub_rows(settings: dict, start: int) -> Iterable[dict]:
    """Stream the rows of a hub dataset, starting at row `start`."""
    import datasets

    # The library's 20 rounds of retries would neither count as `retries` nor show in the job's log.
    datasets.config.STREAMING_OPEN_MAX_RETRIES = datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
    # The cache is empty because the library, when the hub is down, falls back on any cached revision. The path begins
    # with hf:// because the library prefers a local folder of the same name.
    with tempfile.TemporaryDirectory() as empty_cache:
        stream = datasets.load_dataset(
            f"hf://datasets/{settings['repo']}",
            settings["config"],
            split=settings["split"],
            revision=settings["revision"],
            streaming=True,
            cache_dir=empty_cache,
        )
    return stream.skip(start)


def _documents_in(corpus: str, path: Path, settings: dict) -> Iterator[str | Null]:
    """Yield the documents of one file, of any length."""
    separator = settings["separator"]
    if text_format(path).is_table:
        for where, cell in table_cells(corpus, path, column_of(settings)):
            yield _document_of(cell, settings, corpus, where)
        return
    text = whole_text(corpus, path, None if separator else MOST_DOCUMENT_BYTES)
    yield from text.split(separator) if separator else [text]


def _require_short(text: str, corpus: str, where: str) -> None:
    if BYTES_PER_CHARACTER * len(text) > MOST_DOCUMENT_BYTES and n_bytes(text) > MOST_DOCUMENT_BYTES:
        raise InputError(too_long(corpus, where, MOST_DOCUMENT_BYTES))


def column_of(settings: dict) -> str:
    """The column of a table that holds the documents."""
    return settings.get("messages_column") or settings["text_column"]


def _document_of(cell: object, settings: dict, corpus: str, where: str) -> str | Null:
    """The text, or the conversation, in a cell of a table."""
    column = column_of(settings)
    if cell is None or not settings.get("messages_column"):
        return _text_of(cell, column, corpus, where)
    return conversation(cell, column, corpus, where)


def _text_of(cell: object, column: str, corpus: str, where: str) -> str | Null:
    """The text in a cell of a table.

    Raises:
        InputError: if it is of another type.
    """
    if cell is None:
        return Null(where)
    if not isinstance(cell, str):
        raise InputError(
            f"corpus '{corpus}': '{column}' in {where} must be text, not {type(cell).__name__}; "
            f"correct it, or set corpora.{corpus}.text_column to another column"
        )
    return cell


def _write_documents(writer: pyarrow.parquet.ParquetWriter, documents: Iterable[tuple[bytes, str]]) -> None:
    """Write digests and texts, `WRITE_DOCUMENTS` at a time."""
    remaining = iter(documents)
    while rows := list(islice(remaining, WRITE_DOCUMENTS)):
        columns = [[digest.hex() for digest, _ in rows], [text for _, text in rows]]
        writer.write_table(pyarrow.Table.from_arrays(columns, schema=writer.schema))


def _require_documents(splits: dict[str, dict[str, int]], n_empty: int, n_nulls: int, corpus: str) -> None:
    n_documents = sum(counts["documents"] for counts in splits.values())
    if n_documents == 0:
        raise InputError(
            f"corpus '{corpus}' is empty ({n_empty} blank documents, {n_nulls} without a text); correct its block "
            f"corpora.{corpus}"
        )
    for split, counts in splits.items():
        if counts["documents"] == 0:
            raise InputError(
                f"corpus '{corpus}': its {n_documents} documents leave the {split} split empty; "
                f"add documents (or set corpora.{corpus}.separator for one large .txt), or raise splits.{split}"
            )
