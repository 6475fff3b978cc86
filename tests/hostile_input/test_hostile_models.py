"""Third-party model folders."""

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
from saelineage.foreign.models import INDEX_FILE, weight_files
from saelineage.models.loading import MOST_REPEATED, REPEATED, _without_adapter, load_model
from tests.hostile_input.refusals import DEEP_JSON, PETABYTE, refusal


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
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_folder_of_pickles_is_refused_and_nothing_is_unpickled(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Pickled(tmp_path / "ran")}, folder / "pytorch_model.bin")
    message = refused(folder)
    assert "model.safetensors.index.json (pickles, as in .bin files" in message
    assert "convert it" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("known", [False, True], ids=["unknown architecture", "known architecture"])
def test_code_that_comes_with_a_model_does_not_run(folder: Path, tmp_path: Path, known: bool):
    (folder / "mine.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    set_config(folder, auto_map=classes, model_type="mistral" if known else "mine")
    if known:  # transformers has an architecture of this name and uses it
        assert type(load_model(folder)).__name__ == "MistralForCausalLM"
    else:
        assert "needs code of its own" in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_kernels_from_elsewhere_are_refused(folder: Path):
    named = {"attn_implementation": "stranger/kernel"}
    for changes in (named, {"attn_implementation": None, "text_config": named}):
        set_config(folder, **changes)
        assert "(attn_implementation: 'stranger/kernel')" in refused(folder)


def test_other_weights_that_a_config_names_are_refused_and_not_opened(folder: Path, tmp_path: Path):
    torch.save({"weight": Pickled(tmp_path / "ran")}, folder / "adapter_model.bin")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    outside = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "my.safetensors.index.json").write_text(json.dumps(outside))
    pickle, named = "adapter_model.bin", "transformers_weights"
    for name in (pickle, "other.safetensors", "sub/model.safetensors", "my.safetensors.index.json", 7):
        set_config(folder, transformers_weights=name)
        assert f"({named}: {name!r})" in refused(folder)
    set_config(folder, transformers_weights=None, text_config={named: pickle})
    assert f"({named}: {pickle!r})" in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_to_another_model_is_refused(folder: Path):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../elsewhere"}')
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "an adapter to another model (adapter_config.json)" in refused(folder)


def test_an_adapter_beside_full_weights_is_not_opened(folder: Path, tiny, caplog: pytest.LogCaptureFixture):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../elsewhere"}')
    with _without_adapter(folder) as seen:  # transformers would apply it where PEFT is installed
        assert {path.name for path in Path(seen).iterdir()} == {path.name for path in tiny.models["a"].iterdir()}
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_model(folder).state_dict().items())
    assert "holds adapter_config.json beside full weights" in caplog.text


def test_a_config_may_name_the_weights_that_are_read_anyway(folder: Path):
    for named in (None, "model.safetensors"):
        set_config(folder, transformers_weights=named)
        assert type(load_model(folder)).__name__ == "MistralForCausalLM"


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path):
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        shutil.move(folder / name, tmp_path / "outside")
        (folder / name).symlink_to("../outside")
        assert refused(folder).startswith(f"'{folder / name}' is a link")
        (folder / name).unlink()
        shutil.move(tmp_path / "outside", folder / name)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path):
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "a.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"lm_head.weight": "a.safetensors"}}))
    assert "a.safetensors' is a link" in refused(folder)


def cached(folder: Path, cache: Path) -> Path:
    """Copy a folder into the layout of the Hugging Face cache, and return its snapshot."""
    repo = cache / "models--owner--theirs"
    (snapshot := repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repo / "blobs").mkdir()
    for path in folder.iterdir():
        shutil.copy(path, repo / "blobs" / f"sha-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/sha-of-{path.name}")
    return snapshot


def test_a_snapshot_in_the_hugging_face_cache_can_be_read(folder: Path, tmp_path: Path):
    snapshot = cached(folder, tmp_path / "cache")
    assert type(load_model(snapshot)).__name__ == "MistralForCausalLM"
    (tmp_path / "short").symlink_to(snapshot)
    assert type(load_model(tmp_path / "short")).__name__ == "MistralForCausalLM"


