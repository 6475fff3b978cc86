"""Tables with a text in one column: CSV, TSV, JSON, JSON lines and parquet, and files that are compressed.

Nothing is guessed: an empty cell of a CSV is an empty text, "NA" is the text NA, and a row that does not fit its header
is an error. Only JSON and parquet know rows without a text (null).
"""

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from saelineage.errors import InputError
from saelineage.files.foreign import require_memory
from saelineage.plan.text_formats import text_format

BOM = "\ufeff"
MOST_DOCUMENT_BYTES = 64 << 20
"""Limit for a document in UTF-8, a line of a file or a row of a table; longer ones are decompression bombs or mistakes,
such as a file of books without a separator."""
UNPACK_ROWS = 8
"""Rows of a parquet file to unpack together: few, because a long text stored once may be unpacked for every row.

20,000 documents of 2 kB take 0.30 s, and would take 0.18 s with 1000 rows together.
"""
READ_TIMES = 4
"""Most memory that reading a text file takes, as a multiple of its size: its bytes, its text and its documents."""
CHUNK_BYTES = 1 << 20
DELIMITERS = {"csv": ",", "tsv": "\t"}
JSON_SPACE = re.compile(r"[ \t\n\r]*")
MOST_NAMED, MOST_IN_NAME = 20, 40
"""Limits on the columns, and the characters of each, that a message names. A CSV without a header begins with texts."""


def table_cells(corpus: str, path: Path, column: str) -> Iterator[tuple[str, object]]:
    """Yield the cells of one column, each with its place in words for error messages.

    A cell may be of any type, because JSON and parquet have many; None is one without a value.

    Raises:
        InputError: naming file, line and key, if the file is not of the format of its name or lacks the column.
    """
    kind = text_format(path).kind
    if kind == "parquet":
        return _parquet_cells(corpus, path, column)
    if kind in DELIMITERS:
        return _delimited_cells(corpus, path, column, DELIMITERS[kind])
    if kind == "json" and _begins_an_array(path):
        return _array_cells(corpus, path, column)
    return _json_line_cells(corpus, path, column)


def whole_text(corpus: str, path: Path, most_bytes: int | None = None) -> str:
    """Read a text file, without a byte order mark, and with line feeds for all line endings.

    Args:
        corpus: the corpus's name, for error messages.
        path: the file, which may be compressed.
        most_bytes: limit on its bytes after decompression, if any.

    Raises:
        InputError: if it is not UTF-8, too long, or larger than this machine's memory.
    """
    content = _whole_bytes(path, most_bytes)
    if most_bytes is not None and len(content) > most_bytes:
        raise InputError(too_long(corpus, str(path), most_bytes))
    try:
        text = content.decode()  # "utf-8-sig" would count bytes after the mark
    except UnicodeDecodeError as error:
        raise InputError(
            f"corpus '{corpus}': '{path}' must be UTF-8, but byte {error.start} is not; convert it (iconv -t UTF-8) "
            f"or remove it from corpora.{corpus}.path"
        ) from error
    return text.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")


def too_long(corpus: str, where: str, most_bytes: int) -> str:
    """The message about a document that is too long."""
    return (
        f"corpus '{corpus}': {where} must be a document of at most {most_bytes} bytes, but is longer; "
        f"split it (a .txt with corpora.{corpus}.separator), or remove it from corpora.{corpus}.path"
    )


def missing_column(corpus: str, where: str, column: str, columns: Iterable[str]) -> str:
    """The message about a table without the column that should hold the text."""
    return (
        f"corpus '{corpus}': {where} has no '{column}', only {_named(list(columns))}; "
        f"set corpora.{corpus}.text_column to the one that holds the text"
    )


def _opened(path: Path) -> io.BufferedIOBase:
    """Open a file to read its content, decompressed."""
    compression = text_format(path).compression
    if compression == "gzip":
        return gzip.open(path, "rb")
    if compression == "zstd":
        # Python 3.11 has no zstd of its own, and pyarrow has. Its streams have no readline.
        return io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd"), CHUNK_BYTES)
    return open(path, "rb")


def _whole_bytes(path: Path, most_bytes: int | None) -> bytes:
    """All bytes of a file, decompressed, or as many as show that there are more than `most_bytes`.

    Raises:
        InputError: if this machine has not enough memory for them.
    """
    limit = sys.maxsize if most_bytes is None else most_bytes
    if text_format(path).compression is None:
        require_memory(READ_TIMES * path.stat().st_size, path)
    content = bytearray()
    with _opened(path) as file:
        while len(content) <= limit and (chunk := file.read(min(CHUNK_BYTES, limit + 1 - len(content)))):
            content += chunk
            require_memory(READ_TIMES * len(content), path)
    return bytes(content)


