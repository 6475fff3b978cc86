"""Estimates of the memory and time of jobs, from the sizes of models, SAEs and files.

In the order of use: sizes are read from the headers of files (`model_size`, `sae_size`, `dump_size`). The bytes that a
job holds (`*_bytes`) and the operations it computes (`*_flop`) follow from these. `memory_mb` and `runtime_minutes`
turn them into requests to the scheduler. Estimates err on the large side: `benchmarks/cluster_sizes.py` compares them
with a measured run. Nothing here imports torch or NumPy, because the Snakefile is read again in every job.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.atomic import decode_header
from saelineage.foreign import models as described
from saelineage.plan import freezing

BASE_MB = 1000
"""Python and its libraries (0.2 to 0.7 GB in small jobs) and the two Snakemakes that start a job (0.15 GB each)."""
MARGIN = 1.25
"""Requested memory as a multiple of the estimate."""
ROUND_MB = 100
BASE_MINUTES = 15
"""Time for starting, reading and writing on a slow file system."""
MOST_MINUTES = 1440
"""No job asks for more than a day, because partitions refuse longer jobs, and trainings resume from checkpoints."""
FLOP_PER_THREAD_SECOND = 5e9
"""Deliberately a quarter or less of what one core of a recent CPU does. A GPU is ten thousand times as fast."""
MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library on a header."""
FLOAT = 4
BLOCK_LOGITS = 1 << 25
"""Most logits made at a time (`models.predictions.BLOCK_LOGITS`)."""
MERGED_WEIGHTS = 1 << 20
"""Weights of a tensor that are merged at a time (`models.merging.weights.BLOCK_WEIGHTS`)."""
BLOCK_WEIGHTS = 1 << 22
"""Most weights that `models.optimizers` updates at a time, with six numbers in float32 beside each."""
CHANGED_WEIGHTS = 1 << 20
"""Weights of a matrix that are compared at a time (`models.change_sums.BLOCK_WEIGHTS`)."""
DECOMPOSED_COPIES = 8
"""Squares of a matrix's shorter side that comparing it holds: three products, two sets of vectors, LAPACK's room."""
STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LARGE_VOCABULARY = 150_000
"""Vocabulary assumed for a tokenizer that is not trained here."""
MANY_ACTIVE = 64
"""Active latents per token assumed for the time of correlating."""
ABLATED_GROUPS = 16
"""Groups of features, random ones included, assumed for the time of ablating."""
CROSSCODER_GROUPS = 8
"""Groups of a crosscoder's latents that are ablated in each model of an edge: those of two verdicts, with three random
ones beside each (`lineage.crosscoder_ablations`)."""
ACTED_PASSES = 3 * 4
"""Rows that are run for each feature that is acted on: three passages, by each model as it is and once with the feature
removed, and their new tokens, twelve in seven settings, which are less than another row (`behaviour.acts`)."""
PATCHED_PASSES = 11
"""Passes over the rows on which new features are patched: two models, two groups with three random ones each, and
everything (`behaviour.patching`)."""
SAMPLED_PASSES = 4 * 2 + 1
"""Times that each sample's tokens are read: in four sets by the child, twice, and in one by the parent
(`behaviour.contrasts`)."""
D_MODEL_WIDE = re.compile(r"\.(\d+\.input|\d+\.output|mlp\.input|(mlp|down_proj|dense_4h_to_h|c_proj)\.output)$")
"""Hookpoints as wide as the residual stream in common models: at the stream itself, or at what reads or writes it."""
ENCODED_TOKENS = 2048
"""Most tokens encoded at once."""
ENCODED_VALUES = 1 << 24
"""Most latents x tokens encoded at once (`saes.encoding.ENCODED_VALUES`)."""
MAX_ASSIGNED = 8_192
"""Most latents that are assigned to each other (`correlations.decoders.MAX_ASSIGNED`)."""
ENCODING_COPIES = 5
"""Arrays of latents x tokens that encoding holds where many latents fire (JumpReLU: products, pre-activations, ReLU,
mask, latents); where few do, it is one."""


class Need(NamedTuple):
    """The memory and operations of a job."""

    n_bytes: int
    """Peak memory without Python and its libraries."""
    flop: float = 0.0
    """Floating-point operations."""


