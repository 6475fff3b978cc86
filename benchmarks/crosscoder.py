"""Compare the speed of training a crosscoder with the same one written densely, and with crosscoder_learning.

    python -m benchmarks.crosscoder [--json FILE]

Run it from the project's folder in an environment with this project (`pip install -e .`). Every contender takes the
same batches of planted activations in a process of its own: sparse features that all models share, and noise. `ours`
and `dense` have the same initial weights, learning rates and objective, so their losses must agree. Times are those of
optimizer steps, by the clock and in CPU-seconds of all threads, without the first two steps; medians are compared.
`--k 1024 --contender ours` times the first steps of an annealed k.

crosscoder_learning (github.com/science-of-finetuning/crosscoder_learning), which takes two models here, is left out
where it is not installed. Its package has the name of dictionary-learning's, so it needs an environment of its own, or
a folder of its own on PYTHONPATH.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peak_memory import PeakMemory

if TYPE_CHECKING:
    from torch import Tensor

UNTIMED_STEPS = 2
POOL = 4
"""Batches that are made beforehand and taken in turn."""
PLANTED_PER_TOKEN, NOISE = 24, 0.2
NEVER = 10**12
"""Tokens after which a latent would be dead; the auxiliary loss has no part in the comparison."""
PEER_MODULE = "dictionary_learning.trainers.crosscoder"
CONTENDERS = {"ours": None, "dense": None, "ours 2 models": 2, "crosscoder_learning 2 models": 2}
"""Contenders and their number of models, if it is not that of the command."""

Step = Callable[["Tensor"], float]
"""One optimizer step on a batch [token, n_models x d_in]; returns the loss."""


def settings_of(args: argparse.Namespace, n_models: int) -> dict:
    """Settings of an SAE of the models' activations side by side."""
    return {
        "architecture": "batchtopk",
        "expansion_factor": args.d_sae / (n_models * args.d_in),
        "k": args.k,
        "sparsity_coefficient": 0.0,
        "target_l0": None,
        "sparsity_warmup_fraction": 0.0,
        "aux_coefficient": 1 / 32,
        "dead_after_tokens": NEVER,
        "resample_every_tokens": None,
        "learning_rate": args.learning_rate,
        "adam_betas": [0.9, 0.999],
        "warmup_fraction": 0.0,
        "decay_fraction": 0.0,
        "precision": args.precision,
        "seed": 0,
    }


def ours(args: argparse.Namespace, n_models: int) -> Step:
    """This project's trainer."""
    import torch

    from saelineage.saes.trainer import SaeTrainer

    trainer = SaeTrainer(settings_of(args, n_models), torch.zeros(n_models * args.d_in), NEVER, args.device)
    return lambda acts: float(trainer.step(acts).loss)


def dense(args: argparse.Namespace, n_models: int) -> Step:
    """The same steps with every product dense, and gradients by autograd."""
    import torch

    from saelineage.saes.objectives import TopK
    from saelineage.saes.trainer import GRADIENT_NORM, initial_directions

    directions = initial_directions(n_models * args.d_in, args.d_sae, 1.0, 0).to(args.device)
    W_enc, W_dec = directions.clone().requires_grad_(), directions.clone().requires_grad_()
    b_enc = torch.zeros(args.d_sae, device=args.device, requires_grad=True)
    b_dec = torch.zeros(n_models * args.d_in, device=args.device, requires_grad=True)
    weights = [W_dec, W_enc, b_dec, b_enc]
    rates = [TopK.fresh_rates["W_dec"], 1.0, 1.0, 1.0]
    groups = [
        {"params": [weight], "lr": args.learning_rate * rate} for weight, rate in zip(weights, rates, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999), fused=True)

    def step(acts: torch.Tensor) -> float:
        optimizer.zero_grad()
        pre_acts = ((acts - b_dec) @ W_enc.T + b_enc).relu()
        kept = pre_acts.flatten().topk(args.k * len(acts), sorted=False)
        latents = torch.zeros_like(pre_acts).flatten().scatter(0, kept.indices, kept.values).view_as(pre_acts)
        loss = (acts - latents @ W_dec - b_dec).square().sum() / len(acts)
        loss.backward()
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad.addcmul_(W_dec, -(W_dec.grad * W_dec).sum(1, keepdim=True))
            torch.nn.utils.clip_grad_norm_(weights, GRADIENT_NORM)
            optimizer.step()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        return float(loss.detach())

    return step


def crosscoder_learning(args: argparse.Namespace, n_models: int) -> Step:
    """crosscoder_learning's BatchTopK trainer. It starts from a geometric median, in its first step."""
    from dictionary_learning.trainers.crosscoder import BatchTopKCrossCoderTrainer

    trainer = BatchTopKCrossCoderTrainer(
        steps=NEVER,
        activation_dim=args.d_in,
        dict_size=args.d_sae,
        k=args.k,
        layer=0,
        lm_name="planted",
        num_layers=n_models,
        lr=args.learning_rate,
        warmup_steps=0,
        device=args.device,
        seed=0,
    )
    trainer.dead_feature_threshold = NEVER
    numbers = iter(range(NEVER))
    return lambda acts: trainer.update(next(numbers), acts.view(len(acts), n_models, args.d_in))


