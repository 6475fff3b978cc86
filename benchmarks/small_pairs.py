"""Make small pairs of models, a base and its fine-tune, of five architectures, to try config/compare.yaml on.

    python benchmarks/small_pairs.py FOLDER [--types gpt2 llama] [--steps 1000] [--corpora FOLDER --tuned-on lua]

writes FOLDER/text.jsonl and, for each type, FOLDER/{type}/base and FOLDER/{type}/tuned with their tokenizer. The bases
are trained on all kinds of text but one, the fine-tunes further on that one alone. By default the text is this
project's generated English, stories and Lua; `--corpora` names a folder of real text, as config/files.yaml reads it.
The models are far too small to be good, but unlike random ones they have learnt something, and the fine-tunes something
else.
"""

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, set_seed

from saelineage.corpora.samples.kinds import sample_documents
from saelineage.models.training import save_model
from saelineage.tokens import save_tokenizer, train_tokenizer

D_VOCAB, N_POSITIONS = 2048, 256
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


class Shape(NamedTuple):
    """Type and sizes of a model."""

    model_type: str
    n_layers: int
    d_model: int
    more: Mapping[str, Any] = MappingProxyType({})

    def config(self) -> dict[str, Any]:
        """Settings of the model's config, in the names of its class."""
        n_heads = self.d_model // 16
        if self.model_type == "gpt2":
            sizes = {"n_embd": self.d_model, "n_layer": self.n_layers, "n_head": n_heads, "n_positions": N_POSITIONS}
        else:
            sizes = {
                "hidden_size": self.d_model,
                "intermediate_size": 3 * self.d_model,
                "num_hidden_layers": self.n_layers,
                "num_attention_heads": n_heads,
                "max_position_embeddings": N_POSITIONS,
            }
        return {"vocab_size": D_VOCAB, **SPECIAL, **sizes, **self.more}


SHAPES = {
    "gpt2": Shape("gpt2", 4, 64),
    "pythia": Shape("gpt_neox", 3, 96),
    "llama": Shape("llama", 4, 96, {"num_key_value_heads": 3}),
    "qwen2": Shape("qwen2", 2, 128, {"num_key_value_heads": 2}),
    "gemma2": Shape(
        "gemma2",
        4,
        64,
        {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
    ),
}
GENERATED = ("english", "stories", "lua")
REAL = ("babylm", "python", "stories", "lua")
N_BYTES = 1_500_000
"""Text of each kind."""
ROW, BATCH = 128, 8


def read_documents(path: Path) -> Iterator[str]:
    """The texts of a gzipped file with a JSON object per line."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def read_texts(corpora: Path | None) -> dict[str, list[str]]:
    """Documents of each kind, up to `N_BYTES`: generated, or from a folder of real text."""
    if corpora is None:
        return {kind: list(sample_documents(kind, N_BYTES, seed=0)) for kind in GENERATED}
    texts = {}
    for kind in REAL:
        left = [N_BYTES]

        def fits(text: str, left: list[int] = left) -> bool:
            left[0] -= len(text.encode())
            return left[0] > 0

        texts[kind] = list(takewhile(fits, read_documents(corpora / f"{kind}.jsonl.gz")))
    return texts


def token_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> Int[torch.Tensor, "row pos"]:
    """Join texts with the end-of-text token and cut them into rows."""
    end = SPECIAL["eos_token_id"]
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids = np.concatenate([np.array([*text.ids, end]) for text in encoded])
    n_rows = len(ids) // (ROW - 1)
    rows = ids[: n_rows * (ROW - 1)].reshape(n_rows, ROW - 1)
    return torch.from_numpy(np.insert(rows, 0, SPECIAL["bos_token_id"], axis=1))


def train(model: PreTrainedModel, rows: torch.Tensor, n_steps: int, learning_rate: float) -> float:
    """Train a model, and return its mean loss over the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, n_steps)
    losses = []
    model.train()
    for _ in range(n_steps):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return float(np.mean(losses[-max(1, n_steps // 10) :]))


def make_pair(
    name: str, rows: dict[str, torch.Tensor], tuned_on: str, tokenizer: Path, folder: Path, n_steps: int
) -> None:
    """Train and save a base and its fine-tune."""
    set_seed(0)
    config = CONFIG_MAPPING[SHAPES[name].model_type](**SHAPES[name].config())
    model = AutoModelForCausalLM.from_config(config).float()
    of_base = torch.cat([found for kind, found in rows.items() if kind != tuned_on])
    loss = train(model, of_base, n_steps, 3e-3)
    save_model(model, tokenizer, folder / "base")
    tuned_loss = train(model, rows[tuned_on], max(1, n_steps // 4), 1e-3)
    save_model(model, tokenizer, folder / "tuned")
    others = ", ".join(kind for kind in rows if kind != tuned_on)
    print(f"{name}: loss {loss:.3f} on {others}, then {tuned_loss:.3f} on {tuned_on}", flush=True)


def make_pairs(folder: Path, names: Sequence[str], n_steps: int, corpora: Path | None, tuned_on: str) -> None:
    """Write the text, its tokenizer and the pairs of models."""
    texts = read_texts(corpora)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) for kind in texts for text in texts[kind]]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = train_tokenizer([text for kind in texts for text in texts[kind]], D_VOCAB)
    save_tokenizer(tokenizer, folder / "tokenizer", N_POSITIONS)
    rows = {kind: token_rows(tokenizer, texts[kind]) for kind in texts}
    for name in names:
        make_pair(name, rows, tuned_on, folder / "tokenizer", folder / name, n_steps)


def main() -> None:
    """Make the pairs that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=1000, help="training steps of a base; a fine-tune has a quarter")
    parser.add_argument("--corpora", type=Path, help="folder of babylm, python, stories and lua as .jsonl.gz")
    parser.add_argument("--tuned-on", choices=sorted({*GENERATED, *REAL}), default="lua")
    arguments = parser.parse_args()
    make_pairs(arguments.folder, arguments.types, arguments.steps, arguments.corpora, arguments.tuned_on)


if __name__ == "__main__":
    main()
