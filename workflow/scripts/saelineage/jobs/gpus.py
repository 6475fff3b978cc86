"""GPUs of this machine, counted without importing torch, and a GPU for each job."""

import fcntl
import importlib.util
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
"""Pause before another attempt to claim a GPU."""
NO_CUDA = (
    "there is an NVIDIA GPU, but the torch that is installed was built without CUDA and cannot use it; install the "
    "build for your driver (https://pytorch.org/get-started), or set CUDA_VISIBLE_DEVICES= to stay on the CPU"
)
SCHEDULED_JOB = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Environment variables with the job's id: of SLURM, PBS, LSF, Grid Engine."""


OFF = ("", "-1", "none", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES with which the user keeps a run off the GPUs."""
_device = ["cpu"]


def note_device(name: str) -> None:
    """Note what this job computes on, for its manifests."""
    _device[:] = [name]


def noted_device() -> str:
    """What this job computes on: `cpu`, unless another device was noted."""
    return _device[0]


def are_off() -> bool:
    """True if the environment hides all GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in OFF


def torch_without_cuda() -> str | None:
    """A sentence if there is an NVIDIA driver, and a torch that cannot use it; torch is not imported."""
    torch = importlib.util.find_spec("torch")
    if not visible_gpus() or are_off() or torch is None or torch.origin is None:
        return None
    try:
        text = Path(torch.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    return f"{NO_CUDA}; all jobs compute on the CPU" if re.search(r"^cuda\b.*= *None *$", text, re.MULTILINE) else None


def visible_gpus() -> int:
    """1 if an NVIDIA driver is loaded, otherwise 0. The number of GPUs does not matter, because a job uses one."""
    return int(os.path.exists("/dev/nvidiactl"))


def installed_gpus(devices: Path | str = "/dev") -> list[str]:
    """The GPUs of this machine, by the numbers that CUDA gives them.

    Device files are only counted, because CUDA numbers from 0 even in a container that has /dev/nvidia3 alone.
    """
    files = [name for name in os.listdir(devices) if re.fullmatch(r"nvidia\d+", name)]
    return [str(number) for number in range(len(files))]


def see_one_gpu(installed: Sequence[str], folder: Path | None = None) -> None:
    """Set CUDA_VISIBLE_DEVICES so that this process sees one GPU, which no other job of the user has.

    Call it before CUDA is initialised. The GPU stays claimed until the process ends; if all are taken, the process
    waits. Snakemake counts the GPUs of one machine (`--resources gpu=2`) but does not assign them. Claims are kept
    apart by scheduler job, because each scheduler job may see its GPU as device 0.

    Args:
        installed: the machine's GPUs, used if CUDA_VISIBLE_DEVICES is not set; without any, nothing is done.
        folder: of the claims; by default one per user in the machine's temporary folder.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [name.strip() for name in given.split(",") if name.strip()] if given is not None else list(installed)
    if devices:
        claims = folder or Path(tempfile.gettempdir(), f"saelineage-gpus-{os.getuid()}")
        job = next((os.environ[name] for name in SCHEDULED_JOB if os.environ.get(name)), "none")
        os.environ["CUDA_VISIBLE_DEVICES"] = claim_device(devices, claims / re.sub(r"\W", "-", job))


def claim_device(devices: Sequence[str], folder: Path) -> str:
    """Claim the first device that no other process has claimed; wait while there is none.

    A claim is a lock on an open file, so it ends with the process, however that ends.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_waiting = False
    while True:
        for device in devices:
            if _lock(folder / f"{device}.lock"):
                return device
        if not is_waiting:
            logger.info("waiting for a GPU: %s are claimed by other jobs", ", ".join(devices))
            is_waiting = True
        time.sleep(WAIT_SECONDS)


def _lock(path: Path) -> bool:
    """Try to lock a file for the rest of this process; the descriptor stays open to keep the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True
