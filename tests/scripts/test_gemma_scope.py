"""The shape of config/gemma2.yaml on small random models: text and conversations, an SAE as params.npz, and one that
starts from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, set_seed

from dump_activations import dump_activations
from import_sae import import_sae
from saelineage.activations import ActivationShard
from saelineage.chat import write_conversations
from saelineage.models.training import save_model
from saelineage.saes.sae import load_sae
from saelineage.tokens import write_rows
from tests.chats import TEXTS, chat_tokenizer, said
from train_sae import train_and_save

D_IN, D_SAE, N_CTX, HOOKPOINT = 16, 256, 16, "model.layers.1.output"
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) "
    "+ '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
SIZES = {
    **{"hidden_size": D_IN, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8},
    **{"num_key_value_heads": 1, "query_pre_attn_scalar": 8, "sliding_window": 8, "vocab_size": 320},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": N_CTX},
}


def dumped(folder: Path, name: str, seed: int, tokenizer: Path, tokens: list[str]) -> list[str]:
    """A random model's activations on all corpora."""
    set_seed(seed)
    save_model(Gemma2ForCausalLM(Gemma2Config(**SIZES)).float(), tokenizer, folder / name)
    shards = [str(folder / f"{name}_{Path(path).stem}.safetensors") for path in tokens]
    dump_activations(name, folder / name, tokens, shards, "00000-of-00001", [HOOKPOINT], "float32", None, 4, 0)
    return shards


def write_npz(folder: Path, mean: np.ndarray) -> dict[str, np.ndarray]:
    """An SAE that reconstructs everything: a latent for each direction of each axis, and others that never fire."""
    W_dec = np.random.default_rng(0).standard_normal((D_SAE, D_IN)).astype(np.float32)
    W_dec[: 2 * D_IN] = np.concatenate([np.eye(D_IN), -np.eye(D_IN)])
    fires = np.arange(D_SAE) < 2 * D_IN
    arrays = {
        **{"W_enc": W_dec.T.copy(), "W_dec": W_dec, "b_dec": mean},
        "b_enc": np.where(fires, -(W_dec @ mean), 0).astype(np.float32),
        "threshold": np.where(fires, 1e-3, 1e9).astype(np.float32),
    }
    folder.mkdir()
    np.savez(folder / "params.npz", **arrays)
    return arrays


def test_a_chat_model_s_sae_starts_from_gemma_scope_s_of_the_base(tmp_path: Path, sae_settings: dict):
    tokenizer = chat_tokenizer(tmp_path / "tokenizer", GEMMA, ("<start_of_turn>", "<end_of_turn>"))
    texts, talks = tmp_path / "text.npy", tmp_path / "chat.npy"
    texts.with_suffix(".json").write_text(json.dumps(write_rows(TEXTS, tokenizer, N_CTX, None, texts)))
    talk = json.dumps(said(("user", "Who sat on the roof?"), ("assistant", "The owl did.")))
    talks.with_suffix(".json").write_text(json.dumps(write_conversations([talk] * 8, tokenizer, N_CTX, None, talks)))
    tokens = [str(texts), str(talks)]
    of_base, of_it = (dumped(tmp_path, name, seed, tokenizer, tokens) for seed, name in enumerate(("base", "it")))
    acts = torch.cat([torch.cat(list(ActivationShard(path).chunks(512))) for path in of_base])
    arrays = write_npz(tmp_path / "average_l0_82", acts.mean(0).numpy())
    limits = {"folder": str(tmp_path / "average_l0_82"), "format": "auto", "max_fvu": 0.1, "max_l0_fraction": 0.15}
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    found = import_sae("base", "seed0", limits, None, of_base, tmp_path / "saes" / "base" / "seed0", config)
    assert (found["format"], found["d_sae"], found["k"]) == ("gemma_scope", D_SAE, None)
    assert found["l0"] == pytest.approx(D_IN, rel=0.05)  # each axis is positive or negative, unless below the threshold
    ours = load_sae(tmp_path / "saes" / "base" / "seed0")
    before = acts.numpy() @ arrays["W_enc"] + arrays["b_enc"]
    expected = np.where(before > arrays["threshold"], before, 0)  # JumpReLU as Gemma Scope defines it
    np.testing.assert_allclose(ours.encode(acts).detach().numpy(), expected, atol=1e-5)

    settings = sae_settings | {"n_tokens": 256, "batch_tokens": 64, "learning_rate": 1e-5}
    settings["from_start"] = ["architecture", "k", "target_l0"]
    start = str(tmp_path / "saes" / "base" / "seed0")
    train_and_save("it", {"from_base": settings}, of_it, tmp_path / "saes" / "it", tmp_path / "state", None, 0, [start])
    child = load_sae(tmp_path / "saes" / "it" / "from_base")
    assert (child.architecture, child.d_sae) == ("jumprelu", D_SAE)
    assert torch.nn.functional.cosine_similarity(child.W_dec, ours.W_dec).min() > 0.99
