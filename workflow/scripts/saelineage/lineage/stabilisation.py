"""The part of the anchored no-change control that is stabilisation: latents stay where their training starts.

Stabilisation means that a warm start hands latents over; stability, that training finds them again (arXiv 2606.02061).
The reset control tells them apart. It is trained as the no-change control, on the parent itself, but a share of its
latents starts afresh. Features of the parent whose latent was kept show both; those whose latent was reset show what
training finds by itself.
"""

import numpy as np
from jaxtyping import Bool, Int

from saelineage.correlations.matches import Correlation
from saelineage.lineage.verdicts import Share, share

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
