"""Compare speed and quality of SAE training with SAELens and dictionary-learning.

    python -m benchmarks.sae_training [--json FILE]

Run it from the project's folder in an environment with this project (`pip install -e .`) and
benchmarks/requirements.txt. Every trainer gets the same tokens in the same order, from one dump of real activations
that the workflow makes first from benchmarks/sae_training.yaml. Scale, learning rate and batch are the same, and each
trainer runs in a process of its own. Times are those of optimizer steps, by the clock and in CPU-seconds of all
threads, without reading activations and without the first two steps. fvu and dead latents are measured on held-out
tokens.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.peak_memory import PeakMemory

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[1]
# The other libraries import torchvision if it is installed, and fail if its build does not match torch's, although they
# do not use it.
sys.modules["torchvision"] = None  # type: ignore[assignment]  # None makes imports fail, as Python documents

DUMP = "results/benchmark/activations/mlp/base/python/train/shard-00000-of-00001.safetensors"
CONFIG = "benchmarks/sae_training.yaml"
K, TARGET_L0, DEAD_AFTER_TOKENS = 32, 64, 10_000_000
EVALUATED_TOKENS, CHUNK_TOKENS = 16_384, 1024
UNTIMED_STEPS = 2
OURS = ("ours topk", "ours topk float32", "ours relu")
PEERS = ("SAELens topk", "dictionary-learning topk", "SAELens relu", "dictionary-learning relu")


class Contender(NamedTuple):
    """A trainer in the comparison."""

    step: Callable
    """Takes a batch of scaled activations."""
    trained: Callable
    """Returns two functions: a dense encoder of scaled activations, and a decoder of latents."""
    l0: Callable = lambda: float("nan")
    """Returns l0 of the last step, if the trainer reports it."""


def ours(architecture: str, precision: str, args: argparse.Namespace, d_in: int, n_steps: int) -> Contender:
    """This project's trainer."""
    import torch

    from saelineage.saes.trainer import SaeTrainer

    settings = {
        "architecture": architecture,
        "expansion_factor": args.expansion_factor,
        "k": K,
        "sparsity_coefficient": 1.0,
        "target_l0": TARGET_L0,
        "sparsity_warmup_fraction": 0.2,
        "aux_coefficient": 1 / 32,
        "dead_after_tokens": DEAD_AFTER_TOKENS,
        "resample_every_tokens": None,
        "learning_rate": args.learning_rate,
        "adam_betas": [0.9, 0.999],
        "warmup_fraction": 0.0,
        "decay_fraction": 0.0,
        "precision": precision,
        "seed": 0,
    }
    trainer = SaeTrainer(settings, torch.zeros(d_in), n_steps, args.device)
    figures = {}

    def step(acts: torch.Tensor) -> None:
        figures["l0"] = trainer.step(acts).l0

    def trained() -> tuple[Callable, Callable]:
        weights = {name: tensor.detach().cpu() for name, tensor in trainer.weights.items()}
        sae = trainer.objective.trained(weights).to(args.device)
        return sae.encode, sae.decode

    return Contender(step, trained, lambda: float(figures["l0"]))


def saelens(architecture: str, args: argparse.Namespace, d_in: int, n_steps: int) -> Contender:
    """SAELens's SAETrainer."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shape = {"d_in": d_in, "d_sae": d_in * args.expansion_factor, "device": args.device}
    if architecture == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=K, **shape))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=1.0, **shape))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=n_steps * args.batch_tokens,
            train_batch_size_samples=args.batch_tokens,
            device=args.device,
            autocast=False,
            lr=args.learning_rate,
            lr_end=args.learning_rate / 10,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            lr_decay_steps=0,
            n_restart_cycles=1,
            adam_beta1=0.9,
            adam_beta2=0.999,
            n_checkpoints=0,
            feature_sampling_window=2000,
            dead_feature_window=DEAD_AFTER_TOKENS // args.batch_tokens,
            logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=None,
            save_final_checkpoint=False,
        ),
        sae,
        iter([]),
    )
    return Contender(trainer.step, lambda: (sae.encode, sae.decode))


def dictionary_learning(architecture: str, args: argparse.Namespace, d_in: int, n_steps: int) -> Contender:
    """dictionary-learning's trainers."""
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {
        "steps": n_steps + 1,
        "activation_dim": d_in,
        "dict_size": d_in * args.expansion_factor,
        "layer": 0,
        "lm_name": "base",
        "lr": args.learning_rate,
        "warmup_steps": 0,
        "device": args.device,
        "seed": 0,
    }
    if architecture == "topk":
        trainer = TopKTrainer(k=K, **common)
        trainer.dead_feature_threshold = DEAD_AFTER_TOKENS
    else:
        trainer = StandardTrainer(l1_penalty=1.0, sparsity_warmup_steps=None, resample_steps=None, **common)
    numbers = iter(range(n_steps + UNTIMED_STEPS + 1))
    return Contender(lambda acts: trainer.update(next(numbers), acts), lambda: (trainer.ae.encode, trainer.ae.decode))


