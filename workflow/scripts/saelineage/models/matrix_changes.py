"""Singular values and vectors of what changed from parent to child, matrix by matrix.

W is a matrix of the parent, W' the child's, tau = W' - W. Rows of W are what it writes, columns what it reads. The
energy of a part of tau is its share of ||tau||_F^2.

Singular values and vectors come from the products of each matrix with itself (Gram matrices) in float64. They are as
wide as its shorter side and are summed over blocks of the longer one, so an embedding of 100,000 rows needs no more
memory than its width asks for, and LAPACK takes less than half the time for them. The price: a singular value below
sqrt(n eps) of the largest, about 4e-7, is lost in rounding, and counts as zero (docs/decisions/0036).
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from saelineage.errors import InputError
from saelineage.models.change_sums import BLOCK_WEIGHTS, ChangeSums, change_sums, relative_change

N_LEADING = 10
"""Leading singular vectors (k of arXiv 2410.21228)."""
LEAST_COSINE = 0.5
"""An intruder's cosine with every singular vector of the parent is smaller (epsilon of arXiv 2410.21228)."""
CONV1D = re.compile(r"\.c_(attn|fc|proj)\.weight$")
INPUT_FIRST = {"gpt2": CONV1D, "openai-gpt": CONV1D}
"""By `model_type`, names of the matrices that a file holds with a row for each input (transformers' Conv1D)."""


class MatrixChange(NamedTuple):
    """What became of a matrix. Undefined values are None."""

    rows: int
    columns: int
    difference: float
    """||tau||_F^2."""
    square: float
    """||W||_F^2."""
    relative_change: float | None
    """||tau||_F / ||W||_F."""
    effective_rank: float
    """`effective_rank` of tau; 0 if nothing changed."""
    subspace_energy: float | None
    """||U_k^T tau V_k||_F^2 / ||tau||_F^2 with the k = 10 leading singular vectors U_k, V_k of W, those with a value
    above zero: the energy that the change has among the parent's leading directions. None if nothing changed."""
    subspace_energy_if_random: float | None
    """Its expectation for a random tau (independent entries of one variance): k^2 / (rows x columns)."""
    intruders: int
    """Left singular vectors of W' among its k = 10 leading ones whose largest absolute cosine with any left singular
    vector of W is below 0.5 (arXiv 2410.21228). Vectors with a singular value of zero, which are arbitrary, are left
    out on both sides."""
    intruder_energy: float
    """||U_i^T tau||_F^2 / ||tau||_F^2: the energy that the change has along the intruders U_i."""
    intruder_energy_if_random: float
    """The most that it is, in large matrices, if tau is random: (1 / sqrt(rows) + 1 / sqrt(columns))^2 an intruder, the
    square of the largest singular value of such a matrix as a share of them all (Bai and Yin 1988)."""
    intruder_energy_of_child: float
    """The intruders' share of ||W'||_F^2."""


class EdgeChanges(NamedTuple):
    """What became of the matrices of two models."""

    matrices: dict[str, MatrixChange]
    """By their names in the files; a matrix of a tensor of several has its number behind the name."""
    left_out: list[str]
    """Tensors that only one of the models has, or in another shape."""


class Spectrum(NamedTuple):
    """Singular values above zero, the largest first, and the vectors of the shorter side of a matrix."""

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "short n"]

    def leading(self) -> "Spectrum":
        """The `N_LEADING` largest values, and their vectors."""
        return Spectrum(self.values[:N_LEADING], self.vectors[:, :N_LEADING])


def effective_rank(values: Float[Tensor, " n"]) -> float:
    """The effective rank of a matrix, from its singular values above zero (Roy and Vetterli 2007).

    exp(-sum p log p) with p = value / sum of all values: n for n equal values, between 1 and the rank otherwise.
    0 without any.
    """
    shares = values / values.sum()
    return float((-shares * shares.log()).sum().exp()) if len(values) else 0.0


