"""Third-party SAEs."""

import json
import math
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from import_sae import import_sae
from saelineage.errors import InputError
from saelineage.saes.imports import find_sae, read_sae
from saelineage.saes.sae import load_sae
from tests.hostile_input.refusals import DEEP_JSON, PETABYTE, claim, refusal

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


def test_the_saes_that_are_made_hostile_below_can_be_read(tmp_path: Path):
    for name in ("saelens", "pickled"):
        (tmp_path / name).mkdir()
    assert read(saelens(tmp_path / "saelens")).d_sae == D_SAE
    assert read(pickled(tmp_path / "pickled", ones(AUTOENCODER))).d_sae == D_SAE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_sae": 10**9}, "(4, 1000000000)"),
        ({"d_in": 10**9, "d_sae": 10**9}, "(1000000000, 1000000000)"),
        ({"architecture": "topk", "k": 10**9}, "k must be between 1 and d_sae = 8"),
        ({"architecture": ["standard"]}, "architecture must be one of"),
        ({"architecture": {"a": 1}}, "architecture must be one of"),
        ({"normalize_activations": [1]}, "normalize_activations must be 'none'"),
        ({"metadata": [], "activation_fn": {"relu": 1}}, "activation_fn must be 'relu' or 'topk'"),
    ],
    ids=["d_sae", "d_in", "k", "list", "mapping", "normalisation", "activation function"],
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path: Path, changes: dict, said: str):
    assert said in refused(saelens(tmp_path, changes))


def test_sizes_must_be_whole_numbers_above_0(tmp_path: Path):
    for size in (10**30, -8, 8.0, True, "8", [8]):
        assert "must be whole numbers above 0" in refused(saelens(tmp_path, {"d_sae": size})), size


def test_a_longest_norm_must_be_a_number_above_0(tmp_path: Path):
    for norm in ("long", float("nan"), -1, 10**4000):
        metadata = {"sae_lens_version": "6", "max_norm": norm}
        assert "metadata.max_norm must be a number above 0" in refused(saelens(tmp_path, {"metadata": metadata}))


def test_odd_values_that_say_nothing_about_the_weights_are_ignored(tmp_path: Path):
    odd = [
        {"metadata": {"sae_lens_version": "9" * 5000}},
        {"metadata": [1], "hook_name": 7, "activation_fn_kwargs": [3]},
        {"sae_lens_version": {"a": 1}, "activation_fn_kwargs": {"k": [1]}},
    ]
    for changes in odd:
        assert read(saelens(tmp_path, changes)).d_sae == D_SAE


def test_damaged_configs_and_weights_are_refused(tmp_path: Path):
    assert "must be JSON" in refused(saelens(tmp_path, DEEP_JSON))
    folder = saelens(tmp_path, tensors=PETABYTE)
    assert "is not a whole safetensors file" in refused(folder)
    assert "is not a whole safetensors file" in refusal(lambda: load_sae(folder))


def with_dtype(dtype: str, bits: int) -> bytes:
    """Return a safetensors file of zero bytes whose weights claim a number format."""
    header, end = {}, 0
    for name, shape in WEIGHTS.items():
        start, end = end, end + math.prod(shape) * bits // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return claim(header) + b"\0" * end


def test_number_formats_that_cannot_be_computed_with_are_refused(tmp_path: Path):
    for dtype, bits in {"F4": 4, "F8_E8M0": 8, "F8_E4M3": 8, "BOOL": 8, "I8": 8, "C64": 64}.items():
        message = refused(saelens(tmp_path, tensors=with_dtype(dtype, bits)))
        assert "weights must be floats of 16 bits or more" in message, dtype


def test_a_k_in_an_odd_number_format_is_refused(tmp_path: Path):
    tensors = ones({"encoder.weight": (8, 4), "encoder.bias": (8,), "decoder.weight": (4, 8), "b_dec": (4,)})
    trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": D_IN, "dict_size": D_SAE, "k": 2}
    bits8 = torch.zeros((), dtype=torch.uint8).view(torch.bits8)
    for k in (torch.ones((), dtype=torch.complex64), torch.ones((), dtype=torch.float8_e5m2), bits8):
        pickled(tmp_path, tensors | {"k": k})
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
        ("W_enc", lambda weight: weight.double() * 1e300, "weights must be finite, but W_enc is not"),
        ("b_dec", lambda weight: weight * float("nan"), "weights must be finite, but b_dec is not"),
        ("W_enc", lambda weight: weight[:, :0], "the weights file holds"),
        ("W_enc", lambda weight: weight.reshape(2, 2, 8), "the weights file holds"),
    ],
    ids=["too large for float32", "NaN", "empty", "three axes"],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, name: str, change, said: str):
    weights = ones(WEIGHTS)
    weights[name] = change(weights[name]).contiguous()
    assert said in refused(saelens(tmp_path, tensors=weights))