STEPS = {"ours": ours, "dense": dense, "crosscoder_learning": crosscoder_learning}


def planted_batches(args: argparse.Namespace, n_models: int) -> "list[Tensor]":
    """Activations that sparse features write into all models, with a mean square of about 1 per dimension."""
    import torch

    random = torch.Generator().manual_seed(1)
    directions = torch.randn(args.d_sae // 4, n_models * args.d_in, generator=random)
    batches = []
    for _ in range(POOL):
        features = torch.randint(len(directions), (args.batch_tokens, PLANTED_PER_TOKEN), generator=random)
        strengths = torch.rand(features.shape, generator=random)
        written = torch.nn.functional.embedding_bag(features, directions, mode="sum", per_sample_weights=strengths)
        noise = NOISE * torch.randn(written.shape, generator=random)
        batches.append((written * (3 / PLANTED_PER_TOKEN) ** 0.5 + noise).to(args.device))
    return batches


def run_contender(name: str, args: argparse.Namespace) -> dict:
    """Train with one contender and measure it."""
    import numpy as np
    import torch

    from saelineage.jobs.devices import prepare_cpu

    if name.startswith("ours"):
        prepare_cpu(args.threads)  # as the workflow's jobs do
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n_models = CONTENDERS[name] or args.models
    batches = planted_batches(args, n_models)
    step = STEPS[name.split()[0]](args, n_models)
    times, cpu_times, losses, memory = [], [], [], PeakMemory()
    memory.start()
    for number in range(UNTIMED_STEPS + args.steps):
        acts = batches[number % POOL].clone()  # some contenders change it
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(step(acts))
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    return {
        "tokens_per_s": args.batch_tokens / float(np.median(times[UNTIMED_STEPS:])),
        "tokens_per_cpu_s": args.batch_tokens / float(np.median(cpu_times[UNTIMED_STEPS:])),
        "step_s": float(np.median(times[UNTIMED_STEPS:])),
        "fastest_step_s": min(times[UNTIMED_STEPS:]),
        "cpu_step_s": float(np.median(cpu_times[UNTIMED_STEPS:])),
        "peak_own_gb": memory.stop() / 1e9,
        "losses": losses,
    }


def summarise(figures: dict[str, dict]) -> dict[str, float | None]:
    """Ratios of speeds, None without the peer, and the largest relative difference of the losses of ours and dense."""

    def ratio(name: str, other: str, figure: str = "tokens_per_s") -> float | None:
        return figures[name][figure] / figures[other][figure] if other in figures else None

    peer = "crosscoder_learning 2 models"
    losses = zip(figures["ours"]["losses"], figures["dense"]["losses"], strict=True)
    return {
        "dense_ratio": ratio("ours", "dense"),
        "dense_cpu_ratio": ratio("ours", "dense", "tokens_per_cpu_s"),
        "peer_ratio": ratio("ours 2 models", peer),
        "peer_cpu_ratio": ratio("ours 2 models", peer, "tokens_per_cpu_s"),
        "loss_difference": max(abs(a - b) / b for a, b in losses),
    }


def has_peer() -> bool:
    """True if crosscoder_learning is installed, and not dictionary-learning, whose package has the same name."""
    try:
        return importlib.util.find_spec(PEER_MODULE) is not None
    except ModuleNotFoundError:
        return False


def main() -> None:
    """Run every contender, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4, help="models of ours and dense")
    parser.add_argument("--d-in", type=int, default=1024, help="width of one model's activations")
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8, help="timed optimizer steps of each contender")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--precision", default="auto", help="as saes.precision, of ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--contender", choices=list(CONTENDERS), help="run this one alone, and print its figures")
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(run_contender(args.contender, args)))
        return
    figures = {}
    for name in CONTENDERS:
        if name.startswith("crosscoder_learning") and not has_peer():
            print("crosscoder_learning is not installed, so there is no peer_ratio", file=sys.stderr)
            continue
        command = [sys.executable, "-m", "benchmarks.crosscoder", *sys.argv[1:], "--contender", name]
        print(f"running {name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures[name] = json.loads(done.stdout.splitlines()[-1])
    summary = summarise(figures)
    columns = ("tokens_per_s", "tokens_per_cpu_s", "step_s", "fastest_step_s", "cpu_step_s", "peak_own_gb")
    print(f"{'':30}" + "".join(f"{column:>18}" for column in columns))
    for name, row in figures.items():
        print(f"{name:30}" + "".join(f"{row[column]:>18.4g}" for column in columns))
    for key, value in summary.items():
        print(f"{key:30}{'not measured' if value is None else format(value, '.4g')}")
    if args.json:
        args.json.write_text(json.dumps({"contenders": figures, **summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