@torch.no_grad()
def matrix_change(parent: Float[Tensor, "rows columns"], child: Float[Tensor, "rows columns"]) -> MatrixChange:
    """Compare two matrices of one shape, in which a row is what is written.

    Args:
        parent, child: in any floating-point format, on one device. They are converted a block at a time.
    """
    sums = change_sums(parent, child)
    rows, columns = parent.shape
    if not sums.difference:
        size = relative_change(sums)
        return MatrixChange(rows, columns, 0.0, sums.square, size, 0.0, None, None, 0, 0.0, 0.0, 0.0)
    is_upright = rows >= columns
    if not is_upright:
        parent, child = parent.T, child.T
    of_parent, of_child, of_change = _grams(parent, child)
    before, after = _spectrum(of_parent), _spectrum(of_child).leading()
    core, cross, written = _products(parent, child, before.leading(), after)
    if is_upright:  # left vectors are those of the longer side, W v / value
        cosines = before.vectors.T @ cross / before.values[:, None] / after.values
        energies = (written / after.values).square().sum(0)
    else:
        cosines = before.vectors.T @ after.vectors
        energies = (after.vectors * (of_change @ after.vectors)).sum(0)
    is_intruder = cosines.abs().amax(0) < LEAST_COSINE if len(cosines) else torch.ones_like(energies, dtype=torch.bool)
    n_leading, n_intruders = len(before.leading().values), int(is_intruder.sum())
    of_all = of_child.trace()
    return MatrixChange(
        rows,
        columns,
        sums.difference,
        sums.square,
        relative_change(sums),
        effective_rank(_values(torch.linalg.eigvalsh(of_change))),
        _share(core.square().sum(), sums.difference) if n_leading else None,
        n_leading**2 / (rows * columns) if n_leading else None,
        n_intruders,
        _share(energies[is_intruder].sum(), sums.difference),
        min(1.0, n_intruders * (rows**-0.5 + columns**-0.5) ** 2),
        _share(after.values[is_intruder].square().sum(), float(of_all)) if of_all else 0.0,
    )


def edge_changes(
    paths_to_weights: tuple[Path, Path], names: tuple[str, str], model_type: str, device: torch.device
) -> EdgeChanges:
    """Compare the matrices of two models, in the order of their names; one of each is in memory at a time.

    Tensors of two dimensions are matrices, and so is each slice of one of three, such as the experts of a layer, in
    the order in which the file holds rows and columns. A tied output embedding is in no file, so it counts once.

    Args:
        paths_to_weights: safetensors files of parent and child.
        names: the models, for error messages.
        model_type: the `model_type` of their config.json.
        device: the device to compute on.

    Raises:
        InputError: if weights are not finite.
    """
    before, after = (_shapes(path) for path in paths_to_weights)
    both = [name for name in sorted(before) if before[name] == after.get(name)]
    input_first = INPUT_FIRST.get(model_type)
    changes = {}
    for name in both:
        is_turned = input_first is not None and bool(input_first.search(name))
        for place, pair in _pairs(paths_to_weights, name, before[name]):
            parent, child = (tensor.to(device).T if is_turned else tensor.to(device) for tensor in pair)
            changes[name + place] = _finite_change(parent, child, name + place, names)
    return EdgeChanges(changes, sorted((before.keys() | after.keys()) - set(both)))


def edge_figures(changes: Iterable[MatrixChange]) -> dict[str, float | int | None]:
    """What an edge's matrices have in common.

    Returns:
        `n_matrices`; `relative_change` of all their weights; `effective_rank_share`, the median over the matrices that
        changed of the effective rank as a share of the shorter side; `intruders`, their number, and
        `with_intruders`, that of the matrices with any; the energies of `MatrixChange` as shares of the summed
        ||tau||_F^2 of all, each beside `_if_random`. None where nothing changed.
    """
    listed = list(changes)
    changed = [change for change in listed if change.difference]
    sums = ChangeSums(math.fsum(each.difference for each in listed), math.fsum(each.square for each in listed))
    shares = sorted(change.effective_rank / min(change.rows, change.columns) for change in changed)
    energies = ("subspace_energy", "subspace_energy_if_random", "intruder_energy", "intruder_energy_if_random")
    return {
        "n_matrices": len(listed),
        "relative_change": relative_change(sums),
        "effective_rank_share": _median(shares),
        "intruders": sum(change.intruders for change in listed),
        "with_intruders": sum(change.intruders > 0 for change in listed),
        **{name: _pooled(changed, name) for name in energies},
    }


