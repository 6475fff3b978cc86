"""The right end of a hostile file: one clear error, soon, and before much memory is allocated."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saelineage.errors import InputError

MOST_SECONDS = 10.0
MOST_MB = 400
LONGEST = 1200


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the `InputError` that a call raises.

    The message must be one line of printable characters. The call may take at most `MOST_SECONDS` and `MOST_MB` of
    additional memory.
    """
    before, start = reset_peak_mb(), time.perf_counter()
    with pytest.raises(InputError) as raised:
        call()
    seconds, used_mb = time.perf_counter() - start, peak_mb() - before
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) <= LONGEST
    assert seconds < MOST_SECONDS
    assert used_mb < MOST_MB
    return message


def reset_peak_mb() -> float:
    """Reset the peak memory of this process, and return its current memory in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """Return the peak memory of this process since the last reset, in MB."""
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def claim(header: dict | bytes, size: int | None = None) -> bytes:
    """Return the start of a safetensors file with this header, whose stated length is `size` or the true one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text


DEEP_JSON = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
"""Too deep for Python's parser."""
PETABYTE = claim({"weight": {"dtype": "F32", "shape": [1 << 24, 1 << 24], "data_offsets": [0, 1 << 50]}}) + b"\0" * 16
"""A safetensors file of 16 bytes that claims a tensor of 1 PiB."""
