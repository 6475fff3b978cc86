"""Corpora: documents from four sources, without exact duplicates, dealt to splits by a hash of each document."""

import gzip
import hashlib
import json
import logging
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow
import pyarrow.parquet

from saelineage.corpora.samples.kinds import sample_documents
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path
from saelineage.files.foreign import require_memory
from saelineage.files.hub import first_line, is_connection_error

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "probe")
SCHEMA = pyarrow.schema([("document", pyarrow.string()), ("text", pyarrow.large_string())])
STDLIB_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
STDLIB_BYTES_PER_FILE = range(200, 100_001)
WRITE_DOCUMENTS = 1000
BOM = "\ufeff"
MOST_DOCUMENT_BYTES = 64 << 20
"""Limit for a document in UTF-8 or a line of JSON; longer ones are decompression bombs or mistakes, such as a file of
books without a separator."""
BYTES_PER_CHARACTER = 4
"""Most bytes of one character in UTF-8."""
UNPACK_ROWS = 8
"""Rows of a parquet file to unpack together: few, because a long text stored once may be unpacked for every row.

20,000 documents of 2 kB take 0.30 s, and would take 0.18 s with 1000 rows together.
"""
READ_TIMES = 4
"""Most memory that reading a text file takes, as a multiple of its size: its bytes, its text and its documents."""
RETRY_SECONDS = 2.0


def read_documents(corpus: str, settings: dict, files: list[str]) -> Iterator[str]:
    """Read the documents of a corpus in a fixed order, unchanged, until `max_bytes` of text.

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
    if source == "stdlib":
        documents = stdlib_documents()
    elif source == "files":
        documents = (text for file in files for text in file_documents(corpus, Path(file), settings))
    else:
        documents = hub_documents(corpus, settings)
    return up_to_bytes(documents, settings["max_bytes"])


def write_splits(documents: Iterable[str], fractions: dict, paths: dict[str, Path], corpus: str) -> dict:
    """Write documents to one parquet file per split, dropping blank ones and exact duplicates.

    Lone surrogates are replaced first (`without_lone_surrogates`), so the digest of a document is that of its final
    text.

    Args:
        documents: the texts.
        fractions: share of documents in `validation` and in `probe`; the rest is `train`.
        paths: the file of each split.
        corpus: the corpus's name, for error messages.

    Returns:
        `splits`: `documents` and UTF-8 `bytes` per split. `duplicates` and `empty`: documents dropped. `surrogates`:
        documents with lone surrogates, including dropped ones.

    Raises:
        InputError: if a split stays empty.
    """
    splits = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    n_duplicates, n_empty, n_surrogates = 0, 0, 0
    seen: set[bytes] = set()
    with ExitStack() as stack:
        temporary = {split: stack.enter_context(atomic_path(paths[split])) for split in SPLITS}
        writers = {
            split: stack.enter_context(pyarrow.parquet.ParquetWriter(temporary[split], SCHEMA)) for split in SPLITS
        }
        unwritten: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        for original in documents:
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
            unwritten[split].append((digest.hex(), text))
            splits[split]["documents"] += 1
            splits[split]["bytes"] += len(text.encode())
            if len(unwritten[split]) == WRITE_DOCUMENTS:
                _write_rows(writers[split], unwritten[split])
        for split in SPLITS:
            _write_rows(writers[split], unwritten[split])
        _require_documents(splits, n_empty, corpus)
    return {"duplicates": n_duplicates, "empty": n_empty, "surrogates": n_surrogates, "splits": splits}


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
    """Yield the texts of one split in file order; memory holds one batch of them."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=WRITE_DOCUMENTS, columns=["text"]):
            yield from batch.column("text").to_pylist()


def up_to_bytes(documents: Iterable[str], max_bytes: int | None) -> Iterator[str]:
    """Yield documents up to and including the one that reaches `max_bytes` of UTF-8 text; None yields all."""
    passed = 0
    for text in documents:
        yield text
        passed += n_bytes(text)
        if max_bytes is not None and passed >= max_bytes:
            return


