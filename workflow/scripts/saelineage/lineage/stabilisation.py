"""The part of the anchored no-change control that is stabilisation: latents stay where their training starts.

Stabilisation means that a warm start hands latents over; stability, that training finds them again (arXiv 2606.02061).
The reset control tells them apart. It is trained as the no-change control, on the parent itself, but a share of its
latents starts afresh. Features of the parent whose latent was kept show both; those whose latent was reset show what
training finds by itself.
"""

from math import nan

import numpy as np
from jaxtyping import Bool, Int

from saelineage.correlations.assignments import mutual_best
from saelineage.correlations.matches import Correlation
from saelineage.lineage.shares import Share, share

KEPT, RESET = "kept", "reset"


def stabilisation(
    correlation: Correlation,
    reset: Int[np.ndarray, " reset"],
    threshold: float,
    among: Bool[np.ndarray, " d_sae"] | None = None,
) -> dict[str, Share]:
    """The share of the parent's testable features with a match in the reset control, by what became of their latent.

    A match is a single feature with r at or above the threshold.

    Args:
        correlation: of the parent's SAE (side 0) and its reset control (side 1).
        reset: the latents that started afresh.
        threshold: r at or above this is a match.
        among: the parent's features that count; None for all.

    Returns:
        `kept` and `reset`.
    """
    testable = correlation.testable[0] if among is None else correlation.testable[0] & among
    is_reset = np.zeros(len(testable), dtype=bool)
    is_reset[reset] = True
    found = correlation.pearson.best[0][:, 0] >= threshold
    groups = {KEPT: testable & ~is_reset, RESET: testable & is_reset}
    return {name: share(int((found & group).sum()), int(group.sum())) for name, group in groups.items()}


def anchoring_agreement(first: Correlation, second: Correlation, parents: Correlation, threshold: float) -> dict:
    """Measure how often two chains of anchored SAEs, from two seeds, find or lose the same features of a parent.

    The same features are those of the parent's two SAEs that are each other's best match, with r at or above the
    threshold. Found are those whose best match in the child has r at or above it.

    Args:
        first, second: of the parent's SAE (side 0) and the child's (side 1), in each chain.
        parents: of the parent's SAE of the first chain and that of the second.
        threshold: r at or above this is a match.

    Returns:
        `n` such features that are testable in both chains, the `share` with the same answer (NaN if there are none) and
        Cohen's `kappa`, as in `matching.agreement`.
    """
    mutual = mutual_best(parents.pearson)
    same = np.flatnonzero((mutual >= 0) & (parents.pearson.best[0][:, 0] >= threshold))
    pairs = [(first, same), (second, mutual[same])]
    testable = np.all([chain.testable[0][latents] for chain, latents in pairs], axis=0)
    one, other = (chain.pearson.best[0][latents, 0][testable] >= threshold for chain, latents in pairs)
    n, equal = len(one), int((one == other).sum())
    by_chance = int(one.sum() * other.sum() + (~one).sum() * (~other).sum())  # n^2 times the share of equal ones
    kappa = (n * equal - by_chance) / (n**2 - by_chance) if n**2 > by_chance else nan
    return {"n": n, "share": equal / n if n else nan, "kappa": kappa}
