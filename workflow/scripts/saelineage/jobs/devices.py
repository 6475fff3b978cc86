"""Threads and device of a job."""

import ctypes
import logging
import os

import torch

from saelineage.jobs.gpus import installed_gpus, see_one_gpu

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare_cpu(threads: int) -> None:
    """Give torch this many threads, and let it keep the memory that it frees.

    The last bits of sums depend on the number of threads, so it is never left to the machine. glibc returns large
    blocks to the kernel at once, and torch asks for them again at every step. Without that, a step of SAE training
    takes 5 (TopK) to 15 (ReLU) percent less time (docs/decisions/0009). Other C libraries have no such setting.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(setting, 2**31 - 1)


def pick_device(gpus: int) -> torch.device:
    """The GPU if the job was given one and there is one, otherwise the CPU; the log says which.

    Of several GPUs it is one that no other job has (`gpus.see_one_gpu`).
    """
    if gpus:
        see_one_gpu(installed_gpus())
    has_gpu = bool(gpus) and torch.cuda.is_available()
    logger.info(
        "computing on the %s; GPUs asked for: %d, CUDA_VISIBLE_DEVICES: %s",
        "GPU" if has_gpu else "CPU",
        gpus,
        os.environ.get("CUDA_VISIBLE_DEVICES", "not set"),
    )
    if not has_gpu:
        return torch.device("cpu")
    # Sums in bfloat16 would be off by more than `sparse_products.screen` allows for.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return torch.device("cuda")