class ModelSize(NamedTuple):
    """The sizes of a language model that decide its memory and time."""

    n_weights: int
    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    stored_bytes: int = FLOAT
    """Bytes of a weight in the format that holds all those of the file."""

    def d_in(self, hookpoint: str) -> int:
        """Width of the activations at a hookpoint. If its name does not tell, the larger of d_model and d_mlp."""
        return self.d_model if D_MODEL_WIDE.search(hookpoint) else max(self.d_model, self.d_mlp)


class SaeSize(NamedTuple):
    """The sizes of an SAE."""

    d_in: int
    d_sae: int

    @property
    def n_bytes(self) -> int:
        """Bytes of encoder and decoder in float32."""
        return 2 * FLOAT * self.d_in * self.d_sae


class DumpSize(NamedTuple):
    """The shape of an activation dump."""

    n_tokens: int
    d_in: int


UNKNOWN_MODEL = ModelSize(0, 0, 0, 0, 0)
UNKNOWN_SAE = SaeSize(0, 0)


def memory_mb(needed_bytes: int, attempt: int = 1) -> int:
    """Requested MB (2^20 bytes), rounded up to hundreds. Doubles with each further attempt."""
    n_mb = (BASE_MB + MARGIN * needed_bytes / 2**20) * 2 ** (attempt - 1)
    return math.ceil(n_mb / ROUND_MB) * ROUND_MB


def runtime_minutes(flop: float, threads: int = 1, attempt: int = 1) -> int:
    """Requested minutes: `BASE_MINUTES` plus the computing time of a slow CPU, at most `MOST_MINUTES`.

    Doubles with each further attempt.
    """
    computing_minutes = flop / (FLOP_PER_THREAD_SECOND * threads) / 60
    return min((BASE_MINUTES + math.ceil(computing_minutes)) * 2 ** (attempt - 1), MOST_MINUTES)


def read_header(path: Path | str) -> dict[str, dict]:
    """Read a safetensors file's header. Empty if the file is damaged, because the job that reads it reports that.

    Raises:
        FileNotFoundError: if the file does not exist yet. Snakemake then asks again.
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
    """The shapes of a safetensors file's tensors, leaving out shapes that are not lists of counts.

    Raises:
        FileNotFoundError: if the file does not exist yet.
    """
    entries = {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
    listed = {name: entry.get("shape") for name, entry in entries.items() if isinstance(entry, dict)}
    return {name: shape for name, shape in listed.items() if isinstance(shape, list) and all(map(_is_count, shape))}


def model_size(folder: Path | str) -> ModelSize:
    """The size of the model in a Hugging Face folder, or zeros if its files are damaged.

    Raises:
        FileNotFoundError: if a file does not exist yet.
    """
    path = Path(folder, "model.safetensors")
    n_weights = sum(math.prod(shape) for shape in shapes(path).values())
    try:
        config = json.loads(Path(folder, "config.json").read_bytes())
        of_text = (described.n_layers, described.d_model, described.d_mlp, described.vocab_size)
        n_layers, d_model, d_mlp, d_vocab = [size(config) or 0 for size in of_text]
    except (ValueError, AttributeError, RecursionError):
        return UNKNOWN_MODEL
    return ModelSize(n_weights, n_layers, d_model, d_mlp, d_vocab, stored_bytes(path))


def stored_bytes(path: Path | str) -> int:
    """Bytes of a weight in the narrowest format that holds all those of a safetensors file (`precision.widest`).

    Raises:
        FileNotFoundError: if the file does not exist yet.
    """
    entries = [entry for entry in read_header(path).values() if isinstance(entry, dict)]
    formats = {entry["dtype"] for entry in entries if entry.get("dtype") in STORED_BYTES}
    return FLOAT if formats >= {"F16", "BF16"} else max((STORED_BYTES[name] for name in formats), default=FLOAT)


def pretrained_size(settings: Mapping, d_vocab: int) -> ModelSize:
    """The size of the Mistral that a config's `pretrain` block makes, without its norms."""
    d_model, d_mlp, n_heads = settings["d_model"], settings["d_mlp"], settings["n_heads"]
    attention = 2 * d_model**2 * (1 + settings["n_kv_heads"] / n_heads)
    embeddings = d_vocab * d_model * (1 if settings["tie_embeddings"] else 2)
    n_weights = settings["n_layers"] * (attention + 3 * d_model * d_mlp) + embeddings
    return ModelSize(round(n_weights), settings["n_layers"], d_model, d_mlp, d_vocab)


