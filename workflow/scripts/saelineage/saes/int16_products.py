"""Products of matrices rounded to 16-bit integers, for CPUs that have AVX2 and no bfloat16.

One instruction multiplies 16 pairs of such integers and adds up neighbouring products, where one on float32 multiplies
8 pairs. LLVM chooses it (`vpmaddwd`) for the pattern that `_tile` writes. Rows are scaled so that by Cauchy-Schwarz no
sum of products leaves 32 bits; sums of integers are exact, so the only error is that of rounding the rows.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int16
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from saelineage.errors import InputError
from saelineage.saes.sparse_products import RoundedProduct, norm_bounds

LANES = 16
"""Integers in a vector."""
LEFT_ROWS, RIGHT_ROWS = 4, 2
"""Rows in a panel. Their 8 sums and 6 vectors fit into the 16 registers of AVX2."""
MOST_NORM = 46_000.0
"""Norm to which rows are scaled: its square is below 2^31, also after rounding."""
MOST = 32_767.0
MOST_SCALE = torch.finfo(torch.float32).max / MOST_NORM
"""Scale of a row whose norm is infinite in float32: finite, so that its products are numbers, if far off."""
BLOCK_PANELS = 32
"""Panels of the left matrix that are multiplied with one group of panels after another; few enough for the cache."""
GROUP_PANELS = 4
"""Panels of the right matrix in a group."""
ROUNDED_ROWS = 512
"""Rows rounded at once; few enough to stay in the cache."""

INT32, INT64 = ir.IntType(32), ir.IntType(64)
NARROW, WIDE = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(INT32, LANES)
EIGHT, HALF, FLOATS = (ir.VectorType(of, LANES // 2) for of in (ir.IntType(16), INT32, ir.FloatType()))


class Panels(NamedTuple):
    """Rows rounded to 16-bit integers, in the order in which the product reads them."""

    values: Int16[Tensor, "panel step row lane"]
    """Zeros fill up the last panel and the last step."""
    scales: Float[Tensor, " padded_row"]
    """A row is its integers times its scale, with an error."""
    norms: Float[Tensor, " row"]
    """Norms of the rows before rounding (`sparse_products.norm_bounds`)."""
    errors: Float[Tensor, " row"]
    """Norms of the rounding errors."""


class Int16Weights:
    """Encoder weights as 16-bit integers; see `sparse_products.RoundedWeights`."""

    def __init__(self, W_enc: Float[Tensor, "d_sae d_in"]):
        """Round the weights.

        Raises:
            InputError: if the number of latents is odd, because rows of products would end in the middle of a panel.
        """
        if len(W_enc) % RIGHT_ROWS:
            raise InputError(f"products in int16 need an even number of latents, not {len(W_enc)}; use float32")
        self._panels = panels(W_enc, RIGHT_ROWS)
        self._norm, self._error = self._panels.norms.max(), self._panels.errors.max()

    def product(
        self, centred: Float[Tensor, "token d_in"], buffer: Float[Tensor, "buffered_token d_sae"] | None
    ) -> RoundedProduct:
        """See `sparse_products.RoundedWeights`."""
        rounded = panels(centred, LEFT_ROWS)
        n_rows, d_sae = len(rounded.scales), RIGHT_ROWS * len(self._panels.values)
        if buffer is None or len(buffer) < n_rows:
            buffer = torch.empty(n_rows, d_sae, dtype=torch.bfloat16)
        product(rounded, self._panels, buffer[:n_rows])
        # 1.02 covers the difference of |x'| and |x|, and the rounding of scales and errors
        slack = 1.02 * (rounded.errors * self._norm + rounded.norms * self._error)
        return RoundedProduct(buffer[: len(centred)], slack, 1.02 * rounded.norms * self._norm)


def panels(rows: Float[Tensor, "row d_in"], panel_rows: int) -> Panels:
    """Round rows, and arrange them in panels of `panel_rows` rows."""
    n_rows, d_in = rows.shape
    n_panels, n_steps = -(-n_rows // panel_rows), -(-d_in // LANES)
    rounded = torch.zeros(n_panels, n_steps, panel_rows, LANES, dtype=torch.int16)
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
        padded = torch.zeros(n_blocks * panel_rows, n_steps * LANES, dtype=torch.int16)
        padded[: len(block), :d_in] = integers
        rounded[first : first + n_blocks] = padded.view(n_blocks, panel_rows, n_steps, LANES).transpose(1, 2)
    return Panels(rounded, scales, norms, errors)


def product(left: Panels, right: Panels, out: Float[Tensor, "left_row right_row"]) -> None:
    """Write left @ right.T, rounded to bfloat16, into `out`, with as many threads as torch has.

    Args:
        left, right: from `panels`, of `LEFT_ROWS` and `RIGHT_ROWS` rows.
        out: contiguous, in bfloat16, with as many rows and columns as the panels have rows, zeros included.
    """
    arrays = (left.values.numpy(), left.scales.numpy(), right.values.numpy(), right.scales.numpy())
    bits, n_panels, n_threads = out.view(torch.int16).numpy(), len(right.values), torch.get_num_threads()
    step = -(-n_panels // n_threads)
    parts = [(start, min(start + step, n_panels)) for start in range(0, n_panels, step)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda part: _product_of_panels(*arrays, *part, bits), parts))


@intrinsic
@no_type_check
def _tile(context, left, right, n_steps, left_scales, right_scales, out, pitch):
    """Compiled: write the products of each row of one panel with each row of another as bfloat16.

    Args:
        context: numba's.
        left, right: addresses of the panels' integers.
        n_steps: vectors in a row, at least 1.
        left_scales, right_scales: addresses of the scales of the panels' rows.
        out: address of the first product.
        pitch: bytes from a row of products to the next one.
    """
    return types.void(*[types.intp] * 7), _write_tile


def _write_tile(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Constant:
    left, right, n_steps, left_scales, right_scales, out, pitch = arguments
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(INT64, "step")
    step.add_incoming(INT64(0), before)
    lanes = [builder.phi(HALF, "lanes") for _ in range(LEFT_ROWS * RIGHT_ROWS)]
    lefts, rights = _vectors(builder, left, step, LEFT_ROWS), _vectors(builder, right, step, RIGHT_ROWS)
    pairs = [builder.mul(left_vector, right_vector) for left_vector in lefts for right_vector in rights]
    sums = [builder.add(so_far, _neighbours(builder, products)) for so_far, products in zip(lanes, pairs, strict=True)]
    for so_far, of_step in zip(lanes, sums, strict=True):
        so_far.add_incoming(HALF([0] * len(sums)), before)
        so_far.add_incoming(of_step, loop)
    next_step = builder.add(step, INT64(1))
    step.add_incoming(next_step, loop)
    builder.cbranch(builder.icmp_signed("<", next_step, n_steps), loop, after)
    builder.position_at_end(after)
    while len(sums) > 1:  # add up the lanes of each product; at the end one vector holds all products
        sums = [_neighbours(builder, *two) for two in zip(sums[::2], sums[1::2], strict=True)]
    scales = builder.fmul(
        _repeated(builder, left_scales, LEFT_ROWS, lambda number: number // RIGHT_ROWS),
        _repeated(builder, right_scales, RIGHT_ROWS, lambda number: number % RIGHT_ROWS),
    )
    rounded = _as_bfloat16(builder, builder.fmul(builder.sitofp(sums[0], FLOATS), scales))
    of_row = builder.bitcast(rounded, ir.VectorType(INT32, LEFT_ROWS))
    for row in range(LEFT_ROWS):
        address = builder.add(out, builder.mul(pitch, INT64(row)))
        pair = builder.extract_element(of_row, INT32(row))
        builder.store(pair, builder.inttoptr(address, INT32.as_pointer()), align=2)
    return context.get_dummy_value()


def _vectors(builder: ir.IRBuilder, panel: ir.Value, step: ir.Value, n_rows: int) -> list[ir.Value]:
    """The vector of each row of a panel at a step, as 32-bit integers."""
    pointer, first = builder.inttoptr(panel, NARROW.as_pointer()), builder.mul(step, INT64(n_rows))
    places = [builder.gep(pointer, [builder.add(first, INT64(row))]) for row in range(n_rows)]
    return [builder.sext(builder.load(place, align=2), WIDE) for place in places]


def _neighbours(builder: ir.IRBuilder, vector: ir.Value, second: ir.Value | None = None) -> ir.Value:
    """The sums of elements 0 and 1, 2 and 3, and so on, of a vector, or of two after one another."""
    n_elements = vector.type.count * (1 if second is None else 2)
    second = ir.Constant(vector.type, ir.Undefined) if second is None else second
    even, odd = (ir.VectorType(INT32, n_elements // 2)(list(range(start, n_elements, 2))) for start in (0, 1))
    return builder.add(builder.shuffle_vector(vector, second, even), builder.shuffle_vector(vector, second, odd))


def _repeated(builder: ir.IRBuilder, scales: ir.Value, n_rows: int, row_of: Callable[[int], int]) -> ir.Value:
    """The scale of each product's row in a panel."""
    of_rows = ir.VectorType(ir.FloatType(), n_rows)
    loaded = builder.load(builder.inttoptr(scales, of_rows.as_pointer()), align=4)
    places = HALF([row_of(number) for number in range(LEFT_ROWS * RIGHT_ROWS)])
    return builder.shuffle_vector(loaded, of_rows(ir.Undefined), places)