class Pickled:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: {"bias": Pickled(path)}, "which is no tensor, and could be code"),
        (lambda path: [torch.ones(3)], "must be a state dict, tensors by name"),
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
        *("code", "list", "number as name", "view of one number", "sparse", "no storage", "quantised"),
        *("complex", "whole numbers", "infinite", "no axes", "long name"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_pickles_of_anything_but_dense_tensors_are_refused(tmp_path: Path, made, said: str):
    assert said in refused(pickled(tmp_path, made(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()


class Named:
    """Calls a function with these arguments when it is unpickled."""

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
def test_a_pickle_that_names_more_than_a_state_dict_needs_is_refused(tmp_path: Path, value: object, said: str):
    assert said in refused(pickled(tmp_path, ones(AUTOENCODER) | {"bias": value}))


def test_a_state_dict_as_modules_return_it_can_be_read(tmp_path: Path):
    module = torch.nn.ParameterDict({name: torch.ones(shape) for name, shape in [("bias", (D_IN,))]})
    module.encoder, module.decoder = torch.nn.Linear(D_IN, D_SAE), torch.nn.Linear(D_SAE, D_IN, bias=False)
    assert hasattr(module.state_dict(), "_metadata")
    assert read(pickled(tmp_path, module.state_dict())).d_sae == D_SAE
    assert read(pickled(tmp_path, dict(module.named_parameters()))).d_sae == D_SAE
    halves = {name: tensor.half() for name, tensor in module.state_dict().items()}
    assert read(pickled(tmp_path, halves)).d_sae == D_SAE


def test_a_plain_pickle_followed_by_a_zip_archive_is_refused(tmp_path: Path):
    path = pickled(tmp_path, {}) / "ae.pt"
    torch.save(ones(AUTOENCODER), path, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "a"):
        pass
    assert zipfile.is_zipfile(path)
    assert "PyTorch 1.6" in refused(tmp_path)


def test_a_tensor_that_claims_more_than_its_record_holds_is_refused(tmp_path: Path):
    path = pickled(tmp_path, {"bias": torch.ones(8)}) / "ae.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["ae/data.pkl"] = members["ae/data.pkl"].replace(b"K\x08", b"J" + (1 << 30).to_bytes(4, "little"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "does not match expected size" in refused(tmp_path)


def test_weights_that_become_infinite_when_biases_are_folded_are_refused(tmp_path: Path):
    trainer = {"dict_class": "AutoEncoderNew", "activation_dim": D_IN, "dict_size": D_SAE}
    tensors = ones(AUTOENCODER) | {"decoder.bias": torch.full((D_IN,), 3e38)}
    del tensors["bias"]
    pickled(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    assert "weights must be finite, but b_enc is not" in refused(tmp_path)


def test_an_sae_whose_max_norm_excludes_every_activation_is_refused(tmp_path: Path, write_acts):
    folder = saelens(tmp_path, {"metadata": {"sae_lens_version": "6.54.12", "max_norm": 1e-30}})
    settings = {"folder": str(folder), "format": "auto", "max_fvu": 0.9, "max_l0_fraction": 0.5}
    shards = [str(write_acts(torch.ones(20, D_IN), "words"))]
    message = refusal(lambda: import_sae("lua", "seed0", settings, None, shards, tmp_path / "taken"))
    assert "1e-30; correct metadata.max_norm" in message


def repacked(path: Path, **changes: bytes) -> None:
    """Rewrite a .pt file with compressed members, some of them changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2], content))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path):
    repacked(pickled(tmp_path, ones(AUTOENCODER)) / "ae.pt", version=b"\0" * (200 << 20))
    assert (tmp_path / "ae.pt").stat().st_size < 1 << 20
    assert "must hold its tensors unpacked" in refused(tmp_path)


def test_every_truncated_pickle_is_refused_and_altered_bytes_do_no_harm(tmp_path: Path):
    path = pickled(tmp_path, ones(AUTOENCODER)) / "ae.pt"
    whole = path.read_bytes()
    for n_bytes in range(0, len(whole), 97):
        path.write_bytes(whole[:n_bytes])
        refused(tmp_path)
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(InputError):
            read(tmp_path)
