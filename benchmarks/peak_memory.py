"""Peak of a benchmark's private memory."""

import threading
from pathlib import Path


class PeakMemory(threading.Thread):
    """Largest private memory of the process, without pages of files, which the kernel may drop at any time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak, self._done = 0, threading.Event()

    def run(self) -> None:
        """Poll every 10 milliseconds (Linux)."""
        while not self._done.wait(0.01):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self._peak = max(self._peak, int(status["RssAnon"].split()[0]) * 1024)

    def stop(self) -> int:
        """Stop polling and return the peak in bytes."""
        self._done.set()
        self.join()
        return self._peak
