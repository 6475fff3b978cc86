"""SAEs that others trained: folders of SAELens, dictionary-learning and sparsify, read as SAEs of this project.

What a format computes differently is folded into the weights, so that latents and reconstructions are, up to rounding
in float32, those that the format's own library computes for a trained SAE. What cannot be folded is refused.
"""

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json, require_memory, require_regular
from saelineage.files.hub import hub_download, hub_repo
from saelineage.saes.sae import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Sae,
    is_size,
    read_tensors,
    require_finite,
    require_numbers,
    require_settings,
    sae_of,
    sae_of_saelens,
)

FILES = {
    "saelens": (CONFIG_FILE, WEIGHTS_FILE),
    "dictionary_learning": ("config.json", "ae.pt"),
    "sparsify": ("cfg.json", "sae.safetensors"),
}
"""The files of each format: its config and its weights."""
REMEDY = "fetch it again, or save it anew with the library that made it"
MOST_KS = 1000
"""Different values of k that are worth listing."""
MOST_PICKLE_BYTES = 1 << 20
"""Of a .pt file without its tensors; an SAE's has 2 kB."""
PICKLED = re.compile(
    r"collections OrderedDict|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (?!Untyped|Typed)[A-Z][A-Za-z0-9]*Storage"
)
"""What a pickled state dict names. PyTorch allows more, such as bytearray, which a few bytes ask for gigabytes with."""


class ImportedSae(NamedTuple):
    """An SAE as it was read, and what it was read from."""

    sae: Sae
    format: str
    k: int | None
    """Latents per token that it was trained to keep, where its files say so."""
    files: list[Path]


class SaeSource(NamedTuple):
    """Where an SAE's files lie."""

    folder: Path
    format: str
    commit: str | None
    """Commit of the hub repository they were taken from."""


def find_sae(settings: dict, key: str) -> SaeSource:
    """Find the SAE that an `import` block names; from the hub only the two files of its format are downloaded.

    Args:
        settings: the block.
        key: its place in the config, for error messages.

    Raises:
        InputError: if there is no SAE, or more than one, or the hub does not have it.
    """
    if "folder" in settings:
        folder = Path(settings["folder"])
        names = sorted(os.listdir(folder))
        return SaeSource(folder, choose_format(names, settings["format"], str(folder)), None)
    repo = hub_repo(settings["repo"], settings["revision"], "model", key)
    subfolder = PurePosixPath(settings.get("subfolder", "."))
    paths = {path.name: str(path) for path in map(PurePosixPath, repo.files) if path.parent == subfolder}
    found = choose_format(paths, settings["format"], str(PurePosixPath(settings["repo"], subfolder)))
    config, _ = (hub_download(settings["repo"], repo.commit, paths[name], key) for name in FILES[found])
    return SaeSource(config.parent, found, repo.commit)


def choose_format(names: Collection[str], chosen: str, where: str) -> str:
    """The format of a folder with these files: the one chosen, or, for `auto`, the only one whose files are there.

    Raises:
        InputError: if the files are not there, or, for `auto`, those of several formats are.
    """
    wanted = FILES if chosen == "auto" else {chosen: FILES[chosen]}
    found = [name for name, files in wanted.items() if set(files) <= set(names)]
    if len(found) == 1:
        return found[0]
    looked_for = "; ".join(f"{name}: {' and '.join(files)}" for name, files in wanted.items())
    if found:
        raise InputError(f"'{where}' holds SAEs of several formats ({', '.join(found)}); choose one with import.format")
    raise InputError(
        f"'{where}' must hold an SAE ({looked_for}), but holds {sorted(names)[:20]}; "
        "name the folder in which these files lie"
    )


def read_sae(source: SaeSource) -> ImportedSae:
    """Read an SAE of any format.

    Raises:
        InputError: if its files are not what the format says, or it computes what no SAE here can.
    """
    config, weights = (source.folder / name for name in FILES[source.format])
    sae, k = READERS[source.format](config, weights)
    require_finite(dict(sae.named_parameters()), weights)  # once more, for folding multiplies
    return ImportedSae(sae, source.format, k, [config, weights])


# SAELens.


