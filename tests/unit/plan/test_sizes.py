"""Estimates of memory and time, and the sizes that they follow from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import saelineage.correlations.decoders
import saelineage.models.change_sums
import saelineage.models.optimizers
import saelineage.models.predictions
import saelineage.saes.sae
from saelineage.files.atomic import encode_header
from saelineage.plan import sizes
from saelineage.plan.sizes import (
    UNKNOWN_MODEL,
    UNKNOWN_SAE,
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
    importing_bytes,
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
SMALL = ModelSize(n_weights=1000, n_layers=3, d_model=5, d_mlp=7, d_vocab=10)


def test_memory_has_a_base_and_a_margin_doubles_at_each_attempt_and_is_rounded_up():
    # 1000 MB and 1.25 x 1024 MB are 2280 MB, in hundreds 2300; twice and four times 2280 are 4560 and 9120.
    assert [memory_mb(GIB, attempt) for attempt in (1, 2, 3)] == [2300, 4600, 9200]
    assert memory_mb(0) == 1000
    assert isinstance(memory_mb(1_234_567), int)  # sbatch takes no fractions


def test_time_shrinks_with_threads_doubles_at_each_attempt_and_ends_at_a_day():
    # 3e12 operations at 5e9 a second are 600 s: ten minutes, or five on two threads, after a quarter of an hour.
    assert runtime_minutes(3e12) == 25
    assert runtime_minutes(3e12, threads=2) == 20
    assert runtime_minutes(3e12, attempt=2) == 50
    assert runtime_minutes(1e20) == runtime_minutes(1e20, attempt=3) == 1440
    assert runtime_minutes(0.0) == 15
    assert isinstance(runtime_minutes(1.5e11), int)


def write_mistral(folder: Path) -> None:
    """A Mistral folder with zeros for weights: 2 layers, width 32, MLP 48, 4 heads, 2 of them key-value, 300 ids."""
    of_layer = {
        "self_attn.q_proj.weight": (32, 32),
        "self_attn.k_proj.weight": (16, 32),
        "self_attn.v_proj.weight": (16, 32),
        "self_attn.o_proj.weight": (32, 32),
        "mlp.gate_proj.weight": (48, 32),
        "mlp.up_proj.weight": (48, 32),
        "mlp.down_proj.weight": (32, 48),
        "input_layernorm.weight": (32,),
        "post_attention_layernorm.weight": (32,),
    }
    shapes = {f"model.layers.{layer}.{name}": shape for layer in (0, 1) for name, shape in of_layer.items()}
    shapes |= {"model.embed_tokens.weight": (300, 32), "model.norm.weight": (32,), "lm_head.weight": (300, 32)}
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, folder / "model.safetensors")
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_size_of_a_model_is_read_from_its_folder_and_known_before_training_but_for_the_norms(tmp_path: Path):
    write_mistral(tmp_path)
    trained = model_size(tmp_path)
    # A layer has 3 x 32 x 32 + 3 x 48 x 32 weights and 64 in norms; embeddings 2 x 300 x 32; the last norm 32.
    assert trained == ModelSize(2 * (3072 + 4608 + 64) + 19_200 + 32, 2, 32, 48, 300, stored_bytes=2)
    settings = {"n_layers": 2, "d_model": 32, "d_mlp": 48, "n_heads": 4, "n_kv_heads": 2, "tie_embeddings": False}
    planned = pretrained_size(settings, 300)
    # Without two norms in each layer and the last.
    assert planned == trained._replace(n_weights=trained.n_weights - 5 * 32, stored_bytes=4)
    tied = pretrained_size(settings | {"tie_embeddings": True}, 300)
    assert planned.n_weights - tied.n_weights == 32 * 300


def test_sizes_of_saes_dumps_and_features_are_read_from_headers(tmp_path: Path):
    save_file({"W_enc": np.zeros((3, 12), np.float32), "b_enc": np.zeros(12)}, tmp_path / "sae_weights.safetensors")
    assert sae_size(tmp_path) == SaeSize(3, 12)
    assert SaeSize(3, 12).n_bytes == 2 * 3 * 12 * 4
    dumps = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path, n_tokens in zip(dumps, (5, 7), strict=True):
        save_file({"acts": np.zeros((n_tokens, 3)), "norms": np.zeros(n_tokens)}, path)
    assert dump_size(dumps) == DumpSize(12, 3)
    features = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, d_sae in zip(features, (4, 6), strict=True):
        save_file({"values": np.zeros(1)}, path, metadata=encode_header({"d_sae": d_sae}))
    assert feature_width(features) == 6


def test_a_damaged_file_has_no_size(tmp_path: Path):
    damaged = {
        "empty": b"",
        "cut off": b"\x08",
        "not an object": (5).to_bytes(8, "little") + b"[1,2]",
        "a huge header": (2**62).to_bytes(8, "little") + b"{}",
        "not text": (2).to_bytes(8, "little") + b"\xff\xff",
        "not shapes": (40).to_bytes(8, "little") + b'{"acts":{"shape":[-1,4]},"W_enc":3}     ',
    }
    for content in damaged.values():
        for name in ("sae_weights.safetensors", "model.safetensors", "config.json"):
            (tmp_path / name).write_bytes(content)
        assert sae_size(tmp_path) == UNKNOWN_SAE
        assert model_size(tmp_path) == UNKNOWN_MODEL
        assert dump_size([tmp_path / "model.safetensors"]) == DumpSize(0, 0)
        assert feature_width([tmp_path / "model.safetensors"]) == 0
    save_file({"w": np.zeros(6)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": "wide", "num_hidden_layers": True, "n_embd": 5}))
    assert model_size(tmp_path) == ModelSize(6, 0, 5, 20, 0, 8)  # an MLP is four times as wide by convention


def test_snakemake_is_told_of_files_that_do_not_exist_yet(tmp_path: Path):
    missing = tmp_path / "x"
    reads: list[Callable[[], object]] = [
        lambda: model_size(missing),
        lambda: sae_size(missing),
        lambda: dump_size([missing]),
        lambda: feature_width([missing]),
        lambda: all_bytes([missing]),
        lambda: most_bytes([missing]),
    ]
    for read in reads:
        with pytest.raises(FileNotFoundError):
            read()


def test_sizes_of_files(tmp_path: Path):
    for name, size in (("a", 3), ("b", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert all_bytes(sorted(tmp_path.iterdir())) == 8
    assert most_bytes(tmp_path.iterdir()) == 5
    assert most_bytes([]) == 0


def test_training_holds_weights_gradients_and_two_moments_of_each():
    # 1,000 weights of 4 bytes four times over; two tokens of 4 x 10 logits and 16 x 3 x 7 activations, 4 bytes each.
    assert training_bytes(SMALL, 2) == 16_000 + 2 * 4 * (40 + 336)
    assert training_flop(SMALL, 2) == 6 * 1000 * 2
    # 14 bytes in bfloat16, and 6 x 4 while all 1,000 are updated; of 3 blocks the inputs, 5 wide, and one block whole.
    less = training_bytes(SMALL, 2, is_rounded=True, is_checkpointed=True)
    assert less == 14_000 + 24_000 + 2 * (4 * 40 + 2 * (3 * 5 + 16 * 7))


def test_logits_are_bounded_by_their_block_whatever_the_vocabulary_and_the_batch():
    large = SMALL._replace(d_vocab=262_144)
    held = forward_bytes(large, 16 * 1024)
    assert held - forward_bytes(large._replace(d_vocab=0), 16 * 1024) == 3 * 4 * sizes.BLOCK_LOGITS
    assert training_bytes(large, 16 * 1024) - training_bytes(large._replace(d_vocab=0), 16 * 1024) == 2**29


def test_dumping_holds_the_model_and_its_shard_twice():
    assert forward_bytes(SMALL, 2) == 4 * (1000 + 2 * (30 + 56))
    assert dump_bytes(SMALL, 2, DumpSize(100, 7), "float16") - forward_bytes(SMALL, 2) == 2 * 2 * 100 * 7
    assert dump_bytes(SMALL, 2, DumpSize(100, 7), "float32") - forward_bytes(SMALL, 2) == 2 * 4 * 100 * 7


def test_the_width_of_a_hookpoint_follows_from_its_name_or_is_the_largest_possible():
    expected = {
        "model.layers.3.mlp.down_proj.input": 7,
        "model.layers.3.mlp.down_proj.output": 5,
        "gpt_neox.layers.11.mlp.output": 5,
        "model.layers.3.output": 5,
        "model.layers.3.mlp.act_fn.output": 7,
        "model.layers.3.strange.output": 7,
    }
    assert {hookpoint: SMALL.d_in(hookpoint) for hookpoint in expected} == expected


def test_estimates_exceed_what_was_measured_on_large_saes_but_not_tenfold():
    # README: training TopK 1,024 -> 16,384 with 4,096 tokens a step took 1.3 GB, ReLU 2.5 GB; correlating 16,384 x
    # 16,384 features over 1,048,576 tokens, 32 active on each (8 bytes an entry and side), took 1.04 GiB.
    training = memory_mb(sae_training_bytes(SaeSize(1024, 16_384), 4096))
    assert 2500 < training < 5000
    shards = 2 * 1_048_576 * 32 * 8
    assert 1061 < memory_mb(correlation_bytes(16_384, 1024, shards, shards // 4)) < 4 * 1061


def test_the_memory_asked_for_wide_saes_is_at_most_twice_what_was_measured():
    # Peaks of encode_features in MiB, by d_in, with 131,072 JumpReLU latents, 8,192 tokens and no Snakemake beside it.
    # About 60 latents fired on a token.
    for d_in, peak in {64: 539, 512: 1351}.items():
        asked = memory_mb(encoding_bytes(SaeSize(d_in, 131_072), 4 * 8192 * d_in))
        assert peak < asked < memory_mb(0) + 2 * peak


def test_the_memory_of_an_import_follows_from_the_shapes_in_the_files(tmp_path: Path):
    weights = {"W_enc": np.zeros((4, 8), np.float16), "W_dec": np.zeros((8, 4), np.float16)}
    save_file(weights, tmp_path / "half.safetensors")
    n_file = (tmp_path / "half.safetensors").stat().st_size
    # In float32 beside the file's numbers.
    assert importing_bytes([tmp_path / "half.safetensors"], 4) == encoding_bytes(SaeSize(4, 8), n_file) - n_file
    (tmp_path / "ae.pt").write_bytes(b"x" * 4 * 64)
    assert importing_bytes([tmp_path / "ae.pt"], 4) == encoding_bytes(SaeSize(4, 8), 0)


def test_needs_of_saes_grow_with_their_number_the_tokens_and_the_shard():
    sae = SaeSize(64, 512)
    assert sae_training_bytes(sae, 256, 3) == 3 * sae_training_bytes(sae, 256)
    assert sae_training_flop(sae, 10) == 4 * 64 * 512 * 10
    assert encoding_bytes(sae, 1000) - encoding_bytes(sae, 0) == 2000
    assert encoding_bytes(sae, 0) == 1.75 * sae.n_bytes + 5 * 4 * 2048 * 512
    assert readout_bytes(DumpSize(10, 4), 6, 100) == 8 * (4 * 16 + 4 * 24) + 400


def test_the_plan_counts_with_the_latents_that_are_really_encoded_at_once():
    # The plan cannot import the constant with torch, and an SAE's job would run again after each change of `sizes`.
    assert sizes.ENCODED_VALUES == saelineage.saes.encoding.ENCODED_VALUES
    assert sizes.BLOCK_LOGITS == saelineage.models.predictions.BLOCK_LOGITS
    assert sizes.BLOCK_WEIGHTS == saelineage.models.optimizers.BLOCK_WEIGHTS
    assert sizes.CHANGED_WEIGHTS == saelineage.models.change_sums.BLOCK_WEIGHTS
    assert sizes.MAX_ASSIGNED == saelineage.correlations.decoders.MAX_ASSIGNED
