"""What jobs ask a cluster for."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.plan.sizes import (
    UNKNOWN_MODEL,
    DumpSize,
    ModelSize,
    SaeSize,
    all_bytes,
    correlation_bytes,
    dump_bytes,
    dump_size,
    encoding_bytes,
    feature_width,
    forward_bytes,
    memory_mb,
    model_size,
    most_bytes,
    pretrained_size,
    readout_bytes,
    runtime_minutes,
    sae_size,
    sae_training_bytes,
    sae_training_flop,
    training_bytes,
    training_flop,
)

GIB = 2**30


def test_memory_has_a_base_and_a_margin_and_doubles_at_each_attempt():
    # 1000 MB and 1.25 x 1024 MB are 2280 MB, in hundreds 2300; twice and four times 2280 are 4560 and 9120.
    assert [memory_mb(GIB, attempt) for attempt in (1, 2, 3)] == [2300, 4600, 9200]
    assert memory_mb(0) == 1000


def test_time_shrinks_with_threads_grows_with_attempts_and_ends_at_a_day():
    # 3e12 operations at 5e9 a second are 600 s: ten minutes, or five on two threads, beside a quarter of an hour.
    assert runtime_minutes(3e12) == 25
    assert runtime_minutes(3e12, threads=2) == 20
    assert runtime_minutes(3e12, attempt=2) == 50
    assert runtime_minutes(1e20) == runtime_minutes(1e20, attempt=3) == 1440
    assert runtime_minutes(0.0) == 15


def test_what_is_asked_for_is_whole_for_sbatch_takes_no_fractions():
    assert isinstance(memory_mb(1_234_567), int)
    assert isinstance(runtime_minutes(1.5e11), int)


def test_a_models_size_is_read_from_its_folder(tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.models["a"])
    found = model_size(tiny.models["a"])
    assert found == ModelSize(sum(weight.numel() for weight in model.parameters()), 2, 32, 48, tiny.d_vocab)


def test_the_size_of_a_model_yet_to_be_trained_is_that_of_the_trained_one_but_for_its_norms(tiny):
    found, trained = pretrained_size(tiny.settings, tiny.d_vocab), model_size(tiny.models["a"])
    assert trained.n_weights - found.n_weights == 5 * 32  # two norms in each of two layers, and the last
    assert found[1:] == trained[1:]
    tied = pretrained_size(tiny.settings | {"tie_embeddings": True}, tiny.d_vocab)
    assert found.n_weights - tied.n_weights == 32 * tiny.d_vocab


def test_sizes_of_saes_activations_and_features_are_read_from_headers(tmp_path, write_acts, write_features):
    import torch

    save_file({"W_enc": np.zeros((3, 12), np.float32), "b_enc": np.zeros(12)}, tmp_path / "sae_weights.safetensors")
    assert sae_size(tmp_path) == SaeSize(3, 12)
    assert SaeSize(3, 12).n_bytes == 2 * 3 * 12 * 4
    paths = [write_acts(torch.zeros(5, 3), "one"), write_acts(torch.zeros(7, 3), "two")]
    assert dump_size(paths) == DumpSize(12, 3)
    shards = [write_features(np.eye(n, dtype=np.float32), f"features{n}").path for n in (4, 6)]
    assert feature_width(shards) == 6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        (5).to_bytes(8, "little") + b"[1,2]",
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"\xff\xff",
        (40).to_bytes(8, "little") + b'{"acts":{"shape":[-1,4]},"W_enc":3}     ',
    ],
    ids=["empty", "cut", "no object", "a huge header", "no text", "no shapes"],
)
def test_a_damaged_file_has_no_size_and_the_job_itself_says_what_is_wrong(content, tmp_path):
    for name in ("sae_weights.safetensors", "model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(content)
    assert sae_size(tmp_path) == SaeSize(0, 0)
    assert model_size(tmp_path) == UNKNOWN_MODEL
    assert dump_size([tmp_path / "model.safetensors"]) == DumpSize(0, 0)
    assert feature_width([tmp_path / "model.safetensors"]) == 0


def test_a_size_that_is_no_count_is_left_out(tmp_path):
    save_file({"w": np.zeros(6)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": "wide", "num_hidden_layers": True, "n_embd": 5}))
    assert model_size(tmp_path) == ModelSize(6, 0, 5, 20, 0)


@pytest.mark.parametrize(
    "read", [model_size, sae_size, lambda path: dump_size([path / "x"]), lambda p: all_bytes([p / "x"])]
)
def test_of_a_file_that_is_not_there_yet_nothing_is_said(read, tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path)


def test_sizes_of_files(tmp_path: Path):
    for name, size in (("a", 3), ("b", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert all_bytes(sorted(tmp_path.iterdir())) == 8
    assert most_bytes(tmp_path.iterdir()) == 5
    assert most_bytes([]) == 0


def test_training_holds_weights_gradients_and_two_averages_of_each():
    # 1,000 weights of 4 bytes four times over; two tokens of 4 x 10 logits and 16 x 3 x 7 activations, 4 bytes each.
    assert training_bytes(ModelSize(1000, 3, 5, 7, 10), 2) == 16_000 + 2 * 4 * (40 + 336)
    assert training_flop(ModelSize(1000, 3, 5, 7, 10), 2) == 6 * 1000 * 2


def test_a_dump_holds_the_model_and_its_shard_twice():
    model = ModelSize(1000, 3, 5, 7, 10)
    assert forward_bytes(model, 2) == 4 * (1000 + 2 * (30 + 56))
    assert dump_bytes(model, 2, DumpSize(100, 7), "float16") - forward_bytes(model, 2) == 2 * 2 * 100 * 7
    assert dump_bytes(model, 2, DumpSize(100, 7), "float32") - forward_bytes(model, 2) == 2 * 4 * 100 * 7


@pytest.mark.parametrize(
    ("hookpoint", "width"),
    [
        ("model.layers.3.mlp.down_proj.input", 7),
        ("model.layers.3.mlp.down_proj.output", 5),
        ("gpt_neox.layers.11.mlp.output", 5),
        ("model.layers.3.output", 5),
        ("model.layers.3.mlp.act_fn.output", 7),
        ("model.layers.3.strange.output", 7),
    ],
)
def test_a_hookpoint_is_as_wide_as_its_name_tells_and_otherwise_as_wide_as_can_be(hookpoint, width):
    assert ModelSize(1000, 3, 5, 7, 10).d_in(hookpoint) == width


def test_what_was_measured_on_large_saes_is_asked_for_and_not_ten_times_as_much():
    # README: training TopK 1,024 -> 16,384 with 4,096 tokens a step took 1.3 GB, ReLU 2.5 GB; correlating 16,384 x
    # 16,384 features over 1,048,576 tokens, 32 active on each (8 bytes an entry and side), took 0.9 GiB.
    training = memory_mb(sae_training_bytes(SaeSize(1024, 16_384), 4096))
    assert 2500 < training < 5000
    shards = 2 * 1_048_576 * 32 * 8
    assert 922 < memory_mb(correlation_bytes(16_384, 1024, shards)) < 9220


def test_several_saes_in_one_job_hold_as_many_times_as_much():
    sae = SaeSize(64, 512)
    assert sae_training_bytes(sae, 256, 3) == 3 * sae_training_bytes(sae, 256)
    assert sae_training_flop(sae, 10) == 4 * 64 * 512 * 10


def test_encoding_and_readouts_grow_with_the_sae_and_the_shard():
    sae = SaeSize(64, 512)
    assert encoding_bytes(sae, 1000) - encoding_bytes(sae, 0) == 2000
    assert encoding_bytes(sae, 0) == 3 * sae.n_bytes + 2 * 4 * 2048 * 512
    assert readout_bytes(DumpSize(10, 4), 6, 100) == 8 * (4 * 16 + 4 * 24) + 400
