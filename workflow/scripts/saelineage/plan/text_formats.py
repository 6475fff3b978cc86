"""Formats of the files of a corpus, told by their endings alone: the plan lists files, and a job reads them."""

import re
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
NO_TEXT = re.compile(
    r"\.(bmp|gif|heic|icns|ico|jpeg|jpg|png|psd|tif|tiff|webp|avi|flac|m4a|mkv|mov|mp3|mp4|ogg|wav|webm"
    r"|7z|bz2|epub|jar|rar|tar|tgz|whl|xz|zip|docx|odt|pdf|pptx|xls|xlsx|otf|ttf|woff|woff2"
    r"|bin|ckpt|feather|gguf|h5|msgpack|npy|npz|onnx|pickle|pkl|pt|pth|safetensors|sqlite|class|dll|dylib|exe|pyc|so)"
)
"""Endings of files that are no text: images, sound and films, archives and documents, fonts, weights and programs."""
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


def is_no_text(path: Path | str) -> bool:
    """True if the ending of a file, less a compression's, is of a kind that no text has."""
    name = Path(path).name.lower()
    plain = Path(name).stem if Path(name).suffix in COMPRESSIONS else name
    return NO_TEXT.fullmatch(Path(plain).suffix) is not None
