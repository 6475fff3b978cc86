"""Model folders from strangers."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from saelineage.files.foreign import named_numbers
from saelineage.models.loading import INDEX_FILE, MOST_REPEATED, REPEATED, load_model, weight_files
from tests.hostile_input.refusals import claim, refusal

DEEP = b'{"model_type": "mistral", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny.models["a"], tmp_path / "theirs")


def refused(folder: Path) -> str:
    message = refusal(lambda: load_model(folder))
    assert message.startswith(f"'{folder}")
    return message


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class Pickled:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_folder_of_pickles_is_refused_and_nothing_is_unpickled(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Pickled(tmp_path / "ran")}, folder / "pytorch_model.bin")
    message = refused(folder)
    assert "it holds neither model.safetensors nor model.safetensors.index.json (pickles, as in .bin files" in message
    assert "convert it where you trust it" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("known", [False, True])
def test_code_that_comes_with_a_model_does_not_run(folder: Path, tmp_path: Path, known: bool):
    (folder / "mine.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    set_config(folder, auto_map=classes, model_type="mistral" if known else "mine")
    if known:  # transformers has an architecture of this name, and takes that
        assert type(load_model(folder)).__name__ == "MistralForCausalLM"
    else:
        assert refused(folder) == (
            f"'{folder}' needs code of its own to run, and code from elsewhere is never run here; take a model whose "
            "architecture transformers has"
        )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("nested", [False, True])
def test_kernels_from_elsewhere_are_refused(folder: Path, nested: bool):
    named = {"attn_implementation": "stranger/kernel"}
    set_config(folder, **({"text_config": named} if nested else named))
    assert "config.json names code from elsewhere (attn_implementation: 'stranger/kernel')" in refused(folder)


@pytest.mark.parametrize(
    "named", ["adapter_model.bin", "other.safetensors", "sub/model.safetensors", "my.safetensors.index.json", 7]
)
def test_other_weights_that_a_config_names_are_refused_and_not_opened(folder: Path, tmp_path: Path, named: object):
    torch.save({"weight": Pickled(tmp_path / "ran")}, folder / "adapter_model.bin")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    outside = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "my.safetensors.index.json").write_text(json.dumps(outside))
    set_config(folder, transformers_weights=named)
    assert f"config.json names other weights (transformers_weights: {named!r})" in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_other_weights_that_a_part_of_a_config_names_are_refused(folder: Path):
    set_config(folder, text_config={"transformers_weights": "adapter_model.bin"})
    assert "config.json names other weights (transformers_weights: 'adapter_model.bin')" in refused(folder)


def test_an_adapter_to_a_model_elsewhere_is_refused(folder: Path):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../elsewhere"}')
    assert "adapter_config.json says that it is an adapter to another model" in refused(folder)


@pytest.mark.parametrize("named", [None, "model.safetensors"])
def test_a_config_may_name_the_weights_that_are_read_anyway(folder: Path, named: str | None):
    set_config(folder, transformers_weights=named)
    assert type(load_model(folder)).__name__ == "MistralForCausalLM"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str):
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to("../outside")
    message = refused(folder)
    assert message.startswith(f"'{folder / name}' is a link that leads out of '{folder}', to '{tmp_path / 'outside'}'")


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path):
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "a.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"lm_head.weight": "a.safetensors"}}))
    assert "a.safetensors' is a link that leads out of" in refused(folder)


def cached(folder: Path, cache: Path) -> Path:
    """The files of a folder as they lie in the Hugging Face cache; returns the snapshot."""
    repo = cache / "models--owner--theirs"
    (snapshot := repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repo / "blobs").mkdir()
    for path in folder.iterdir():
        shutil.copy(path, repo / "blobs" / f"sha-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/sha-of-{path.name}")
    return snapshot


def test_a_snapshot_in_the_cache_of_the_hub_can_be_read(folder: Path, tmp_path: Path):
    snapshot = cached(folder, tmp_path / "cache")
    assert type(load_model(snapshot)).__name__ == "MistralForCausalLM"
    (tmp_path / "short").symlink_to(snapshot)
    assert type(load_model(tmp_path / "short")).__name__ == "MistralForCausalLM"


def test_a_snapshot_whose_blobs_lie_elsewhere_is_refused(folder: Path, tmp_path: Path):
    snapshot = cached(folder, tmp_path / "cache")
    blobs = snapshot.parents[1] / "blobs"
    shutil.move(blobs, tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "is a link that leads out of" in refused(snapshot)


def test_a_model_of_more_modules_than_its_weights_are_for_is_refused(folder: Path):
    set_config(folder, num_hidden_layers=MOST_REPEATED)  # 23 modules and parameters each
    assert "config.json describes more than 20000 modules, too many for its weights files" in refused(folder)


def test_the_configs_of_no_known_model_count_too_many_of_anything():
    read = 0
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]().to_dict()
        except StrictDataclassError:  # one cannot be made by its defaults
            continue
        read += 1
        found = [(key, n) for key, n in named_numbers(config) if REPEATED.fullmatch(key) and n > MOST_REPEATED]
        assert (name, found) == (name, [])
    assert read > 150


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "depth", "encoder_layers", "num_labels"])
def test_keys_that_count_what_is_made_one_by_one_are_known(key: str):
    assert REPEATED.fullmatch(key)


@pytest.mark.parametrize(
    "key",
    ["shared_expert_intermediate_size", "vocab_size_per_layer_input", "block_size", "block_ff_dim", "num_experts"],
)
def test_keys_that_are_widths_count_nothing(key: str):
    assert not REPEATED.fullmatch(key)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 10**12}, "config.json describes 64000000"),
        ({"hidden_size": 10**9}, "numbers, but the weights files hold "),
        ({"intermediate_size": 10**15}, "cannot be opened as a causal model"),
        ({"vocab_size": 10**30}, "cannot be opened as a causal model"),
        ({"num_hidden_layers": 10**6}, "config.json says num_hidden_layers: 1000000, but there are 21 tensors"),
        ({"num_hidden_layers": 300}, "lacks weights of its architecture"),
        ({"num_labels": 10**7}, "config.json says num_labels: 10000000, but there are 21 tensors"),
        ({"num_attention_heads": 0}, "For details look at the above report"),
        ({"num_attention_heads": 10**12}, "config.json describes 1024000000030632 numbers"),
        ({"head_dim": -4}, "negative dimension -16"),
        ({"hidden_size": float("nan")}, "'hidden_size' expected int, got float"),
        ({"vocab_size": "300"}, "'vocab_size' expected int, got str"),
        ({"vocab_size": [300]}, "'vocab_size' expected int, got list"),
        ({"model_type": ["mistral"]}, "unhashable type: 'list'"),
        ({"model_type": {"a": 1}}, "unhashable type: 'dict'"),
        ({"hidden_act": "__import__('os')"}, "KeyError: \"__import__('os')\""),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "its weights are quantised"),
        ({"architectures": [7], "rope_parameters": "x"}, "Field 'rope_paramet"),
    ],
)
def test_a_config_that_claims_what_the_weights_are_not_is_refused(folder: Path, changes: dict, said: str):
    set_config(folder, **changes)
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEEP, "is not nested so deeply"),
        (b'{"model_type": "mistral", "vocab_size": 300, "vocab_size": 301}', "key 'vocab_size' stands twice"),
        (b'{"model_type": "mistral", "vocab_size": ' + b"9" * 5000 + b"}", "must be JSON"),
        (b"\xff\xfe\x00", "must be JSON"),
        (b"[" * 50, "must be JSON"),
        (b'"mistral"', "must be a JSON mapping, not str"),
        (b"", "must be JSON"),
        (b'{"a": "' + b" " * (17 << 20) + b'"}', "must have at most 16777216 bytes"),
    ],
    ids=["deep", "twice", "long number", "no UTF-8", "cut off", "text", "empty", "large"],
)
def test_a_config_that_is_no_clean_json_is_refused(folder: Path, content: bytes, said: str):
    (folder / "config.json").write_bytes(content)
    assert said in refused(folder)


def test_lists_as_deep_as_python_reads_them_are_refused_without_a_traceback(folder: Path):
    text = json.dumps(json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": "here"})
    for levels in range(100, 1000, 50):  # written by hand, for Python writes lists no deeper than it reads them
        (folder / "config.json").write_text(text.replace('"here"', "[" * levels + "]" * levels))
        refused(folder)


PETABYTE = {"weight": {"dtype": "F32", "shape": [1 << 24, 1 << 24], "data_offsets": [0, 1 << 50]}}
BEYOND = {"weight": {"dtype": "F32", "shape": [4], "data_offsets": [1 << 40, (1 << 40) + 16]}}
NEGATIVE = {"weight": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}
OVERLAPPING = {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}


@pytest.mark.parametrize(
    "content",
    [
        claim(PETABYTE) + b"\0" * 16,
        claim(BEYOND) + b"\0" * 16,
        claim(NEGATIVE) + b"\0" * 16,
        claim(OVERLAPPING) + b"\0" * 16,
        claim(b"{}", 1 << 60),
        claim(b"{}", (1 << 64) - 1),
        claim(b"{" * 200_000),
        claim(b"\xff" * 100),
        claim(b'{"a": {"dtype": "F999", "shape": [1], "data_offsets": [0, 4]}}') + b"\0" * 4,
    ],
    ids=["1 PB", "beyond", "negative", "overlapping", "2^60", "2^64 - 1", "deep", "no UTF-8", "no dtype"],
)
def test_a_header_that_claims_what_is_not_there_is_refused(folder: Path, content: bytes):
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors' is not a whole safetensors file" in refused(folder)


def test_a_header_of_very_many_names_is_refused_before_it_is_read(folder: Path):
    (folder / "model.safetensors").write_bytes(claim(b" " * ((16 << 20) + 1)) + b"\0")
    assert "must have a header of at most 16777216 bytes, but it has 16777217" in refused(folder)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(folder: Path):
    n_bytes = 1 << 43  # 8 TiB, none of which are on the disk
    header = claim({"weight": {"dtype": "F32", "shape": [n_bytes // 4], "data_offsets": [0, n_bytes]}})
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + n_bytes)
    assert "needs 8192 GiB of memory, but this machine has" in refused(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, number: float):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = number
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "weights must be finite, but model.layers.0.mlp.up_proj.weight is not" in refused(folder)


@pytest.mark.parametrize(
    "name",
    ["../../elsewhere.safetensors", "/etc/passwd", "sub/a.safetensors", "a.bin", "..", "", None, 7, "a\0.safetensors"],
)
def test_an_index_that_names_other_files_is_refused(folder: Path, tmp_path: Path, name: object):
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert f"must name safetensors files of this folder, not {name!r}" in refused(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_of_nothing_is_refused(folder: Path, index: dict):
    (folder / "model.safetensors").unlink()
    (folder / INDEX_FILE).write_text(json.dumps(index))
    assert "must name safetensors files of this folder" in refused(folder)


def test_weights_in_several_files_are_those_that_the_index_names(folder: Path, tiny):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{place % 2 + 1}-of-00002.safetensors" for place, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, folder / file, {"format": "pt"})
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert weight_files(folder) == [folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_model(folder).state_dict().items())


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "must be a regular file" in refused(folder)


def test_a_model_without_its_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "'gpt2/config.json' cannot be opened" in refusal(lambda: load_model("gpt2"))


def test_a_hostile_generation_config_does_not_hinder_saving(folder: Path, tiny, tmp_path: Path):
    from saelineage.models.training import save_model

    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.3, "max_length": 1e30}')
    save_model(load_model(folder), tiny.tokenizer, tmp_path / "saved")
    assert load_model(tmp_path / "saved").lm_head.weight.shape == (tiny.d_vocab, 32)