def _as_bfloat16(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """The bits of finite numbers rounded to bfloat16, to even on a tie."""
    bits = builder.bitcast(values, HALF)
    sixteen, one, most = (HALF([number] * HALF.count) for number in (16, 1, 0x7FFF))
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, most)), sixteen), EIGHT)


@njit(nogil=True, cache=True)
@no_type_check
def _product_of_panels(left, left_scales, right, right_scales, start, stop, out):
    """Multiply all panels of the left matrix with those from `start` to `stop` of the right one."""
    n_steps, left_bytes, right_bytes, pitch = left.shape[1], 2 * left[0].size, 2 * right[0].size, 2 * out.shape[1]
    lefts, rights, products = left.ctypes.data, right.ctypes.data, out.ctypes.data
    scales_of_left, scales_of_right = left_scales.ctypes.data, right_scales.ctypes.data
    for first in range(0, len(left), BLOCK_PANELS):
        for group in range(start, stop, GROUP_PANELS):
            for i in range(first, min(first + BLOCK_PANELS, len(left))):
                for j in range(group, min(group + GROUP_PANELS, stop)):
                    _tile(
                        lefts + i * left_bytes,
                        rights + j * right_bytes,
                        n_steps,
                        scales_of_left + 4 * i * LEFT_ROWS,
                        scales_of_right + 4 * j * RIGHT_ROWS,
                        products + i * LEFT_ROWS * pitch + 2 * j * RIGHT_ROWS,
                        pitch,
                    )
