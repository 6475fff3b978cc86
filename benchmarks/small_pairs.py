"""Make small pairs of models, a base and its fine-tune, of five architectures, to try config/compare.yaml on.

    python benchmarks/small_pairs.py FOLDER [--types gpt2 llama] [--steps 300]

writes FOLDER/text.jsonl and, for each type, FOLDER/{type}/base and FOLDER/{type}/tuned with their tokenizer. The bases
are trained on English, stories and Lua of this project's generators, the fine-tunes further on Lua alone. They are far
too small to be good, but unlike random models they have learnt something, and the fine-tunes something else.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, set_seed

from saelineage.corpora.samples.kinds import sample_documents
from saelineage.models.training import save_model
from saelineage.tokens import save_tokenizer, train_tokenizer

D_VOCAB, D_MODEL, D_MLP, N_LAYERS, N_HEADS, N_POSITIONS = 1024, 64, 128, 4, 4, 256
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SHAPE = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": N_POSITIONS,
} | SPECIAL
GROUPED = SHAPE | {"num_key_value_heads": 2}
GPT = {"vocab_size": D_VOCAB, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": N_POSITIONS}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT | SPECIAL),
    "pythia": ("gpt_neox", SHAPE),
    "llama": ("llama", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "gemma2": ("gemma2", GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}),
}
"""Model types and configs of the architectures."""
KINDS = ("english", "stories", "lua")
N_BYTES = 500_000
"""Text of each kind."""
ROW, BATCH = 64, 16


def token_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> Int[torch.Tensor, "row pos"]:
    """Join texts with the end-of-text token and cut them into rows."""
    end = SPECIAL["eos_token_id"]
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids = np.concatenate([np.array([*text.ids, end]) for text in encoded])
    n_rows = len(ids) // (ROW - 1)
    rows = ids[: n_rows * (ROW - 1)].reshape(n_rows, ROW - 1)
    return torch.from_numpy(np.insert(rows, 0, SPECIAL["bos_token_id"], axis=1))


def train(model: PreTrainedModel, rows: torch.Tensor, n_steps: int, learning_rate: float) -> float:
    """Train a model, and return its last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, n_steps)
    model.train()
    for _ in range(n_steps):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return loss.item()


def make_pair(name: str, rows: dict[str, torch.Tensor], tokenizer: Path, folder: Path, n_steps: int) -> None:
    """Train and save a base and its fine-tune."""
    set_seed(0)
    model_type, config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config)).float()
    loss = train(model, torch.cat(list(rows.values())), n_steps, 3e-3)
    save_model(model, tokenizer, folder / "base")
    tuned_loss = train(model, rows["lua"], max(1, n_steps // 4), 1e-3)
    save_model(model, tokenizer, folder / "tuned")
    print(f"{name}: loss {loss:.3f} on all text, then {tuned_loss:.3f} on Lua")


def make_pairs(folder: Path, names: Sequence[str], n_steps: int, n_bytes: int = N_BYTES) -> None:
    """Write the text, its tokenizer and the pairs of models."""
    texts = {kind: list(sample_documents(kind, n_bytes, seed=0)) for kind in KINDS}
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) for kind in KINDS for text in texts[kind]]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = train_tokenizer([text for kind in KINDS for text in texts[kind]], D_VOCAB)
    save_tokenizer(tokenizer, folder / "tokenizer", N_POSITIONS)
    rows = {kind: token_rows(tokenizer, texts[kind]) for kind in KINDS}
    for name in names:
        make_pair(name, rows, folder / "tokenizer", folder / name, n_steps)


def main() -> None:
    """Make the pairs that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--steps", type=int, default=300, help="training steps of a base; a fine-tune has a quarter")
    arguments = parser.parse_args()
    make_pairs(arguments.folder, arguments.types, arguments.steps)


if __name__ == "__main__":
    main()
