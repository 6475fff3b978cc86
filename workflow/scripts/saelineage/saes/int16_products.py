"""Products of matrices rounded to 16-bit integers, for CPUs that have AVX2 and no bfloat16.

One instruction multiplies 16 pairs of such integers (32 with AVX-512) and adds up neighbouring products, where one on
float32 multiplies half as many. LLVM chooses it (`vpmaddwd`, or `vpdpwssd`, which also adds to the sums so far) for the
pattern that `_tile` writes. Rows are scaled so that by Cauchy-Schwarz no sum of products leaves 32 bits; sums of
integers are exact, so the only error is that of rounding the rows.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int16
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from saelineage.errors import InputError
from saelineage.precision import has_vnni
from saelineage.saes.sparse_products import RoundedProduct, norm_bounds


class Shape(NamedTuple):
    """How a product is cut up for the vectors of a CPU."""

    lanes: int
    """Integers in a vector. A panel of each matrix gives lanes / 2 products, so that their sums end in one vector."""
    left_rows: int
    right_rows: int
    """Rows in a panel. The sums of their products and a vector of each row fit into the CPU's registers."""
    group_panels: int
    """Panels of the right matrix that are multiplied with one panel of the left one after another."""


AVX2, AVX512 = Shape(16, 4, 2, 4), Shape(32, 4, 4, 4)
SHAPES = {shape.lanes: shape for shape in (AVX2, AVX512)}
MOST_NORM = 46_000.0
"""Norm to which rows are scaled: its square is below 2^31, also after rounding."""
MOST = 32_767.0
MOST_SCALE = torch.finfo(torch.float32).max / MOST_NORM
"""Scale of a row whose norm is infinite in float32: finite, so that its products are numbers, if far off."""
BLOCK_PANELS = 32
"""Panels of the left matrix that are multiplied with one group of panels after another; few enough for the cache."""
BLOCK_INPUTS = 512
"""Integers of each row that are multiplied at once: few enough for panels of both to stay in the first cache."""
ROUNDED_ROWS = 512
"""Rows rounded at once; few enough to stay in the cache."""

INT16, INT32, INT64, FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def host_shape() -> Shape:
    """The shape for this machine's CPU."""
    return AVX512 if has_vnni() else AVX2


class Panels(NamedTuple):
    """Rows rounded to 16-bit integers, in the order in which the product reads them."""

    values: Int16[Tensor, "panel step row lane"]
    """Zeros fill up the last panel and the last step. The number of lanes says which shape they are for."""
    scales: Float[Tensor, " padded_row"]
    """A row is its integers times its scale, with an error."""
    norms: Float[Tensor, " row"]
    """Norms of the rows before rounding (`sparse_products.norm_bounds`)."""
    errors: Float[Tensor, " row"]
    """Norms of the rounding errors."""


class Int16Weights:
    """Encoder weights as 16-bit integers; see `sparse_products.RoundedWeights`."""

    def __init__(self, W_enc: Float[Tensor, "d_sae d_in"], shape: Shape | None = None):
        """Round the weights.

        Args:
            W_enc: encoder weights, one row per latent.
            shape: how products are cut up; by default as this CPU multiplies fastest.

        Raises:
            InputError: if rows of products would end in the middle of a panel.
        """
        self._shape = host_shape() if shape is None else shape
        if len(W_enc) % self._shape.right_rows:
            multiple = f"a multiple of {self._shape.right_rows} latents"
            raise InputError(f"products in int16 need {multiple}, not {len(W_enc)}; use float32")
        self._panels = panels(W_enc, self._shape.right_rows, self._shape.lanes)
        self._norm, self._error = self._panels.norms.max(), self._panels.errors.max()

    def product(
        self, centred: Float[Tensor, "token d_in"], buffer: Float[Tensor, "buffered_token d_sae"] | None
    ) -> RoundedProduct:
        """See `sparse_products.RoundedWeights`."""
        rounded = panels(centred, self._shape.left_rows, self._shape.lanes)
        n_rows, d_sae = len(rounded.scales), self._shape.right_rows * len(self._panels.values)
        if buffer is None or len(buffer) < n_rows:
            buffer = torch.empty(n_rows, d_sae, dtype=torch.bfloat16)
        product(rounded, self._panels, buffer[:n_rows])
        # 1.02 covers the difference of |x'| and |x|, and the rounding of scales and errors
        slack = 1.02 * (rounded.errors * self._norm + rounded.norms * self._error)
        return RoundedProduct(buffer[: len(centred)], slack, 1.02 * rounded.norms * self._norm)


