"""Measure how fast a language model's activations are dumped: tokens per second, and peak memory of the GPU.

    python -m benchmarks.dumping [--device cuda] [--json FILE]

The model is a random Mistral of about the size of Pythia-160M, read at the output of its middle layer. The time
includes writing the file; the first of two dumps is not counted.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from saelineage.activations import dump_shards
from saelineage.files.atomic import sha256_file, write_json
from saelineage.jobs.devices import prepare_cpu
from saelineage.models.loading import on_device
from saelineage.models.training import new_mistral
from saelineage.tokens import TokenRows

N_CTX, D_VOCAB, BATCH_ROWS = 256, 32_000, 32
MODEL = {
    "n_layers": 12,
    "d_model": 768,
    "d_mlp": 3072,
    "n_heads": 12,
    "n_kv_heads": 12,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_embeddings": False,
    "seed": 0,
}


def write_rows(folder: Path, n_rows: int) -> TokenRows:
    """Random token rows."""
    path = folder / "probe.npy"
    np.save(path, np.random.default_rng(0).integers(2, D_VOCAB, (n_rows, N_CTX)).astype(np.uint16))
    digest = sha256_file(path)
    write_json(
        folder / "probe.json", {"n_rows": n_rows, "n_ctx": N_CTX, "bos_id": 0, "eos_id": 1, "ids_sha256": digest}
    )
    return TokenRows(path)


def main() -> None:
    """Dump twice, print the speed of the second time, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 18)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    prepare_cpu(args.threads)
    device = torch.device(args.device)
    model = on_device(new_mistral(MODEL, D_VOCAB, N_CTX, {"bos": 0, "eos": 1}).eval(), device)
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder), max(1, args.tokens // N_CTX))
        place, seconds = "model.layers.5.output", []
        for _ in range(2):
            start = time.perf_counter()
            path = Path(folder) / "shard.safetensors"
            n_tokens = dump_shards(model, {place: path}, rows, range(len(rows.ids)), BATCH_ROWS, "float16")
            seconds.append(time.perf_counter() - start)
    figures = {"device": args.device, "tokens": n_tokens, "tokens_per_s": n_tokens / seconds[1]}
    if args.device == "cuda":
        figures["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    print(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
