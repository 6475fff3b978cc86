"""GGUF files, the format of llama.cpp, as far as they are checked before they are opened."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import require_inside, require_memory, require_regular

MAGIC = b"GGUF"
PACKAGE = "gguf"
WIDENED = 8
"""Most bytes of float32 for a byte of weights in four bits."""


def check_gguf(settings: Mapping, key: str) -> Path:
    """Check a GGUF file that a config names, without opening its weights.

    Args:
        settings: the `path` block of a model, with `gguf`.
        key: its place in the config, for messages.

    Returns:
        The file.

    Raises:
        InputError: if the block does not say that it may be dequantised; the file does not exist, is a link out of its
            folder, no GGUF, or too large for this machine; or the package that reads it is not installed.
    """
    path = Path(settings["folder"], settings["gguf"])
    if not settings["dequantise"]:
        raise InputError(
            f"{key}.dequantise: must be true to read '{path}', because most GGUF files hold rounded weights, so that "
            "features may differ from those of the model it was made from; take that model's safetensors, or set it"
        )
    require_inside(settings["folder"], (settings["gguf"],))
    n_bytes = require_regular(path, None, f"correct {key}.gguf")
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"'{path}' is not a GGUF file: it must begin with {MAGIC.decode()}; fetch it again")
    require_memory(WIDENED * n_bytes, path)
    if find_spec(PACKAGE) is None:
        raise InputError(f"{key}.gguf: needs the package {PACKAGE}, which is not installed; pip install {PACKAGE}")
    return path
