"""Training curves for TensorBoard, while SAEs are trained."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from saelineage.errors import InputError


def board(stack: ExitStack, folders: list[Path]) -> Callable[[int, dict], None]:
    """Make a function that writes points of training curves for TensorBoard, into one folder per SAE.

    Raises:
        InputError: if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "saes.tensorboard needs the package tensorboard, which is not installed; "
            "install the version in requirements-dev.txt, or set saes.tensorboard to false"
        ) from error
    writers = [stack.enter_context(SummaryWriter(str(folder), purge_step=0)) for folder in folders]

    def write(number: int, point: dict) -> None:
        for name, value in point.items():
            writers[number].add_scalar(name, value, point["tokens"])

    return write
