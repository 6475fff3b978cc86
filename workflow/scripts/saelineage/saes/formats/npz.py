"""Arrays of .npz archives, read only after their headers were checked."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saelineage.errors import InputError
from saelineage.foreign.sae_formats.npz import npz_shapes
from saelineage.foreign.sae_formats.values import REMEDY


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read the floats in an .npz archive; nothing in it is unpickled.

    Raises:
        InputError: if it is damaged, holds anything else, or claims more than it can hold (`npz_shapes`).
    """
    npz_shapes(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"'{path}' must be a whole .npz archive, but {str(error)[:200]}; {REMEDY}") from error
