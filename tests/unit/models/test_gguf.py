"""GGUF files are read as the models that they hold, with their weights dequantised."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from import_model import import_model
from saelineage.errors import InputError
from saelineage.foreign.gguf import check_gguf
from saelineage.models.gguf import load_gguf

gguf = pytest.importorskip("gguf")

D_MODEL, D_MLP, D_VOCAB, N_HEADS, N_LAYERS = 64, 96, 300, 4, 2
NAMES = {
    "token_embd.weight": ("model.embed_tokens.weight", (D_VOCAB, D_MODEL)),
    "output.weight": ("lm_head.weight", (D_VOCAB, D_MODEL)),
    "output_norm.weight": ("model.norm.weight", (D_MODEL,)),
}
for layer in range(N_LAYERS):
    theirs, ours = f"blk.{layer}", f"model.layers.{layer}"
    NAMES |= {
        f"{theirs}.attn_norm.weight": (f"{ours}.input_layernorm.weight", (D_MODEL,)),
        f"{theirs}.ffn_norm.weight": (f"{ours}.post_attention_layernorm.weight", (D_MODEL,)),
        f"{theirs}.attn_output.weight": (f"{ours}.self_attn.o_proj.weight", (D_MODEL, D_MODEL)),
        f"{theirs}.ffn_gate.weight": (f"{ours}.mlp.gate_proj.weight", (D_MLP, D_MODEL)),
        f"{theirs}.ffn_up.weight": (f"{ours}.mlp.up_proj.weight", (D_MLP, D_MODEL)),
        f"{theirs}.ffn_down.weight": (f"{ours}.mlp.down_proj.weight", (D_MODEL, D_MLP)),
    }
    for part in "qkv":
        NAMES[f"{theirs}.attn_{part}.weight"] = (f"{ours}.self_attn.{part}_proj.weight", (D_MODEL, D_MODEL))
        NAMES[f"{theirs}.attn_{part}.bias"] = (f"{ours}.self_attn.{part}_proj.bias", (D_MODEL,))
ROUNDED = "blk.1.ffn_up.weight"
"""The tensor in eight bits; the others are float32."""


def write(path: Path, tensors: dict[str, np.ndarray], n_layers: int = N_LAYERS) -> Path:
    """Write a small Qwen2 as llama.cpp does."""
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(D_VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(D_VOCAB)])
    writer.add_token_merges(["t 1"])
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if name == ROUNDED else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, (_, shape) in NAMES.items()}


def block(folder: Path, **changes: object) -> dict:
    return {"folder": str(folder), "gguf": "small.gguf", "dequantise": True, "follow_links": False} | changes


def test_a_gguf_is_opened_with_the_weights_that_it_holds(tmp_path: Path, tensors: dict[str, np.ndarray]):
    model = load_gguf(write(tmp_path / "small.gguf", tensors))
    state = model.state_dict()
    for theirs, (ours, _) in NAMES.items():
        error = np.abs(state[ours].numpy() - tensors[theirs])
        step = np.abs(tensors[theirs]).max() / 127  # eight bits: half a step at most, of a block's largest number
        assert error.max() <= (0.51 * step if theirs == ROUNDED else 0.0), theirs
    assert state["lm_head.weight"].dtype == torch.float32


def test_a_gguf_is_imported_as_a_folder_of_safetensors(tiny, tmp_path: Path, tensors: dict[str, np.ndarray]):
    write(tmp_path / "theirs" / "small.gguf", tensors)
    facts = import_model(block(tmp_path / "theirs"), "far", 16, tiny.tokenizer, tmp_path / "ours")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert np.array_equal(weights["lm_head.weight"].numpy(), tensors["output.weight"])
    assert "quantization_config" not in (tmp_path / "ours" / "config.json").read_text()
    (warning,) = facts["warnings"]
    assert "tokenizer" in warning  # it lies in the GGUF and is not compared


def refused(settings: dict) -> str:
    with pytest.raises(InputError) as raised:
        check_gguf(settings, "models.far.path")
    return str(raised.value)


def test_a_gguf_is_refused_unless_its_rounding_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "small.gguf").write_bytes(b"GGUF and more")
    assert refused(block(tmp_path, dequantise=False)).startswith("models.far.path.dequantise: must be true to read")
    assert "correct models.far.path.gguf" in refused(block(tmp_path, gguf="other.gguf"))
    (tmp_path / "text.gguf").write_text("text")
    assert "is not a GGUF file: it must begin with GGUF" in refused(block(tmp_path, gguf="text.gguf"))
    (tmp_path / "link.gguf").symlink_to("/dev/zero")
    assert "is a link that leads out" in refused(block(tmp_path, gguf="link.gguf"))
    monkeypatch.setattr("saelineage.foreign.gguf.find_spec", lambda _name: None)
    assert "models.far.path.gguf: needs the package gguf, which is not installed" in refused(block(tmp_path))


def test_a_gguf_that_claims_more_layers_than_it_holds_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray]):
    with pytest.raises(InputError, match="lacks weights of its architecture"):
        load_gguf(write(tmp_path / "three.gguf", tensors, n_layers=3))
    with pytest.raises(InputError, match="describes more than 20000 modules"):
        load_gguf(write(tmp_path / "many.gguf", tensors, n_layers=1_000_000))


def test_a_damaged_gguf_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray]):
    path = write(tmp_path / "small.gguf", tensors)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be opened as a causal model"):
        load_gguf(path)
