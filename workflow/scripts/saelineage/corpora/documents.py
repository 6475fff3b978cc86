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
"""Of one document in UTF-8, or one line of JSON: longer ones are packed bombs or mistakes, such as books without a
separator."""
BYTES_PER_CHARACTER = 4
"""At most."""
UNPACK_ROWS = 8
"""Rows of a parquet file that are unpacked together; a long text that all rows share is stored once, and unpacked for
each. With 1000 together, 20,000 documents of 2 kB take 0.18 s rather than 0.30 s."""
READ_TIMES = 4
"""How many times its size in memory a text file takes at most: as bytes, as text, and cut into documents."""
RETRY_SECONDS = 2.0


def read_documents(corpus: str, settings: dict, files: list[str]) -> Iterator[str]:
    """Documents of a corpus in a fixed order, as its source gives them, until `max_bytes` of text.

    Args:
        corpus: the corpus's name, for error messages.
        settings: its block in the config.
        files: for a `files` corpus, the files to read, from `corpora_files.find_files`.

    Raises:
        InputError: if a file, column or encoding is not what the config says.
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
    """Write documents to one parquet file per split, dropping empty ones and exact duplicates.

    Lone surrogates are replaced before anything else is done with a text (`without_lone_surrogates`).

    Args:
        documents: the texts.
        fractions: share of documents in `validation` and in `probe`; the rest is `train`.
        paths: where each split goes.
        corpus: the corpus's name, for error messages.

    Returns:
        Counts: documents and UTF-8 bytes per split; documents dropped as duplicates and as empty; documents that had
        lone surrogates, those dropped among them.

    Raises:
        InputError: if a split stays empty.
    """
    splits = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    counts = {"duplicates": 0, "empty": 0, "surrogates": 0, "splits": splits}
    seen: set[bytes] = set()
    with ExitStack() as stack:
        temporary = {split: stack.enter_context(atomic_path(paths[split])) for split in SPLITS}
        writers = {
            split: stack.enter_context(pyarrow.parquet.ParquetWriter(temporary[split], SCHEMA)) for split in SPLITS
        }
        waiting = {split: [] for split in SPLITS}
        for original in documents:
            text = without_lone_surrogates(original)
            counts["surrogates"] += text != original
            if not text.strip():
                counts["empty"] += 1
                continue
            digest = document_digest(text)
            if digest in seen:
                counts["duplicates"] += 1
                continue
            seen.add(digest)
            split = split_of(digest, fractions)
            waiting[split].append((digest.hex(), text))
            counts["splits"][split]["documents"] += 1
            counts["splits"][split]["bytes"] += len(text.encode())
            if len(waiting[split]) == WRITE_DOCUMENTS:
                _write_rows(writers[split], waiting[split])
        for split in SPLITS:
            _write_rows(writers[split], waiting[split])
        _require_documents(counts, corpus)
    return counts


def without_lone_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which JSON can write but neither UTF-8 nor a tokenizer can hold.

    Two surrogates that make up a pair are the one character that they stand for.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def document_digest(text: str) -> bytes:
    """The first 16 bytes of the sha256 of a document's UTF-8 text, in which there are no lone surrogates."""
    return hashlib.sha256(text.encode()).digest()[:16]


def split_of(digest: bytes, fractions: dict) -> str:
    """The split a document belongs to: a function of its content alone, so equal texts never part."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < fractions["probe"]:
        return "probe"
    return "validation" if position < fractions["probe"] + fractions["validation"] else "train"


def read_split(path: Path | str) -> Iterator[str]:
    """The texts of one split, in file order, a batch at a time."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=WRITE_DOCUMENTS, columns=["text"]):
            yield from batch.column("text").to_pylist()


def up_to_bytes(documents: Iterable[str], max_bytes: int | None) -> Iterator[str]:
    """Documents until at least `max_bytes` of UTF-8 text has passed; None passes all."""
    passed = 0
    for text in documents:
        yield text
        passed += n_bytes(text)
        if max_bytes is not None and passed >= max_bytes:
            return


