"""Compare the memory that the plan expects of work on language models with the measured peak.

    python -m benchmarks.model_memory [--d-model 512 --n-layers 4 --d-vocab 65536 --rows 4 --n-ctx 512] [--json FILE]

A random Llama of these sizes is saved in bfloat16. Each kind of work (opening, measuring, training) runs in a process
of its own, and its peak of private memory is compared with the formula of `plan.sizes`; what Python and its libraries
hold before is not counted.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.peak_memory import PeakMemory
from transformers import LlamaConfig, LlamaForCausalLM

from saelineage.models.loading import open_model
from saelineage.models.losses import next_token_loss
from saelineage.models.optimizers import MasterAdamW
from saelineage.models.predictions import Predictions, predict
from saelineage.models.training import BlockTrainer
from saelineage.plan import sizes

CPU = torch.device("cpu")


class Way(NamedTuple):
    """A way of training."""

    accumulate: int = 1
    is_checkpointed: bool = False
    is_rounded: bool = False


def measure(args: argparse.Namespace, folder: Path, dtype: str, is_whole: bool = False) -> None:
    """Compute the losses of a batch."""
    model = open_model(folder, CPU, dtype)
    ids = torch.randint(0, args.d_vocab, (args.rows, args.n_ctx))
    with torch.inference_mode():
        whole = Predictions.of(model(input_ids=ids).logits, ids.numel()) if is_whole else None
        next_token_loss(whole or predict(model, ids), ids)


def train(args: argparse.Namespace, folder: Path, way: Way) -> None:
    """Take two steps of training, as `models.training.train` does but for its files."""
    from transformers import TrainingArguments

    model = open_model(folder, CPU, "weights" if way.is_rounded else "float32")
    rows = [{"input_ids": torch.randint(0, args.d_vocab, (args.n_ctx,))} for _ in range(2 * args.rows)]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            max_steps=2,
            per_device_train_batch_size=args.rows // way.accumulate,
            gradient_accumulation_steps=way.accumulate,
            activation_checkpointing=way.is_checkpointed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        adamw = (MasterAdamW, {"lr": 1e-4, "betas": (0.9, 0.999)}) if way.is_rounded else None
        BlockTrainer(model=model, args=arguments, train_dataset=rows, optimizer_cls_and_kwargs=adamw).train()


def works(args: argparse.Namespace, folder: Path) -> dict[str, tuple[Callable[[], Any], int | None]]:
    """Each kind of work with the bytes that the plan expects; None where it knows of no such work."""
    model = sizes.model_size(folder)
    batch = args.rows * args.n_ctx
    found: dict[str, tuple[Callable[[], Any], int | None]] = {}
    for dtype, n_bytes in (("float32", 4), ("weights", 2)):
        found[f"open as {dtype}"] = (partial(open_model, folder, CPU, dtype), n_bytes * model.n_weights)
        expected = sizes.forward_bytes(model, batch, n_bytes)
        found[f"measure as {dtype}"] = (partial(measure, args, folder, dtype), expected)
    found["measure as float32, all logits at once"] = (partial(measure, args, folder, "float32", True), None)
    for way in (Way(), Way(accumulate=2), Way(is_checkpointed=True), Way(is_rounded=True)):
        changed = [f", {key} {value}" for key, value in way._asdict().items() if value != getattr(Way(), key)]
        expected = sizes.training_bytes(model, batch // way.accumulate, way.is_rounded, way.is_checkpointed)
        found["train" + "".join(changed)] = (partial(train, args, folder, way), expected)
    return found


def peak(work: Callable[[], Any]) -> int:
    """Bytes of private memory that some work takes at its peak, beside what was held before."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    before = int(status["RssAnon"].split()[0]) * 1024
    memory = PeakMemory()
    memory.start()
    work()
    return memory.stop() - before


def make(args: argparse.Namespace, folder: Path) -> None:
    """Save a random model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.d_vocab,
        hidden_size=args.d_model,
        intermediate_size=4 * args.d_model,
        num_hidden_layers=args.n_layers,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def main() -> None:
    """Run each kind of work in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"d-model": 512, "n-layers": 4, "d-vocab": 65_536, "rows": 4, "n-ctx": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--work", help="measure one kind of work in this process")
    parser.add_argument("--folder", type=Path, help="folder of the model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.work:
        print(peak(works(args, args.folder)[args.work][0]))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        make(args, Path(folder))
        print(f"{'':42}{'expected MB':>12}{'measured MB':>12}")
        for name, (_, expected) in works(args, Path(folder)).items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.model_memory",
                *sys.argv[1:],
                "--work",
                name,
                "--folder",
                folder,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured = int(done.stdout.split()[-1])
            rows[name] = {"expected": expected, "measured": measured}
            print(f"{name:42}{expected / 1e6 if expected else float('nan'):12.0f}{measured / 1e6:12.0f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
