"""Identified features: those that an SAE's training finds again from another seed.

Of two SAEs of one model that differ in their seed alone, most latents are not found again (arXiv 2501.16615). A verdict
on such a latent says what training did, not what the model has. So shares are given for identified features first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from saelineage.correlations.matches import Correlation
from saelineage.lineage.matching import SIDES, best_matches, is_found


class Recurrence(NamedTuple):
    """What other seeds say of the features of one SAE."""

    recurrence: Float[np.ndarray, " d_sae"]
    """The share of the other seeds of its own model in which a feature is found; NaN where that was not measured."""
    absent: Bool[np.ndarray, " d_sae"]
    """Features that are testable against every SAE of the other model and found in none."""


def recurrence(correlations: Sequence[Correlation], name: str, threshold: float) -> Float[np.ndarray, " d_sae"]:
    """The share of other SAEs in which each feature of an SAE has a match, by its best match alone.

    Args:
        correlations: of the SAE, on either side, with the other SAEs of its model.
        name: `{model}.{sae}`.
        threshold: r at or above this is a match.

    Returns:
        In [0, 1]; NaN for a feature that is testable against none of them. Those that it is not testable against count
        as without a match.

    Raises:
        ValueError: if there is no correlation, or one without this SAE.
    """
    sides = _sides(correlations, name)
    found = [best_matches(pair, side)[0] >= threshold for pair, side in zip(correlations, sides, strict=True)]
    testable = [pair.testable[side] for pair, side in zip(correlations, sides, strict=True)]
    return np.where(np.any(testable, axis=0), np.mean(found, axis=0), np.nan)


def is_identified(recurrence: Float[np.ndarray, " d_sae"], identified_from: float) -> Bool[np.ndarray, " d_sae"]:
    """Mark the features whose recurrence is at or above a share; none where it was not measured."""
    return recurrence >= identified_from


def absent(correlations: Sequence[Correlation], name: str, threshold: float) -> Bool[np.ndarray, " d_sae"]:
    """Mark the features of an SAE that are testable against every one of several SAEs and found in none.

    Splits and merges count as found.

    Args:
        correlations: of the SAE, on either side, with each of the others.
        name: `{model}.{sae}`.
        threshold: r at or above this is a match.

    Raises:
        ValueError: if there is no correlation, or one without this SAE.
    """
    missing = [
        pair.testable[side] & ~is_found(pair, side, threshold)
        for pair, side in zip(correlations, _sides(correlations, name), strict=True)
    ]
    return np.all(missing, axis=0)


def add_recurrence(table: pd.DataFrame, parent: Recurrence, child: Recurrence, identified_from: float) -> pd.DataFrame:
    """Add to a copy of an edge's table the columns `recurrence`, `identified` and `absent`.

    Args:
        table: from `matching.edge_table`.
        parent, child: of the features of each side.
        identified_from: the least recurrence of an identified feature.
    """
    columns = {
        "recurrence": np.concatenate([parent.recurrence, child.recurrence]),
        "absent": np.concatenate([parent.absent, child.absent]),
    }
    sides = np.repeat(SIDES, [len(parent.recurrence), len(child.recurrence)])
    if not np.array_equal(sides, table["side"].to_numpy()):
        raise ValueError(
            f"the recurrence must be of the table's features, but is of {len(sides)} for {len(table)} rows; "
            "give that of the SAEs of this edge"
        )
    return table.assign(**columns, identified=is_identified(columns["recurrence"], identified_from))


def _sides(correlations: Sequence[Correlation], name: str) -> list[int]:
    """The side of an SAE in each correlation."""
    without = [correlation.names for correlation in correlations if name not in correlation.names]
    if not correlations or without:
        raise ValueError(
            f"there must be correlations, each with '{name}' on one side, but got {without or list(correlations)}; "
            "give correlations of this SAE with others"
        )
    return [correlation.names.index(name) for correlation in correlations]
