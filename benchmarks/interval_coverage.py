"""Measure how often intervals over documents hold the truth, on drawn documents of which the truth is known.

    python -m benchmarks.interval_coverage [--simulations N] [--json FILE]

Pairs of features with known r fire together in drawn documents; documents differ in how often they fire and how
strongly. Every simulation draws all documents anew, computes the share of pairs with r >= 0.8 and its interval, and the
interval of each pair's r, with the workflow's own functions. Two intervals are compared:

    before    percentiles of the replicates (`bootstrap.percentile_interval`)
    after     the workflow's (`bootstrap.centred_interval`, `bootstrap.feature_intervals`)

A share has two truths. *expected* is the share that as many other documents give on average; *limit* is the share that
endless documents would give. They differ where many features are near the threshold, because r over few documents
varies. *own* counts the intervals that hold the share that they are the interval of. `bounds` are those of
`bootstrap.share_bounds`, which are for the limit.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float

from saelineage.correlations.bootstrap import (
    DocumentSums,
    Replicates,
    bootstrap,
    centred_interval,
    feature_intervals,
    percentile_interval,
    replicate_shares,
    resampled_r,
    share_bounds,
)
from saelineage.files.atomic import write_json

THRESHOLD, N_REPLICATES = 0.8, 200
N_PAIRS, DOCUMENT_TOKENS = 200, 400
N_SIMULATIONS = 100
DOCUMENTS = (20, 200)
TRUTHS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "spread": lambda random: random.uniform(0.2, 1.0, N_PAIRS),
    "high": lambda random: 1 - 0.3 * random.beta(1, 3, N_PAIRS),
    "near": lambda random: np.clip(random.normal(0.78, 0.03, N_PAIRS), -1.0, 1.0),
    "all at 0.78": lambda random: np.full(N_PAIRS, 0.78),
    "all at 0.82": lambda random: np.full(N_PAIRS, 0.82),
}
"""Distributions of the true r."""
FIRINGS = {"alike": (6.0, 0.3), "unlike": (6.0, 1.0), "seldom": (1.0, 1.0)}
"""Mean firings of a feature in a document, and the standard deviation of their logarithm over documents."""


class Intervals(NamedTuple):
    """What one simulation gives."""

    share: float
    before: tuple[float, float]
    after: tuple[float, float]
    bounds: tuple[float, float]
    r_before: tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]
    r_after: tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]
    r: Float[np.ndarray, " pair"]


def drawn_sums(
    r: Float[np.ndarray, " pair"], n_documents: int, firings: str, random: np.random.Generator
) -> DocumentSums:
    """Draw documents, and sum pairs of features in them.

    On tokens where a pair fires, a = s u and b = s (r u + sqrt(1 - r^2) v), with u and v independent and standard
    normal and s of the document and pair; elsewhere both are 0. So r is the correlation over endless documents.
    """
    shape, (mean, unevenness) = (len(r), n_documents), FIRINGS[firings]
    common, own = random.standard_normal(n_documents), random.standard_normal(shape)
    log_rate = unevenness * (common + own) / np.sqrt(2)
    n_firings = random.poisson(mean * np.exp(log_rate - unevenness**2 / 2))
    cells = np.repeat(np.arange(n_firings.size), n_firings.ravel())
    strength = np.exp(0.3 * random.standard_normal(n_firings.size))[cells]
    u, v = random.standard_normal((2, len(cells)))
    of_pair = r[cells // n_documents]
    a, b = strength * u, strength * (of_pair * u + np.sqrt(1 - of_pair**2) * v)

    def summed(values: np.ndarray) -> scipy.sparse.csr_array:
        return scipy.sparse.csr_array(np.bincount(cells, values, minlength=n_firings.size).reshape(shape))

    numbers = np.arange(len(r))[:, None]
    return DocumentSums(
        names=("a.seed0", "b.seed0"),
        n_documents={"drawn": n_documents},
        n_tokens=np.full(n_documents, DOCUMENT_TOKENS),
        totals=(summed(a), summed(b)),
        squares=(summed(a * a), summed(b * b)),
        products=summed(a * b),
        pairs=np.repeat(numbers, 2, axis=1),
        pair_numbers=(numbers, numbers),
    )


def simulate(r: Float[np.ndarray, " pair"], n_documents: int, firings: str, seed: int) -> Intervals:
    """Draw documents once, and make all intervals."""
    sums = drawn_sums(r, n_documents, firings, np.random.default_rng((seed, n_documents)))
    replicates: Replicates = bootstrap(sums, N_REPLICATES, seed)
    best, testable = replicates.best[0], np.ones(len(r), dtype=bool)
    estimate = resampled_r(sums, np.ones((1, n_documents), dtype=np.int64))[:, 0]
    share = float((estimate >= THRESHOLD).mean())
    shares = replicate_shares(best, testable, THRESHOLD)
    before, after = percentile_interval(shares), centred_interval(shares, share, replicates.n_documents)
    low, high = feature_intervals(best, estimate, replicates.documents[0])
    bounds = share_bounds(low, high, testable, THRESHOLD)
    if before is None or after is None or bounds is None:
        raise ValueError("every simulation must have intervals; draw more documents")
    r_before = np.quantile(best, (0.025, 0.975), axis=0)  # NaN where a replicate has no r
    return Intervals(share, before, after, bounds, (r_before[0], r_before[1]), (low, high), estimate)


def coverage(truth: str, n_documents: int, firings: str, n_simulations: int) -> tuple[dict, dict]:
    """How often the intervals of shares, and those of r, hold their truths, over simulations with the same r."""
    r = TRUTHS[truth](np.random.default_rng(1))
    drawn = [simulate(r, n_documents, firings, seed) for seed in range(n_simulations)]
    limit, shares = float((r >= THRESHOLD).mean()), np.array([each.share for each in drawn])
    expected = float(shares.mean())
    key = {"r": truth, "documents": n_documents, "firings": firings}
    of_shares = key | {"limit": limit, "expected": expected}
    for name in ("before", "after", "bounds"):
        ends = np.array([getattr(each, name) for each in drawn]).T
        held: dict[str, float | np.ndarray] = {"limit": limit, "expected": expected, "own": shares}
        of_shares |= {f"{name}_{of}": _held(ends, value) for of, value in held.items()}
        of_shares[f"{name}_width"] = float((ends[1] - ends[0]).mean())
    of_r = dict(key)
    for name in ("before", "after"):
        ends = np.stack([getattr(each, f"r_{name}") for each in drawn], axis=1)
        given = ~np.isnan(ends).any(axis=0)
        estimates = np.stack([each.r for each in drawn])
        truths = np.broadcast_to(r, estimates.shape)
        of_r |= {
            f"{name}_given": float(given.mean()),
            f"{name}_truth": _held(ends[:, given], truths[given]),
            f"{name}_own": _held(ends[:, given], estimates[given]),
            f"{name}_width": float((ends[1] - ends[0])[given].mean()),
        }
    return of_shares, of_r


def measure(n_simulations: int = N_SIMULATIONS) -> dict:
    """All coverages, with the lowest of each kind."""
    rows = [
        coverage(truth, n_documents, firings, n_simulations)
        for n_documents in DOCUMENTS
        for firings in FIRINGS
        for truth in TRUTHS
    ]
    shares, r = ([row[kind] for row in rows] for kind in range(2))
    names = [f"{when}_{of}" for when in ("before", "after") for of in ("limit", "expected", "own")]
    lowest = {f"share_{name}": min(row[name] for row in shares) for name in (*names, "bounds_limit")}
    for name in ("before_truth", "before_own", "after_truth", "after_own"):
        lowest[f"r_{name}"] = min(row[name] for row in r)
    return {"n_simulations": n_simulations, "shares": shares, "r": r, "lowest": lowest}


def _held(ends: Float[np.ndarray, "2 interval"], truth: float | np.ndarray) -> float:
    """The share of intervals that hold a truth, ends included."""
    rounding = 1e-9
    return float(((ends[0] <= truth + rounding) & (truth - rounding <= ends[1])).mean())


def main() -> None:
    """Print tables of shares and of r, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=N_SIMULATIONS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.simulations)
    for kind in ("shares", "r"):
        print(f"{kind}:\n{pd.DataFrame(result[kind]).round(3).to_string(index=False)}\n")
    print("lowest: " + ", ".join(f"{name} {value:.3f}" for name, value in result["lowest"].items()))
    if arguments.json:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