def _pooled(changed: Iterable[MatrixChange], energy: str) -> float | None:
    """The mean of an energy over matrices by their ||tau||_F^2, where it is defined."""
    defined = [(change.difference, getattr(change, energy)) for change in changed]
    defined = [(weight, value) for weight, value in defined if value is not None]
    if not defined:
        return None
    return math.fsum(weight * value for weight, value in defined) / math.fsum(weight for weight, _ in defined)


def _median(values: list[float]) -> float | None:
    """The median of sorted values; of an even number of them the mean of the two in the middle."""
    middle = len(values) // 2
    return (values[middle] + values[~middle]) / 2 if values else None


def _finite_change(parent: Tensor, child: Tensor, name: str, models: tuple[str, str]) -> MatrixChange:
    """`matrix_change`, with an error that names the matrix if a weight is not finite."""
    for tensor, model in zip((parent, child), models, strict=True):
        if not all(bool(block.isfinite().all()) for block in tensor.split(max(1, BLOCK_WEIGHTS // tensor.shape[1]))):
            raise InputError(
                f"weights must be finite, but '{name}' of '{model}' holds infinity or NaN; train the model with a "
                "smaller learning_rate, or take another one"
            )
    return matrix_change(parent, child)


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors of a file that are matrices or several of them, by name."""
    with safe_open(path, framework="pt") as file:
        shapes: Mapping[str, list[int]] = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return {name: shape for name, shape in shapes.items() if len(shape) in (2, 3) and min(shape[-2:]) > 1}


def _pairs(paths: tuple[Path, Path], name: str, shape: list[int]) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the matrices of a tensor of both files, each with its number, or nothing, to be put behind the name.

    Files are opened for each matrix alone: they are mapped, and what was read counts as memory as long as they are.
    """
    for place in range(shape[0]) if len(shape) == 3 else [None]:
        pair = []
        for path in paths:
            with safe_open(path, framework="pt") as file:
                pair.append(file.get_tensor(name) if place is None else file.get_slice(name)[place])
        yield "" if place is None else f"[{place}]", pair


def _grams(parent: Tensor, child: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X^T X of parent, child and their difference, each upright, in float64."""
    grams = torch.zeros(3, parent.shape[1], parent.shape[1], dtype=torch.float64, device=parent.device)
    for before, after in _blocks(parent, child):
        for gram, block in zip(grams, (before, after, after - before), strict=True):
            gram.addmm_(block.T, block)
    return grams[0], grams[1], grams[2]


def _products(parent: Tensor, child: Tensor, leading: Spectrum, after: Spectrum) -> tuple[Tensor, Tensor, Tensor]:
    """Products with singular vectors of the longer side, which are W v / value and are not kept.

    Args:
        parent, child: W and W', upright.
        leading: of the parent.
        after: the leading one of the child.

    Returns:
        U_k^T tau V_k of the parent's leading vectors; W^T W' v and tau^T W' v of the child's.
    """
    n, n_after = len(leading.values), len(after.values)
    core = leading.values.new_zeros(n, n)
    cross, written = (core.new_zeros(parent.shape[1], n_after) for _ in range(2))
    for before, later in _blocks(parent, child):
        change, mapped = later - before, later @ after.vectors
        core += (before @ leading.vectors).T @ (change @ leading.vectors)
        cross += before.T @ mapped
        written += change.T @ mapped
    return core / leading.values[:, None], cross, written


def _blocks(parent: Tensor, child: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the rows of two matrices, in float64."""
    n_rows = max(1, BLOCK_WEIGHTS // parent.shape[1])
    for before, after in zip(parent.split(n_rows), child.split(n_rows), strict=True):
        yield before.double(), after.double()


def _spectrum(gram: Tensor) -> Spectrum:
    """The singular values above zero, and the vectors, of a matrix X whose X^T X is given."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    values = _values(eigenvalues)
    return Spectrum(values, vectors.flip(1)[:, : len(values)])


def _values(eigenvalues: Tensor) -> Tensor:
    """Singular values above rounding from the eigenvalues, in ascending order, of X^T X."""
    lowest = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
    return eigenvalues[eigenvalues > lowest].flip(0).sqrt()


def _share(part: Tensor, whole: float) -> float:
    """A part of a sum of squares as a share of it; rounding may take it above 1."""
    return min(1.0, float(part) / whole)
