"""Formats of the files of a corpus, told by their endings alone: the plan lists files, and a job reads them."""

from pathlib import Path
from typing import NamedTuple

TABLE_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
MESSAGE_FORMATS = ("json", "jsonl", "parquet")
"""Tables whose cells can be lists, as conversations are."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ACCEPTED = f".txt, {', '.join(TABLE_ENDINGS)} (each but .parquet also with {' or '.join(COMPRESSIONS)})"
"""Endings of a file that the config names itself, in words."""


class TextFormat(NamedTuple):
    """The format of one file."""

    kind: str
    """`text`, or of a table: `csv`, `tsv`, `json`, `jsonl`, `parquet`."""
    compression: str | None
    """`gzip`, `zstd` or None."""

    @property
    def is_table(self) -> bool:
        """True if the text of each document is a cell in one of the file's columns."""
        return self.kind != "text"


def text_format(path: Path | str) -> TextFormat:
    """The format of a file, by its name in small letters; text, if it has the ending of no table."""
    name = Path(path).name.lower()
    compression = COMPRESSIONS.get(Path(name).suffix)
    ending = Path(name).with_suffix("").suffix if compression else Path(name).suffix
    return TextFormat(TABLE_ENDINGS.get(ending, "text"), compression)


def is_accepted(path: Path | str) -> bool:
    """True if a file that the config names itself has an ending that says how to read it."""
    name = Path(path).name.lower()
    plain = Path(name).with_suffix("").name if Path(name).suffix in COMPRESSIONS else name
    return text_format(path).is_table or plain.endswith(".txt")
