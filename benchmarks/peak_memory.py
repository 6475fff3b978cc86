"""Peak of a process's private memory."""

import threading
from pathlib import Path


class PeakMemory(threading.Thread):
    """Largest private memory of a process, without pages of files, which the kernel may drop at any time."""

    def __init__(self, pid: int | str = "self") -> None:
        super().__init__(daemon=True)
        self._peak, self._done = 0, threading.Event()
        self.peak_rss = 0
        """Bytes of all pages that were in memory at once, those of files included."""
        self._status = Path("/proc", str(pid), "status")

    def run(self) -> None:
        """Poll every 10 milliseconds (Linux) until the process ends."""
        while not self._done.wait(0.01):
            try:
                status = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
            except (FileNotFoundError, ProcessLookupError):
                return
            if "RssAnon" in status:  # not of a process that has ended
                self._peak = max(self._peak, int(status["RssAnon"].split()[0]) * 1024)
                self.peak_rss = int(status["VmHWM"].split()[0]) * 1024

    def stop(self) -> int:
        """Stop polling and return the peak in bytes."""
        self._done.set()
        self.join()
        return self._peak
