"""State dicts in .pt files, read without running the code that a pickle can hold."""

import os
import pickle
import pickletools
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from saelineage.errors import InputError
from saelineage.files.foreign import require_memory, require_regular
from saelineage.foreign.sae_formats.values import REMEDY
from saelineage.saes.sae import require_numbers

MOST_PICKLE_BYTES = 1 << 20
"""Largest pickle in a .pt file, without its tensors; an SAE's has 2 kB."""
PICKLED = re.compile(
    r"collections OrderedDict|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (?!Untyped|Typed)[A-Z][A-Za-z0-9]*Storage"
)
"""Names that a pickled state dict needs. PyTorch allows more, such as bytearray, with which a few bytes can allocate
gigabytes."""


def unpickled(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a .pt file, unpickling tensors only, because a pickle can hold code that would run.

    Raises:
        InputError: if the file holds anything else, or unpacks to more than its size.
    """
    return unpickled_beside(path, ())[0]


def unpickled_beside(path: Path, plain: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read the state dict in a .pt file, and plain Python values that may lie in it under these names.

    Raises:
        InputError: as for `unpickled`.
    """
    require_memory(require_regular(path, remedy=REMEDY), path)
    require_unpacked(path)
    require_plain_pickle(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise almost anything
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, pickle.UnpicklingError):  # its text advises to allow the code
            reason = "it holds something that is not a tensor and could be code"
        raise InputError(
            f"'{path}' must be a state dict that torch.load(weights_only=True) reads, but: {reason}; {REMEDY}"
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    others = {name: tensors.pop(name) for name in plain if name in tensors} if named else {}
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"'{path}' must be a state dict, tensors by name; save the SAE's state_dict() there")
    for name, tensor in tensors.items():
        if not is_stored(tensor):
            raise InputError(f"'{path}': {name[:80]!r} must be a dense tensor whose numbers are in the file; {REMEDY}")
    require_numbers(tensors, path, REMEDY)
    return tensors, others


def require_unpacked(path: Path) -> None:
    """Refuse a .pt file that is not a zip archive, or whose members are compressed, which torch.save never does.

    A few compressed MB could unpack to more than the memory.

    Raises:
        InputError: naming the file.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":  # a pickle followed by a zip archive would be read as a pickle
                raise ValueError("it is no zip archive, as torch.save writes them since PyTorch 1.6")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # the last for newer zip versions
        raise InputError(
            f"'{path}' must be a state dict that torch.load(weights_only=True) reads, but: {error}; {REMEDY}"
        ) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise InputError(f"'{path}' must hold its tensors unpacked, as torch.save writes them; {REMEDY}")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise InputError(f"'{path}' claims to hold more than its {path.stat().st_size} bytes; {REMEDY}")


def require_plain_pickle(path: Path) -> None:
    """Refuse a .pt file whose pickle names anything that a state dict does not need.

    Raises:
        InputError: naming the first such name.
    """
    try:
        content = torch._C.PyTorchFileReader(os.fspath(path)).get_record("data.pkl")  # as torch.load finds it
        if len(content) > MOST_PICKLE_BYTES:
            raise ValueError(f"its pickle has {len(content)} bytes, more than {MOST_PICKLE_BYTES}")
        names = [
            str(argument or opcode.name)
            for opcode, argument, _ in pickletools.genops(content)
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
        ]
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"'{path}' must be a state dict that torch.load(weights_only=True) reads, but: {reason}; {REMEDY}"
        ) from error
    unsafe_name = next((name for name in names if not PICKLED.fullmatch(name)), None)
    if unsafe_name is not None:
        raise InputError(
            f"'{path}' must be a state dict that torch.load(weights_only=True) reads, but: it names "
            f"{unsafe_name.replace(' ', '.')!r:.80}, which is no tensor, and could be code; {REMEDY}"
        )


def is_stored(tensor: Tensor) -> bool:
    """True if all numbers of a tensor are in its file, and it is not a view that repeats few of them."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
