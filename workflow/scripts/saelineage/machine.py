"""What this machine has, as far as the Snakefile needs to know it without importing torch."""

import os


def visible_gpus() -> int:
    """1 where an NVIDIA driver is loaded, else 0. How many there are does not matter: a job uses one."""
    return int(os.path.exists("/dev/nvidiactl"))