def _lines(corpus: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers and line ends."""
    with _opened(path) as lines:  # bytes, so that an error can name the line
        for number, line in enumerate(iter(lambda: lines.readline(MOST_DOCUMENT_BYTES + 1), b""), start=1):
            if len(line) > MOST_DOCUMENT_BYTES:
                raise InputError(too_long(corpus, f"line {number} of '{path}'", MOST_DOCUMENT_BYTES))
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"corpus '{corpus}': line {number} of '{path}' must be UTF-8, but byte {error.start} of it is not; "
                    "correct that line or convert the file (iconv -t UTF-8)"
                ) from error
            yield number, text.removeprefix(BOM) if number == 1 else text


def _json_line_cells(corpus: str, path: Path, column: str) -> Iterator[tuple[str, object]]:
    for number, line in _lines(corpus, path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, a number with too many digits, nested too deeply
            remedy = "correct that line"
            if text_format(path).kind == "json":
                remedy = "a .json file must be an array of records, or have one record a line; convert it"
            raise InputError(f"corpus '{corpus}': line {number} of '{path}' is not JSON ({error}); {remedy}") from error
        where = f"{path}, line {number}"
        yield where, _cell(row, column, corpus, where)


def _begins_an_array(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(CHUNK_BYTES).removeprefix(BOM.encode()).lstrip().startswith(b"[")


def _array_cells(corpus: str, path: Path, column: str) -> Iterator[tuple[str, object]]:
    """Read a JSON array one record at a time, because Python's objects take many times the memory of their text."""
    text, decoder = whole_text(corpus, path), json.JSONDecoder()

    place, number = _after_space(text, text.index("[") + 1), 0
    while number or text[place : place + 1] != "]":
        number += 1
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"corpus '{corpus}': record {number} of '{path}' is not JSON ({error}); correct it"
            ) from error
        where = f"{path}, record {number}"
        yield where, _cell(row, column, corpus, where)
        place = _after_space(text, place)
        if text[place : place + 1] != ",":
            break
        place = _after_space(text, place + 1)
    if text[place:].rstrip() != "]":
        raise InputError(
            f"corpus '{corpus}': '{path}' is not JSON, because its array does not end after record {number}; fetch it "
            "again or correct it"
        )


def _after_space(text: str, place: int) -> int:
    space = JSON_SPACE.match(text, place)
    return space.end() if space else place


def _delimited_cells(corpus: str, path: Path, column: str, delimiter: str) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(MOST_DOCUMENT_BYTES)  # 131,072 characters by default
    number, row_bytes = 1, 0

    def lines() -> Iterator[str]:
        """Yield the lines of the file, and refuse a row that its quoted line ends make too long."""
        nonlocal row_bytes
        for _, line in _lines(corpus, path):
            row_bytes += len(line.encode())
            if row_bytes > MOST_DOCUMENT_BYTES:
                raise InputError(
                    too_long(corpus, f"the row that begins at line {number} of '{path}'", MOST_DOCUMENT_BYTES)
                )
            yield line

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise InputError(missing_column(corpus, str(path), column, header) + _or_leave_out(corpus))
        if header.count(column) > 1:
            raise InputError(
                f"corpus '{corpus}': {path} must have one column '{column}', not {header.count(column)}; rename the "
                "others"
            )
        place, number, row_bytes = header.index(column), rows.line_num + 1, 0
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(
                    f"corpus '{corpus}': line {number} of '{path}' must have {len(header)} cells, as its header, but "
                    f'has {len(row)}; put cells that hold {delimiter!r} or line ends in quotes ("...")'
                )
            if row:  # a blank line is none
                yield f"{path}, line {number}", row[place]
            number, row_bytes = rows.line_num + 1, 0
    except csv.Error as error:
        raise InputError(
            f"corpus '{corpus}': line {number} of '{path}' is not {text_format(path).kind.upper()} ({error}); put the "
            'cell in quotes ("..."), and double each quote in it, or convert the file to JSON lines'
        ) from error


def _parquet_cells(corpus: str, path: Path, column: str) -> Iterator[tuple[str, object]]:
    schema = pyarrow.parquet.read_schema(path)
    if column not in schema.names:
        raise InputError(missing_column(corpus, str(path), column, schema.names) + _or_leave_out(corpus))
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        require_memory(max((group.total_byte_size for group in groups), default=0), path)
        number = 0
        for batch in file.iter_batches(batch_size=UNPACK_ROWS, columns=[column]):
            for cell in batch.column(0).to_pylist():
                number += 1
                yield f"{path}, row {number}", cell


def _cell(row: object, column: str, corpus: str, where: str) -> object:
    if not isinstance(row, dict) or column not in row:
        columns = sorted(row) if isinstance(row, dict) else []
        raise InputError(missing_column(corpus, where, column, columns) + _or_leave_out(corpus))
    return row[column]


def _or_leave_out(corpus: str) -> str:
    """A further remedy, for files that are no part of the corpus, such as dataset_infos.json."""
    return f", or leave the file out with corpora.{corpus}.glob"


def _named(columns: list[str]) -> str:
    """Columns in a message: the first few, and the beginnings of long ones."""
    names = [name if len(name) <= MOST_IN_NAME else f"{name[:MOST_IN_NAME]}..." for name in columns[:MOST_NAMED]]
    more = len(columns) - len(names)
    return f"{names}{f' and {more} more' if more else ''}"
