"""Time the correlation of features, compared with dense products and with the original study's code.

    python -m benchmarks.correlations [--json FILE]

Latents are drawn at random with realistic densities (log-normal, so that a few features fire often and most rarely), l0
of them on each token, some shared by both sides. Every method gets the same latents. The dense method multiplies blocks
of float32 latents in torch. The original method (nilq/feature-dynamics) tabulates mean activations by token string and
calls a Pearson function on each pair of columns. Both are timed on a part and extrapolated. This project is timed as a
whole, as the workflow's jobs do it in one process: reading feature shards, summing, correlating, matching.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import scipy.sparse
import scipy.stats
from benchmarks.peak_memory import PeakMemory

from saelineage.correlations.assignments import one_to_one
from saelineage.correlations.matches import Correlation
from saelineage.correlations.pair_sums import all_sums
from saelineage.correlations.partners import Partner
from saelineage.correlations.pearson import correlate_sums
from saelineage.features.shards import FeatureShard, save_shard

T = TypeVar("T")
MIN_FIRINGS, TOP_MATCHES, KEEP_ABOVE, N_BINS = 20, 8, 0.3, 200
DENSITY_SIGMA = 1.5
"""Standard deviation of a feature's log density."""
SHARED = 0.75
"""Share of a token's latents that both sides have in common, with similar activations."""
SHARD_TOKENS, CHECKED_COLUMNS = 262_144, 64
DENSE_TOKENS, ORIGINAL_TOKENS, ORIGINAL_STRINGS, ORIGINAL_PAIRS = 4096, 200_000, 4096, 2000


