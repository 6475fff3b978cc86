"""Number formats by the names used in configs, and which of them a device computes in."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


AUTO, AS_STORED = "auto", "weights"
"""Values of `model_dtype` in the config, beside float32."""


def opened_dtype(model_dtype: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The number format that a model is opened in to be measured; the one place that decides it.

    Args:
        model_dtype: the config's setting. `weights` takes the files' own format. `auto` does so too where the device
            multiplies it in hardware, and float32 elsewhere.
        stored: the number format of the files.
        device: the device to compute on.
    """
    if model_dtype == AS_STORED:
        return stored
    return stored if model_dtype == AUTO and is_native(stored, device) else torch.float32


def widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest format that holds all numbers of some floating-point tensors."""
    formats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return reduce(torch.promote_types, sorted(formats, key=str))


def dtype_name(model: nn.Module) -> str:
    """The number format of a model's weights, as the config writes it."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Return True if a device multiplies matrices of a 16-bit format in hardware."""
    if dtype == torch.bfloat16:
        return native_bf16(device)
    return dtype == torch.float16 and device.type == "cuda"


def has_vnni() -> bool:
    """Whether this CPU multiplies vectors of 32 integers of 16 bits and adds them up in one instruction."""
    return torch.cpu._is_vnni_supported()


def native_bf16(device: torch.device) -> bool:
    """Return True if a device multiplies bfloat16 in hardware; emulation is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
