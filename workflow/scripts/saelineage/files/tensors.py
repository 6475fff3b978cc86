"""Safetensors files that say their own digest; large ones are written array by array."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from saelineage.files.atomic import atomic_path, decode_header, encode_header, sha256_json

DTYPE_NAMES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint16": "U16", "bool": "BOOL"}
"""numpy's names of number formats, and those of safetensors."""


class TensorWriter:
    """Arrays appended to a file behind the room for its header, as the format has it.

    Attributes:
        header: what `files.decode_header` will give; to be set before the file is finished.
    """

    def __init__(self, file: BinaryIO, header_bytes: int):
        """Start writing; use `writing_tensors`."""
        self.header: Mapping[str, object] = {}
        self._file, self._room, self._end = file, -(-header_bytes // 8) * 8, 0
        self._found: dict[str, dict] = {}
        file.seek(8 + self._room)

    def add(self, name: str, array: np.ndarray) -> None:
        """Append an array.

        Raises:
            ValueError: if there is one of this name.
        """
        if name in self._found:
            raise ValueError(f"'{name}' was added before")
        data = np.asarray(array, order="C")
        self._file.write(data.reshape(-1).view(np.uint8).data)
        offsets = [self._end, self._end + data.nbytes]
        self._found[name] = {"dtype": DTYPE_NAMES[data.dtype.name], "shape": list(data.shape), "data_offsets": offsets}
        self._end += data.nbytes

    def finish(self) -> None:
        """Put the header in front, filled up with spaces.

        Raises:
            ValueError: if it is larger than the room for it.
        """
        text = json.dumps({"__metadata__": encode_header(self.header), **self._found}).encode()
        if len(text) > self._room:
            raise ValueError(f"a header of {len(text)} bytes does not fit into {self._room}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))


@contextmanager
def writing_tensors(path: Path | str, header_bytes: int) -> Iterator[TensorWriter]:
    """Write a safetensors file, whole or not at all (`files.atomic_path`).

    Args:
        path: where to.
        header_bytes: room in front for the names and shapes of what will be added, and for `header`.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        writer = TensorWriter(file, header_bytes)
        yield writer
        writer.finish()


def write_tensors(path: Path | str, header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a safetensors file, with their digest in its header."""
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata=encode_header({**header, "sha256": sha256_tensors(header, whole)}))


def read_tensors(path: Path | str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays of what `write_tensors` wrote.

    Raises:
        SafetensorError, OSError, KeyError, ValueError: if the file is not that.
    """
    with safe_open(path, framework="np") as file:
        header = decode_header(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    require_sha256(header, tensors)
    return header, tensors


def sha256_tensors(header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> str:
    """Hex sha256 of what a file says and holds: header (but for its own `sha256`), names, formats, shapes and bytes."""
    digest = hashlib.sha256(sha256_json({key: value for key, value in header.items() if key != "sha256"}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.asarray(tensor, order="C").reshape(-1).data)
    return digest.hexdigest()


def require_sha256(header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse what was read if it is not what was written.

    Raises:
        ValueError: if the header's `sha256` is not that of header and tensors.
    """
    if header["sha256"] != sha256_tensors(header, tensors):
        raise ValueError("its bytes are not those that were written")
