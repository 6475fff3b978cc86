"""Safetensors files with a digest of their content in the header. Large files are written array by array."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from saelineage.files.atomic import atomic_path, decode_header, encode_header, sha256_json

DTYPE_NAMES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint16": "U16", "bool": "BOOL"}
"""Number formats: numpy's name to the name in safetensors."""
FOR_TRANSFORMERS = {"format": "pt"}
"""What transformers asks of the metadata of a file of weights."""


class TensorWriter:
    """Appends arrays to a safetensors file, after room reserved for its header.

    Attributes:
        header: the mapping that `atomic.decode_header` will return; set it before the file is finished.
    """

    def __init__(self, file: BinaryIO, header_bytes: int, metadata: Mapping[str, str] | None = None):
        """Reserve the room for the header; callers use `writing_tensors` instead."""
        self.header: Mapping[str, object] = {}
        self._metadata = metadata
        self._file, self._room, self._end = file, -(-header_bytes // 8) * 8, 0
        self._entries: dict[str, dict] = {}
        file.seek(8 + self._room)

    def add(self, name: str, array: np.ndarray) -> None:
        """Append an array.

        Raises:
            ValueError: if an array of this name was added before.
        """
        data = np.asarray(array, order="C")
        self.add_parts(name, DTYPE_NAMES[data.dtype.name], data.shape, [data])

    def add_parts(self, name: str, dtype: str, shape: Sequence[int], parts: Iterable[np.ndarray]) -> None:
        """Append an array that comes in parts along its first dimension.

        Args:
            name: of the array.
            dtype: the name of its number format in safetensors.
            shape: of the whole array.
            parts: in their order, with the bytes of that number format.

        Raises:
            ValueError: if an array of this name was added before.
        """
        if name in self._entries:
            raise ValueError(f"'{name}' was added before")
        start = self._end
        for part in parts:
            self._file.write(part.reshape(-1).view(np.uint8).data)
            self._end += part.nbytes
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self._end]}

    def finish(self) -> None:
        """Write the header, padded with spaces to the reserved room.

        Raises:
            ValueError: if it is larger than that room.
        """
        metadata = encode_header(self.header) if self._metadata is None else self._metadata
        text = json.dumps({"__metadata__": metadata, **self._entries}).encode()
        if len(text) > self._room:
            raise ValueError(f"a header of {len(text)} bytes does not fit into {self._room}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))


@contextmanager
def writing_tensors(
    path: Path | str, header_bytes: int, metadata: Mapping[str, str] | None = None
) -> Iterator[TensorWriter]:
    """Write a safetensors file array by array, atomically (see `atomic.atomic_path`).

    Args:
        path: the file to write.
        header_bytes: room to reserve for the names and shapes of the arrays and for `TensorWriter.header`.
        metadata: the file's, instead of `TensorWriter.header`.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        writer = TensorWriter(file, header_bytes, metadata)
        yield writer
        writer.finish()


def write_tensors(path: Path | str, header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a safetensors file, with their digest in its header."""
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    metadata = encode_header({**header, "sha256": sha256_tensors(header, contiguous)})
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)


def read_tensors(path: Path | str) -> tuple[dict, dict[str, np.ndarray]]:
    """Read the header and arrays of a file from `write_tensors`, and check their digest.

    Raises:
        SafetensorError, OSError, KeyError, ValueError: if the file is damaged or not from `write_tensors`.
    """
    with safe_open(path, framework="np") as file:
        header = decode_header(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    require_sha256(header, tensors)
    return header, tensors


GROUP_HEADER_BYTES, ARRAY_HEADER_BYTES = 1 << 12, 1 << 9
"""Room in a file's header for the header of a group, and for the name, format and place of one array."""


class GroupWriter:
    """Appends groups of arrays to a safetensors file. Each group has a header and a digest."""

    def __init__(self, writer: TensorWriter):
        """Start without groups; callers use `writing_groups` instead."""
        self._writer = writer
        self._groups: dict[str, dict] = {}

    def add(self, name: str, header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> None:
        """Append a group of arrays, which `read_group` reads."""
        for key, tensor in tensors.items():
            self._writer.add(f"{name}/{key}", tensor)
        self._groups[name] = {**header, "sha256": sha256_tensors(header, tensors)}
        self._writer.header = {"groups": self._groups}


@contextmanager
def writing_groups(path: Path | str, n_groups: int, n_arrays: int) -> Iterator[GroupWriter]:
    """Write a safetensors file atomically and group by group, so that one group at a time is in memory.

    Args:
        path: the file to write.
        n_groups: the number of groups that will be added.
        n_arrays: at least the number of arrays of the largest group.
    """
    with writing_tensors(path, (GROUP_HEADER_BYTES + ARRAY_HEADER_BYTES * n_arrays) * (1 + n_groups)) as writer:
        yield GroupWriter(writer)


def read_group(path: Path | str, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Read the header and arrays of one group of a file from `writing_groups`, and check their digest.

    Raises:
        SafetensorError, OSError, KeyError, ValueError: if the file is damaged or does not hold this group.
    """
    with safe_open(path, framework="np") as file:
        header = decode_header(file.metadata())["groups"][name]
        keys = [key for key in file.offset_keys() if key.startswith(f"{name}/")]
        tensors = {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in keys}
    require_sha256(header, tensors)
    return header, tensors


def group_names(path: Path | str) -> list[str]:
    """The names of the groups of a file from `writing_groups`, sorted."""
    with safe_open(path, framework="np") as file:
        return list(decode_header(file.metadata())["groups"])


def sha256_tensors(header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> str:
    """Hex sha256 of a header (without its `sha256`) and of the names, formats, shapes and bytes of tensors."""
    digest = hashlib.sha256(sha256_json({key: value for key, value in header.items() if key != "sha256"}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.asarray(tensor, order="C").reshape(-1).data)
    return digest.hexdigest()


def require_sha256(header: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> None:
    """Check the digest of a header and its tensors.

    Raises:
        ValueError: if the header's `sha256` differs from that of header and tensors.
    """
    if header["sha256"] != sha256_tensors(header, tensors):
        raise ValueError("its bytes are not those that were written")
