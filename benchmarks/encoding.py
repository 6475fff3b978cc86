"""Compare the speed of encoding with that of the dense computation.

    python -m benchmarks.encoding [--acts SHARD] [--json FILE]

Run it from the project's folder. The same activations are encoded by a plain implementation, which this file holds, and
by `saes.encoding`, in turn in one process. The activations are those of a shard of a dump, or random ones; the SAE is
random, with biases or thresholds for which l0 is as asked for. Tokens per second are those of CPU time (on a GPU, of
elapsed time). Both give the same latents, which is checked, and activations that differ by rounding alone.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelineage.activations import ActivationShard
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.precision import native_bf16
from saelineage.saes.encoding import ENCODED_VALUES, Encoder, encode_dense
from saelineage.saes.number_formats import fastest_format

ARCHITECTURES = ("topk", "relu", "jumprelu")  # a trained BatchTopK SAE is a jumprelu; gated ones are encoded densely
SAME_SHARE = 0.9999
"""Least share of entries that both must choose: pre-activations may tie within rounding."""


def plain(
    acts: Float[Tensor, "token d_in"], architecture: str, weights: dict[str, Tensor], k: int | None
) -> tuple[Int[Tensor, " entry"], Float[Tensor, " entry"]]:
    """The dense computation: all pre-activations, torch's topk, and the entries above zero. Entries token by token."""
    latents, values = [], []
    for chunk in acts.split(max(1, ENCODED_VALUES // weights["W_enc"].shape[1])):
        if k is not None:
            pre_acts = (chunk - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
            kept = pre_acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
            fires = (kept_acts := pre_acts.gather(1, kept)) > 0
            latents.append(kept[fires])
            values.append(kept_acts[fires])
        else:
            latent_acts = encode_dense(chunk, architecture, weights, None)
            token, latent = latent_acts.nonzero(as_tuple=True)
            latents.append(latent)
            values.append(latent_acts[token, latent])
    return torch.cat(latents), torch.cat(values)


def planted_weights(architecture: str, acts: Float[Tensor, "token d_in"], d_sae: int, l0: int) -> dict[str, Tensor]:
    """A random SAE that has about `l0` active latents on a token."""
    random = torch.Generator().manual_seed(0)
    W_enc = torch.randn(acts.shape[1], d_sae, generator=random) / acts.shape[1] ** 0.5
    weights = {"W_enc": W_enc, "b_enc": torch.zeros(d_sae), "b_dec": acts.mean(0)}
    some = acts[:256]
    edge = ((some - weights["b_dec"]) @ W_enc).flatten().topk(l0 * len(some)).values.min()
    if architecture == "relu":
        weights["b_enc"] -= edge
    if architecture == "jumprelu":
        weights["threshold"] = edge.expand(d_sae).contiguous()
    return weights


def tokens_per_s(run: Callable[[], object], n_tokens: int, device: torch.device) -> float:
    """Tokens per second of CPU time, or of elapsed time on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        run()
        return n_tokens / (time.process_time() - start)
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return n_tokens / (time.perf_counter() - start)


@torch.inference_mode()
def compare(architecture: str, acts: Float[Tensor, "token d_in"], args: argparse.Namespace) -> dict:
    """Encode in both ways several times, in turn, and check that they agree; speeds are medians."""
    device = torch.device(args.device)
    weights = {name: of.to(device) for name, of in planted_weights(architecture, acts, args.d_sae, args.l0).items()}
    acts, k = acts.to(device), args.l0 if architecture == "topk" else None
    encoder = Encoder(architecture, weights, k, args.format)
    product, centred = torch.empty(len(acts), args.d_sae, device=device), acts - weights["b_dec"]
    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(acts, architecture, weights, k),
        "ours": lambda: encoder.encode(acts),
        "product": lambda: torch.mm(centred, weights["W_enc"], out=product),
    }
    ours, (latents, values) = encoder.encode(acts), plain(acts, architecture, weights, k)
    same = len(latents) == len(ours.indices) and float((ours.indices == latents).double().mean())
    if not same >= SAME_SHARE:
        raise SystemExit(f"{architecture}: both ways must choose the same latents, but {same:.2%} of entries are")
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            speeds[name].append(tokens_per_s(run, len(acts), device))
    ratios = sorted(ours / plain for ours, plain in zip(speeds["ours"], speeds["plain"], strict=True))
    medians = {name: sorted(of)[len(of) // 2] for name, of in speeds.items()}
    return {
        "l0": len(latents) / len(acts),
        **{f"{name}_tokens_per_s": speed for name, speed in medians.items()},
        "ratio": ratios[len(ratios) // 2],
        "ratio_least": ratios[0],
        "ratio_most": ratios[-1],
        "share_of_product": medians["ours"] / medians["product"],
        "same_entries": same,
        "largest_difference": float((ours.values - values).abs().max()) if same == 1 else None,
    }


def read_acts(path: Path | None, n_tokens: int, d_in: int) -> Float[Tensor, "token d_in"]:
    """The first activations of a shard, or random ones."""
    if path is None:
        return torch.randn(n_tokens, d_in, generator=torch.Generator().manual_seed(1))
    return next(iter(ActivationShard(path).chunks(n_tokens)))


def main() -> None:
    """Compare every architecture, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acts", type=Path, help="a shard of a dump; random activations by default")
    parser.add_argument("--d-in", type=int, default=1024, help="width of random activations")
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--format", choices=["float32", "bfloat16", "int16"], help="of our product; by default the fastest"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    prepare_cpu(args.threads)
    acts = read_acts(args.acts, args.tokens, args.d_in)
    device = pick_device(int(args.device == "cuda"))  # with the settings of a job
    if device.type != args.device:
        raise SystemExit("there is no GPU that torch can use, see above; measure with --device cpu")
    figures: dict = {
        "d_in": acts.shape[1],
        "d_sae": args.d_sae,
        "device": args.device,
        "native_bf16": native_bf16(device),
        "format": args.format or fastest_format(acts.shape[1], args.d_sae, device),
    }
    figures["architectures"] = {name: compare(name, acts, args) for name in ARCHITECTURES}
    if args.device == "cuda":
        figures["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    print_table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def print_table(figures: dict) -> None:
    """Print all figures."""
    print(", ".join(f"{name} {value}" for name, value in figures.items() if name != "architectures"))
    columns = ("l0", "plain_tokens_per_s", "ours_tokens_per_s", "product_tokens_per_s", "ratio", "share_of_product")
    print(f"{'':10}" + "".join(f"{column:>22}" for column in columns))
    for name, row in figures["architectures"].items():
        print(f"{name:10}" + "".join(f"{row[column]:>22.4g}" for column in columns))


if __name__ == "__main__":
    main()