def stdlib_documents() -> Iterator[str]:
    """Yield the source files of the running interpreter's standard library, in an order that mixes its packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = [path for path in root.rglob("*.py") if not STDLIB_SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    for path in sorted(sources, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()):
        if path.is_file() and path.stat().st_size in STDLIB_BYTES_PER_FILE:
            yield path.read_text(encoding="utf-8")


def file_documents(corpus: str, path: Path, settings: dict) -> Iterator[str]:
    """Yield the documents of one file: parquet, JSON lines, or text for any other ending (.txt, .lua, .md ...).

    A byte order mark at the start of a text or JSON file is dropped, and all line endings of a text file become line
    feeds. All other characters are kept, including control characters.

    Raises:
        InputError: naming corpus, file and key, if the file is not of the format of its name, or a document has more
            than `MOST_DOCUMENT_BYTES`.
    """
    try:
        for number, text in enumerate(_documents_in(corpus, path, settings), start=1):
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


def hub_documents(corpus: str, settings: dict) -> Iterator[str]:
    """Stream a text column from the hub, and resume at the same row after a lost connection.

    Raises:
        InputError: if the dataset, split or column does not exist, or the connection stays lost after all retries.
    """
    from datasets.exceptions import DatasetsError  # imported here because it takes a second
    from huggingface_hub.errors import HfHubHTTPError

    wrong_requests = (DatasetsError, HfHubHTTPError, FileNotFoundError, RuntimeError, ValueError)
    repo, revision = settings["repo"], settings["revision"]
    rows_read, failures = 0, 0
    while True:
        try:
            for row in _hub_rows(settings, rows_read):
                rows_read += 1
                failures = 0
                where = f"row {rows_read} of '{repo}'"
                text = _text_of(row, settings["text_column"], corpus, where)
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


def _documents_in(corpus: str, path: Path, settings: dict) -> Iterator[str]:
    """Yield the documents of one file, of any length."""
    if path.name.endswith(".parquet"):
        return _parquet_documents(corpus, path, settings["text_column"])
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _jsonl_documents(corpus, path, settings["text_column"])
    text = _plain_text(corpus, path, settings["separator"])
    return iter(text.split(settings["separator"]) if settings["separator"] else [text])


def _plain_text(corpus: str, path: Path, separator: str | None) -> str:
    size = path.stat().st_size
    require_memory(READ_TIMES * size, path)
    if separator is None and size > MOST_DOCUMENT_BYTES:
        raise InputError(_too_long(corpus, str(path)))
    try:
        return path.read_text(encoding="utf-8").removeprefix(BOM)  # "utf-8-sig" would count bytes after the mark
    except UnicodeDecodeError as error:
        raise InputError(
            f"corpus '{corpus}': '{path}' must be UTF-8, but byte {error.start} is not; convert it (iconv -t UTF-8) "
            f"or remove it from corpora.{corpus}.path"
        ) from error


def _jsonl_documents(corpus: str, path: Path, column: str) -> Iterator[str]:
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as lines:  # bytes, so that an error can name the line
        for number, line in enumerate(iter(lambda: lines.readline(MOST_DOCUMENT_BYTES + 1), b""), start=1):
            if len(line) > MOST_DOCUMENT_BYTES:
                raise InputError(_too_long(corpus, f"line {number} of '{path}'"))
            if not line.strip():
                continue
            try:
                text = line.decode()
                row = json.loads(text.removeprefix(BOM) if number == 1 else text)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"corpus '{corpus}': line {number} of '{path}' must be UTF-8, but byte {error.start} of it is not; "
                    "correct that line or convert the file (iconv -t UTF-8)"
                ) from error
            except (ValueError, RecursionError) as error:  # not JSON, a number with too many digits, nested too deeply
                raise InputError(
                    f"corpus '{corpus}': line {number} of '{path}' is not JSON ({error}); correct that line"
                ) from error
            yield _text_of(row, column, corpus, f"{path}, line {number}")


def _parquet_documents(corpus: str, path: Path, column: str) -> Iterator[str]:
    schema = pyarrow.parquet.read_schema(path)
    if column not in schema.names:
        raise InputError(_missing_column(corpus, str(path), column, schema.names))
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        require_memory(max((group.total_byte_size for group in groups), default=0), path)
        for batch in file.iter_batches(batch_size=UNPACK_ROWS, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield _text_of({column: text}, column, corpus, str(path))


def _require_short(text: str, corpus: str, where: str) -> None:
    if BYTES_PER_CHARACTER * len(text) > MOST_DOCUMENT_BYTES and n_bytes(text) > MOST_DOCUMENT_BYTES:
        raise InputError(_too_long(corpus, where))


def _too_long(corpus: str, where: str) -> str:
    return (
        f"corpus '{corpus}': {where} must be a document of at most {MOST_DOCUMENT_BYTES} bytes, but is longer; "
        f"split it (a .txt with corpora.{corpus}.separator), or remove it from corpora.{corpus}.path"
    )


def _text_of(row: object, column: str, corpus: str, where: str) -> str:
    if not isinstance(row, dict) or column not in row:
        raise InputError(_missing_column(corpus, where, column, sorted(row) if isinstance(row, dict) else []))
    if not isinstance(row[column], str):
        raise InputError(
            f"corpus '{corpus}': '{column}' in {where} must be text, not {type(row[column]).__name__}; "
            f"correct it, or set corpora.{corpus}.text_column to another column"
        )
    return row[column]


def _missing_column(corpus: str, where: str, column: str, columns: list[str]) -> str:
    return (
        f"corpus '{corpus}': {where} has no '{column}', only {columns}; "
        f"set corpora.{corpus}.text_column to the one that holds the text"
    )


def _write_rows(writer: pyarrow.parquet.ParquetWriter, rows: list[tuple[str, str]]) -> None:
    if rows:
        writer.write_table(
            pyarrow.Table.from_arrays([[row[0] for row in rows], [row[1] for row in rows]], schema=SCHEMA)
        )
        rows.clear()


def _require_documents(splits: dict[str, dict[str, int]], n_empty: int, corpus: str) -> None:
    n_documents = sum(counts["documents"] for counts in splits.values())
    if n_documents == 0:
        raise InputError(f"corpus '{corpus}' is empty ({n_empty} blank documents); correct its block corpora.{corpus}")
    for split, counts in splits.items():
        if counts["documents"] == 0:
            raise InputError(
                f"corpus '{corpus}': its {n_documents} documents leave the {split} split empty; "
                f"add documents (or set corpora.{corpus}.separator for one large .txt), or raise splits.{split}"
            )
