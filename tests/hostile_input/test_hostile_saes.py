"""SAEs from strangers."""

import json
import math
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from import_sae import import_sae
from saelineage.errors import InputError
from saelineage.saes.imports import find_sae, read_sae
from saelineage.saes.sae import load_sae
from tests.hostile_input.refusals import claim, refusal

SETTINGS = {"format": "auto"}
D_IN, D_SAE = 4, 8
SAELENS = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "metadata": {"sae_lens_version": "6.54.12"}}
WEIGHTS = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
AUTOENCODER = {
    "encoder.weight": (D_SAE, D_IN),
    "encoder.bias": (D_SAE,),
    "decoder.weight": (D_IN, D_SAE),
    "bias": (D_IN,),
}
TRAINER = {"trainer": {"dict_class": "AutoEncoder", "activation_dim": D_IN, "dict_size": D_SAE}}
SPARSIFY = {"activation": "topk", "d_in": D_IN, "num_latents": D_SAE, "k": 2}


def ones(shapes: dict) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def saelens(folder: Path, config: dict | bytes = b"", tensors: dict | bytes = b"") -> Path:
    text = config if isinstance(config, bytes) and config else json.dumps(SAELENS | (config or {})).encode()
    (folder / "cfg.json").write_bytes(text)
    if isinstance(tensors, bytes) and tensors:
        (folder / "sae_weights.safetensors").write_bytes(tensors)
    else:
        save_file(tensors or ones(WEIGHTS), folder / "sae_weights.safetensors")
    return folder


def pickled(folder: Path, tensors: object) -> Path:
    (folder / "config.json").write_text(json.dumps(TRAINER))
    torch.save(tensors, folder / "ae.pt")
    return folder


def read(folder: Path):
    return read_sae(find_sae(SETTINGS | {"folder": str(folder)}, "saes.import")).sae


def refused(folder: Path) -> str:
    message = refusal(lambda: read(folder))
    assert str(folder) in message
    return message


