"""What jobs ask a cluster for: memory and time, from the sizes of models, SAEs and files.

In the order of use: sizes are read from the headers of files (`model_size`, `sae_size`, `activation_size`), from them
follow the bytes that a job holds (`*_bytes`) and the products it computes (`*_flop`), and `memory_mb` and
`runtime_minutes` turn these into what is asked for. Figures are meant to be enough, not to be exact:
`benchmarks/cluster_sizes.py` compares them with a measured run. Nothing here imports torch or NumPy, for the Snakefile
reads it in every job.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saelineage.files.atomic import decode_header

BASE_MB = 1000
"""Python and its libraries, 0.2 to 0.7 GB in small jobs, and the two Snakemakes that start a job, 0.15 GB each."""
MARGIN = 1.25
"""What is asked for, as a share of what is expected."""
ROUND_MB = 100
BASE_MINUTES = 15
"""Starting, reading and writing on a slow file system."""
MOST_MINUTES = 1440
"""No job asks for more than a day: partitions refuse what is beyond their limit, and trainings are resumed."""
FLOP_PER_THREAD_SECOND = 5e9
"""On purpose a quarter or less of what one core of a recent CPU does: a GPU is ten thousand times as fast."""
MAX_HEADER_BYTES = 100_000_000
"""The largest header that the safetensors library reads."""
FLOAT = 4
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LARGE_VOCABULARY = 150_000
"""Of a tokenizer that somebody else made."""
MANY_ACTIVE = 64
"""Latents that fire on a token, for the time of correlating."""
ABLATED_GROUPS = 16
"""Groups of features and random ones beside them, for the time of ablating."""
D_MODEL_WIDE = re.compile(r"\.(\d+\.input|\d+\.output|mlp\.input|(mlp|down_proj|dense_4h_to_h|c_proj)\.output)$")
"""Hookpoints at the residual stream, or where something is read from it or added to it, in common models."""
ENCODED_TOKENS = 2048
"""Tokens that are encoded at once."""


class Need(NamedTuple):
    """What a job holds and computes."""

    n_bytes: int
    """Most memory at once, beside Python and its libraries."""
    flop: float = 0.0
    """Operations."""


class ModelSize(NamedTuple):
    """What the memory and time of a language model follow from."""

    n_weights: int
    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int

    def d_in(self, hookpoint: str) -> int:
        """Width of the activations at a hookpoint; where its name does not tell, the larger of the two."""
        return self.d_model if D_MODEL_WIDE.search(hookpoint) else max(self.d_model, self.d_mlp)


class SaeSize(NamedTuple):
    """The sizes of an SAE."""

    d_in: int
    d_sae: int

    @property
    def n_bytes(self) -> int:
        """Encoder and decoder in float32."""
        return 2 * FLOAT * self.d_in * self.d_sae


class DumpSize(NamedTuple):
    """Tokens and width of activations."""

    n_tokens: int
    d_in: int


UNKNOWN_MODEL = ModelSize(0, 0, 0, 0, 0)
UNKNOWN_SAE = SaeSize(0, 0)


def memory_mb(needed_bytes: int, attempt: int = 1) -> int:
    """MB (2^20 bytes) that a job asks for; twice as much at each further attempt, in whole hundreds."""
    asked = (BASE_MB + MARGIN * needed_bytes / 2**20) * 2 ** (attempt - 1)
    return math.ceil(asked / ROUND_MB) * ROUND_MB


def runtime_minutes(flop: float, threads: int = 1, attempt: int = 1) -> int:
    """Minutes that a job asks for: a quarter of an hour, and what a slow CPU takes; at most a day.

    Twice as much at each further attempt.
    """
    computing = flop / (FLOP_PER_THREAD_SECOND * threads) / 60
    return min((BASE_MINUTES + math.ceil(computing)) * 2 ** (attempt - 1), MOST_MINUTES)


def read_header(path: Path | str) -> dict[str, dict]:
    """A safetensors file's header; empty for a file that is no such file: the job that reads it says so.

    Raises:
        FileNotFoundError: if it is not there (yet); Snakemake then asks again.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= MAX_HEADER_BYTES else b""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def shapes(path: Path | str) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors; none where they are not whole numbers.

    Raises:
        FileNotFoundError: if it is not there (yet).
    """
    entries = {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
    found = {name: entry.get("shape") if isinstance(entry, dict) else None for name, entry in entries.items()}
    return {name: shape for name, shape in found.items() if isinstance(shape, list) and all(map(_is_count, shape))}


def model_size(folder: Path | str) -> ModelSize:
    """The size of a Hugging Face folder's model; zeros where its files cannot be read.

    Raises:
        FileNotFoundError: if it is not there (yet).
    """
    n_weights = sum(math.prod(shape) for shape in shapes(Path(folder, "model.safetensors")).values())
    try:
        sizes = {name: n for name, n in json.loads(Path(folder, "config.json").read_bytes()).items() if _is_count(n)}
    except (ValueError, AttributeError, RecursionError):
        return UNKNOWN_MODEL
    d_model, n_layers = (
        sizes.get("hidden_size", sizes.get("n_embd", 0)),
        sizes.get("num_hidden_layers", sizes.get("n_layer", 0)),
    )
    d_mlp = sizes.get("intermediate_size", 4 * d_model)
    return ModelSize(n_weights, n_layers, d_model, d_mlp, sizes.get("vocab_size", 0))


def pretrained_size(settings: Mapping, d_vocab: int) -> ModelSize:
    """The size of a model that a config's `pretrain` block makes: a Mistral, but for its norms."""
    d_model, d_mlp, n_heads = settings["d_model"], settings["d_mlp"], settings["n_heads"]
    attention = 2 * d_model**2 * (1 + settings["n_kv_heads"] / n_heads)
    embeddings = d_vocab * d_model * (1 if settings["tie_embeddings"] else 2)
    n_weights = settings["n_layers"] * (attention + 3 * d_model * d_mlp) + embeddings
    return ModelSize(round(n_weights), settings["n_layers"], d_model, d_mlp, d_vocab)


