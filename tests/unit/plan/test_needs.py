"""Needs: which files and settings decide the memory and time of a job (test_sizes.py has the formulas)."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.plan.plan import Plan
from saelineage.plan.sizes import (
    ACTED_PASSES,
    PATCHED_PASSES,
    SAMPLED_PASSES,
    DumpSize,
    ModelSize,
    SaeSize,
    decomposing_bytes,
    decomposing_flop,
    dump_bytes,
    encoding_bytes,
    encoding_flop,
    forward_bytes,
    forward_flop,
    importing_bytes,
    lora_training_bytes,
    lora_training_flop,
    lora_weights,
    sae_training_bytes,
    sae_training_flop,
    training_bytes,
    training_flop,
)
from tests.unit.plan.jobs import InputFiles, Wildcards
from tests.unit.plan.lineages import MERGE, diamond

MODEL = ModelSize(n_weights=600, n_layers=2, d_model=6, d_mlp=24, d_vocab=100)
BATCH_TOKENS = 4 * 16
"""`batch_rows` times `n_ctx` of the config."""


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    """The files of a model of size `MODEL`."""
    save_file({"lm_head.weight": np.zeros((100, 6), np.float32)}, tmp_path / "model.safetensors")
    sizes = {"hidden_size": 6, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    return [str(tmp_path / name) for name in ("config.json", "model.safetensors")]


AS_USUAL = {"accumulate": 1, "gradient_checkpointing": False, "precision": "float32"}


def tokens(folder: Path, name: str, n: int) -> str:
    """A file that counts as n tokens, at two bytes each."""
    path = folder / f"{name}.npy"
    path.write_bytes(b"x" * 2 * n)
    return str(path)


def test_training_needs_follow_from_the_tokens_or_from_the_epochs_over_the_files(tmp_path: Path, model: list[str]):
    settings = {"parent": "base", "corpora": {"lua": 1.0}, "batch_rows": 2, "epochs": 0.5, "n_tokens": None} | AS_USUAL
    inputs = InputFiles(parent=model, tokens=[tokens(tmp_path, "a", 300), tokens(tmp_path, "b", 100), "rows.json"])
    for lengths, n_tokens in (({}, 200), ({"epochs": None, "n_tokens": 77}, 77)):
        needs = Plan(diamond(lua={"finetune": settings | lengths})).needs
        expected = (training_bytes(MODEL, 2 * 16), training_flop(MODEL, n_tokens))
        assert needs.finetuning(Wildcards(model="lua"), inputs) == expected
    less = settings | {"accumulate": 2, "gradient_checkpointing": True, "precision": "bfloat16"}
    need = Plan(diamond(lua={"finetune": less})).needs.finetuning(Wildcards(model="lua"), inputs)
    assert need.n_bytes == training_bytes(MODEL, 16, is_rounded=True, is_checkpointed=True)


def test_measuring_a_model_holds_one_batch_and_reads_all_validation_tokens(tmp_path: Path, model: list[str]):
    inputs = InputFiles(model=model, saes=[], validation=[tokens(tmp_path, "a", 300), tokens(tmp_path, "b", 100)])
    need = Plan(diamond()).needs.measuring(Wildcards(model="lua"), inputs)
    assert need == (forward_bytes(MODEL, BATCH_TOKENS), 3 * forward_flop(MODEL, 400))


def test_a_model_that_is_measured_in_the_format_of_its_file_is_held_in_it(tmp_path: Path, model: list[str]):
    save_file({"lm_head.weight": np.zeros((100, 6), np.float16)}, tmp_path / "model.safetensors")
    inputs = InputFiles(model=model, saes=[], validation=[])
    for setting, n_bytes in {"weights": 2, "auto": 4, "float32": 4}.items():
        need = Plan(diamond() | {"model_dtype": setting}).needs.measuring(Wildcards(model="lua"), inputs)
        assert need.n_bytes == forward_bytes(MODEL, BATCH_TOKENS, n_bytes)


def test_a_dump_reads_its_share_of_at_most_so_many_tokens_of_each_corpus(tmp_path: Path, model: list[str]):
    inputs = InputFiles(model=model, tokens=[tokens(tmp_path, "a", 1000), tokens(tmp_path, "b", 100)])
    need = Plan(diamond()).needs.dumping(n_shards=2, max_tokens=400)(Wildcards(model="lua"), inputs)
    # 400 and 100 tokens in 2 shards; the larger corpus's shard is held, 24 wide (inside the MLP), in float16.
    assert need.n_bytes == dump_bytes(MODEL, BATCH_TOKENS, DumpSize(200, 24), "float16")
    assert need.flop == forward_flop(MODEL, 250)
    unlimited = Plan(diamond()).needs.dumping(n_shards=1, max_tokens=None)(Wildcards(model="lua"), inputs)
    assert unlimited.flop == forward_flop(MODEL, 1100)


def test_training_several_saes_holds_as_many_of_the_largest(tmp_path: Path):
    shard = tmp_path / "shard.safetensors"
    save_file({"acts": np.zeros((50, 6), np.float16)}, shard)
    settings = {
        "seed0": {"expansion_factor": 2, "batch_tokens": 10, "n_tokens": None},
        "seed1": {"expansion_factor": 4, "batch_tokens": 20, "n_tokens": 30},
    }
    need = Plan(diamond()).needs.training_saes(lambda wildcards: settings)(
        Wildcards(model="lua"), InputFiles(shards=[str(shard)])
    )
    sae = SaeSize(6, 24)
    assert need == (sae_training_bytes(sae, 20, 2), sae_training_flop(sae, 50 + 30))


def test_reading_all_holds_a_multiple_of_all_inputs(tmp_path: Path):
    inputs = InputFiles(a=[tokens(tmp_path, "a", 300)], b=[tokens(tmp_path, "b", 100)])
    assert Plan(diamond()).needs.reading_all(Wildcards(), inputs).n_bytes == 4 * 800


def test_merging_holds_blocks_of_the_models_whatever_their_size(tmp_path: Path):
    inputs = InputFiles(a=[tokens(tmp_path, "a", 300)], b=[tokens(tmp_path, "b", 100)])
    for config, n_models in ((diamond(), 2), (diamond(merged={"merge": MERGE | {"method": "ties", "t": None}}), 3)):
        need = Plan(config).needs.merging(Wildcards(model="merged"), inputs)
        assert (need.n_bytes, need.flop) == ((n_models + 2) * 64 * 2**20, 10 * 800)


def test_snakemake_is_told_of_inputs_that_do_not_exist_yet(tmp_path: Path):
    missing = InputFiles(model=[str(tmp_path / "config.json")], validation=[])
    with pytest.raises(FileNotFoundError):
        Plan(diamond()).needs.measuring(Wildcards(model="lua"), missing)


def test_training_from_an_sae_is_sized_by_that_sae(tmp_path: Path):
    shard, start = tmp_path / "shard.safetensors", tmp_path / "sae_weights.safetensors"
    save_file({"acts": np.zeros((50, 6), np.float16)}, shard)
    save_file({"W_enc": np.zeros((6, 96), np.float32)}, start)
    settings = {"from_base": {"expansion_factor": 2, "batch_tokens": 10, "n_tokens": None}}
    inputs = InputFiles(shards=[str(shard)], starts=[str(tmp_path / "cfg.json"), str(start)])
    need = Plan(diamond()).needs.training_saes(lambda wildcards: settings)(Wildcards(model="lua"), inputs)
    assert need.n_bytes == sae_training_bytes(SaeSize(6, 96), 10)


def test_importing_an_sae_holds_its_weights_or_those_of_one_trained_here(tmp_path: Path):
    shard, weights = tmp_path / "shard.safetensors", tmp_path / "sae_weights.safetensors"
    save_file({"acts": np.zeros((50, 6), np.float16)}, shard)
    save_file({"W_enc": np.zeros((6, 96), np.float32), "W_dec": np.zeros((96, 6), np.float32)}, weights)
    config = diamond()
    config["saes"]["expansion_factor"] = 4
    needs, job = Plan(config).needs, Wildcards(model="lua", sae="seed0")
    inputs = {"activations": [str(shard)], "files": [str(tmp_path / "cfg.json"), str(weights)]}
    assert needs.importing_sae(job, InputFiles(**inputs)).n_bytes == importing_bytes([weights], 6)
    hub = needs.importing_sae(job, InputFiles(**inputs | {"files": []})).n_bytes
    assert hub == encoding_bytes(SaeSize(6, 24), SaeSize(6, 24).n_bytes)


def test_a_rotated_sae_is_held_beside_the_one_that_it_is_made_from(tmp_path: Path):
    shard, weights = tmp_path / "shard.safetensors", tmp_path / "sae_weights.safetensors"
    save_file({"acts": np.zeros((50, 6), np.float16)}, shard)
    save_file({"W_enc": np.zeros((6, 96), np.float32)}, weights)
    needs, job = Plan(diamond()).needs, Wildcards(model="lua", sae="seed0")
    inputs = InputFiles(activations=[str(shard)], weights=str(weights))
    difference = needs.encoding_rotated(job, inputs).n_bytes - needs.encoding(job, inputs).n_bytes
    assert difference == SaeSize(6, 96).n_bytes


def test_training_an_adapter_needs_less_than_training_all_weights(tmp_path: Path, model: list[str]):
    settings = {"parent": "base", "corpora": {"lua": 1.0}, "batch_rows": 2, "epochs": None, "n_tokens": 77}
    settings |= AS_USUAL
    inputs = InputFiles(parent=model, tokens=[tokens(tmp_path, "a", 300)])
    needs = Plan(diamond(lua={"finetune": settings | {"lora": {"r": 1}}})).needs
    need, full = (of(Wildcards(model="lua"), inputs) for of in (needs.training_adapter, needs.finetuning))
    assert need == (lora_training_bytes(MODEL, 1, 2 * 16), lora_training_flop(MODEL, 1, 77))
    # Of 600 weights in float32, gradients and two moments are not held; 276 numbers of an adapter are, four times.
    assert lora_weights(MODEL, 1) == 2 * (4 * (6 + 6) + 3 * (6 + 24)) == 276
    assert full.n_bytes - need.n_bytes == 4 * (3 * 600 - 4 * 276)


def test_tracing_holds_the_cosines_of_two_saes_unless_they_are_too_many(tmp_path: Path):
    tables, needs = [tokens(tmp_path, "a", 300)], Plan(diamond()).needs
    for d_sae, cosines in ((6, 8 * 6**2), (9_000, 0)):
        weights = tmp_path / str(d_sae) / "sae_weights.safetensors"
        weights.parent.mkdir()
        save_file({"W_enc": np.zeros((2, d_sae), np.float32)}, weights)
        held = needs.tracing(Wildcards(), InputFiles(a=tables, weights=[str(weights)])).n_bytes
        assert held == 4 * 600 + 4 * weights.stat().st_size + cosines


def test_drift_holds_two_models_and_runs_both_of_every_edge_on_some_rows(tmp_path: Path, model: list[str]):
    weights = tmp_path / "sae_weights.safetensors"
    save_file({"W_enc": np.zeros((6, 24), np.float32)}, weights)
    inputs = InputFiles(models=model, saes=[str(tmp_path / "cfg.json")])
    plan = Plan(diamond())
    plan.config["lineage"]["drift_rows"] = 3
    need = plan.needs.measuring_drift(Wildcards(), inputs)
    n_tokens = 3 * 16 * len(plan.config["corpora"])
    assert need == (2 * forward_bytes(MODEL, BATCH_TOKENS), 2 * len(plan.graph.edges) * forward_flop(MODEL, n_tokens))
    save_file({"W_enc": np.zeros((6, 2**16), np.float32)}, weights)
    assert plan.needs.measuring_drift(Wildcards(), inputs).n_bytes == 3 * SaeSize(6, 2**16).n_bytes


def test_decomposing_holds_a_pair_of_matrices_and_is_done_for_each_parent(tmp_path: Path):
    tensors = {
        "wte": np.zeros((50, 6), np.float16),
        "experts": np.zeros((3, 4, 8), np.float16),
        "norm": np.zeros(9, np.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    path = str(tmp_path / "model.safetensors")
    # Two matrices of 300 weights in float16; in float64 eight squares of 6, and four blocks of 300.
    assert decomposing_bytes(path) == 2 * 2 * 300 + 8 * (8 * 36 + 4 * 300)
    assert decomposing_flop(path) == 6 * (50 * 36 + 3 * 8 * 16) + 24 * (6**3 + 3 * 4**3)
    inputs = InputFiles(config=["config.json"], weights=["lua.safetensors", "stories.safetensors", path])
    need = Plan(diamond()).needs.decomposing(Wildcards(model="merged"), inputs)
    assert need == (decomposing_bytes(path), 2 * decomposing_flop(path))


def test_acting_holds_two_models_and_runs_passages_token_by_token_beside_the_patched_rows(
    tmp_path: Path, model: list[str]
):
    save_file({"W_enc": np.zeros((6, 24), np.float32)}, tmp_path / "sae_weights.safetensors")
    sae, annotations = [str(tmp_path / "sae_weights.safetensors")], tokens(tmp_path, "probe", 50)
    plan = Plan(diamond())  # two features, five rows of two corpora, rows of 16 tokens
    inputs = InputFiles(child=model, sae=sae, features=[])
    inputs.annotations = annotations
    need = plan.needs.acting(Wildcards(), inputs)
    n_tokens = (2 * ACTED_PASSES + 5 * 2 * PATCHED_PASSES) * 16
    assert need.flop == forward_flop(MODEL, n_tokens) + encoding_flop(SaeSize(6, 24), n_tokens)
    assert need.n_bytes > 2 * forward_bytes(MODEL, BATCH_TOKENS)


def test_contrasting_reads_every_sample_in_every_set_by_both_models(tmp_path: Path, model: list[str]):
    save_file({"W_enc": np.zeros((6, 24), np.float32)}, tmp_path / "sae_weights.safetensors")
    inputs = InputFiles(child=model, sae=[str(tmp_path / "sae_weights.safetensors")])
    need = Plan(diamond()).needs.contrasting(Wildcards(), inputs)  # six samples of 16 tokens
    n_tokens = SAMPLED_PASSES * 6 * 16
    assert need.flop == forward_flop(MODEL, n_tokens) + encoding_flop(SaeSize(6, 24), n_tokens)