def test_the_sae_that_is_made_hostile_here_can_be_read(tmp_path: Path):
    for name in ("saelens", "pickled"):
        (tmp_path / name).mkdir()
    assert read(saelens(tmp_path / "saelens")).d_sae == D_SAE
    assert read(pickled(tmp_path / "pickled", ones(AUTOENCODER))).d_sae == D_SAE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_sae": 10**9}, "its config needs tensors {'W_enc': (4, 1000000000)"),
        ({"d_in": 10**9, "d_sae": 10**9}, "its config needs tensors {'W_enc': (1000000000, 1000000000)"),
        ({"d_sae": 10**30}, "d_in, d_sae and k must be whole numbers above 0"),
        ({"d_sae": -8}, "must be whole numbers above 0"),
        ({"d_sae": 8.0}, "must be whole numbers above 0"),
        ({"d_sae": True}, "must be whole numbers above 0"),
        ({"d_sae": "8"}, "must be whole numbers above 0"),
        ({"d_sae": [8]}, "must be whole numbers above 0"),
        ({"architecture": "topk", "k": 10**9}, "k must be between 1 and d_sae = 8"),
        ({"architecture": ["standard"]}, "architecture must be one of"),
        ({"architecture": {"a": 1}}, "architecture must be one of"),
        ({"metadata": {"sae_lens_version": "6", "max_norm": "long"}}, "metadata.max_norm must be a number above 0"),
        (
            {"metadata": {"sae_lens_version": "6", "max_norm": float("nan")}},
            "metadata.max_norm must be a number above 0",
        ),
        ({"metadata": {"sae_lens_version": "6", "max_norm": -1}}, "metadata.max_norm must be a number above 0"),
        ({"metadata": {"sae_lens_version": "6", "max_norm": 10**4000}}, "metadata.max_norm must be a number above 0"),
        ({"normalize_activations": [1]}, "normalize_activations must be 'none'"),
        ({"metadata": [], "activation_fn": {"relu": 1}}, "activation_fn must be 'relu' or 'topk'"),
    ],
)
def test_a_config_that_claims_what_the_weights_are_not_is_refused(tmp_path: Path, changes: dict, said: str):
    assert said in refused(saelens(tmp_path, changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"sae_lens_version": "9" * 5000}},
        {"metadata": [1], "hook_name": 7, "activation_fn_kwargs": [3]},
        {"sae_lens_version": {"a": 1}, "activation_fn_kwargs": {"k": [1]}},
    ],
)
def test_what_says_nothing_about_the_weights_is_passed_over(tmp_path: Path, changes: dict):
    assert read(saelens(tmp_path, changes)).d_sae == D_SAE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not nested so deeply"),
        (b'{"d_sae": 8, "d_sae": 9}', "key 'd_sae' stands twice"),
        (b'{"d_sae": ' + b"9" * 5000 + b"}", "must be JSON"),
        (b'{"a": "' + b" " * (17 << 20) + b'"}', "must have at most 16777216 bytes"),
        (b"\x80", "must be JSON"),
    ],
    ids=["deep", "twice", "long number", "large", "no UTF-8"],
)
def test_a_config_that_is_no_clean_json_is_refused(tmp_path: Path, content: bytes, said: str):
    assert said in refused(saelens(tmp_path, content))


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "BOOL", "F8_E4M3"])
def test_formats_of_numbers_that_cannot_be_computed_with_are_refused(tmp_path: Path, dtype: str):
    bits = {"F4": 4, "C64": 64}.get(dtype, 8)
    sizes = [(name, shape, math.prod(shape) * bits // 8) for name, shape in WEIGHTS.items()]
    ends = np.cumsum([size for *_, size in sizes])
    header = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [int(end) - size, int(end)]}
        for (name, shape, size), end in zip(sizes, ends, strict=True)
    }
    message = refused(saelens(tmp_path, tensors=claim(header) + b"\0" * int(ends[-1])))
    assert "weights must be floats of 16 bits or more" in message


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bits8, torch.float8_e5m2])
def test_a_k_of_odd_numbers_is_refused(tmp_path: Path, dtype: torch.dtype):
    tensors = {"encoder.weight": (8, 4), "encoder.bias": (8,), "decoder.weight": (4, 8), "b_dec": (4,)}
    k = torch.zeros((), dtype=torch.uint8).view(dtype) if dtype == torch.bits8 else torch.ones((), dtype=dtype)
    pickled(tmp_path, ones(tensors) | {"k": k})
    trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": D_IN, "dict_size": D_SAE, "k": 2}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    assert "ae.pt" in refused(tmp_path)


def test_a_list_as_a_factor_is_not_multiplied(tmp_path: Path):
    save_file(
        ones({"encoder.weight": (8, 4), "encoder.bias": (8,), "W_dec": (8, 4), "b_dec": (4,)}),
        tmp_path / "sae.safetensors",
    )
    config = SPARSIFY | {"d_in": 2**30, "num_latents": 0, "expansion_factor": [0]}  # 2^30 zeros would be 8 GB
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert "must be whole numbers above 0" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("W_enc", lambda w: w.double() * 1e300, "weights must be finite, but W_enc is not"),
        ("b_dec", lambda w: w * float("nan"), "weights must be finite, but b_dec is not"),
        ("W_dec", lambda w: w.to(torch.int8), "weights must be floats of 16 bits or more, but W_dec is torch.int8"),
        ("W_dec", lambda w: w.to(torch.float8_e4m3fn), "weights must be floats of 16 bits or more"),
        ("W_dec", lambda w: w.to(torch.complex64), "weights must be floats of 16 bits or more, but W_dec is torch.com"),
        ("W_dec", lambda w: w.to(torch.float8_e8m0fnu), "weights must be floats of 16 bits or more"),
        ("W_enc", lambda w: w[:, :0], "the weights file holds"),
        ("W_enc", lambda w: w.reshape(2, 2, 8), "the weights file holds"),
    ],
    ids=["too large for float32", "NaN", "int8", "float8", "complex", "e8m0", "empty", "three axes"],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, name: str, change, said: str):
    weights = ones(WEIGHTS)
    weights[name] = change(weights[name]).contiguous()
    assert said in refused(saelens(tmp_path, tensors=weights))