def contender(name: str, args: argparse.Namespace, d_in: int, n_steps: int) -> Contender:
    """Make a contender by its name."""
    library, architecture, *precision = name.split()
    if library == "ours":
        return ours(architecture, precision[0] if precision else "auto", args, d_in, n_steps)
    return {"SAELens": saelens, "dictionary-learning": dictionary_learning}[library](architecture, args, d_in, n_steps)


def run_contender(name: str, args: argparse.Namespace) -> dict:
    """Train with one contender and measure it."""
    import numpy as np
    import torch

    from saelineage.jobs.devices import prepare_cpu
    from saelineage.saes.batches import SCALE_TOKENS, Dump, measure_scaling, token_batches

    if name.startswith("ours"):
        prepare_cpu(args.threads)  # as the workflow's jobs do
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dump = Dump([ROOT / DUMP])
    n_train = len(dump) - EVALUATED_TOKENS
    n_steps = args.relu_steps if name == "ours relu" else (args.speed_steps if "relu" in name else args.steps)
    scaling = measure_scaling(dump[next(token_batches(n_train, SCALE_TOKENS, SCALE_TOKENS, seed=0))])
    centre = scaling.mean * scaling.scale
    trained = contender(name, args, dump.d_in, n_steps)
    times, cpu_times, memory = [], [], PeakMemory()
    memory.start()
    for tokens in token_batches(n_train, n_steps * args.batch_tokens, args.batch_tokens, seed=0):
        acts = (dump[tokens] * scaling.scale - centre).to(args.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        trained.step(acts)
        if args.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    timed = slice(-args.speed_steps if name == "ours relu" else UNTIMED_STEPS, None)
    figures = {
        "tokens_per_s": args.batch_tokens / float(np.median(times[timed])),
        "tokens_per_cpu_s": args.batch_tokens / float(np.median(cpu_times[timed])),
        "peak_rss_gb": peak_rss / 1e9,
        "peak_own_gb": memory.stop() / 1e9,
        "n_steps": n_steps,
        "training_l0": trained.l0(),
    }
    if "topk" in name or name.startswith("ours"):
        held_out = dump[np.arange(n_train, len(dump))] * scaling.scale - centre
        figures |= measure(trained, held_out, args.device)
    return figures


def measure(trained: Contender, acts: "Tensor", device: str) -> dict:
    """Measure fvu, l0 and dead latents on held-out activations."""
    import torch

    total = float((acts.double() - acts.double().mean(0)).square().sum())
    residual, firings = 0.0, torch.zeros(1, dtype=torch.int64, device=device)
    encode, decode = trained.trained()
    with torch.no_grad():
        for chunk in acts.to(device).split(CHUNK_TOKENS):
            latents = encode(chunk)
            residual += float((chunk - decode(latents)).double().square().sum())
            firings = firings + (latents > 0).sum(0)
    return {
        "fvu": residual / total,
        "l0": int(firings.sum()) / len(acts),
        "dead_fraction": 1 - float((firings > 0).double().mean()),
    }


def encoder_speed(args: argparse.Namespace, d_in: int) -> dict[str, float]:
    """Tokens per second of the encoder's dense product alone, by number format: an upper bound for every step."""
    import torch

    from saelineage.precision import native_bf16

    torch.set_num_threads(args.threads)
    formats = {"float32": torch.float32}
    if native_bf16(torch.device(args.device)):
        formats["bfloat16"] = torch.bfloat16
    speeds = {}
    for name, dtype in formats.items():
        acts = torch.randn(args.batch_tokens, d_in).to(args.device, dtype)
        W_enc = torch.randn(d_in * args.expansion_factor, d_in).to(args.device, dtype)
        times = []
        product = torch.mm(W_enc, acts.T)
        for _ in range(7):
            start = time.perf_counter()
            torch.mm(W_enc, acts.T, out=product)
            if args.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        speeds[name] = args.batch_tokens / sorted(times)[len(times) // 2]
    return speeds


def main() -> None:
    """Run every contender, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of TopK, for speed and quality")
    parser.add_argument("--relu-steps", type=int, default=280, help=f"steps of our ReLU, to reach l0 = {TARGET_L0}")
    parser.add_argument(
        "--speed-steps", type=int, default=10, help="timed steps of ReLU: our last ones, all of a peer's"
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=1e-3,
        help="the same for every contender; decoder rows start at norm 0.1 in SAELens and at 1 in the others, so equal "
        "rates do not mean equal progress",
    )
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--expansion-factor", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--contender", choices=[*OURS, *PEERS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(run_contender(args.contender, args)))
        return
    if not (ROOT / DUMP).exists():
        cores = ["--cores", str(args.threads), "--quiet", "all"]
        snakemake = [sys.executable, "-m", "snakemake"]
        subprocess.run([*snakemake, *cores, "--configfile", CONFIG, "--", DUMP], cwd=ROOT, check=True)
    figures = {}
    for name in (*OURS, *PEERS):
        command = [sys.executable, "-m", "benchmarks.sae_training", *sys.argv[1:], "--contender", name]
        print(f"running {name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures[name] = json.loads(done.stdout.splitlines()[-1])
    from saelineage.activations import ActivationShard

    summary = summarise(figures, encoder_speed(args, ActivationShard(ROOT / DUMP).d_in))
    print_table(figures, summary)
    if args.json:
        args.json.write_text(json.dumps({"contenders": figures, **summary}, indent=1) + "\n")


def summarise(figures: dict[str, dict], encoder: dict[str, float]) -> dict:
    """Compare speed and quality with the faster peer; the table also has the slower one's."""

    def faster(architecture: str) -> dict:
        peers = [figures[name] for name in PEERS if name.endswith(architecture)]
        return max(peers, key=lambda peer: peer["tokens_per_s"])

    topk, relu = faster("topk"), faster("relu")
    return {
        "topk_ratio": figures["ours topk"]["tokens_per_s"] / topk["tokens_per_s"],
        "topk_ratio_fp32": figures["ours topk float32"]["tokens_per_s"] / topk["tokens_per_s"],
        "relu_ratio": figures["ours relu"]["tokens_per_s"] / relu["tokens_per_s"],
        "topk_cpu_ratio": figures["ours topk"]["tokens_per_cpu_s"] / topk["tokens_per_cpu_s"],
        "relu_cpu_ratio": figures["ours relu"]["tokens_per_cpu_s"] / relu["tokens_per_cpu_s"],
        "fvu_ours": figures["ours topk"]["fvu"],
        "fvu_peer": topk["fvu"],
        "dead_fraction_ours": figures["ours topk"]["dead_fraction"],
        "dead_fraction_peer": topk["dead_fraction"],
        "peak_memory_ratio": max(figures[name]["peak_own_gb"] for name in OURS)
        / min(figures[name]["peak_own_gb"] for name in PEERS),
        "encoder_tokens_per_s": encoder,
        "topk_share_of_encoder": figures["ours topk"]["tokens_per_s"] / max(encoder.values()),
        "topk_fp32_share_of_encoder": figures["ours topk float32"]["tokens_per_s"] / encoder["float32"],
        "relu_share_of_encoder": figures["ours relu"]["tokens_per_s"] / max(encoder.values()),
    }


def print_table(figures: dict[str, dict], summary: dict) -> None:
    """Print all figures."""
    speeds, quality = ("tokens_per_s", "tokens_per_cpu_s"), ("training_l0", "fvu", "l0", "dead_fraction")
    columns = (*speeds, "peak_rss_gb", "peak_own_gb", "n_steps", *quality)
    print(f"{'':26}" + "".join(f"{column:>17}" for column in columns))
    for name, row in figures.items():
        print(f"{name:26}" + "".join(f"{row.get(column, float('nan')):>17.4g}" for column in columns))
    for name, value in summary.items():
        print(f"{name:28}{value if isinstance(value, dict) else format(value, '.4g')}")


if __name__ == "__main__":
    main()