def stdlib_documents() -> Iterator[str]:
    """Source files of the running interpreter's standard library, in an order that mixes its packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in root.rglob("*.py") if not STDLIB_SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    for path in sorted(found, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()):
        if path.is_file() and path.stat().st_size in STDLIB_BYTES_PER_FILE:
            yield path.read_text(encoding="utf-8")


def file_documents(corpus: str, path: Path, settings: dict) -> Iterator[str]:
    """The documents of one file; in folders, a file with another ending (.lua, .py, .md ...) is read like a .txt.

    A byte order mark at the beginning of a text or JSON file is no part of its text, and the line ends of a text file,
    however they were written, are read as line feeds. All other characters are kept, control characters among them.

    Raises:
        InputError: naming corpus, file and key, if the file cannot be read as what its name says, or a document has
            more than `MOST_DOCUMENT_BYTES`.
    """
    try:
        for number, text in enumerate(_documents_in(corpus, path, settings), start=1):
            _require_short(text, corpus, f"document {number} of '{path}'")
            yield text
    except FileNotFoundError as error:
        raise InputError(f"corpora.{corpus}.path: '{path}' is not there; correct the path") from error
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"corpus '{corpus}': '{path}' cannot be read ({first_line(error)}); fetch it again or correct "
            f"corpora.{corpus}.path"
        ) from error


def n_bytes(text: str) -> int:
    """Bytes of a text in UTF-8, lone surrogates among them."""
    return len(text.encode("utf-8", "surrogatepass"))


def hub_documents(corpus: str, settings: dict) -> Iterator[str]:
    """Stream a text column from the hub; a lost connection is tried again from the row it was lost at.

    Raises:
        InputError: if the dataset, split or column does not exist, or the connection stays lost.
    """
    from datasets.exceptions import DatasetsError  # here, for it costs a second that the other sources need not pay
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
    """The rows of a hub dataset from row `start` on, streamed."""
    import datasets

    # Its own 20 rounds of retries would neither count as `retries` nor show in the job's log.
    datasets.config.STREAMING_OPEN_MAX_RETRIES = datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
    # An empty cache, for without the hub it takes whichever revision it has; and hf://, for it prefers local folders.
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
    """The documents of one file, however long."""
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
        return path.read_text(encoding="utf-8").removeprefix(BOM)  # "utf-8-sig" would count bytes from behind the mark
    except UnicodeDecodeError as error:
        raise InputError(
            f"corpus '{corpus}': '{path}' must be UTF-8, but byte {error.start} is not; convert it (iconv -t UTF-8) "
            f"or take it out of corpora.{corpus}.path"
        ) from error


def _jsonl_documents(corpus: str, path: Path, column: str) -> Iterator[str]:
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as lines:  # bytes, to tell in which line an undecodable one stands
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
                    "mend that line or convert the file (iconv -t UTF-8)"
                ) from error
            except (ValueError, RecursionError) as error:  # not JSON, a number of too many digits, nested too deeply
                raise InputError(
                    f"corpus '{corpus}': line {number} of '{path}' is not JSON ({error}); mend that line"
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
        f"corpus '{corpus}': {where} must be a document of at most {MOST_DOCUMENT_BYTES} bytes, but is longer; cut it "
        f"up (a .txt with corpora.{corpus}.separator), or take it out of corpora.{corpus}.path"
    )


def _text_of(row: object, column: str, corpus: str, where: str) -> str:
    if not isinstance(row, dict) or column not in row:
        raise InputError(_missing_column(corpus, where, column, sorted(row) if isinstance(row, dict) else []))
    if not isinstance(row[column], str):
        raise InputError(
            f"corpus '{corpus}': '{column}' in {where} must be text, not {type(row[column]).__name__}; "
            f"mend it or correct corpora.{corpus}.text_column"
        )
    return row[column]


def _missing_column(corpus: str, where: str, column: str, found: list[str]) -> str:
    return (
        f"corpus '{corpus}': {where} has no '{column}', only {found}; "
        f"set corpora.{corpus}.text_column to the one that holds the text"
    )


def _write_rows(writer: pyarrow.parquet.ParquetWriter, rows: list[tuple[str, str]]) -> None:
    if rows:
        writer.write_table(
            pyarrow.Table.from_arrays([[row[0] for row in rows], [row[1] for row in rows]], schema=SCHEMA)
        )
        rows.clear()


def _require_documents(counts: dict, corpus: str) -> None:
    documents = {split: entry["documents"] for split, entry in counts["splits"].items()}
    if not any(documents.values()):
        raise InputError(
            f"corpus '{corpus}' is empty ({counts['empty']} blank documents); correct its block corpora.{corpus}"
        )
    for split, count in documents.items():
        if count == 0:
            raise InputError(
                f"corpus '{corpus}': its {sum(documents.values())} documents leave the {split} split empty; "
                f"add documents (or set corpora.{corpus}.separator for one large .txt), or raise splits.{split}"
            )
