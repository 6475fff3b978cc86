"""Sums over the weights of parent and child, and the size of the change that follows from them."""

from typing import NamedTuple

from torch import Tensor

BLOCK_WEIGHTS = 1 << 20
"""Weights of one tensor that are held in float64 at a time."""


class ChangeSums(NamedTuple):
    """Sums over pairs of weights; sums over several tensors add."""

    difference: float = 0.0
    """Summed (child - parent)^2."""
    square: float = 0.0
    """Summed parent^2."""
    n_weights: int = 0

    def plus(self, other: "ChangeSums") -> "ChangeSums":
        """The sums over both."""
        return ChangeSums(
            self.difference + other.difference, self.square + other.square, self.n_weights + other.n_weights
        )

    def report(self) -> dict[str, float | int | None]:
        """The change (`relative_change`) and the number of weights it was measured on."""
        return {"relative_change": relative_change(self), "n_weights": self.n_weights}


def relative_change(sums: ChangeSums) -> float | None:
    """||W_child - W_parent||_F / ||W_parent||_F over all weights of the sums.

    0 for equal weights, |a - 1| for weights multiplied by a; None if the parent's weights are all zero.
    """
    return (sums.difference / sums.square) ** 0.5 if sums.square else None


def change_sums(parent: Tensor, child: Tensor) -> ChangeSums:
    """The sums over two tensors of one shape, in float64."""
    sums = ChangeSums(n_weights=parent.numel())
    for before, after in zip(*(each.flatten().split(BLOCK_WEIGHTS) for each in (parent, child)), strict=True):
        before, after = before.double(), after.double()
        difference, square = float((after - before).square().sum()), float(before.square().sum())
        sums = sums.plus(ChangeSums(difference, square))
    return sums