@pytest.mark.parametrize(
    "content",
    [
        claim({"W_enc": {"dtype": "F32", "shape": [1 << 24, 1 << 24], "data_offsets": [0, 1 << 50]}}) + b"\0" * 16,
        claim(b"{}", 1 << 60),
        claim(b"not JSON"),
        b"short",
    ],
    ids=["1 PB", "2^60", "no JSON", "short"],
)
def test_a_header_that_claims_what_is_not_there_is_refused(tmp_path: Path, content: bytes):
    folder = saelens(tmp_path, tensors=content)
    assert "is not a whole safetensors file" in refused(folder)
    assert "is not a whole safetensors file" in refusal(lambda: load_sae(folder))


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path):
    n_bytes = 1 << 43
    header = claim({"W_enc": {"dtype": "F32", "shape": [4, n_bytes // 16], "data_offsets": [0, n_bytes]}})
    with open(saelens(tmp_path) / "sae_weights.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + n_bytes)
    assert "needs 8192 GiB of memory" in refused(tmp_path)


class Pickled:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: {"bias": Pickled(path)}, "which is no tensor, and could be code"),
        (lambda path: [torch.ones(3)], "must be a state dict, tensors by name"),
        (lambda path: torch.ones(3), "must be a state dict, tensors by name"),
        (lambda path: {7: torch.ones(3)}, "must be a state dict, tensors by name"),
        (
            lambda path: ones(AUTOENCODER) | {"bias": torch.ones(1).expand(10**15)},
            "must be a dense tensor whose numbers are in the file",
        ),
        (
            lambda path: ones(AUTOENCODER) | {"bias": torch.eye(4).to_sparse()},
            "it names 'torch._utils._rebuild_sparse_tensor'",
        ),
        (
            lambda path: ones(AUTOENCODER) | {"bias": torch.ones(4, device="meta")},
            "it names 'torch._utils._rebuild_meta_tensor_no_storage'",
        ),
        (
            lambda path: ones(AUTOENCODER) | {"bias": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)},
            "it names 'torch._utils._rebuild_qtensor'",
        ),
        (
            lambda path: ones(AUTOENCODER) | {"bias": torch.ones(4, dtype=torch.complex64)},
            "weights must be floats of 16 bits or more, but bias is torch.complex64",
        ),
        (
            lambda path: ones(AUTOENCODER) | {"bias": torch.ones(4).int()},
            "weights must be floats of 16 bits or more, but b_dec is torch.int32",
        ),
        (
            lambda path: ones(AUTOENCODER) | {"bias": torch.full((4,), torch.inf)},
            "weights must be finite, but b_dec is not",
        ),
        (lambda path: ones(AUTOENCODER) | {"encoder.weight": torch.ones(())}, "the encoder must be a matrix"),
        (lambda path: ones(AUTOENCODER) | {"x" * 10_000: torch.ones(1)}, "an SAE of class AutoEncoder must hold"),
    ],
    ids=[
        *("code", "list", "tensor", "number as name", "view of one number", "sparse", "no storage", "quantised"),
        *("complex", "whole numbers", "infinite", "no axes", "long name"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_pickles_of_anything_but_dense_tensors_are_refused(tmp_path: Path, made, said: str):
    assert said in refused(pickled(tmp_path, made(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()


class Named:
    """A pickle that calls a function by name, with these arguments, when it is read."""

    def __init__(self, function: object, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Named(bytearray, 2_000_000_000), "it names '__builtin__.bytearray', which is no tensor"),
        (Named(Counter, "abc"), "it names 'collections.Counter'"),
        (Named(torch.randn, 2**40), "which is no tensor, and could be code"),
        (torch.float32, "it names 'torch.float32'"),
        (torch.UntypedStorage, "it names 'torch.storage.UntypedStorage'"),
        ("x" * (2 << 20), "bytes, more than 1048576"),
    ],
    ids=["2 GB", "counter", "function", "dtype", "storage", "long"],
)
def test_a_pickle_that_names_more_than_a_state_dict_does_is_refused(tmp_path: Path, value: object, said: str):
    assert said in refused(pickled(tmp_path, ones(AUTOENCODER) | {"bias": value}))


def test_a_state_dict_as_a_module_gives_it_can_be_read(tmp_path: Path):
    module = torch.nn.ParameterDict({name: torch.ones(shape) for name, shape in [("bias", (D_IN,))]})
    module.encoder, module.decoder = torch.nn.Linear(D_IN, D_SAE), torch.nn.Linear(D_SAE, D_IN, bias=False)
    assert hasattr(module.state_dict(), "_metadata")
    assert read(pickled(tmp_path, module.state_dict())).d_sae == D_SAE
    assert read(pickled(tmp_path, dict(module.named_parameters()))).d_sae == D_SAE
    halves = {name: tensor.half() for name, tensor in module.state_dict().items()}
    assert read(pickled(tmp_path, halves)).d_sae == D_SAE


def test_a_plain_pickle_with_a_zip_archive_behind_it_is_refused(tmp_path: Path):
    path = pickled(tmp_path, {}) / "ae.pt"
    torch.save(ones(AUTOENCODER), path, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "a"):
        pass
    assert zipfile.is_zipfile(path)
    assert "it is no zip archive, as torch.save writes them since PyTorch 1.6" in refused(tmp_path)


def test_a_tensor_that_claims_more_than_its_record_holds_is_refused(tmp_path: Path):
    path = pickled(tmp_path, {"bias": torch.ones(8)}) / "ae.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["ae/data.pkl"] = members["ae/data.pkl"].replace(b"K\x08", b"J" + (1 << 30).to_bytes(4, "little"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "does not match expected size" in refused(tmp_path)


def test_weights_that_become_infinite_when_they_are_folded_are_refused(tmp_path: Path):
    trainer = {"dict_class": "AutoEncoderNew", "activation_dim": D_IN, "dict_size": D_SAE}
    tensors = ones(AUTOENCODER) | {"decoder.bias": torch.full((D_IN,), 3e38)}
    del tensors["bias"]
    pickled(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    assert "weights must be finite, but b_enc is not" in refused(tmp_path)


def test_an_sae_whose_longest_activations_are_shorter_than_any_is_refused(tmp_path: Path, write_acts):
    folder = saelens(tmp_path, {"metadata": {"sae_lens_version": "6.54.12", "max_norm": 1e-30}})
    settings = {"folder": str(folder), "format": "auto", "max_fvu": 0.9, "max_l0_fraction": 0.5}
    shards = [str(write_acts(torch.ones(20, D_IN), "words"))]
    message = refusal(lambda: import_sae("lua", "seed0", settings, None, shards, tmp_path / "taken"))
    assert "all 20 that were tried are longer than its max_norm, 1e-30; correct metadata.max_norm" in message


def test_a_view_that_claims_more_than_the_file_holds_is_named(tmp_path: Path):
    folder = pickled(tmp_path, ones(AUTOENCODER) | {"encoder.weight": torch.ones(1).expand(10**8, 10**7)})
    assert "'encoder.weight' must be a dense tensor whose numbers are in the file" in refused(folder)


def repacked(path: Path, **changes: bytes) -> None:
    """Write a .pt file anew with its members packed, and some of them changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2], content))


def test_a_packed_bomb_is_refused_before_it_is_unpacked(tmp_path: Path):
    repacked(pickled(tmp_path, ones(AUTOENCODER)) / "ae.pt", version=b"\0" * (200 << 20))
    assert (tmp_path / "ae.pt").stat().st_size < 1 << 20
    assert "must hold its tensors unpacked" in refused(tmp_path)


def test_every_cut_of_a_pickle_is_refused(tmp_path: Path):
    path = pickled(tmp_path, ones(AUTOENCODER)) / "ae.pt"
    whole = path.read_bytes()
    for n_bytes in range(0, len(whole), 97):
        path.write_bytes(whole[:n_bytes])
        refused(tmp_path)
    for place in range(0, len(whole), 61):  # a flipped byte may do no harm
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(InputError):
            read(tmp_path)