def panels(rows: Float[Tensor, "row d_in"], panel_rows: int, lanes: int) -> Panels:
    """Round rows, and arrange them in panels of `panel_rows` rows and vectors of `lanes` integers."""
    n_rows, d_in = rows.shape
    n_panels, n_steps = -(-n_rows // panel_rows), -(-d_in // lanes)
    rounded = torch.zeros(n_panels, n_steps, panel_rows, lanes, dtype=torch.int16)
    norms, errors = rows.new_empty(n_rows), rows.new_empty(n_rows)
    scales = rows.new_zeros(n_panels * panel_rows)
    block_rows = ROUNDED_ROWS // panel_rows * panel_rows
    for start in range(0, n_rows, block_rows):
        block = rows[start : start + block_rows]
        of_block = slice(start, start + len(block))
        norms[of_block] = norm_bounds(block)
        largest = torch.maximum(norms[of_block] / MOST_NORM, block.abs().amax(1) / MOST)
        largest.clamp_max_(MOST_SCALE)
        integers = (block / largest[:, None]).round_()
        scales[of_block] = largest
        errors[of_block] = norm_bounds(torch.addcmul(block, integers, largest[:, None], value=-1))
        first, n_blocks = start // panel_rows, -(-len(block) // panel_rows)
        padded = torch.zeros(n_blocks * panel_rows, n_steps * lanes, dtype=torch.int16)
        padded[: len(block), :d_in] = integers
        rounded[first : first + n_blocks] = padded.view(n_blocks, panel_rows, n_steps, lanes).transpose(1, 2)
    return Panels(rounded, scales, norms, errors)


def product(left: Panels, right: Panels, out: Float[Tensor, "left_row right_row"]) -> None:
    """Write left @ right.T, rounded to bfloat16, into `out`, with as many threads as torch has.

    Args:
        left, right: from `panels`, of a shape's `left_rows` and `right_rows` rows and its `lanes`.
        out: contiguous, in bfloat16, with as many rows and columns as the panels have rows, zeros included.
    """
    arrays = (left.values.numpy(), left.scales.numpy(), right.values.numpy(), right.scales.numpy())
    bits, n_panels, n_threads = out.view(torch.int16).numpy(), len(right.values), torch.get_num_threads()
    step, product_of_panels = -(-n_panels // n_threads), _PRODUCTS[left.values.shape[3]]
    parts = [(start, min(start + step, n_panels)) for start in range(0, n_panels, step)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda part: product_of_panels(*arrays, *part, bits), parts))


@intrinsic(prefer_literal=True)
@no_type_check
def _add_products(context, lanes, left, right, n_steps, sums):
    """Compiled: add the products of each row of one panel with each row of another to their sums so far.

    Args:
        context: numba's.
        lanes: of the shape; known when this is compiled.
        left, right: addresses of the panels' integers.
        n_steps: vectors in a row, at least 1.
        sums: address of the sums so far, in 32-bit integers.
    """
    shape = SHAPES[lanes.literal_value]

    def write(target, builder, signature, arguments):
        _add_panel_products(builder, shape, *arguments[1:])
        return target.get_dummy_value()

    return types.void(lanes, *[types.intp] * 4), write


def _add_panel_products(
    builder: ir.IRBuilder, shape: Shape, left: ir.Value, right: ir.Value, n_steps: ir.Value, sums: ir.Value
) -> None:
    n_products, half = shape.left_rows * shape.right_rows, ir.VectorType(INT32, shape.lanes // 2)
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(INT64, "step")
    step.add_incoming(INT64(0), before)
    lanes = [builder.phi(half, "lanes") for _ in range(n_products)]
    lefts = _vectors(builder, left, step, shape.left_rows, shape.lanes)
    rights = _vectors(builder, right, step, shape.right_rows, shape.lanes)
    pairs = [builder.mul(left_vector, right_vector) for left_vector in lefts for right_vector in rights]
    added = [builder.add(so_far, _neighbours(builder, products)) for so_far, products in zip(lanes, pairs, strict=True)]
    for so_far, of_step in zip(lanes, added, strict=True):
        so_far.add_incoming(half([0] * half.count), before)
        so_far.add_incoming(of_step, loop)
    next_step = builder.add(step, INT64(1))
    step.add_incoming(next_step, loop)
    builder.cbranch(builder.icmp_signed("<", next_step, n_steps), loop, after)
    builder.position_at_end(after)
    while len(added) > 1:  # add up the lanes of each product; at the end one vector holds all products
        added = [_neighbours(builder, *two) for two in zip(added[::2], added[1::2], strict=True)]
    place = builder.inttoptr(sums, ir.VectorType(INT32, n_products).as_pointer())
    builder.store(builder.add(builder.load(place, align=4), added[0]), place, align=4)


@intrinsic(prefer_literal=True)
@no_type_check
def _write_products(context, lanes, sums, left_scales, right_scales, out, pitch):
    """Compiled: write the sums of products of two panels, times their scales, as bfloat16.

    Args:
        context: numba's.
        lanes: of the shape; known when this is compiled.
        sums: address of the sums, in 32-bit integers.
        left_scales, right_scales: addresses of the scales of the panels' rows.
        out: address of the first product.
        pitch: bytes from a row of products to the next one.
    """
    shape = SHAPES[lanes.literal_value]

    def write(target, builder, signature, arguments):
        _write_panel_products(builder, shape, *arguments[1:])
        return target.get_dummy_value()

    return types.void(lanes, *[types.intp] * 5), write


def _write_panel_products(
    builder: ir.IRBuilder,
    shape: Shape,
    sums: ir.Value,
    left_scales: ir.Value,
    right_scales: ir.Value,
    out: ir.Value,
    pitch: ir.Value,
) -> None:
    n_products = shape.left_rows * shape.right_rows
    places = [divmod(number, shape.right_rows) for number in range(n_products)]
    scales = builder.fmul(
        _repeated(builder, left_scales, shape.left_rows, [row for row, _ in places]),
        _repeated(builder, right_scales, shape.right_rows, [row for _, row in places]),
    )
    whole = builder.load(builder.inttoptr(sums, ir.VectorType(INT32, n_products).as_pointer()), align=4)
    floats = builder.sitofp(whole, ir.VectorType(FLOAT, n_products))
    rounded = _as_bfloat16(builder, builder.fmul(floats, scales))
    of_row = ir.IntType(16 * shape.right_rows)
    by_row = builder.bitcast(rounded, ir.VectorType(of_row, shape.left_rows))
    for row in range(shape.left_rows):
        address = builder.inttoptr(builder.add(out, builder.mul(pitch, INT64(row))), of_row.as_pointer())
        builder.store(builder.extract_element(by_row, INT32(row)), address, align=2)


def _vectors(builder: ir.IRBuilder, panel: ir.Value, step: ir.Value, n_rows: int, lanes: int) -> list[ir.Value]:
    """The vector of each row of a panel at a step, as 32-bit integers."""
    pointer = builder.inttoptr(panel, ir.VectorType(INT16, lanes).as_pointer())
    first, wide = builder.mul(step, INT64(n_rows)), ir.VectorType(INT32, lanes)
    places = [builder.gep(pointer, [builder.add(first, INT64(row))]) for row in range(n_rows)]
    return [builder.sext(builder.load(place, align=2), wide) for place in places]


def _neighbours(builder: ir.IRBuilder, vector: ir.Value, second: ir.Value | None = None) -> ir.Value:
    """The sums of elements 0 and 1, 2 and 3, and so on, of a vector, or of two after one another."""
    n_elements = vector.type.count * (1 if second is None else 2)
    second = ir.Constant(vector.type, ir.Undefined) if second is None else second
    even, odd = (ir.VectorType(INT32, n_elements // 2)(list(range(start, n_elements, 2))) for start in (0, 1))
    return builder.add(builder.shuffle_vector(vector, second, even), builder.shuffle_vector(vector, second, odd))


def _repeated(builder: ir.IRBuilder, scales: ir.Value, n_rows: int, rows: Sequence[int]) -> ir.Value:
    """The scale of the row of each product, given its row in the panel."""
    of_rows = ir.VectorType(FLOAT, n_rows)
    loaded = builder.load(builder.inttoptr(scales, of_rows.as_pointer()), align=4)
    places = ir.VectorType(INT32, len(rows))(list(rows))
    return builder.shuffle_vector(loaded, of_rows(ir.Undefined), places)


def _as_bfloat16(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """The bits of finite numbers rounded to bfloat16, to even on a tie."""
    whole, short = (ir.VectorType(of, values.type.count) for of in (INT32, INT16))
    bits = builder.bitcast(values, whole)
    sixteen, one, most = (whole([number] * whole.count) for number in (16, 1, 0x7FFF))
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, most)), sixteen), short)


def _compiled(shape: Shape) -> Callable:
    """A function that multiplies all panels of the left matrix with those from `start` to `stop` of the right one."""
    lanes, left_rows, right_rows, group_panels = shape
    n_products, block_steps = left_rows * right_rows, BLOCK_INPUTS // lanes

    @njit(nogil=True, cache=True)
    @no_type_check
    def product_of_panels(left, left_scales, right, right_scales, start, stop, out):
        n_steps, pitch = left.shape[1], 2 * out.shape[1]
        lefts, rights, products = left.ctypes.data, right.ctypes.data, out.ctypes.data
        left_step, right_step = 2 * left_rows * lanes, 2 * right_rows * lanes
        scales_of_left, scales_of_right = left_scales.ctypes.data, right_scales.ctypes.data
        sums = np.empty((BLOCK_PANELS, group_panels, n_products), np.int32)
        first_sum, panel_sums = sums.ctypes.data, 4 * n_products
        for first in range(0, len(left), BLOCK_PANELS):
            last = min(first + BLOCK_PANELS, len(left))
            for group in range(start, stop, group_panels):
                group_stop = min(group + group_panels, stop)
                sums[:] = 0
                for step in range(0, n_steps, block_steps):
                    for i in range(first, last):
                        for j in range(group, group_stop):
                            _add_products(
                                lanes,
                                lefts + (i * n_steps + step) * left_step,
                                rights + (j * n_steps + step) * right_step,
                                min(block_steps, n_steps - step),
                                first_sum + ((i - first) * group_panels + j - group) * panel_sums,
                            )
                for i in range(first, last):
                    for j in range(group, group_stop):
                        _write_products(
                            lanes,
                            first_sum + ((i - first) * group_panels + j - group) * panel_sums,
                            scales_of_left + 4 * i * left_rows,
                            scales_of_right + 4 * j * right_rows,
                            products + i * left_rows * pitch + 2 * j * right_rows,
                            pitch,
                        )

    return product_of_panels


_PRODUCTS = {shape.lanes: _compiled(shape) for shape in SHAPES.values()}
