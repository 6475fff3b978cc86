"""Documents in the order of their digests, sorted on disk."""

import mmap
import struct
import tempfile
from collections.abc import Iterator
from heapq import merge
from pathlib import Path
from types import TracebackType

RUN_BYTES = 32 << 20
"""Text that is sorted in memory at a time."""
ENTRY = struct.Struct("<16sq")
"""Digest of a document, and the number of its bytes, which follow."""


class DigestSorter:
    """Takes documents in any order and gives them in the order of their digests.

    Runs of `RUN_BYTES` of text are sorted in memory and written one after the other to one temporary file, then merged
    (external sorting: Knuth, The Art of Computer Programming 3, 5.4). Memory holds one run, and one document of each
    run while they are merged.
    """

    def __init__(self, folder: Path):
        """Start without documents.

        Args:
            folder: the folder of the temporary file, which has no name and is gone when it is closed.
        """
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._ends = [0]
        self._run: list[tuple[bytes, bytes]] = []
        self._run_bytes = 0

    def __enter__(self) -> "DigestSorter":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the temporary file."""
        self._file.close()

    def add(self, digest: bytes, text: str) -> None:
        """Take a document.

        Args:
            digest: 16 bytes, others than those of all other documents.
            text: without lone surrogates.
        """
        encoded = text.encode()
        self._run.append((digest, encoded))
        self._run_bytes += len(encoded)
        if self._run_bytes >= RUN_BYTES:
            self._write_run()

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        """Yield the digest and the text of each document that was taken."""
        last = iter(sorted(self._run))
        if self._ends[-1] == 0:
            yield from ((digest, encoded.decode()) for digest, encoded in last)
            return
        self._file.flush()
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as written:
            runs = [_entries(written, start, stop) for start, stop in zip(self._ends, self._ends[1:], strict=False)]
            for digest, encoded in merge(*runs, last):
                yield digest, encoded.decode()

    def _write_run(self) -> None:
        for digest, encoded in sorted(self._run):
            self._file.write(ENTRY.pack(digest, len(encoded)) + encoded)
        self._ends.append(self._file.tell())
        self._run, self._run_bytes = [], 0


def _entries(written: mmap.mmap, start: int, stop: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the documents of one run."""
    while start < stop:
        digest, n_bytes = ENTRY.unpack_from(written, start)
        start += ENTRY.size + n_bytes
        yield digest, written[start - n_bytes : start]
