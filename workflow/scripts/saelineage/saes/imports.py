"""Importing third-party SAEs from folders of SAELens, dictionary-learning and sparsify.

Where a format computes latents differently, the difference is folded into the weights. Latents and reconstructions
then equal those of the format's library, up to rounding in float32. Formats that cannot be folded are refused.
"""

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelineage.errors import InputError
from saelineage.files.foreign import require_memory, require_regular
from saelineage.files.hub import hub_download
from saelineage.foreign.hub import fetch_sae_config
from saelineage.foreign.saes import FILES, REMEDY, choose_format, read_config
from saelineage.saes.folding import fold_decoder_bias, fold_decoder_norms
from saelineage.saes.sae import (
    Sae,
    is_size,
    read_tensors,
    require_finite,
    require_numbers,
    sae_of,
    sae_of_saelens,
)

MOST_KS = 1000
"""Numbers in a tensor k that are read; more would make the error message too long."""
MOST_PICKLE_BYTES = 1 << 20
"""Largest pickle in a .pt file, without its tensors; an SAE's has 2 kB."""
PICKLED = re.compile(
    r"collections OrderedDict|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (?!Untyped|Typed)[A-Z][A-Za-z0-9]*Storage"
)
"""Names that a pickled state dict needs. PyTorch allows more, such as bytearray, with which a few bytes can allocate
gigabytes."""


class ImportedSae(NamedTuple):
    """An imported SAE and its source."""

    sae: Sae
    format: str
    k: int | None
    """Latents per token that it was trained to keep, if its files say so."""
    files: list[Path]


class SaeSource(NamedTuple):
    """The location of an SAE's files."""

    folder: Path
    format: str
    commit: str | None
    """Commit of the hub repository they come from; None for a local folder."""


def find_sae(settings: dict, key: str, check: Callable[[Path, str], None] = lambda config, format: None) -> SaeSource:
    """Find the SAE that an `import` block names; only the two files of its format are downloaded from the hub.

    Args:
        settings: the block.
        key: the block's place in the config, for error messages.
        check: called with the SAE's config and format before weights, which may be large, are downloaded.

    Raises:
        InputError: if the folder holds no SAE or several, or the hub does not have the repository.
    """
    if "folder" in settings:
        folder = Path(settings["folder"])
        format_name = choose_format(sorted(os.listdir(folder)), settings["format"], str(folder))
        check(folder / FILES[format_name][0], format_name)
        return SaeSource(folder, format_name, None)
    described = fetch_sae_config(settings, key)
    check(described.config, described.format)
    hub_download(settings["repo"], described.repo.commit, described.weights, key)
    return SaeSource(described.config.parent, described.format, described.repo.commit)


def read_sae(source: SaeSource) -> ImportedSae:
    """Read an SAE of any format.

    Raises:
        InputError: if its files do not conform to the format, or its computation cannot be folded.
    """
    config, weights = (source.folder / name for name in FILES[source.format])
    sae, k = READERS[source.format](config, weights)
    require_finite(dict(sae.named_parameters()), weights)  # again, because folding multiplies
    return ImportedSae(sae, source.format, k, [config, weights])


# SAELens.


