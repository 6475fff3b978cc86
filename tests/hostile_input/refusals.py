"""How a hostile file must end: in one clear error, soon, and before much memory is asked for."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saelineage.errors import InputError

MOST_SECONDS = 10.0
MOST_MB = 400
LONGEST = 1200


def refusal(call: Callable[[], object]) -> str:
    """The message of the `InputError` that a call ends in.

    It has to be one line of printable characters, and to come within `MOST_SECONDS` and `MOST_MB` more memory than
    before.
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
    """Start measuring anew how much memory this process has had at most; returns what it has now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """The most memory that this process has had since, in MB."""
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def claim(header: dict | bytes, size: int | None = None) -> bytes:
    """A safetensors file with this header; its length is given truly unless `size` is another one."""
    import json

    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text
