"""Published SAEs in their own layouts: SAELens's latents, their places by name, and what is refused."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saelineage.errors import InputError
from saelineage.files.hub import HubRepo
from saelineage.foreign import hub
from saelineage.foreign.places import (
    HEADS,
    MLP_ACTS,
    MLP_OUT,
    NORMED_MLP_OUT,
    RESIDUAL,
    Place,
)
from saelineage.foreign.sae_formats.names import width_of
from saelineage.foreign.sae_formats.npz import npz_shapes
from saelineage.foreign.sae_formats.registry import check_source, describe_source, local_source
from saelineage.foreign.sae_formats.sources import SaeSource, choose_files
from saelineage.foreign.sae_inputs import RunInput, SaeInput
from saelineage.saes import imports
from saelineage.saes.imports import find_sae, read_sae
from tests.hub_server import running_hub

RECORDED = Path(__file__).resolve().parents[2] / "recorded_saes"
IMPORTS = json.loads((RECORDED / "imports.json").read_text())["imports"]
VECTORS = load_file(RECORDED / "vectors.safetensors")
KEY = "saes.import (for base.seed0)"
D_IN, D_SAE = 8, 32
SCOPE = "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
SCOPE_2 = "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium"
LLAMA = "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x"
R1 = "fnlp/Llama-Scope-R1-Distill/800M-Slimpajama-0-OpenR1-Math-220k/L15R"
QWEN = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4"
GOODFIRE = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"


def source_of(name: str, **settings: object) -> SaeSource:
    """The recorded SAE of a folder, with changed keys of its `import` block."""
    block = IMPORTS.get(name) or next(block for block in IMPORTS.values() if block["folder"] == name)
    return local_source(block | {"folder": str(RECORDED / block["folder"]), "format": "auto"} | settings)


def copied(name: str, folder: Path) -> Path:
    """A copy of a recorded folder under a name that tells nothing."""
    shutil.copytree(RECORDED / name, folder)
    return folder


def error_of(call: Callable, *args: object, **settings: object) -> str:
    with pytest.raises(InputError) as raised:
        call(*args, **settings)
    return str(raised.value)


def local(folder: Path, **settings: object) -> SaeSource:
    return local_source({"folder": str(folder), "format": "auto"} | settings)


def on_hub(names: list[str], place: str, **settings: object) -> SaeSource:
    """An SAE in a repository of which nothing was downloaded."""
    return choose_files(names, {"format": "auto"} | settings, place)._replace(commit="0" * 40)


# Latents.


@pytest.mark.parametrize("name", list(IMPORTS))
def test_latents_equal_those_of_saelens_s_own_loader(name):
    source = source_of(name)
    assert source.format == IMPORTS[name]["format"]
    sae = read_sae(source).sae
    difference = float((sae.encode(VECTORS["acts"]) - VECTORS[name]).abs().max().detach())
    print(f"{source.format:20} {name:80.80} {difference:.1e}")
    assert difference < 1e-5
    assert 0.05 < float((VECTORS[name] > 0).float().mean()) < 0.8


def test_reconstructions_of_embeddings_are_those_of_the_scaled_ones():
    name = "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    with np.load(RECORDED / name / "params.npz") as arrays:
        weights = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    acts, root = VECTORS["acts"], D_IN**0.5
    pre_acts = acts / root @ weights["W_enc"] + weights["b_enc"]
    latents = pre_acts.relu() * (pre_acts > weights["threshold"])
    recons = (latents @ weights["W_dec"] + weights["b_dec"]) * root
    assert torch.allclose(read_sae(source_of(name)).sae(acts), recons, atol=1e-4)


OPENAI = {
    "encoder.weight": VECTORS["acts"][:16],
    "decoder.weight": VECTORS["acts"][:16].T.contiguous(),
    "latent_bias": VECTORS["acts"][:16].sum(1),
    "pre_bias": VECTORS["acts"][17],
    "stats_last_nonzero": torch.zeros(16, dtype=torch.long),
}


def openai_folder(folder: Path, **entries: object) -> Path:
    folder.mkdir(parents=True)
    torch.save(OPENAI | entries, folder / "5.pt")
    return folder


def test_openai_s_relu_saes_have_their_latents(tmp_path):
    folder = openai_folder(tmp_path / "mlp_post_act_v4" / "autoencoders", activation="ReLU", activation_state_dict={})
    acts = VECTORS["acts"]
    latents = ((acts - OPENAI["pre_bias"]) @ OPENAI["encoder.weight"].T + OPENAI["latent_bias"]).relu()
    assert torch.allclose(read_sae(local(folder)).sae.encode(acts), latents, atol=1e-5)
    described = describe_source(local(folder))
    assert described.readings[0].of_model(False).places == (Place(MLP_ACTS, 5),)
    assert described.model_name == "gpt2-small"


def test_openai_s_normalised_saes_are_refused_with_a_way_round(tmp_path):
    reason = "weights cannot hold a division that differs between tokens; import one without (OpenAI's versions 1 and 4"
    named = on_hub(["5.pt"], "someone/copies/resid_post_mlp_v5_32k/autoencoders")
    assert reason in error_of(describe_source, named)  # before the download
    folder = openai_folder(tmp_path / "plain", activation="TopK", activation_state_dict={"k": 32, "postact_fn": "ReLU"})
    assert reason in error_of(read_sae, local(folder))
    other = openai_folder(tmp_path / "other", activation="Identity")
    assert "activation must be 'ReLU', not 'Identity'" in error_of(read_sae, local(other))


# Places, models and sizes.


@pytest.mark.parametrize(
    ("names", "place", "expected"),
    [
        (["params.npz"], SCOPE, (Place(RESIDUAL, 13), "google/gemma-2-2b", 2304, 16384)),
        (
            ["params.npz"],
            "google/gemma-scope-9b-it-res/layer_20/width_131k/average_l0_13",
            (Place(RESIDUAL, 21), "google/gemma-2-9b-it", 3584, 131072),
        ),
        (
            ["params.npz"],
            "google/gemma-scope-2b-pt-mlp/layer_5/width_65k/canonical",
            (Place(NORMED_MLP_OUT, 5), "google/gemma-2-2b", 2304, 65536),
        ),
        (
            ["params.npz"],
            "google/gemma-scope-9b-pt-att/layer_3/width_16k/average_l0_9",
            (Place(HEADS, 3), "google/gemma-2-9b", 4096, 16384),
        ),
        (
            ["params.npz"],
            "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
            (Place(RESIDUAL, 0), "google/gemma-2-2b", 2304, 4096),
        ),
        (
            ["params.safetensors"],
            "google/gemma-scope-2-270m-pt/attn_out_all/layer_7_width_262k_l0_big",
            (Place(HEADS, 7), "google/gemma-3-270m", 1024, 262144),
        ),
        (
            ["params.safetensors"],
            "google/gemma-scope-2-4b-it/mlp_out/layer_17_width_1m_l0_small",
            (Place(NORMED_MLP_OUT, 17), "google/gemma-3-4b-it", 2560, 1048576),
        ),
        (
            ["params.safetensors"],
            "google/gemma-scope-2-1b-pt/resid_post/layer_9_width_16k_l0_small_seed_1",
            (Place(RESIDUAL, 10), "google/gemma-3-1b-pt", 1152, 16384),
        ),
    ],
)
def test_names_on_the_hub_tell_place_model_and_sizes_before_a_download(names, place, expected):
    assert sizes_and_place(describe_source(on_hub(names, place))) == expected


def sizes_and_place(described: SaeInput) -> tuple:
    (reading,) = described.readings
    (found,) = reading.of_model(norms_outputs=True, parallel=False).places
    return found, described.model_name, described.d_in, described.d_sae


def test_names_of_files_tell_layer_model_and_k():
    described = describe_source(on_hub(["layer3.sae.pt"], "Qwen/SAE-Res-Qwen3.5-27B-W80K-L0_100"))
    assert sizes_and_place(described) == (Place(RESIDUAL, 4), "Qwen/Qwen3.5-27B", 5120, 81920)
    assert described.k == 100
    described = describe_source(on_hub(["Llama-3.1-8B-Instruct-SAE-l19.pth", "README.md"], GOODFIRE))
    assert sizes_and_place(described) == (Place(RESIDUAL, 20), "Llama-3.1-8B-Instruct", 4096, None)


def test_configs_tell_the_place():
    described = describe_source(source_of(SCOPE_2))
    assert sizes_and_place(described) == (Place(RESIDUAL, 14), "google/gemma-3-1b-pt", D_IN, D_SAE)
    assert sizes_and_place(describe_source(source_of(LLAMA)))[:2] == (Place(RESIDUAL, 16), "meta-llama/Llama-3.1-8B")
    r1 = describe_source(source_of(R1))
    assert sizes_and_place(r1) == (*(Place(RESIDUAL, 16), "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", D_IN, D_SAE),)
    heads = describe_source(source_of("ckkissane/attn-saes-gpt2-small-all-layers"))
    assert sizes_and_place(heads) == (Place(HEADS, 3), "gpt2-small", D_IN, D_SAE)


def test_a_published_sparsify_folder_reads_its_place_from_its_name(tmp_path):
    config = {"activation": "topk", "k": 2, "num_latents": 32, "d_in": 8, "normalize_decoder": True}
    for name, kind, layer in (("layers.10", RESIDUAL, 11), ("layers.10.mlp", MLP_OUT, 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cfg.json").write_text(json.dumps(config))
        (tmp_path / name / "sae.safetensors").touch()
        (reading,) = describe_source(local(tmp_path / name)).readings
        assert reading.of_model(False).places == (Place(kind, layer),)


def test_a_sparsify_transcoder_is_refused(tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 2, "num_latents": 32, "d_in": 8, "transcode": True}))
    (tmp_path / "sae.safetensors").touch()
    error = error_of(describe_source, local(tmp_path))
    assert "transcode must be False, not True, because this is a transcoder, which reconstructs another place" in error


def run_at(hookpoint: str, **settings: object) -> RunInput:
    return RunInput(hookpoint, 1024, "base", ("google/gemma-2-2b",), norms_outputs=True)._replace(**settings)


def test_an_sae_passes_at_its_place_and_is_refused_elsewhere():
    source = source_of(SCOPE)
    assert check_source(source, run_at("model.layers.12.output", d_in=D_IN), KEY) == []
    error = error_of(check_source, source, run_at("model.layers.11.output"), KEY)
    assert "says that the SAE was trained at 'blocks.12.hook_resid_post' (the residual stream before layer 13)" in error
    assert "set it to 'model.layers.12.output'" in error
    att = source_of("google/gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_93")
    assert check_source(att, run_at("model.layers.3.self_attn.o_proj.input"), KEY) == []
    too_wide = on_hub(["params.npz"], SCOPE.replace("2b", "9b"))
    error = error_of(check_source, too_wide, run_at("model.layers.12.output", d_in=2304), KEY)
    assert "must have d_in 2304, but" in error
    assert "says 3584" in error


def test_what_a_local_folder_s_name_does_not_tell_is_warned_of(tmp_path):
    source = local(copied(SCOPE, tmp_path / "mine"))
    (warning,) = check_source(source, run_at("model.layers.12.output"), KEY)
    assert "does not say at which hookpoint the SAE was trained" in warning
    source = local(copied(SCOPE, tmp_path / "layer_12" / "width_16k"))
    (warning,) = check_source(source, run_at("model.layers.12.output"), KEY)
    assert "trained at 'layer 12', and it is unclear whether that is 'model.layers.12.output'" in warning
    assert "trained at 'layer 12'" in error_of(check_source, source, run_at("model.layers.3.output"), KEY)


def test_widths_are_the_powers_of_two_that_names_round():
    widths = {"4k": 4096, "16k": 16384, "32k": 32768, "65k": 65536, "131k": 131072, "262k": 262144, "524k": 524288}
    for name, width in (widths | {"1m": 1048576}).items():
        assert width_of([f"layer_1_width_{name}_l0_big"]) == width
    assert width_of(["width_0k"]) is width_of(["width_16kb"]) is None


# Choosing the files.


def test_every_recorded_sae_is_recognised_by_its_files():
    for name, block in IMPORTS.items():
        assert source_of(name).format == block["format"]
        assert all(path.exists() for path in source_of(name).files)


def test_several_saes_in_a_folder_need_the_name_of_a_file():
    names = [f"layer{n}.sae.pt" for n in range(3)]
    error = error_of(on_hub, names, QWEN)
    assert f"'{QWEN}' holds 3 SAEs (layer0.sae.pt, layer1.sae.pt, layer2.sae.pt); name the file of one" in error
    assert "import.file" in error
    assert on_hub(names, QWEN, file="layer1.sae.pt").weights_name == "layer1.sae.pt"
    assert "must hold the file 'layer9.sae.pt' of an SAE" in error_of(on_hub, names, QWEN, file="layer9.sae.pt")


def test_a_repository_of_many_saes_names_some_of_its_folders():
    names = [f"layer_{n}/width_16k/average_l0_{l0}/params.npz" for n in range(3) for l0 in (10, 20)]
    error = error_of(on_hub, ["README.md", *names], "google/gemma-scope-2b-pt-res")
    assert "must hold an SAE (saelens: cfg.json and sae_weights.safetensors; " in error
    assert "name the folder with these files, such as 'layer_0/width_16k/average_l0_10', 'layer_0/" in error


def test_a_renamed_file_needs_its_format(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(RECORDED / GOODFIRE / "Llama-3.1-8B-Instruct-SAE-l19.pth", folder / "theirs.pth")
    error = error_of(local, folder)
    assert "for files under other names import.format and import.file" in error
    source = local(folder, format="goodfire", file="theirs.pth")
    assert read_sae(source).sae.d_sae == D_SAE
    assert describe_source(source).readings == ()


def test_a_folder_of_saelens_with_another_config_beside_is_saelens_s():
    assert on_hub(["cfg.json", "config.json", "sae_weights.safetensors"], "a/b").format == "saelens"
    assert on_hub(["config.json", "sae_weights.safetensors"], "a/b").format == "llama_scope"


def test_k_must_be_known_and_the_same(tmp_path):
    folder = copied(QWEN, tmp_path / "mine")
    assert "set import.k" in error_of(describe_source, local(folder))
    assert read_sae(local(folder, k=4)).k == 4
    assert "its name says that 4 latents are kept, but import.k is 5" in error_of(describe_source, source_of(QWEN, k=5))
    assert "its files say all that gemma_scope needs; leave import.k out" in error_of(
        describe_source, source_of(SCOPE, k=5)
    )


def test_the_factor_of_the_input_must_be_known():
    source = source_of(R1, norm_scaling_factor=None)
    assert "set import.norm_scaling_factor (SAELens's registry has one" in error_of(read_sae, source)
    twice = read_sae(source_of(LLAMA, norm_scaling_factor=1.2)).sae  # instead of 0.6
    assert torch.allclose(twice.threshold, 2 * read_sae(source_of(LLAMA)).sae.threshold)


# What is no SAE.


@pytest.mark.parametrize(
    ("names", "place", "reason"),
    [
        (["params.npz"], "google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76", "it is a transcoder"),
        (["params.safetensors"], "google/gemma-scope-2-4b-pt/transcoder_all/layer_0_width_16k_l0_big", "transcoder"),
        (["params.safetensors"], "google/gemma-scope-2-4b-pt/crosscoder/layer_0_width_16k", "it is a crosscoder"),
        (
            ["params_layer_0.safetensors"],
            "google/gemma-scope-2-1b-pt/clt/width_262k_l0_big",
            "a cross-layer transcoder",
        ),
        (["layer_0.safetensors", "wandb-config.yaml"], "mwhanna/qwen3-4b-transcoders", "it is a transcoder"),
        (["W_enc_0.safetensors", "W_dec_0.safetensors"], "mntss/clt-gemma-2-2b-2.5M", "a cross-layer transcoder"),
        (["conf.yaml", "latest_ckpt.safetensors"], "canrager/temporalSAEs/layer_12/temporal", "it is a temporal SAE"),
    ],
)
def test_what_is_no_sae_of_one_place_is_refused_by_name_before_a_download(names, place, reason):
    error = error_of(lambda: describe_source(on_hub(names, place)))
    assert place in error
    assert reason in error
    assert "import an SAE that reconstructs its own input" in error


def test_configs_and_weights_of_transcoders_are_refused(tmp_path):
    folder = copied(LLAMA, tmp_path / "llama")
    config = json.loads((folder / "hyperparams.json").read_text()) | {"hook_point_out": "blocks.15.hook_mlp_out"}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    assert "hook_point_out must be hook_point_in, 'blocks.15.hook_resid_post'" in error_of(
        describe_source, local(folder)
    )
    folder = copied(SCOPE_2, tmp_path / "gemma")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hf_hook_point_out": "model.layers.13.mlp.output"}))
    assert "because that is a transcoder" in error_of(describe_source, local(folder))
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "params.safetensors"
    save_file(load_file(path) | {"affine_skip_connection": torch.zeros(D_IN, D_IN)}, path)
    assert "it is a transcoder" in error_of(read_sae, local(folder))


# Damaged and hostile files.


def npy(text: str, content: bytes = b"", version: int = 1) -> bytes:
    """An array of numpy with this header."""
    header = text.encode("latin1")
    length = struct.pack("<H", len(header)) if version == 1 else struct.pack("<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def header_of(shape: tuple, descr: str = "<f4") -> str:
    return str({"descr": descr, "fortran_order": False, "shape": shape})


def archive(folder: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "params.npz", "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return folder / "params.npz"


class Malicious:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(header_of((10**6, 10**6))), "claims 40000000000"),
        (npy(header_of((10**13,)), version=2), "must be a vector or matrix, not of shape (10000000000000,)"),
        (npy(header_of((2, 2, 2)), bytes(32)), "must be a vector or matrix"),
        (npy(header_of((-1,))), "must be a vector or matrix"),
        (npy(header_of((2,), "|O"), bytes(16)), "must hold floats of 16, 32 or 64 bits, not '|O'"),
        (npy(header_of((2,), ">f4"), bytes(8)), "must hold floats"),
        (npy("{'descr': ['<f4'] * 2}"), "damaged header"),
        (npy("(" * 3000), "damaged header"),
        (npy(" " * 5000, version=2), "has a header of 5000 bytes"),
        (b"no array", "is no array of numpy"),
        (b"", "is no array of numpy"),
    ],
    ids=range(11),
)
def test_headers_that_claim_too_much_or_other_than_floats_are_refused(tmp_path, content, message):
    path = archive(tmp_path / "sae", {"W_enc.npy": content})
    for read in (npz_shapes, lambda path: read_sae(local(path.parent))):
        assert message in error_of(read, path)


def test_pickled_objects_in_an_archive_are_refused_and_do_not_run(tmp_path):
    buffer = BytesIO()
    np.save(buffer, np.array([Malicious(tmp_path / "made")], dtype=object), allow_pickle=True)
    path = archive(tmp_path / "sae", {"W_enc.npy": buffer.getvalue()})
    assert "must hold floats of 16, 32 or 64 bits, not '|O'" in error_of(read_sae, local(path.parent))
    assert not (tmp_path / "made").exists()


def test_compressed_bombs_are_refused_before_they_are_unpacked(tmp_path):
    bomb = npy(header_of((1 << 22,)), bytes(1 << 24))  # 16 MiB of zeros in 16 kB
    path = archive(tmp_path / "sae", {"W_enc.npy": bomb}, zipfile.ZIP_DEFLATED)
    assert "more than 20 times as many" in error_of(read_sae, local(path.parent))
    claim = bytearray(archive(tmp_path / "huge", {"W_enc.npy": npy(header_of((2,)), bytes(8))}).read_bytes())
    start = claim.rindex(b"PK\x01\x02")
    claim[start + 24 : start + 28] = struct.pack("<I", 0xFFFFFFF0)  # the size that the directory claims
    (tmp_path / "huge" / "params.npz").write_bytes(claim)
    assert "must be an .npz archive of floats, but its" in error_of(read_sae, local(tmp_path / "huge"))


def test_archives_with_odd_members_are_refused(tmp_path):
    good = npy(header_of((2,)), bytes(8))
    path = archive(tmp_path / "sae", {f"{n}.npy": good for n in range(101)})
    assert "it has 101 members" in error_of(npz_shapes, path)
    path = archive(tmp_path / "sae", {"W_enc.npy": good}, zipfile.ZIP_LZMA)
    assert "is compressed in an unusual way" in error_of(npz_shapes, path)
    path.write_bytes(b"PK\x03\x04 no archive")
    assert "must be an .npz archive of floats" in error_of(npz_shapes, path)
    path = archive(tmp_path / "sae", {"W_enc.npy": npy(header_of((10_000,)), bytes(40_000))})
    path.write_bytes(path.read_bytes().replace(bytes(40_000), bytes(39_999) + b"\x01"))  # the checksum no longer fits
    assert npz_shapes(path) == {"W_enc": (10_000,)}
    assert "must be a whole .npz archive" in error_of(read_sae, local(path.parent))


def gemma_arrays() -> dict[str, np.ndarray]:
    with np.load(RECORDED / SCOPE / "params.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_enc": np.full(D_SAE, np.nan, np.float32)}, "weights must be finite, but b_enc is not"),
        ({"threshold": np.zeros(3, np.float32)}, "the weights file holds"),
        ({"W_enc": np.zeros((D_SAE, D_IN), np.float32)}, "the weights file holds"),
        ({"W_enc": np.zeros(D_IN, np.float32)}, "the encoder must be a matrix, not of shape (8,)"),
        (
            {"more": np.zeros(3, np.float32)},
            "a JumpReLU SAE must hold ['W_dec', 'W_enc', 'b_dec', 'b_enc', 'threshold']",
        ),
    ],
    ids=range(5),
)
def test_archives_that_are_no_jumprelu_sae_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "params.npz", **(gemma_arrays() | changes))
    assert message in error_of(read_sae, local(tmp_path))


def test_weights_in_half_precision_are_read(tmp_path):
    np.savez_compressed(tmp_path / "params.npz", **{k: v.astype(np.float16) for k, v in gemma_arrays().items()})
    assert read_sae(local(tmp_path)).sae.W_enc.dtype == torch.float32


def test_a_pickle_with_code_in_it_does_not_run(tmp_path):
    for name, settings in (("layer1.sae.pt", {"k": 2}), ("Model-SAE-l3.pth", {}), ("3.pt", {})):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        torch.save({"W_enc": Malicious(tmp_path / "made")}, folder / name)
        error = error_of(read_sae, local(folder, **settings))
        assert "must be a state dict that torch.load(weights_only=True) reads" in error
    assert not (tmp_path / "made").exists()


def test_sizes_in_a_config_must_be_those_of_the_weights(tmp_path):
    folder = copied(LLAMA, tmp_path / "sae")
    config = json.loads((folder / "hyperparams.json").read_text()) | {"d_sae": 64}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    assert "says d_sae 64, but its weights have 32" in error_of(read_sae, local(folder))


# The hub.


@pytest.mark.parametrize("name", list(IMPORTS))
def test_from_the_hub_come_the_config_and_then_the_weights_of_one_sae(name, monkeypatch):
    block = IMPORTS[name]
    parts = Path(block["folder"]).parts
    repo = "/".join(parts[:2])
    files = sorted(
        path.relative_to(RECORDED / repo).as_posix() for path in (RECORDED / repo).rglob("*") if path.is_file()
    )
    downloads: list[str] = []

    def download(repo: str, commit: str, file: str, key: str) -> Path:
        downloads.append(file)
        return RECORDED / repo / file

    monkeypatch.setattr(hub, "hub_repo", lambda *_: HubRepo("1" * 40, files))
    for module in (hub, imports):
        monkeypatch.setattr(module, "hub_download", download)
    settings = {key: value for key, value in block.items() if key not in ("folder", "format")}
    settings |= {"repo": repo, "revision": "main", "format": "auto"}
    settings |= {"subfolder": "/".join(parts[2:])} if parts[2:] else {}
    seen: list[SaeInput] = []
    source = find_sae(settings, "saes.import", lambda source: seen.append(describe_source(source)))
    assert downloads == [path.relative_to(RECORDED / repo).as_posix() for path in source.files]
    assert source.folder == RECORDED / block["folder"]
    sae = read_sae(source).sae
    assert float((sae.encode(VECTORS["acts"]) - VECTORS[name]).abs().max().detach()) < 1e-5


def test_a_path_on_the_hub_may_be_that_of_the_file(monkeypatch):
    monkeypatch.setattr(hub, "hub_repo", lambda *_: HubRepo("1" * 40, ["layer3.sae.pt", "layer4.sae.pt"]))
    monkeypatch.setattr(imports, "hub_download", lambda repo, commit, file, key: RECORDED / repo / file)
    settings = {"repo": QWEN, "revision": "main", "format": "auto", "subfolder": "layer3.sae.pt"}
    source = find_sae(settings, "saes.import")
    assert (source.folder, source.weights_name) == (RECORDED / QWEN, "layer3.sae.pt")


def test_a_transcoder_on_the_hub_is_refused_before_its_weights_are_downloaded(monkeypatch):
    monkeypatch.setattr(hub, "hub_repo", lambda *_: HubRepo("1" * 40, ["layer_0/width_16k/average_l0_76/params.npz"]))
    for module in (hub, imports):
        monkeypatch.setattr(module, "hub_download", lambda *_: pytest.fail("downloaded"))
    settings = {"repo": "google/gemma-scope-2b-pt-transcoders", "revision": "main", "format": "auto"}
    settings |= {"subfolder": "layer_0/width_16k/average_l0_76"}
    error = error_of(find_sae, settings, "saes.import", describe_source)
    assert "because it is a transcoder" in error


IMPORT = """
import json, sys
from saelineage.foreign.sae_formats.registry import describe_source
from saelineage.saes.imports import find_sae, read_sae
for settings in json.loads(sys.argv[1]):
    source = find_sae(settings, "saes.import", describe_source)
    described = describe_source(source)
    print(json.dumps([source.format, read_sae(source).sae.d_sae, described.d_in, described.model_name]))
"""


def test_saes_without_a_config_and_in_folders_below_come_through_the_hub_s_cache(tmp_path):
    blocks = []
    with running_hub() as server:
        for name in (SCOPE, LLAMA, QWEN):
            repo = "/".join(name.split("/")[:2])
            paths = [path for path in (RECORDED / name).rglob("*") if path.is_file()]
            files = {path.relative_to(RECORDED / repo).as_posix(): path.read_bytes() for path in paths}
            server.push(repo, files, kind="models")
            subfolder = name.removeprefix(repo).lstrip("/")
            blocks.append(
                {"repo": repo, "revision": "main", "format": "auto"} | ({"subfolder": subfolder} if subfolder else {})
            )
        command = [sys.executable, "-c", IMPORT, json.dumps(blocks)]
        output = subprocess.check_output(command, env=server.environment(tmp_path), cwd=tmp_path, text=True)
    assert [json.loads(line) for line in output.splitlines()] == [
        ["gemma_scope", D_SAE, D_IN, "google/gemma-2-2b"],
        ["llama_scope", D_SAE, D_IN, "meta-llama/Llama-3.1-8B"],
        ["qwen_scope", D_SAE, None, "Qwen/Qwen3-1.7B-Base"],
    ]