def read_saelens(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """Read an SAE of SAELens, versions 3 to 6."""
    config = read_config(path_to_config, "saelens")
    tensors = read_tensors(path_to_weights, REMEDY)
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        del tensors["scaling_factor"]  # older versions wrote it even if there was no scaling
    sae = sae_of_saelens(config, tensors, path_to_config.parent)
    if not config.get("apply_b_dec_to_input", True):
        fold_decoder_bias(sae)
    if sae.architecture == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        fold_decoder_norms(sae)
    return sae, sae.k


# dictionary-learning.


class DictionaryClass(NamedTuple):
    """Weights of a class of dictionary-learning."""

    architecture: str
    names: dict[str, str]
    """Its name for each of our tensors; those ending in `.weight` belong to a Linear and are transposed."""
    counters: tuple[str, ...] = ()
    """Optional further tensors."""
    subtracts_b_dec: bool = True
    """True if it encodes acts - b_dec, False if it encodes acts."""


LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
MATRICES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
OF_TOPK = LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec"}
ONE_THRESHOLD = {"threshold": "threshold"}
DICTIONARY_CLASSES = {
    "AutoEncoder": DictionaryClass("relu", LINEAR | {"b_enc": "encoder.bias", "b_dec": "bias"}),
    "AutoEncoderNew": DictionaryClass(
        "relu", LINEAR | {"b_enc": "encoder.bias", "b_dec": "decoder.bias"}, subtracts_b_dec=False
    ),
    "GatedAutoEncoder": DictionaryClass(
        "gated", LINEAR | {"b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    ),
    "JumpReluAutoEncoder": DictionaryClass("jumprelu", MATRICES | ONE_THRESHOLD, subtracts_b_dec=False),
    "AutoEncoderTopK": DictionaryClass("topk", OF_TOPK, ("k", "threshold")),
    "BatchTopKSAE": DictionaryClass("jumprelu", OF_TOPK | ONE_THRESHOLD, ("k",)),
    "MatryoshkaBatchTopKSAE": DictionaryClass("jumprelu", MATRICES | ONE_THRESHOLD, ("k", "group_sizes")),
}


def read_dictionary_learning(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """Read an SAE of dictionary-learning from a trainer's folder."""
    trainer = read_config(path_to_config, "dictionary_learning")["trainer"]
    name = trainer["dict_class"]
    layout = DICTIONARY_CLASSES[name]
    weights, counters = renamed(unpickled(path_to_weights), layout, name, path_to_weights)
    d_in, d_sae = sizes_of(weights["W_enc"], path_to_weights)
    for key, size in {"activation_dim": d_in, "dict_size": d_sae}.items():
        if trainer.get(key, size) != size:
            raise InputError(
                f"'{path_to_config}': trainer.{key} must be {size}, as in '{path_to_weights.name}', "
                f"not {trainer[key]!r}; {REMEDY}"
            )
    k = kept_latents(trainer, counters, path_to_config) if "k" in layout.counters else None
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        weights["threshold"] = one_threshold(weights["threshold"], d_sae, path_to_weights)
    sae = sae_of(layout.architecture, d_in, d_sae, k, tensors=weights, where=path_to_weights)
    if not layout.subtracts_b_dec:
        fold_decoder_bias(sae)
    norms = sae.W_dec.norm(dim=1)
    if name == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        fold_decoder_norms(sae)  # as its `from_pretrained` does
    return sae, k


def unpickled(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a .pt file, unpickling tensors only, because a pickle can hold code that would run.

    Raises:
        InputError: if the file holds anything else, or unpacks to more than its size.
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
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"'{path}' must be a state dict, tensors by name; save the SAE's state_dict() there")
    for name, tensor in tensors.items():
        if not is_stored(tensor):
            raise InputError(f"'{path}': {name[:80]!r} must be a dense tensor whose numbers are in the file; {REMEDY}")
    require_numbers(tensors, path, REMEDY)
    return tensors


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


def renamed(
    tensors: dict[str, Tensor], layout: DictionaryClass, name: str, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under our names and in our orientation, and the counters.

    Raises:
        InputError: if the tensors are not those of the class.
    """
    needed = set(layout.names.values())
    if not needed <= set(tensors) <= needed | set(layout.counters):
        raise InputError(
            f"'{path}': an SAE of class {name} must hold {sorted(needed)}, but this holds "
            f"{[name[:40] for name in sorted(tensors)[:20]]}; correct trainer.dict_class in config.json"
        )
    weights = {}
    for ours, theirs in layout.names.items():
        tensor = tensors[theirs]
        weights[ours] = tensor.mT if tensor.ndim == 2 and theirs.endswith(".weight") else tensor
    return weights, {counter: tensors[counter] for counter in layout.counters if counter in tensors}


def sizes_of(W_enc: Tensor, path: Path) -> tuple[int, int]:
    """d_in and d_sae.

    Raises:
        InputError: if the encoder is not a matrix.
    """
    if W_enc.ndim != 2 or not W_enc.numel():
        raise InputError(f"'{path}': the encoder must be a matrix, not of shape {tuple(W_enc.shape)}; {REMEDY}")
    return W_enc.shape[0], W_enc.shape[1]


def kept_latents(trainer: dict, counters: dict[str, Tensor], path: Path) -> int:
    """k, from the config or the weights.

    Raises:
        InputError: if config and weights differ in k, or neither holds it.
    """
    in_weights = set(counters["k"].flatten()[:MOST_KS].tolist()) if "k" in counters else set()
    in_config = {trainer["k"]} if is_size(trainer.get("k")) else set()
    if len(in_weights | in_config) != 1 or not all(map(is_size, in_weights | in_config)):
        raise InputError(
            f"'{path}': trainer.k must be a whole number above 0 and equal k in the weights, but k is "
            f"{trainer.get('k')!r} there and {in_weights or 'missing'} in the weights; {REMEDY}"
        )
    return (in_weights | in_config).pop()


def one_threshold(threshold: Tensor, d_sae: int, path: Path) -> Tensor:
    """Repeat the threshold that all latents share for each latent.

    Raises:
        InputError: if it was never set.
    """
    if threshold.numel() != 1 or not threshold.item() >= 0:
        shown = threshold.tolist() if threshold.numel() == 1 else f"of shape {tuple(threshold.shape)}"
        raise InputError(
            f"'{path}': threshold must be one number, 0 or more, but is {shown} (-1 means that it was never "
            "set, and the SAE would be a plain ReLU); train it past threshold_start_step"
        )
    return threshold.reshape(1).repeat(d_sae)


# sparsify.


def read_sparsify(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """Read a sparse coder of sparsify from the folder of one hookpoint."""
    config = read_config(path_to_config, "sparsify")
    tensors = read_tensors(path_to_weights, REMEDY)
    if "W_skip" in tensors:
        raise InputError(
            f"'{path_to_weights}': W_skip, a linear path around the latents, cannot be imported; use another SAE"
        )
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    weights, _ = renamed(tensors, DictionaryClass("topk", names), "SparseCoder", path_to_weights)
    d_in, k = config.get("d_in"), config.get("k")
    factor = config.get("expansion_factor")
    d_sae = config.get("num_latents") or (d_in * factor if is_size(d_in) and is_size(factor) else None)
    if not (is_size(d_in) and is_size(d_sae) and is_size(k)):
        raise InputError(
            f"'{path_to_config}': d_in, k and num_latents (or else expansion_factor) must be whole numbers above 0, "
            f"got {d_in!r:.40}, {k!r:.40} and {config.get('num_latents')!r:.40} ({factor!r:.40}); {REMEDY}"
        )
    return sae_of("topk", d_in, d_sae, k, tensors=weights, where=path_to_weights), k


READERS: dict[str, Callable[[Path, Path], tuple[Sae, int | None]]] = {
    "saelens": read_saelens,
    "dictionary_learning": read_dictionary_learning,
    "sparsify": read_sparsify,
}