def read_saelens(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """An SAE of SAELens, versions 3 to 6."""
    config = as_version_6(read_foreign_json(path_to_config, REMEDY), path_to_config)
    if config.get("normalize_activations", "none") != "none":
        raise InputError(
            f"'{path_to_config}': normalize_activations must be 'none', not {config['normalize_activations']!r}; "
            "where it is one factor for all tokens, fold it with SAELens (fold_activation_norm_scaling_factor, then "
            "save_model); a norm of each token's own cannot be folded"
        )
    if config.get("reshape_activations", "none") != "none":
        raise InputError(
            f"'{path_to_config}': reshape_activations must be 'none', not {config['reshape_activations']!r}; where "
            "heads lie side by side at the hookpoint (the input of o_proj), set it to 'none' in a copy of the file"
        )
    tensors = read_tensors(path_to_weights, REMEDY)
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        del tensors["scaling_factor"]  # older versions wrote it where there was none
    sae = sae_of_saelens(config, tensors, path_to_config.parent)
    if not config.get("apply_b_dec_to_input", True):
        fold_decoder_bias(sae)
    if sae.architecture == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        fold_decoder_norms(sae)
    return sae, sae.k


def as_version_6(config: dict, path: Path) -> dict:
    """A SAELens config in the keys of version 6; older ones are read as SAELens 6 reads them.

    Raises:
        InputError: if its activation function is one that SAELens 6 no longer has.
    """
    version = config.get("sae_lens_version") or _block(config, "metadata").get("sae_lens_version") or "0"
    if int(re.match(r"\d{0,9}", str(version)).group() or 0) >= 6:
        return config
    hook_name = str(config.get("hook_name") or config.get("hook_point") or "")
    config = {"architecture": "standard", "reshape_activations": "hook_z" if "hook_z" in hook_name else "none"} | config
    normalize = config.get("normalize_activations") or "none"
    config["normalize_activations"] = "expected_average_only_in" if normalize is True else normalize
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    k = _block(config, "activation_fn_kwargs").get("k")
    if activation not in ("relu", "topk"):
        raise InputError(f"'{path}': activation_fn must be 'relu' or 'topk', not {activation!r}, to be read here")
    return config | {"architecture": "topk", "k": k} if activation == "topk" and k is not None else config


def _block(config: dict, key: str) -> dict:
    """A mapping in a config; an empty one where there is none, or something else stands there."""
    return found if isinstance(found := config.get(key), dict) else {}


# dictionary-learning.


class DictionaryClass(NamedTuple):
    """How a class of dictionary-learning keeps its weights."""

    architecture: str
    names: dict[str, str]
    """Its name for each of our tensors; those ending in `.weight` are a Linear's, which lie transposed."""
    counters: tuple[str, ...] = ()
    """Tensors that may be there besides."""
    subtracts_b_dec: bool = True
    """Whether it encodes acts - b_dec, or acts."""


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
    """An SAE of dictionary-learning: a trainer's folder."""
    trainer = read_foreign_json(path_to_config, REMEDY).get("trainer")
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if name not in list(DICTIONARY_CLASSES):
        raise InputError(
            f"'{path_to_config}': trainer.dict_class must be one of {sorted(DICTIONARY_CLASSES)}, not {name!r}, "
            "to be read here"
        )
    found, counters = renamed(unpickled(path_to_weights), DICTIONARY_CLASSES[name], name, path_to_weights)
    d_in, d_sae = sizes_of(found["W_enc"], path_to_weights)
    for key, size in {"activation_dim": d_in, "dict_size": d_sae}.items():
        if trainer.get(key, size) != size:
            raise InputError(
                f"'{path_to_config}': trainer.{key} must be {size}, as '{path_to_weights.name}' has it, "
                f"not {trainer[key]!r}; {REMEDY}"
            )
    k = kept_latents(trainer, counters, path_to_config) if "k" in DICTIONARY_CLASSES[name].counters else None
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        found["threshold"] = one_threshold(found["threshold"], d_sae, path_to_weights)
    architecture, subtracts_b_dec = DICTIONARY_CLASSES[name].architecture, DICTIONARY_CLASSES[name].subtracts_b_dec
    sae = sae_of(architecture, d_in, d_sae, k, tensors=found, where=path_to_weights)
    if not subtracts_b_dec:
        fold_decoder_bias(sae)
    norms = sae.W_dec.norm(dim=1)
    if name == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        fold_decoder_norms(sae)  # as its `from_pretrained` does
    return sae, k


def unpickled(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pt file. Nothing but tensors is unpickled: a pickle can hold code, which would run.

    Raises:
        InputError: if the file holds anything else, or unpacks to more than its size.
    """
    require_memory(require_regular(path, remedy=REMEDY), path)
    require_unpacked(path)
    require_plain_pickle(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can make almost anything be raised
        # PyTorch's own words advise to run the code after all.
        other = isinstance(error, pickle.UnpicklingError)
        reason = "it holds what is no tensor, and could be code" if other else " ".join(str(error).split())[:200]
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
    """Refuse a .pt file that is no zip archive, or whose members are packed, as torch.save never packs them.

    A few MB could unpack to more than there is memory.

    Raises:
        InputError: naming the file.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":  # a pickle with a zip archive behind it would be read as a pickle
                raise ValueError("it is no zip archive, as torch.save writes them since PyTorch 1.6")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # the last: a newer zip than known
        raise InputError(
            f"'{path}' must be a state dict that torch.load(weights_only=True) reads, but: {error}; {REMEDY}"
        ) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise InputError(f"'{path}' must hold its tensors unpacked, as torch.save writes them; {REMEDY}")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise InputError(f"'{path}' claims to hold more than its {path.stat().st_size} bytes; {REMEDY}")


def require_plain_pickle(path: Path) -> None:
    """Refuse a .pt file whose pickle names anything but what a state dict is made of.

    Raises:
        InputError: naming the first.
    """
    try:
        content = torch._C.PyTorchFileReader(os.fspath(path)).get_record("data.pkl")  # as torch.load finds it
        if len(content) > MOST_PICKLE_BYTES:
            raise ValueError(f"its pickle has {len(content)} bytes, more than {MOST_PICKLE_BYTES}")
        named = [
            str(argument or opcode.name)
            for opcode, argument, _ in pickletools.genops(content)
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
        ]
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"'{path}' must be a state dict that torch.load(weights_only=True) reads, but: {reason}; {REMEDY}"
        ) from error
    other = next((name for name in named if not PICKLED.fullmatch(name)), None)
    if other is not None:
        raise InputError(
            f"'{path}' must be a state dict that torch.load(weights_only=True) reads, but: it names "
            f"{other.replace(' ', '.')!r:.80}, which is no tensor, and could be code; {REMEDY}"
        )


def is_stored(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor were in its file; a view of one number can have any shape."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def renamed(
    tensors: dict[str, Tensor], layout: DictionaryClass, name: str, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under our names, as our matrices lie, and the counters beside them.

    Raises:
        InputError: if the tensors are not those of the class.
    """
    needed = set(layout.names.values())
    if not needed <= set(tensors) <= needed | set(layout.counters):
        raise InputError(
            f"'{path}': an SAE of class {name} must hold {sorted(needed)}, but this holds "
            f"{[name[:40] for name in sorted(tensors)[:20]]}; correct trainer.dict_class in config.json"
        )
    found = {ours: tensors[theirs] for ours, theirs in layout.names.items()}
    return (
        {
            ours: tensor.mT if tensor.ndim == 2 and layout.names[ours].endswith(".weight") else tensor
            for ours, tensor in found.items()
        },
        {counter: tensors[counter] for counter in layout.counters if counter in tensors},
    )


def sizes_of(W_enc: Tensor, path: Path) -> tuple[int, int]:
    """d_in and d_sae.

    Raises:
        InputError: if the encoder is no matrix.
    """
    if W_enc.ndim != 2 or not W_enc.numel():
        raise InputError(f"'{path}': the encoder must be a matrix, not of shape {tuple(W_enc.shape)}; {REMEDY}")
    return W_enc.shape[0], W_enc.shape[1]


def kept_latents(trainer: dict, counters: dict[str, Tensor], path: Path) -> int:
    """k, which the config and the weights must agree on where both hold it.

    Raises:
        InputError: if they do not, or neither holds it.
    """
    held = set(counters["k"].flatten()[:MOST_KS].tolist()) if "k" in counters else set()
    said = {trainer["k"]} if is_size(trainer.get("k")) else set()
    if len(held | said) != 1 or not all(map(is_size, held | said)):
        raise InputError(
            f"'{path}': trainer.k must be a whole number above 0 and the k of the weights, but k is "
            f"{trainer.get('k')!r} there and {held or 'missing'} in the weights; {REMEDY}"
        )
    return (held | said).pop()


def one_threshold(threshold: Tensor, d_sae: int, path: Path) -> Tensor:
    """The threshold that all latents share, for each of them.

    Raises:
        InputError: if it was never set.
    """
    if threshold.numel() != 1 or not threshold.item() >= 0:
        shown = threshold.tolist() if threshold.numel() == 1 else f"of shape {tuple(threshold.shape)}"
        raise InputError(
            f"'{path}': threshold must be one number, 0 or more, but is {shown} (-1 means that it was never "
            "set, and the SAE would be read as a ReLU); train it past threshold_start_step"
        )
    return threshold.reshape(1).repeat(d_sae)


# sparsify.

SPARSIFY_SETTINGS = {"activation": "topk", "skip_connection": False, "transcode": False, "signed": False}
"""What a sparse coder of sparsify may do, and the SAEs here do not; `multi_topk` only changes how it is trained."""


def read_sparsify(path_to_config: Path, path_to_weights: Path) -> tuple[Sae, int | None]:
    """A sparse coder of sparsify: one hookpoint's folder."""
    config = read_foreign_json(path_to_config, REMEDY)
    require_settings(config, SPARSIFY_SETTINGS, path_to_config)
    tensors = read_tensors(path_to_weights, REMEDY)
    if "W_skip" in tensors:
        raise InputError(f"'{path_to_weights}': W_skip, a linear path around the latents, cannot be read here")
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    found, _ = renamed(tensors, DictionaryClass("topk", names), "SparseCoder", path_to_weights)
    d_in, k = config.get("d_in"), config.get("k")
    factor = config.get("expansion_factor")
    d_sae = config.get("num_latents") or (d_in * factor if is_size(d_in) and is_size(factor) else None)
    if not all(map(is_size, (d_in, d_sae, k))):
        raise InputError(
            f"'{path_to_config}': d_in, k and num_latents (or else expansion_factor) must be whole numbers above 0, "
            f"got {d_in!r:.40}, {k!r:.40} and {config.get('num_latents')!r:.40} ({factor!r:.40}); {REMEDY}"
        )
    return sae_of("topk", d_in, d_sae, k, tensors=found, where=path_to_weights), k


READERS: dict[str, Callable[[Path, Path], tuple[Sae, int | None]]] = {
    "saelens": read_saelens,
    "dictionary_learning": read_dictionary_learning,
    "sparsify": read_sparsify,
}


# Folding.


@torch.no_grad()
def fold_decoder_bias(sae: Sae) -> None:
    """Give an SAE whose weights encode acts the biases with which they encode acts - b_dec, for equal latents.

    acts W_enc + b = (acts - b_dec) W_enc + (b + b_dec W_enc).
    """
    shift = sae.b_dec.double() @ sae.W_enc.double()
    if sae.architecture == "gated":
        sae.b_gate.copy_(sae.b_gate + shift)
        sae.b_mag.copy_(sae.b_mag + shift * sae.r_mag.double().exp())
    else:
        sae.b_enc.copy_(sae.b_enc + shift)


@torch.no_grad()
def fold_decoder_norms(sae: Sae) -> None:
    """Scale latents by the norms of their decoder rows, and the rows to norm 1, for equal reconstructions (relu, topk).

    A latent whose row is zero becomes zero.
    """
    norms = sae.W_dec.double().norm(dim=1)
    sae.W_enc.copy_(sae.W_enc * norms)
    sae.b_enc.copy_(sae.b_enc * norms)
    sae.W_dec.copy_(sae.W_dec / torch.where(norms > 0, norms, 1.0)[:, None])
