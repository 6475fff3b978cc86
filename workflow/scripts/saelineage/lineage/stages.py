"""The two steps from a parent to its child, one change at a time: the text, and the model that reads it.

From the parent's SAE, training goes on along two lines, each of two SAEs. Text first: the parent's activations of the
child's text, then the child's of the same text. Model first: the child's activations of the parent's text, then of its
own. A feature is followed from match to match, and has moved on a step if its match there has r below the threshold.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from saelineage.correlations.matches import Correlation
from saelineage.lineage.evidence import ALL, IDENTIFIED

STEPS = {"data_model": ("data", "model"), "model_data": ("model", "data")}
"""The steps of each order. The first order decides `moved_by`."""
DATA, MODEL, BOTH, NEITHER, UNKNOWN = MOVED_BY = ("data", "model", "both", "neither", "untestable")
"""Steps on which a feature moved; `untestable` where it, or its match after the first step, fires too rarely."""


def follow(first: Correlation, second: Correlation) -> tuple[Float[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
    """The best r of each feature on the first step, and that of its match on the second; NaN where untestable.

    Args:
        first: of the start (side 0) and the SAE after the first step (side 1).
        second: of the SAE after the first step (side 0) and the one after the second.
    """
    r, match = _best(first)
    r_of_match = _best(second)[0]
    return r, np.where(match >= 0, r_of_match[match], np.nan)


def moved_by(
    r_data: Float[np.ndarray, " feature"], r_model: Float[np.ndarray, " feature"], threshold: float
) -> np.ndarray:
    """The steps on which each feature moved: r on the step is below the threshold. See `MOVED_BY`."""
    unknown = np.isnan(r_data) | np.isnan(r_model)
    data, model = r_data < threshold, r_model < threshold
    return np.select([unknown, data & model, data, model], [UNKNOWN, BOTH, DATA, MODEL], NEITHER)


def add_stages(table: pd.DataFrame, lines: Mapping[str, Sequence[Correlation]], threshold: float) -> pd.DataFrame:
    """Add to a copy of an edge's table what moved the parent's features.

    Args:
        table: of the edge, with a column `side`.
        lines: the correlations of both steps, by the order of the steps (`STEPS`).
        threshold: r at or above this is a match.

    Returns:
        The table with columns `data_r` and `then_model_r` (r on each step, text first) and `moved_by`; `model_r`,
        `then_data_r` and `moved_by_reversed`, model first. NaN and empty on the child's side.
    """
    of_parent = (table["side"] == "parent").to_numpy()
    columns: dict[str, np.ndarray] = {}
    for (order, (one, other)), name in zip(STEPS.items(), ("moved_by", "moved_by_reversed"), strict=True):
        r, then_r = follow(*lines[order])
        by_step = {one: r, other: then_r}
        moved = moved_by(by_step[DATA], by_step[MODEL], threshold)
        columns |= {f"{one}_r": _on(of_parent, r, np.nan), f"then_{other}_r": _on(of_parent, then_r, np.nan)}
        columns[name] = _on(of_parent, moved, "")
    return table.assign(**columns)


def stage_counts(table: pd.DataFrame) -> dict:
    """Count what moved the parent's features: by text first and by model first, and how often both say the same.

    Args:
        table: from `add_stages`.

    Returns:
        `data_model` and `model_data`, the number of features by `MOVED_BY`; `n`, the features testable in both; `same`,
        those of them with equal answers.
    """
    parents = table[table["side"] == "parent"]
    orders = dict(zip(STEPS, (parents["moved_by"], parents["moved_by_reversed"]), strict=True))
    counts = {order: {name: int((moved == name).sum()) for name in MOVED_BY} for order, moved in orders.items()}
    both = (parents["moved_by"] != UNKNOWN) & (parents["moved_by_reversed"] != UNKNOWN)
    same = int((parents["moved_by"] == parents["moved_by_reversed"])[both].sum())
    return counts | {"n": int(both.sum()), "same": same}


def stage_rows(tables: Mapping[tuple[str, str], pd.DataFrame]) -> list[dict]:
    """`stage_counts` of the edges that have two-step SAEs, for identified features and for all.

    Args:
        tables: by parent and child.
    """
    return [
        {"parent": parent, "child": child, "group": group} | stage_counts(rows)
        for (parent, child), table in tables.items()
        if "moved_by" in table
        for group, rows in ((IDENTIFIED, table[table["identified"]]), (ALL, table))
    ]


def _best(correlation: Correlation) -> tuple[Float[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae"]]:
    """The largest r of each feature of side 0 and its partner; NaN and -1 where untestable."""
    testable = correlation.testable[0]
    r, match = correlation.pearson.best[0][:, 0], correlation.pearson.partners[0][:, 0]
    return np.where(testable, r, np.nan), np.where(testable, match, -1)


def _on(of_parent: np.ndarray, values: np.ndarray, rest: float | str) -> np.ndarray:
    """Values of the parent's features, in their order, on the rows of its side, and something else on the others."""
    column = np.full(len(of_parent), rest, dtype=object if isinstance(rest, str) else np.float64)
    column[of_parent] = values
    return column
