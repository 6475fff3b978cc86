"""The weights of a model folder, read block by block from their file."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from saelineage.foreign.models import WEIGHTS_FILE
from saelineage.models.loading import FLOATS

BLOCK_WEIGHTS = 1 << 20
"""Weights of a tensor in memory at a time, about."""
FORMAT_NAMES = {dtype: name for name, dtype in FLOATS.items()}
"""Names of floating-point formats in safetensors."""


class Weights:
    """Tensors of one model, of which some rows are in memory at a time.

    Attributes:
        name: the model's.
        shapes: by tensor.
    """

    def __init__(self, folder: Path):
        """Open the folder of a model of this run, which was checked when it was made."""
        self.name = folder.name
        self._file = safe_open(folder / WEIGHTS_FILE, framework="pt")
        self._slices = {name: self._file.get_slice(name) for name in sorted(self._file.keys())}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(of.get_shape()) for name, of in self._slices.items()}

    def dtype(self, tensor: str) -> torch.dtype:
        """The number format of a tensor in the file."""
        return FLOATS.get(self._slices[tensor].get_dtype()) or self.read(tensor, slice(0, 1)).dtype

    def alias(self, tensor: str, of: str) -> None:
        """Make a tensor known under another name too."""
        self._slices[tensor], self.shapes[tensor] = self._slices[of], self.shapes[of]

    def read(self, tensor: str, rows: slice) -> Tensor:
        """Some rows of a tensor, or all of one without dimensions, in its own number format."""
        return self._file.get_tensor(tensor) if not self.shapes[tensor] else self._slices[tensor][rows]


def row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first dimension with about `BLOCK_WEIGHTS` weights each; a vector is one block."""
    if len(shape) < 2:
        yield slice(0, shape[0] if shape else 1)
        return
    per_row = max(1, torch.Size(shape[1:]).numel())
    step = max(1, BLOCK_WEIGHTS // per_row)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def as_rows(block: Tensor) -> Float[Tensor, "row entry"]:
    """A block as a matrix in float64: rows of the tensor; one row of a vector."""
    return block.double().reshape(-1, block.shape[-1]) if block.dim() > 1 else block.double().reshape(1, -1)