def sae_size(folder: Path | str) -> SaeSize:
    """The size of the SAE in a SAELens folder, or zeros if its file is damaged.

    Raises:
        FileNotFoundError: if the file does not exist yet.
    """
    shape = shapes(Path(folder, "sae_weights.safetensors")).get("W_enc", [])
    return SaeSize(*shape) if len(shape) == 2 else UNKNOWN_SAE


def dump_size(paths: Sequence[Path | str]) -> DumpSize:
    """The shape of a dump in several shards, leaving out damaged ones.

    Raises:
        FileNotFoundError: if a file does not exist yet.
    """
    listed = [shapes(path).get("acts", []) for path in paths]
    shards = [DumpSize(*shape) for shape in listed if len(shape) == 2]
    return DumpSize(sum(shard.n_tokens for shard in shards), max((shard.d_in for shard in shards), default=0))


def feature_width(paths: Iterable[Path | str]) -> int:
    """The largest d_sae of several feature shards, leaving out damaged ones.

    Raises:
        FileNotFoundError: if a file does not exist yet.
    """
    widths = [0]
    for path in paths:
        try:
            widths.append(int(decode_header(read_header(path).get("__metadata__"))["d_sae"]))
        except (ValueError, TypeError, KeyError):
            continue
    return max(widths)


def most_bytes(paths: Iterable[Path | str]) -> int:
    """The size of the largest of several files.

    Raises:
        FileNotFoundError: if a file does not exist yet.
    """
    return max((os.path.getsize(path) for path in paths), default=0)


def merging_bytes(n_models: int) -> int:
    """Bytes of merging tensors: blocks in float64 of each model and of its differences, with their order and masks."""
    return 64 * MERGED_WEIGHTS * (n_models + 2)


def all_bytes(paths: Iterable[Path | str]) -> int:
    """The total size of several files.

    Raises:
        FileNotFoundError: if a file does not exist yet.
    """
    return sum(os.path.getsize(path) for path in paths)


def frozen_weights(folder: Path | str, freeze: Mapping | None) -> int:
    """The number of weights of the model in a folder that a `freeze` block leaves as they are.

    0 where it freezes no matrix, which the job refuses.

    Raises:
        FileNotFoundError: if a file does not exist yet.
    """
    held = shapes(Path(folder, "model.safetensors")) if freeze else {}
    try:
        return sum(math.prod(held[name]) for name in freezing.frozen_weights(held, freeze, "freeze"))
    except InputError:
        return 0


def training_bytes(
    model: ModelSize,
    batch_tokens: int,
    is_rounded: bool = False,
    is_checkpointed: bool = False,
    n_frozen: int = 0,
) -> int:
    """Training a language model: weights, gradients, Adam's two moments, and activations and logits of a batch.

    Of frozen weights there is only the number itself; the parent is opened again at the end if its file is in another
    format.

    Args:
        model: the model.
        batch_tokens: tokens that are read at a time.
        is_rounded: weights and gradients are in bfloat16, with the lower bits of a master copy beside them.
        is_checkpointed: blocks keep their inputs alone.
        n_frozen: weights that are not trained.
    """
    number = 2 if is_rounded else FLOAT
    of_weight = 2 + 2 + 2 + 2 * FLOAT if is_rounded else 4 * FLOAT
    updating = 6 * FLOAT * min(model.n_weights, BLOCK_WEIGHTS) if is_rounded else 0
    batch = _batch_bytes(model, batch_tokens, number, is_checkpointed)
    parent = model.stored_bytes * model.n_weights if n_frozen and model.stored_bytes != number else 0
    return of_weight * (model.n_weights - n_frozen) + number * n_frozen + parent + updating + batch


def lora_weights(model: ModelSize, r: int) -> int:
    """Numbers in a LoRA adapter of all linear layers of a model, at most: those of a gated MLP, without shared keys."""
    attention, mlp = 4 * 2 * model.d_model, 3 * (model.d_model + model.d_mlp)
    return r * model.n_layers * (attention + mlp)


def lora_training_bytes(
    model: ModelSize, r: int, batch_tokens: int, is_rounded: bool = False, is_checkpointed: bool = False
) -> int:
    """Training a LoRA adapter: frozen weights, the adapter as in `training_bytes`, and a batch; arguments as there.

    Afterwards the adapter is merged, with the parent's weights in float32 and a copy of them.
    """
    number = 2 if is_rounded else FLOAT
    trained = number * model.n_weights + 4 * FLOAT * lora_weights(model, r)
    trained += _batch_bytes(model, batch_tokens, number, is_checkpointed)
    return max(trained, 2 * FLOAT * model.n_weights)


