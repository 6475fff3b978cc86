"""What a job computes on: threads and device."""

import torch


def set_threads(threads: int) -> None:
    """Give torch this many threads: sums depend on it in their last bits, so it is never left to the machine."""
    torch.set_num_threads(threads)


def pick_device(gpus: int) -> torch.device:
    """The GPU when the job was given one and there is one, else the CPU."""
    return torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
