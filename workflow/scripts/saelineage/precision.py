"""Number formats by the names used in configs, and the device's support for bfloat16."""

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def native_bf16(device: torch.device) -> bool:
    """Return True if a device multiplies bfloat16 in hardware; emulation is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