def forward_bytes(model: ModelSize, batch_tokens: int, weight_bytes: int = FLOAT) -> int:
    """Reading or measuring a language model: weights, activations of a batch, and a block of logits with two copies."""
    logits = 3 * FLOAT * min(batch_tokens * model.d_vocab, BLOCK_LOGITS)
    return weight_bytes * model.n_weights + logits + 8 * FLOAT * batch_tokens * max(model.d_model, model.d_mlp)


def backward_bytes(model: ModelSize, batch_tokens: int, weight_bytes: int = FLOAT) -> int:
    """Gradients of a language model's activations: its weights, and a batch as in training."""
    return weight_bytes * model.n_weights + _batch_bytes(model, batch_tokens, weight_bytes)


def unembedding_bytes(model: ModelSize) -> int:
    """The unembedding of a language model in float32."""
    return FLOAT * model.d_vocab * model.d_model


def dump_bytes(model: ModelSize, batch_tokens: int, shard: DumpSize, dtype: str, weight_bytes: int = FLOAT) -> int:
    """Dumping activations: the model, and one shard, which is held twice while its batches are joined."""
    return forward_bytes(model, batch_tokens, weight_bytes) + 2 * ITEM_BYTES[dtype] * shard.n_tokens * shard.d_in


def stream_bytes(model: ModelSize, batch_tokens: int, buffer: DumpSize, dtype: str, weight_bytes: int = FLOAT) -> int:
    """Reading a model into a buffer, of which one batch of rows is held in float32 beside it, and norms in float32."""
    batch = 2 * FLOAT * batch_tokens * buffer.d_in
    held = buffer.n_tokens * (ITEM_BYTES[dtype] * buffer.d_in + FLOAT)
    return forward_bytes(model, batch_tokens, weight_bytes) + held + batch


def sae_training_bytes(sae: SaeSize, batch_tokens: int, n_saes: int = 1) -> int:
    """Training SAEs: weights, gradients, Adam's two moments, a transposed copy, and all latents of a batch."""
    return n_saes * (5 * sae.n_bytes + 3 * FLOAT * batch_tokens * sae.d_sae)


def encoding_bytes(sae: SaeSize, shard_bytes: int, n_saes: float = 1.75) -> int:
    """Encoding activations: the SAE, all latents of a chunk of tokens, and a shard's activations and latents.

    Args:
        sae: the SAE.
        shard_bytes: the activations.
        n_saes: copies of the SAE that are held: itself, and the encoder by latent, in float32 and rounded.
    """
    chunk = ENCODING_COPIES * FLOAT * min(ENCODED_VALUES, ENCODED_TOKENS * sae.d_sae)
    return round(n_saes * sae.n_bytes) + chunk + 2 * shard_bytes


