"""Threads and device of a job."""

import ctypes
import logging
import os
import sys

import torch

from saelineage.jobs.gpus import NO_CUDA, are_off, installed_gpus, note_device, see_one_gpu, visible_gpus

logger = logging.getLogger(__name__)

MOST_REASON = 300
"""Characters of an error of torch that are passed on."""
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


def pick_device(gpus: int, may_round: bool = False) -> torch.device:
    """The GPU if the job was given one and there is one, otherwise the CPU; the log and the manifests say which.

    Of several GPUs it is one that no other job has (`gpus.see_one_gpu`). A GPU that was given in vain is warned of on
    standard error, because a job on the CPU may take a hundred times as long.

    Args:
        gpus: the number of GPUs that the job was given.
        may_round: let a GPU multiply float32 matrices in TF32, with 10 bits after the point instead of 23. Only for the
            training of language models, whose results nothing is compared with to five digits (docs/decisions/0031).
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
        if gpus and not are_off():
            warning = f"the job was given a GPU and computes on the CPU: {_reason()}"
            logger.warning("%s", warning)
            print(f"warning: {warning}", file=sys.stderr)
        note_device("cpu")
        return torch.device("cpu")
    note_device(f"cuda ({torch.cuda.get_device_name()})")
    torch.set_float32_matmul_precision("high" if may_round else "highest")
    # Sums in bfloat16 would be off by more than `sparse_products.screen` allows for.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return torch.device("cuda")


def _reason() -> str:
    """Why torch has no GPU, and what to do."""
    if not visible_gpus():
        return "there is no NVIDIA driver here (/dev/nvidiactl); set gpu: 0 in the profile, or ask for a node with GPUs"
    if torch.version.cuda is None:
        return NO_CUDA
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        said = " ".join(str(error).split())[:MOST_REASON]
        return f"torch for CUDA {torch.version.cuda} says: {said}; compare with the driver's version in nvidia-smi"
    return f"torch for CUDA {torch.version.cuda} finds none among CUDA_VISIBLE_DEVICES; compare with nvidia-smi -L"
