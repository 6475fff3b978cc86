"""Which number format an encoder's dense product is computed in, and weights rounded to it."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelineage.precision import has_vnni, native_bf16
from saelineage.saes.sparse_products import Bfloat16Weights, RoundedWeights

LEAST_FOR_INT16 = 1 << 22
"""Encoder weights for which loading numba pays."""
PANEL_ROWS = 8
"""Rows and columns of a product are multiples of this one, because products of integers are computed in panels."""


def fastest_format(d_in: int, d_sae: int, device: torch.device) -> str:
    """The number format in which a device multiplies such weights fastest: `bfloat16`, `int16` or `float32`."""
    if native_bf16(device):
        return "bfloat16"
    # AVX-512 without VNNI multiplies as many floats as integers
    is_faster = device.type == "cpu" and (torch.backends.cpu.get_cpu_capability() == "AVX2" or has_vnni())
    return "int16" if is_faster and d_in * d_sae >= LEAST_FOR_INT16 and d_sae % PANEL_ROWS == 0 else "float32"


def round_weights(rows: Float[Tensor, "d_sae d_in"], number_format: str) -> RoundedWeights | None:
    """Round encoder weights to `bfloat16` or `int16`; None for `float32`, which needs no rounding."""
    if number_format == "float32":
        return None
    if number_format == "bfloat16":
        return Bfloat16Weights(rows, whole=rows.is_cuda)
    from saelineage.saes.int16_products import Int16Weights  # numba takes a second to load

    return Int16Weights(rows)


def product_buffer(n_tokens: int, d_sae: int, number_format: str, device: torch.device) -> Float[Tensor, "row d_sae"]:
    """An array for products of so many tokens, with a few rows more."""
    dtype = torch.float32 if number_format == "float32" else torch.bfloat16
    return torch.empty(-(-n_tokens // PANEL_ROWS) * PANEL_ROWS, d_sae, dtype=dtype, device=device)