def importing_bytes(paths: Iterable[Path | str], d_in: int) -> int:
    """Importing an SAE from its files: its weights as they are and in float32, and encoding some activations.

    Raises:
        FileNotFoundError: if a file does not exist yet.
    """
    n_weights, n_read = 0, 0
    for path in paths:
        listed = sum(math.prod(shape) for shape in shapes(path).values()) if str(path).endswith(".safetensors") else 0
        n_weights += listed or os.path.getsize(path) // FLOAT  # a file of another format is taken for one of float32
        n_read += os.path.getsize(path)
    is_converted = n_read != FLOAT * n_weights
    sae = SaeSize(d_in, n_weights // (2 * d_in) if d_in else 0)
    return encoding_bytes(sae, 0) + (n_read if is_converted else 0)


def correlation_bytes(d_sae: int, block_features: int, pair_bytes: int, shard_bytes: int, n_blocks: int = 2) -> int:
    """Correlating: the features of both sides, a shard of both while it is read, and the results of each feature.

    Args:
        d_sae: latents of the wider SAE.
        block_features: features in a block of similarities.
        pair_bytes: all feature shards of both sides.
        shard_bytes: the largest shard of both sides.
        n_blocks: blocks held at once: r, the Jaccard index, and r of each corpus if they are asked for.
    """
    return pair_bytes + 4 * shard_bytes + 8 * n_blocks * block_features * d_sae + 10_000 * d_sae


def assigning_bytes(d_sae: int) -> int:
    """Assigning two SAEs' latents to each other: all cosines in float64; nothing if they are too many."""
    return 8 * d_sae**2 if d_sae <= MAX_ASSIGNED else 0


def readout_bytes(dump: DumpSize, d_sae: int, shard_bytes: int) -> int:
    """Linear readouts, in float64: products of activations with each other and with features, and the solution."""
    return 8 * (4 * dump.d_in**2 + 4 * dump.d_in * d_sae) + 4 * shard_bytes


def decomposing_bytes(path: Path | str) -> int:
    """Comparing two models' matrices: one of each as stored, and in float64 squares of the shorter side and blocks.

    Raises:
        FileNotFoundError: if the file does not exist yet.
    """
    listed = _matrices(path)
    largest = max((long * short for _, long, short in listed), default=0)
    widest = max((short for _, _, short in listed), default=0)
    return 2 * stored_bytes(path) * largest + 8 * (DECOMPOSED_COPIES * widest**2 + 4 * min(largest, CHANGED_WEIGHTS))


def decomposing_flop(path: Path | str) -> float:
    """Comparing two models' matrices: three products of each with itself, and three decompositions of the products.

    A decomposition is counted as 8 operations for each of n^3: on one core, 1,536 wide, two with vectors and one
    without take 2.5 seconds.

    Raises:
        FileNotFoundError: if the file does not exist yet.
    """
    return sum(n * (6.0 * long * short**2 + 24.0 * short**3) for n, long, short in _matrices(path))


def _matrices(path: Path | str) -> list[tuple[int, int, int]]:
    """Of each tensor of a file that holds matrices their number, and the longer and the shorter side."""
    listed = [shape for shape in shapes(path).values() if len(shape) in (2, 3)]
    return [(math.prod(shape[:-2]), max(shape[-2:]), min(shape[-2:])) for shape in listed]


def training_flop(model: ModelSize, n_tokens: int, n_frozen: int = 0) -> float:
    """Training a language model: a forward pass and a backward pass of twice its cost, two operations a weight.

    Frozen weights have no gradients of their own, but pass those of activations on.
    """
    return (6.0 * model.n_weights - 2.0 * n_frozen) * n_tokens


def lora_training_flop(model: ModelSize, r: int, n_tokens: int) -> float:
    """Training a LoRA adapter: as `training_flop`, without the gradients of the frozen weights."""
    return (4.0 * model.n_weights + 6.0 * lora_weights(model, r)) * n_tokens


def forward_flop(model: ModelSize, n_tokens: int) -> float:
    """A forward pass of a language model."""
    return 2.0 * model.n_weights * n_tokens


def sae_training_flop(sae: SaeSize, n_tokens: int) -> float:
    """Training an SAE: the encoder's dense product, and as much again for the sparse operations."""
    return 4.0 * sae.d_in * sae.d_sae * n_tokens


def encoding_flop(sae: SaeSize, n_tokens: int) -> float:
    """Encoding: the encoder's dense product."""
    return 2.0 * sae.d_in * sae.d_sae * n_tokens


def correlation_flop(d_sae: int, n_entries: int, l0: int) -> float:
    """Correlating: every two latents that are active on a token, then every pair of features.

    In operations of which a core does `FLOP_PER_THREAD_SECOND`. 16,384 features on 1,048,576 tokens take 19 core
    seconds; the estimate is twice that.
    """
    return 160.0 * (n_entries * l0 + d_sae**2)


def readout_flop(dump: DumpSize, d_sae: int) -> float:
    """Linear readouts: products of two models' activations with each other and with features, and two solutions."""
    return 4.0 * dump.n_tokens * dump.d_in**2 + 2.0 * dump.d_in**3 + 8.0 * dump.d_in**2 * d_sae


def _batch_bytes(model: ModelSize, batch_tokens: int, number_bytes: int = FLOAT, is_checkpointed: bool = False) -> int:
    """Activations of a batch in training, and a block of its logits with their gradient and two copies."""
    of_block = 16 * max(model.d_model, model.d_mlp)
    kept = model.n_layers * model.d_model + of_block if is_checkpointed else model.n_layers * of_block
    return 4 * FLOAT * min(batch_tokens * model.d_vocab, BLOCK_LOGITS) + number_bytes * batch_tokens * kept


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
