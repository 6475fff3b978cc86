"""The time and memory that a job used, beside its log.

Snakemake's own benchmarks are not used: they measure the process that Snakemake started and its children, and with a
launcher that process only waits.
"""

import os
import resource
import time
from pathlib import Path

DECIDES_RESULTS = False

MIB = 1024
"""KiB, in which Linux gives the peak of memory."""
IMPORTED = time.monotonic()
"""Start of this process where it cannot be seen, in seconds. That is some tenths of a second late; in a job that a
launcher forked, it is the launcher's."""


def beside_log(log: Path | str, folder: str) -> Path:
    """`{folder}/{stage}/{name}` in the run of a job whose log is `logs/{stage}/{name}.log`."""
    log = Path(log)
    return log.parents[2] / folder / log.parent.name / log.stem


def benchmark_path(log: Path | str) -> Path:
    """The benchmark of a job, from its log."""
    path = beside_log(log, "benchmarks")
    return path.with_name(f"{path.name}.tsv")


def benchmark() -> str:
    """A table of one row: what this process and its ended children used, in columns of Snakemake's benchmarks.

    Returns:
        `s`, seconds since the process started; `max_rss`, peak memory in MiB; `cpu_time`, in seconds.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    measured = {
        "s": _age(),
        "max_rss": max(usage.ru_maxrss for usage in used) / MIB,
        "cpu_time": sum(usage.ru_utime + usage.ru_stime for usage in used),
    }
    return "\t".join(measured) + "\n" + "\t".join(f"{value:.2f}" for value in measured.values()) + "\n"


def _age() -> float:
    """Seconds since this process started."""
    try:
        fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the machine started
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):  # no /proc, as in some containers, or no such clock: both are Linux's alone
        return time.monotonic() - IMPORTED