def sae_size(folder: Path | str) -> SaeSize:
    """The size of a SAELens folder's SAE; zeros where its file cannot be read.

    Raises:
        FileNotFoundError: if it is not there (yet).
    """
    shape = shapes(Path(folder, "sae_weights.safetensors")).get("W_enc", ())
    return SaeSize(*shape) if len(shape) == 2 else UNKNOWN_SAE


def dump_size(paths: Sequence[Path | str]) -> DumpSize:
    """Tokens and width of activation shards; zeros where they cannot be read.

    Raises:
        FileNotFoundError: if one is not there (yet).
    """
    found = [shape for path in paths if len(shape := shapes(path).get("acts", ())) == 2]
    return DumpSize(sum(n_tokens for n_tokens, _ in found), max((d_in for _, d_in in found), default=0))


def feature_width(paths: Iterable[Path | str]) -> int:
    """d_sae of the widest of some feature shards; 0 where they cannot be read.

    Raises:
        FileNotFoundError: if one is not there (yet).
    """
    widths = [0]
    for path in paths:
        try:
            widths.append(int(decode_header(read_header(path).get("__metadata__"))["d_sae"]))
        except (ValueError, TypeError, KeyError):
            continue
    return max(widths)


def most_bytes(paths: Iterable[Path | str]) -> int:
    """The size of the largest of some files.

    Raises:
        FileNotFoundError: if one is not there (yet).
    """
    return max((os.path.getsize(path) for path in paths), default=0)


def all_bytes(paths: Iterable[Path | str]) -> int:
    """The size of some files together.

    Raises:
        FileNotFoundError: if one is not there (yet).
    """
    return sum(os.path.getsize(path) for path in paths)


def training_bytes(model: ModelSize, batch_tokens: int) -> int:
    """Training a language model: weights, gradients, two averages of Adam's, activations and logits of a batch."""
    per_token = FLOAT * (4 * model.d_vocab + 16 * model.n_layers * max(model.d_model, model.d_mlp))
    return 4 * FLOAT * model.n_weights + batch_tokens * per_token


def forward_bytes(model: ModelSize, batch_tokens: int) -> int:
    """Reading or measuring a language model in float32: weights, and logits of a batch with what is made of them."""
    return FLOAT * (model.n_weights + batch_tokens * (3 * model.d_vocab + 8 * max(model.d_model, model.d_mlp)))


def dump_bytes(model: ModelSize, batch_tokens: int, shard: DumpSize, dtype: str) -> int:
    """Dumping activations: the model, and one shard, twice while its batches are joined."""
    return forward_bytes(model, batch_tokens) + 2 * ITEM_BYTES[dtype] * shard.n_tokens * shard.d_in


def sae_training_bytes(sae: SaeSize, batch_tokens: int, n_saes: int = 1) -> int:
    """Training SAEs: weights, gradients, two averages of Adam's, a transposed copy, and a batch of all latents."""
    return n_saes * (5 * sae.n_bytes + 3 * FLOAT * batch_tokens * sae.d_sae)


def encoding_bytes(sae: SaeSize, shard_bytes: int) -> int:
    """Encoding activations: the SAE with copies, all latents of a chunk, and a shard's activations and latents."""
    return 3 * sae.n_bytes + 2 * FLOAT * ENCODED_TOKENS * sae.d_sae + 2 * shard_bytes


def correlation_bytes(d_sae: int, block_features: int, feature_bytes: int) -> int:
    """Correlating: a block of sums, r and Jaccard twice over, what is kept of each feature, and two shards."""
    return 4 * feature_bytes + 64 * block_features * d_sae + 10_000 * d_sae


def readout_bytes(dump: DumpSize, d_sae: int, shard_bytes: int) -> int:
    """Reading features out linearly: products of activations, of those with features, and a solution, in float64."""
    return 8 * (4 * dump.d_in**2 + 4 * dump.d_in * d_sae) + 4 * shard_bytes


def training_flop(model: ModelSize, n_tokens: int) -> float:
    """Training a language model: forward once, backward twice, two operations a weight."""
    return 6.0 * model.n_weights * n_tokens


def forward_flop(model: ModelSize, n_tokens: int) -> float:
    """Reading a language model."""
    return 2.0 * model.n_weights * n_tokens


def sae_training_flop(sae: SaeSize, n_tokens: int) -> float:
    """Training an SAE: the encoder's dense product, and as much again for everything that is sparse."""
    return 4.0 * sae.d_in * sae.d_sae * n_tokens


def encoding_flop(sae: SaeSize, n_tokens: int) -> float:
    """Encoding: the encoder's dense product."""
    return 2.0 * sae.d_in * sae.d_sae * n_tokens


def correlation_flop(d_sae: int, n_entries: int, l0: int) -> float:
    """Correlating: each latent that fires with each that fires on the token, then each pair of features.

    As operations of which a core does `FLOP_PER_THREAD_SECOND`; 16,384 features on 1,048,576 tokens take 48 core
    seconds, and twice that is asked for.
    """
    return 400.0 * (n_entries * l0 + d_sae**2)


def readout_flop(dump: DumpSize, d_sae: int) -> float:
    """Reading features out: products of two models' activations and with features, and solving for each width."""
    return 4.0 * dump.n_tokens * dump.d_in**2 + 2.0 * dump.d_in**3 + 8.0 * dump.d_in**2 * d_sae


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
