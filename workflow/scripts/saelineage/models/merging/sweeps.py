"""The best point of a sweep over settings of a merge."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

CRITERIA = {
    "mean_loss": ("loss", "mean", False),
    "mean_accuracy": ("accuracy", "mean", True),
    "largest_barrier": ("barrier", "max", False),
}
"""Ways to tell the best point: the figure, what of it over the corpora, and whether more is better."""


def with_best_marked(table: pd.DataFrame, over: Sequence[str], best_by: str) -> pd.DataFrame:
    """Add `is_best` to a sweep: true in the rows of the merge that is best, of equal ones the first.

    Args:
        table: of `sweep_merge`: `model` (null for merges), the swept settings, `corpus`, and the figures.
        over: the swept settings.
        best_by: a key of `CRITERIA`.
    """
    figure, summary, more_is_better = CRITERIA[best_by]
    merges = table[table["model"].isna()]
    scores = merges.groupby(list(over), sort=False)[figure].agg(summary)
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
