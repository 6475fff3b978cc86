"""How much memory a benchmark holds of its own."""

import threading
from pathlib import Path


class PeakMemory(threading.Thread):
    """The most memory that the process held of its own, without pages of files, which come and go."""

    def __init__(self):
        super().__init__(daemon=True)
        self._peak, self._done = 0, threading.Event()

    def run(self) -> None:
        """Look every few milliseconds (Linux)."""
        while not self._done.wait(0.01):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self._peak = max(self._peak, int(status["RssAnon"].split()[0]) * 1024)

    def stop(self) -> int:
        """Bytes."""
        self._done.set()
        self.join()
        return self._peak