def draw_shard(shard: int, args: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw latents [token, l0] and activations [token, l0] of both sides."""
    densities = np.exp(np.random.default_rng(7).normal(0, DENSITY_SIGMA, args.d_sae))
    ends = np.cumsum(densities / densities.sum())
    common = np.random.default_rng([shard, 0])
    n_shared = int(args.l0 * SHARED)
    shared = np.searchsorted(ends, common.random((SHARD_TOKENS, n_shared)))
    strengths = common.random((SHARD_TOKENS, n_shared), dtype=np.float32) + 0.1
    sides = []
    for side in range(2):
        random = np.random.default_rng([shard, 1 + side])
        latents = np.concatenate([shared, np.searchsorted(ends, random.random((SHARD_TOKENS, 2 * args.l0)))], axis=1)
        acts = np.concatenate([strengths, random.random((SHARD_TOKENS, 2 * args.l0), dtype=np.float32) + 0.1], axis=1)
        latents, acts = first_distinct(latents.clip(max=args.d_sae - 1), acts, args.l0)
        sides.append((latents, acts * (1 + 0.1 * random.random(acts.shape, dtype=np.float32))))
    return sides


def first_distinct(latents: np.ndarray, acts: np.ndarray, l0: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first l0 distinct latents of each row, ascending, with their activations."""
    order = np.argsort(latents, axis=1, kind="stable")
    ranked = np.take_along_axis(latents, order, 1)
    again = np.zeros(latents.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
    first = np.argsort(again, axis=1, kind="stable")[:, :l0]
    chosen = np.take_along_axis(latents, first, 1)
    by_latent = np.argsort(chosen, axis=1)
    places = np.take_along_axis(first, by_latent, 1)
    return np.take_along_axis(chosen, by_latent, 1), np.take_along_axis(acts, places, 1)


def write_shards(folder: Path, n_shards: int, args: argparse.Namespace) -> None:
    """Write feature shards of both sides."""
    for shard in range(n_shards):
        for side, (latents, acts) in zip("ab", draw_shard(shard, args), strict=True):
            first = shard * SHARD_TOKENS
            positions = first + np.arange(SHARD_TOKENS)
            tokens = {"ids_sha256": "0" * 64, "first_row": first, "stop_row": first + SHARD_TOKENS, "n_ctx": 1}
            header = {"model": side, "sae": "seed0", "corpus": "drawn", "d_sae": args.d_sae} | tokens
            indptr = np.arange(0, latents.size + 1, args.l0)
            compared = np.ones(SHARD_TOKENS, dtype=bool)
            save_shard(
                shard_path(folder, side, shard), indptr, latents.ravel(), acts.ravel(), positions, compared, header
            )


def shard_path(folder: Path, side: str, shard: int) -> Path:
    """The path of a shard."""
    return folder / side / f"shard-{shard:05d}.safetensors"


def correlated(folder: Path, shards: range, args: argparse.Namespace, threads: int) -> tuple[Correlation, dict]:
    """Correlate some shards as the workflow does; the seconds and CPU-seconds of reading and of all."""
    start, cpu_start = time.perf_counter(), time.process_time()
    paths = [(str(shard_path(folder, "a", shard)), str(shard_path(folder, "b", shard))) for shard in shards]
    sums = all_sums(Partner("b.seed0", False, paths).shards())
    read, cpu_read = time.perf_counter(), time.process_time()
    correlation = correlate_sums(
        sums,
        min_firings=MIN_FIRINGS,
        top_matches=TOP_MATCHES,
        keep_above=KEEP_ABOVE,
        n_bins=N_BINS,
        block_features=args.block_features,
        threads=threads,
    )
    ended, cpu_ended = time.perf_counter(), time.process_time()
    times = {"read_s": read - start, "correlate_s": ended - read, "whole_s": ended - start}
    cpu = {"read_cpu_s": cpu_read - cpu_start, "correlate_cpu_s": cpu_ended - cpu_read}
    return correlation, times | cpu | {"whole_cpu_s": cpu_ended - cpu_start}


def run_ours(folder: Path, n_shards: int, args: argparse.Namespace, check: bool) -> dict:
    """Correlate some shards, measure time and memory, and check the result."""
    memory = PeakMemory()
    memory.start()
    correlation, times = correlated(folder, range(n_shards), args, args.threads)
    peak = memory.stop()
    start = time.perf_counter()
    one_to_one(correlation.pearson.kept)
    row = {
        "tokens": n_shards * SHARD_TOKENS,
        **times,
        "tokens_per_s": n_shards * SHARD_TOKENS / times["whole_s"],
        "tokens_per_cpu_s": n_shards * SHARD_TOKENS / times["whole_cpu_s"],
        "peak_gib": peak / 2**30,
        "one_to_one_s": time.perf_counter() - start,
        "n_kept": correlation.pearson.kept.nnz,
        "n_assigned": int((correlation.one_to_one >= 0).sum()),
    }
    return row | (exactness(folder, n_shards, correlation, args) if check else {})


def whole_s(folder: Path, shard: int, args: argparse.Namespace) -> float:
    """The seconds of correlating one shard on one thread."""
    return correlated(folder, range(shard, shard + 1), args, 1)[1]["whole_s"]


def exactness(folder: Path, n_shards: int, correlation: Correlation, args: argparse.Namespace) -> dict:
    """Find the largest difference of r from products of dense float64 columns, centred before the product."""
    columns = np.random.default_rng(0).choice(args.d_sae, CHECKED_COLUMNS, replace=False)
    shards = [[FeatureShard(shard_path(folder, side, shard)).latents for side in "ab"] for shard in range(n_shards)]
    n_tokens = n_shards * SHARD_TOKENS
    a = scipy.sparse.vstack([pair[0] for pair in shards], format="csc").astype(np.float64)
    b = np.concatenate([pair[1][:, columns].toarray().astype(np.float64) for pair in shards])
    b -= b.mean(axis=0)
    mean = np.asarray(a.sum(axis=0)).ravel() / n_tokens
    squares = np.asarray(a.multiply(a).sum(axis=0)).ravel() - n_tokens * mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a.T @ b) / np.sqrt(np.outer(squares, (b**2).sum(axis=0)))
    r[~correlation.testable[0]] = np.nan
    largest, n = 0.0, 0
    for number, column in enumerate(columns):
        if not correlation.testable[1][column]:
            continue
        kept = correlation.pearson.kept[:, [column]].tocoo()
        rows = np.concatenate([kept.row, correlation.pearson.partners[1][column]])
        values = np.concatenate([kept.data, correlation.pearson.best[1][column]])
        largest = max(largest, float(np.abs(r[rows[rows >= 0], number] - values[rows >= 0]).max(initial=0)))
        n += int((rows >= 0).sum())
        best = np.sort(r[np.isfinite(r[:, number]), number])[::-1][:TOP_MATCHES]
        largest = max(largest, float(np.abs(best - correlation.pearson.best[1][column][: len(best)]).max(initial=0)))
    return {"largest_error": largest, "n_checked": n}


def processes_ratio(folder: Path, args: argparse.Namespace) -> float:
    """Speed of two processes over that of one, at correlating four shards with a thread each."""
    context = multiprocessing.get_context("spawn")
    times = []
    for n_processes in (1, 2):
        with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
            list(pool.map(whole_s, [folder] * 2, range(2), [args] * 2))  # start, compile
            start = time.perf_counter()
            list(pool.map(whole_s, [folder] * 4, range(4), [args] * 4))
            times.append(time.perf_counter() - start)
    return times[0] / times[1]


def dense_tokens_per_s(args: argparse.Namespace) -> tuple[float, float]:
    """Tokens per second and per CPU-second of products in torch, of latents that are dense float32 beforehand."""
    import torch

    torch.set_num_threads(args.threads)
    a, b = (
        torch.from_numpy(
            scipy.sparse.csr_array(
                (acts[:DENSE_TOKENS].ravel(), latents[:DENSE_TOKENS].ravel(), np.arange(DENSE_TOKENS + 1) * args.l0),
                shape=(DENSE_TOKENS, args.d_sae),
            ).toarray()
        )
        for latents, acts in draw_shard(0, args)
    )
    sums = torch.zeros(args.d_sae, args.d_sae)
    start, cpu_start = time.perf_counter(), time.process_time()
    for rows in range(0, args.d_sae, args.block_features):
        block = slice(rows, rows + args.block_features)
        sums[block].addmm_(a[:, block].T, b)
    return DENSE_TOKENS / (time.perf_counter() - start), DENSE_TOKENS / (time.process_time() - cpu_start)


def original_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Time the original method: mean activations by token string, then Pearson r of each pair over common strings."""
    import pandas as pd

    strings = np.random.default_rng(0).zipf(1.2, ORIGINAL_TOKENS) % ORIGINAL_STRINGS
    start = time.perf_counter()
    tables = []
    for latents, acts in draw_shard(0, args):
        n = min(ORIGINAL_TOKENS, len(latents))
        fired = pd.DataFrame(
            {
                "string": np.repeat(strings[:n], args.l0),
                "feature": latents[:n].ravel(),
                "activation": acts[:n].ravel(),
            }
        )
        tables.append(fired.pivot_table(index="string", columns="feature", values="activation", aggfunc="mean"))
    tabulated = time.perf_counter() - start
    strings_of_both = tables[0].index.intersection(tables[1].index)
    a, b = (table.loc[strings_of_both] for table in tables)
    random = np.random.default_rng(1)
    pairs = zip(random.choice(a.columns, ORIGINAL_PAIRS), random.choice(b.columns, ORIGINAL_PAIRS), strict=True)
    start = time.perf_counter()
    for latent_a, latent_b in pairs:
        both = a[latent_a].notna() & b[latent_b].notna()
        if both.sum() >= 2:
            scipy.stats.pearsonr(a.loc[both, latent_a], b.loc[both, latent_b])
    per_pair = (time.perf_counter() - start) / ORIGINAL_PAIRS
    return {"tabulate_s_per_token": tabulated / n, "s_per_pair": per_pair}


def bandwidth() -> float:
    """Bytes per second that one thread reads from memory."""
    values = np.ones(1 << 27)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        values.sum()
        times.append(time.perf_counter() - start)
    return values.nbytes / min(times)


def in_child(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process, so that its memory can be measured."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Run every method, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4, help=f"number of shards of {SHARD_TOKENS} tokens, at least 4")
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--block-features", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, args.shards, args)
        features_bytes = sum(path.stat().st_size for path in folder.glob("?/*.safetensors"))
        in_child(run_ours, folder, 1, args, False)  # compile
        sizes = [args.shards // 4, args.shards // 2, args.shards]
        rows = [in_child(run_ours, folder, n, args, n == args.shards) for n in sizes]
        two = processes_ratio(folder, args)
    whole, n_tokens = rows[-1], rows[-1]["tokens"]
    (dense, dense_by_cpu), original = in_child(dense_tokens_per_s, args), in_child(original_seconds, args)
    original_s = n_tokens * original["tabulate_s_per_token"] + args.d_sae**2 * original["s_per_pair"]
    summary = {
        "dense_tokens_per_s": dense,
        "dense_ratio": whole["tokens_per_s"] / dense,
        "dense_ratio_cpu": whole["tokens_per_cpu_s"] / dense_by_cpu,
        "original_hours": original_s / 3600,
        "original_ratio": original_s / whole["whole_s"],
        "peak_gib": max(row["peak_gib"] for row in rows),
        "two_processes_ratio": two,
        "one_to_one_s": whole["one_to_one_s"],
        "dump_ratio": 2 * n_tokens * args.d_sae * 2 / features_bytes,
        "floor_s": features_bytes / bandwidth(),
        "largest_error": whole["largest_error"],
        "n_checked": whole["n_checked"],
    }
    times = ("read_s", "read_cpu_s", "correlate_s", "correlate_cpu_s", "whole_s", "whole_cpu_s")
    columns = ("tokens", *times, "tokens_per_s", "peak_gib")
    print("".join(f"{column:>17}" for column in columns))
    for row in rows:
        print("".join(f"{row[column]:>17.4g}" for column in columns))
    for key, value in summary.items():
        print(f"{key:28}{value:.4g}")
    if args.json:
        args.json.write_text(json.dumps({"ours": rows, **original, **summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
