"""Train SAEs with SAELens and with this project on SynthSAEBench's activations, and measure each SAE with both.

    python -m benchmarks.synth_sae_bench [--full --device cuda] [--json FILE]

SynthSAEBench (Chanin & Garriga-Alonso, arXiv 2602.14687) draws activations from known directions that fire with
hierarchy, exclusion and correlations. SAELens makes them here from a seed, without a network. The reduced form has 512
directions and takes minutes on a CPU; `--full` has the published sizes, for a GPU. All SAEs see the same batches in the
same order, with the same k, learning rate and batch; everything else is each library's own default. Run it in a
separate environment with this project (`pip install -e .`) and benchmarks/requirements.txt.

GT-MCC is the mean absolute cosine of decoder rows and true directions over a one-to-one assignment. SAELens measures
the SAE that it reads from the saved folder, on the same tokens.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelineage.correlations.decoders import assigned_cosines, mean_correlation
from saelineage.saes.batches import SCALE_TOKENS, measure_scaling
from saelineage.saes.metrics import SaeSums, dead_fraction, fvu, l0, reconstruction_sums
from saelineage.saes.sae import Sae, load_sae, save_sae
from saelineage.saes.trainer import SaeTrainer
from saelineage.saes.training import THRESHOLD_BATCHES, fold_scale

LIBRARIES, SEEDS, GROUPS = ("SAELens", "ours"), (0, 1), ("identified", "others")
MODEL_SEED, SCALING_SEED, TRAINING_SEED, THRESHOLD_SEED, EVALUATION_SEED = 42, 1, 2, 3, 4
SAME_FEATURE = 0.8
"""Pearson r from which two latents, or a latent and a true feature, count as the same."""


class Size(NamedTuple):
    """Sizes of the synthetic model and of the training."""

    n_features: int
    n_roots: int
    d_in: int
    d_sae: int
    k: int
    n_tokens: int
    n_evaluated: int
    learning_rate: float
    dead_after_steps: int
    batch_tokens: int = 1024


REDUCED = Size(512, 4, 128, 256, 4, 512_000, 51_200, 3e-3, 100)
FULL = Size(16_384, 128, 768, 4_096, 25, 200_000_000, 500_000, 3e-4, 1_000)
"""SynthSAEBench-16k with the training that its authors recommend."""


class Contender(NamedTuple):
    """An SAE in training."""

    step: Callable[[Tensor], object]
    """Takes a batch of activations."""
    save: Callable[[Path], None]
    """Writes the trained SAE as a SAELens folder."""


def synthetic_model(size: Size, device: str) -> Any:
    """SAELens's synthetic model, with the published settings for everything but the sizes."""
    from sae_lens import synthetic

    config = synthetic.SyntheticModelConfig(
        num_features=size.n_features,
        hidden_dim=size.d_in,
        firing_probability=synthetic.ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=synthetic.HierarchyConfig(
            total_root_nodes=size.n_roots,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        orthogonalization=synthetic.OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=synthetic.LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=synthetic.LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=synthetic.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=MODEL_SEED,
    )
    return synthetic.SyntheticModel(config, device=device)


def batches(model: Any, n_tokens: int, batch_tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield activations and the true features behind them; the same for the same arguments.

    Training between two batches must draw no random numbers.
    """
    torch.manual_seed(seed)
    for first in range(0, n_tokens, batch_tokens):
        yield model.sample_with_features(min(batch_tokens, n_tokens - first))


def saelens(size: Size, seed: int, device: str) -> Contender:
    """SAELens's BatchTopK SAE, trained as its runner for synthetic data trains it."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig
    from sae_lens.synthetic import SyntheticSAERunnerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    config = BatchTopKTrainingSAEConfig(k=size.k, d_in=size.d_in, d_sae=size.d_sae, device=device)
    runner = SyntheticSAERunnerConfig(
        synthetic_model="",
        sae=config,
        training_samples=size.n_tokens,
        batch_size=size.batch_tokens,
        lr=size.learning_rate,
        device=device,
        dead_feature_window=size.dead_after_steps,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae = BatchTopKTrainingSAE(config)
    trainer = SAETrainer(runner.to_sae_trainer_config(), sae, iter([]))
    return Contender(trainer.step, lambda folder: sae.save_inference_model(str(folder)))


def ours(size: Size, seed: int, device: str, model: Any) -> Contender:
    """This project's BatchTopK SAE, trained as the workflow trains it."""
    settings = {
        "architecture": "batchtopk",
        "expansion_factor": size.d_sae / size.d_in,
        "k": size.k,
        "sparsity_coefficient": 0.0,
        "target_l0": None,
        "sparsity_warmup_fraction": 0.0,
        "aux_coefficient": 1 / 32,
        "dead_after_tokens": size.dead_after_steps * size.batch_tokens,
        "resample_every_tokens": None,
        "learning_rate": size.learning_rate,
        "adam_betas": [0.9, 0.999],
        "warmup_fraction": 0.0,
        "decay_fraction": 0.0,
        "precision": "float32",
        "seed": seed,
    }
    scaling = measure_scaling(next(batches(model, SCALE_TOKENS, SCALE_TOKENS, SCALING_SEED))[0].cpu())
    trainer = SaeTrainer(settings, scaling.mean * scaling.scale, size.n_tokens // size.batch_tokens, device)

    def save(folder: Path) -> None:
        drawn = batches(model, THRESHOLD_BATCHES * size.batch_tokens, size.batch_tokens, THRESHOLD_SEED)
        smallest = [trainer.smallest_kept(acts * scaling.scale) for acts, _ in drawn]
        threshold = float(np.mean([value for value in smallest if value is not None]))
        weights = {name: tensor.detach().cpu() for name, tensor in trainer.weights.items()}
        sae = trainer.objective.trained(weights, threshold)
        fold_scale(sae, scaling.scale)
        save_sae(sae, folder, {})

    return Contender(lambda acts: trainer.step(acts * scaling.scale), save)


def train(model: Any, size: Size, folder: Path, device: str) -> dict[tuple[str, int], float]:
    """Train all SAEs on the same batches and save them; returns tokens per second of each one's steps."""
    contenders = {}
    for seed in SEEDS:
        contenders["SAELens", seed] = saelens(size, seed, device)
        contenders["ours", seed] = ours(size, seed, device, model)
    seconds = dict.fromkeys(contenders, 0.0)
    n_tokens = size.n_tokens // size.batch_tokens * size.batch_tokens
    for acts, _ in batches(model, n_tokens, size.batch_tokens, TRAINING_SEED):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender.step(acts)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name] += time.perf_counter() - start
    for name, contender in contenders.items():
        contender.save(folder_of(folder, *name))
    return {name: n_tokens / spent for name, spent in seconds.items()}


def folder_of(folder: Path, library: str, seed: int) -> Path:
    """The folder of one SAE."""
    return folder / f"{library}-{seed}"


@torch.no_grad()
def measure(model: Any, saes: Mapping[tuple[str, int], Sae], size: Size) -> dict[tuple[str, int], dict]:
    """This project's metrics of SAEs."""
    sums, n_active = dict.fromkeys(saes, SaeSums()), 0
    for acts, features in batches(model, size.n_evaluated, size.batch_tokens, EVALUATION_SEED):
        n_active += int((features > 0).sum())
        for name, sae in saes.items():
            latents = sae.encode_sparse(acts)
            of_batch = reconstruction_sums(acts.cpu(), sae.decode_sparse(latents).cpu(), latents, sae.d_sae)
            sums[name] = sums[name].add(of_batch)
    return {
        name: {
            "gt_mcc": gt_mcc(rows_of(saes[name]), rows_of(model.feature_dict)),
            "explained_variance": 1 - (fvu(of_sae) or 0.0),
            "l0": l0(of_sae),
            "dead_share": dead_fraction(of_sae),
            "true_l0": n_active / of_sae.moments.n,
        }
        for name, of_sae in sums.items()
    }


def measure_in_saelens(model: Any, folder: Path, size: Size, device: str) -> dict:
    """SAELens's metrics of the SAE in a folder, on the same tokens."""
    from sae_lens import SAE
    from sae_lens.synthetic import eval_sae_on_synthetic_data

    sae = SAE.load_from_disk(str(folder), device=device)
    torch.manual_seed(EVALUATION_SEED)
    found = eval_sae_on_synthetic_data(
        sae, model.feature_dict, model.activation_generator, size.n_evaluated, size.batch_tokens
    )
    return {
        "gt_mcc": found.mcc,
        "explained_variance": found.explained_variance,
        "l0": found.sae_l0,
        "dead_share": found.dead_latents / size.d_sae,
        "true_l0": found.true_l0,
        "f1": found.classification.f1_score,
        "uniqueness": found.uniqueness,
    }


def gt_mcc(rows: Float[np.ndarray, "d_sae d_in"], directions: Float[np.ndarray, "feature d_in"]) -> float | None:
    """Mean absolute cosine of decoder rows and true directions over their one-to-one assignment."""
    most = max(len(rows), len(directions))
    return mean_correlation(assigned_cosines(rows, directions, signed=False, max_latents=most))


def rows_of(part: Any) -> Float[np.ndarray, "row d_in"]:
    """Decoder rows of an SAE, or the true directions of SAELens's feature dictionary."""
    weights = part.W_dec if isinstance(part, Sae) else part.feature_vectors
    return weights.detach().cpu().numpy()


@torch.no_grad()
def correlations(pairs: Iterator[tuple[Tensor, Tensor]]) -> Float[Tensor, "a b"]:
    """Pearson r of each column of the left side with each of the right one, over all batches.

    It is 0 for columns that do not vary.
    """
    n, sums = 0, [torch.zeros(1, dtype=torch.float64)] * 5
    for pair in pairs:
        a, b = (side.double() for side in pair)
        added = (a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0), a.T @ b)
        sums = [part.cpu() + total for part, total in zip(added, sums, strict=True)]
        n += len(a)
    sum_a, sum_b, square_a, square_b, products = sums
    spread_a, spread_b = (n * square_a - sum_a**2).sqrt(), (n * square_b - sum_b**2).sqrt()
    return ((n * products - torch.outer(sum_a, sum_b)) / torch.outer(spread_a, spread_b)).nan_to_num(0.0, 0.0, 0.0)


def identified_shares(identified: Bool[Tensor, " latent"], true: Bool[Tensor, " latent"]) -> dict:
    """The share of latents that are a true feature, among identified ones and among the others, each with its n."""
    shares = {}
    for name, group in zip(GROUPS, (identified, ~identified), strict=True):
        n = int(group.sum())
        shares[name] = {"n": n, "true_share": float(true[group].double().mean()) if n else None}
    return shares


def recurrence(model: Any, saes: Sequence[Sae], size: Size) -> dict:
    """Of one library's SAEs of two seeds: PW-MCC, and whether the first one's latents that recur are true features."""
    first, second = saes
    drawn = batches(model, size.n_evaluated, size.batch_tokens, EVALUATION_SEED)
    r = correlations((first.encode(acts), torch.cat([second.encode(acts), true], 1)) for acts, true in drawn)
    identified, true = (part.amax(1) >= SAME_FEATURE for part in (r[:, : size.d_sae], r[:, size.d_sae :]))
    return {
        "pw_mcc": mean_correlation(assigned_cosines(rows_of(first), rows_of(second), max_latents=size.d_sae)),
        "agreement": float(identified.double().mean()),
        **identified_shares(identified, true),
    }


def run(size: Size, device: str) -> dict:
    """Train, measure and compare."""
    model = synthetic_model(size, device)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        speeds = train(model, size, folder, device)
        saes = {name: load_sae(folder_of(folder, *name)).to(device) for name in speeds}
        here = measure(model, saes, size)
        rows: list[dict[str, Any]] = [
            {
                **{"library": name[0], "seed": name[1], "tokens_per_s": speed, "here": here[name]},
                "there": measure_in_saelens(model, folder_of(folder, *name), size, device),
            }
            for name, speed in speeds.items()
        ]
    of_library = {name: [saes[name, seed] for seed in SEEDS] for name in LIBRARIES}
    return {
        "size": size._asdict(),
        "saes": rows,
        "largest_difference": {
            metric: max(abs(row["here"][metric] - row["there"][metric]) for row in rows) for metric in rows[0]["here"]
        },
        "ratios": ratios(rows),
        "recurrence": {name: recurrence(model, of_seeds, size) for name, of_seeds in of_library.items()},
    }


def ratios(rows: Sequence[dict]) -> dict[str, float]:
    """Our SAEs' figures divided by SAELens's SAEs', each the mean over seeds, all measured by SAELens."""
    means = {}
    for library in LIBRARIES:
        of_library = [row["there"] | {"tokens_per_s": row["tokens_per_s"]} for row in rows if row["library"] == library]
        means[library] = {key: sum(row[key] for row in of_library) / len(of_library) for key in of_library[0]}
    metrics = ("gt_mcc", "explained_variance", "f1", "uniqueness", "l0", "tokens_per_s")
    return {metric: means["ours"][metric] / means["SAELens"][metric] for metric in metrics}


def print_table(found: dict) -> None:
    """Print all figures."""
    columns = ("gt_mcc", "explained_variance", "l0", "dead_share", "f1", "uniqueness")
    print(f"{'trained by':12}{'seed':>5}  {'measured by':12}" + "".join(f"{name:>20}" for name in columns))
    for row in found["saes"]:
        for by, figures in (("SAELens", row["there"]), ("ours", row["here"])):
            shown = "".join(f"{figures[name]:>20.6f}" if name in figures else f"{'':>20}" for name in columns)
            print(f"{row['library']:12}{row['seed']:>5}  {by:12}{shown}")
    for name in ("largest_difference", "ratios"):
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in found[name].items()))
    for library, figures in found["recurrence"].items():
        groups = (f"{percent(figures[name]['true_share'])} of {figures[name]['n']} {name}" for name in GROUPS)
        print(
            f"{library}, two seeds: PW-MCC {figures['pw_mcc']:.3f}, agreement {percent(figures['agreement'])}; "
            f"a true feature at r >= {SAME_FEATURE}: {', '.join(groups)}"
        )


def percent(share: float | None) -> str:
    """A share in percent."""
    return "none" if share is None else f"{share:.1%}"


def main() -> None:
    """Print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the published sizes: hours on a GPU")
    parser.add_argument("--tokens", type=int, help="training tokens, instead of the size's own")
    parser.add_argument("--learning-rate", type=float, help="learning rate of all SAEs, instead of the size's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    # SAELens imports torchvision if it is installed, and fails if its build does not match torch's.
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # None makes imports fail, as Python documents
    torch.set_num_threads(args.threads)
    size = FULL if args.full else REDUCED
    if args.tokens:
        size = size._replace(n_tokens=args.tokens)
    if args.learning_rate:
        size = size._replace(learning_rate=args.learning_rate)
    found = run(size, args.device)
    print_table(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
