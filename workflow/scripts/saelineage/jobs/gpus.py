"""What this machine has, as far as it must be known without importing torch, and which job has which GPU."""

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

DECIDES_RESULTS = False

logger = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
"""Between two looks at GPUs that are all claimed."""
SCHEDULED_JOB = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Where schedulers say which job this is: SLURM, PBS, LSF, Grid Engine."""


def visible_gpus() -> int:
    """1 where an NVIDIA driver is loaded, else 0. How many there are does not matter: a job uses one."""
    return int(os.path.exists("/dev/nvidiactl"))


def installed_gpus(devices: Path | str = "/dev") -> list[str]:
    """The GPUs of this machine, by the numbers that CUDA gives them.

    Only their number is taken from the device files: where a container is given /dev/nvidia3 alone, CUDA calls it 0.
    """
    found = [name for name in os.listdir(devices) if re.fullmatch(r"nvidia\d+", name)]
    return [str(number) for number in range(len(found))]


def see_one_gpu(installed: Sequence[str], folder: Path | None = None) -> None:
    """Set CUDA_VISIBLE_DEVICES so that this process sees one GPU, which no other job of the user has.

    It must be called before CUDA is. A GPU is claimed until the process ends, and waited for while all are taken:
    Snakemake counts the GPUs of one machine (`--resources gpu=2`), but does not deal them out. Jobs of a scheduler have
    claims of their own, for several may each call their device 0.

    Args:
        installed: the machine's GPUs, for where CUDA_VISIBLE_DEVICES is not set; without any, nothing is done.
        folder: where claims lie; one per user in the machine's temporary folder unless given.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [name.strip() for name in given.split(",") if name.strip()] if given is not None else list(installed)
    if devices:
        claims = folder or Path(tempfile.gettempdir(), f"saelineage-gpus-{os.getuid()}")
        job = next((os.environ[name] for name in SCHEDULED_JOB if os.environ.get(name)), "none")
        os.environ["CUDA_VISIBLE_DEVICES"] = claim_device(devices, claims / re.sub(r"\W", "-", job))


def claim_device(devices: Sequence[str], folder: Path) -> str:
    """The first of some devices that no other process has claimed; waits while there is none.

    A claim is a lock on an open file, so it ends with the process, however that ends.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    waiting = False
    while True:
        for device in devices:
            if _lock(folder / f"{device}.lock"):
                return device
        if not waiting:
            logger.info("waiting for a GPU: %s are claimed by other jobs", ", ".join(devices))
            waiting = True
        time.sleep(WAIT_SECONDS)


def _lock(path: Path) -> bool:
    """Whether a file could be locked for the rest of this process; the descriptor stays open for that."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True