def test_a_snapshot_whose_blobs_lie_elsewhere_is_refused(folder: Path, tmp_path: Path):
    snapshot = cached(folder, tmp_path / "cache")
    blobs = snapshot.parents[1] / "blobs"
    shutil.move(blobs, tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refused(snapshot)


def test_a_model_with_many_more_modules_than_its_weights_is_refused(folder: Path):
    set_config(folder, num_hidden_layers=MOST_REPEATED)  # each layer has 23 modules and parameters
    assert "more than 20000 modules" in refused(folder)


def test_the_default_configs_of_all_known_models_pass():
    n_read = 0
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]().to_dict()
        except StrictDataclassError:  # one has no valid defaults
            continue
        n_read += 1
        too_large = [(key, n) for key, n in named_numbers(config) if REPEATED.fullmatch(key) and n > MOST_REPEATED]
        assert (name, too_large) == (name, [])
    assert n_read > 150


def test_keys_that_count_modules_are_recognised_and_widths_are_not():
    counts = ("num_hidden_layers", "n_layer", "n_layers", "depth", "encoder_layers", "num_labels")
    assert [key for key in counts if not REPEATED.fullmatch(key)] == []
    widths = ("shared_expert_intermediate_size", "vocab_size_per_layer_input", "block_size", "block_ff_dim")
    assert [key for key in (*widths, "num_experts") if REPEATED.fullmatch(key)] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 10**12}, "config.json describes 64000000"),
        ({"hidden_size": 10**9}, "numbers, but the weights files hold "),
        ({"intermediate_size": 10**15}, ""),
        ({"vocab_size": 10**30}, ""),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: 1000000"),
        ({"num_hidden_layers": 3}, "lacks weights"),
        ({"num_labels": 10**7}, "num_labels: 10000000"),
        ({"num_attention_heads": 0}, ""),
        ({"head_dim": -4}, "negative dimension -16"),
        ({"hidden_size": float("nan")}, "'hidden_size' expected int, got float"),
        ({"vocab_size": [300]}, "'vocab_size' expected int, got list"),
        ({"model_type": {"a": 1}}, "unhashable type: 'dict'"),
        ({"hidden_act": "__import__('os')"}, "__import__('os')"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantised"),
        ({"architectures": [7], "rope_parameters": "x"}, "rope_paramet"),
    ],
    ids=[
        *("10^12 tokens", "10^9 wide", "10^15 wide", "10^30 tokens", "10^6 layers", "one layer too many"),
        *("10^7 labels", "no heads", "negative", "NaN", "list", "type", "code", "quantised", "text for a mapping"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_config_that_contradicts_the_weights_is_refused(folder: Path, changes: dict, said: str):
    set_config(folder, **changes)
    assert said in refused(folder)


def test_damaged_configs_and_weights_are_refused(folder: Path):
    (folder / "model.safetensors").write_bytes(PETABYTE)
    assert "model.safetensors' is not a whole safetensors file" in refused(folder)
    (folder / "config.json").write_bytes(DEEP_JSON)
    assert "config.json' must be JSON" in refused(folder)


def test_lists_as_deep_as_python_reads_them_are_refused_without_a_traceback(folder: Path):
    text = json.dumps(json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": "here"})
    for levels in range(100, 1000, 50):  # written by hand, because json.dumps has the same limit of depth
        (folder / "config.json").write_text(text.replace('"here"', "[" * levels + "]" * levels))
        refused(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path):
    name, weights = "model.layers.0.mlp.up_proj.weight", load_file(folder / "model.safetensors")
    for number in (float("nan"), float("inf")):
        weights[name][3, 4] = number
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert f"weights must be finite, but {name} is not" in refused(folder)


def test_an_index_that_names_other_files_or_none_is_refused(folder: Path, tmp_path: Path):
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    outside = ["../../elsewhere.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "a\0.safetensors"]
    for name in [*outside, "a.bin", "", None, 7]:
        (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
        assert f"must name safetensors files of this folder, not {name!r}" in refused(folder)
    for index in ({}, {"weight_map": []}, {"weight_map": {}}):
        (folder / INDEX_FILE).write_text(json.dumps(index))
        assert "must name safetensors files of this folder" in refused(folder)


def test_weights_in_several_files_are_read_as_the_index_says(folder: Path, tiny):
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


def test_a_missing_folder_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "'gpt2' must be the folder of a model, but is not a folder" in refusal(lambda: load_model("gpt2"))


def test_a_hostile_generation_config_does_not_prevent_saving(folder: Path, tiny, tmp_path: Path):
    from saelineage.models.training import save_model

    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.3, "max_length": 1e30}')
    save_model(load_model(folder), tiny.tokenizer, tmp_path / "saved")
    assert load_model(tmp_path / "saved").lm_head.weight.shape == (tiny.d_vocab, 32)
