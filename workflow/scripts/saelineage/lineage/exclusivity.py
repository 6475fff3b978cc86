"""Verdicts on the latents of a crosscoder: which of an edge's two models writes them.

A latent *persists* if both models write it in the same direction, is *rotated* if both write it in different ones,
*emerges* if the child alone writes it, and *disappears* if the parent alone does. What fires too seldom to tell, or
explains nothing of the activations, is *untestable*.

Latent scaling decides (`crosscoders.latent_scaling`), not the decoder's norms, because a latent's part for a model that
lacks the feature has a norm too (docs/decisions/0038).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from saelineage.lineage.matching import PERSISTS, SIDES, UNTESTABLE

PARENT, CHILD = SIDES
ROTATED, EMERGES, DISAPPEARS = "rotated", "emerges", "disappears"
VERDICTS = (PERSISTS, ROTATED, EMERGES, DISAPPEARS, UNTESTABLE)
NORM_BINS = (0.1, 0.4, 0.6, 0.9)
"""Bounds of `relative_norm`, up to which it says the parent alone, neither, both, neither, and the child alone."""
OTHER_HALF = "the parent on other documents"
"""Role of the floor."""
IN_LINEAGE = "lineage"
"""Role of models with an edge; other models are controls."""
NEAR_0 = 0.1
"""A decoder norm below this share of the largest of all models is near 0."""
THRESHOLDS = tuple(round(0.02 * step, 2) for step in range(1, 51))
"""Thresholds of `exclusivity_curve`."""


class ExclusivityRules(NamedTuple):
    """The bounds of verdicts."""

    nu_error_below: float = 0.2
    """A latent is exclusive to its writer if nu on error is below this (arXiv 2504.02922),"""
    nu_reconstruction_below: float = 0.5
    """and nu on reconstruction below this (ibid.). The same bounds hold in the other model's own direction."""
    rotated_below: float = 0.5
    """A latent that both write is rotated if the cosine of their directions is below this."""
    min_firings: int = 20
    """Latents that fire on fewer tokens are untestable."""


DEFAULT_RULES = ExclusivityRules()


def add_exclusivity(table: pd.DataFrame, rules: ExclusivityRules = DEFAULT_RULES) -> pd.DataFrame:
    """Add `verdict` and `by_norms` to a copy of an edge's table.

    The writer alone has a latent if both nu are below their bounds, and so is the share that the other model writes in
    its own direction, on error or on reconstruction: where that is high on both, the other model has it too, turned.

    `by_norms` is what the bins of relative decoder norms say: `persists`, `emerges`, `disappears`, or empty. It is for
    comparison.

    Args:
        table: from `latent_scaling.pair_table`.
        rules: the bounds.
    """
    testable = is_testable(table, rules.min_firings)
    alone = is_exclusive(table, rules.nu_error_below, rules.nu_reconstruction_below)
    elsewhere = (table["own_ratio_error"] >= rules.nu_error_below) & (
        table["own_ratio_reconstruction"] >= rules.nu_reconstruction_below
    )
    verdict = np.select(
        [
            ~testable,
            elsewhere & (table["cosine"] < rules.rotated_below),
            alone & (table["writer"] == CHILD),
            alone & (table["writer"] == PARENT),
        ],
        [UNTESTABLE, ROTATED, EMERGES, DISAPPEARS],
        PERSISTS,
    )
    parent_alone, from_both, to_both, child_alone = NORM_BINS
    norm = table["relative_norm"]
    by_norms = np.select(
        [norm <= parent_alone, (norm >= from_both) & (norm <= to_both), norm >= child_alone],
        [DISAPPEARS, PERSISTS, EMERGES],
        "",
    )
    return table.assign(verdict=verdict, by_norms=by_norms)


def is_testable(table: pd.DataFrame, min_firings: int) -> Bool[np.ndarray, " row"]:
    """Mark latents that fire often enough and have both nu."""
    has_nu = table["nu_error"].notna() & table["nu_reconstruction"].notna()
    return ((table["n_firings"] >= min_firings) & has_nu).to_numpy()


def is_exclusive(
    table: pd.DataFrame, nu_error_below: float, nu_reconstruction_below: float
) -> Bool[np.ndarray, " row"]:
    """Mark latents whose nu on error and on reconstruction are below two bounds."""
    return ((table["nu_error"] < nu_error_below) & (table["nu_reconstruction"] < nu_reconstruction_below)).to_numpy()


def exclusivity_curve(
    table: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS, min_firings: int = DEFAULT_RULES.min_firings
) -> pd.DataFrame:
    """Numbers of latents whose two nu are both below a threshold, by writer, for each of several thresholds.

    Rotated latents are among them, because nu asks for one direction.

    Args:
        table: from `latent_scaling.pair_table`.
        thresholds: for both nu.
        min_firings: latents that fire on fewer tokens are left out.

    Returns:
        Columns `threshold`, `parent_only` and `child_only`, the writer's counts, and `n_testable`.
    """
    testable = table[is_testable(table, min_firings)]
    rows = []
    for threshold in thresholds:
        writers = testable["writer"][is_exclusive(testable, threshold, threshold)]
        counts = {f"{side}_only": int((writers == side).sum()) for side in (PARENT, CHILD)}
        rows.append({"threshold": threshold, **counts, "n_testable": len(testable)})
    return pd.DataFrame(rows)
