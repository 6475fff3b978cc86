"""The best point of a sweep over settings of a merge."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saelineage.errors import InputError

CRITERIA = {
    "mean_loss": ("loss", "mean", False),
    "mean_accuracy": ("accuracy", "mean", True),
    "largest_barrier": ("barrier", "max", False),
}
"""Ways to tell the best point: the figure, what of it over the corpora, and whether more is better."""


def mark_best(table: pd.DataFrame, over: Sequence[str], best_by: str) -> pd.DataFrame:
    """Add `is_best` to a sweep: true in the rows of the merge that is best, of equal ones the first.

    A merge with a figure that is not finite cannot be best.

    Args:
        table: of `sweep_merge`: `model` (null for merges), the swept settings, `corpus`, and the figures.
        over: the swept settings.
        best_by: a key of `CRITERIA`.

    Raises:
        InputError: if the figure is finite for no merge.
    """
    figure, summary, more_is_better = CRITERIA[best_by]
    merges = table[table["model"].isna()]
    finite = merges[figure].where(np.isfinite(merges[figure]))
    scores = finite.groupby([merges[setting] for setting in over], sort=False).agg(summary, skipna=False).dropna()
    if not len(scores):
        raise InputError(
            f"sweeps: best_by {best_by} must be finite for some merge, but it is for none of them; choose another "
            "best_by, or other values"
        )
    best = scores.idxmax() if more_is_better else scores.idxmin()
    point = dict(zip(over, best if isinstance(best, tuple) else (best,), strict=True))
    is_best = table["model"].isna()
    for setting, value in point.items():
        is_best &= table[setting] == value
    return table.assign(is_best=is_best)


def best_settings(path: Path | str, over: Sequence[str]) -> dict[str, float]:
    """The swept settings of the best merge of a sweep."""
    table = pd.read_parquet(path)
    row = table[table["is_best"]].iloc[0]
    return {setting: float(row[setting]) for setting in over}
