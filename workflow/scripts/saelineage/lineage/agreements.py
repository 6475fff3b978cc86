"""Agreement: how often other ways of comparing say the same of an edge's features as the verdicts of the run.

Other ways are the other instruments, where they compare the same SAE; for the parent's features, its SAE with all seeds
of the child together (`any seed`); the original study's protocol; and a crosscoder. A verdict is whether a feature is
found on the other side.
"""

from collections.abc import Mapping, Sequence
from math import isnan

import numpy as np
import pandas as pd

from saelineage.correlations.matches import Correlation
from saelineage.lineage.crosstable import is_found_by_crosscoder
from saelineage.lineage.evidence import ALL, IDENTIFIED, Load
from saelineage.lineage.matching import (
    DISAPPEARS,
    INHERITED,
    PERSISTS,
    SIDES,
    UNTESTABLE,
    agreement,
    best_matches,
    is_found,
)
from saelineage.plan.comparisons import names_in_pair
from saelineage.plan.crosscoders import CROSSCODER

ANY_SEED = "any seed"
"""Name of the way that takes a feature as found if it is in any SAE of the child that has a seed of its own."""


def ways(
    leading: Mapping, table: pd.DataFrame, comparisons: Sequence[Mapping], load: Load, threshold: float, side: int
) -> dict[str, np.ndarray]:
    """Each other way's verdicts on the features of one side of an edge: `persists`, `disappears` or `untestable`.

    Args:
        leading: the edge's comparison by the leading instrument.
        table: of the edge, with `crosscoder` where there is one.
        comparisons: of all edges and instruments.
        load: gives a pair by its name.
        threshold: r at or above this is a match.
        side: 0 for the parent's features, 1 for the child's.
    """
    found = {}
    name, edge = names_in_pair(leading["pair"])[side], (leading["parent"], leading["child"])
    for row in comparisons:
        if (row["parent"], row["child"]) != edge or names_in_pair(row["pair"])[side] != name:
            continue
        compared = load(row["pair"])
        if row is not leading:
            found[row["instrument"]] = _verdicts(compared.correlation, threshold, side)
        if compared.by_types is not None:
            found[f"{row['instrument']}, by token types"] = _by_best_match(compared.by_types, threshold, side)
    seeds = [load(pair).correlation for pair in leading["seeds_of_child"]] if side == 0 else []
    if len(seeds) > 1:
        found[ANY_SEED] = _in_any([_verdicts(pair, threshold, pair.names.index(name)) for pair in seeds])
    if "crosscoder" in table:
        of_side = table.loc[table["side"] == SIDES[side], "crosscoder"].to_numpy()
        found[CROSSCODER] = is_found_by_crosscoder(of_side, side)
    return found


def own_verdicts(table: pd.DataFrame, side: int) -> np.ndarray:
    """The run's verdicts on the features of one side: `persists`, `disappears` or `untestable`."""
    study = table.loc[table["side"] == SIDES[side], "study_verdict"]
    return np.select([study.isin([PERSISTS, INHERITED]), study == UNTESTABLE], [PERSISTS, UNTESTABLE], DISAPPEARS)


def agreement_rows(table: pd.DataFrame, found: Mapping[str, np.ndarray], side: int) -> list[dict]:
    """Measure how often other ways say the same of one side's features as the run's verdicts.

    Returns:
        One row per way and group (`identified` where it is known, `all`): `side`, `instrument` (the way), `group`, and
        `matching.agreement`'s figures, None where they are not defined.
    """
    rows, of_side = [], table[table["side"] == SIDES[side]]
    groups = {IDENTIFIED: of_side["identified"].to_numpy()} if of_side["recurrence"].notna().any() else {}
    for way, verdicts in found.items():
        for group, among in (groups | {ALL: None}).items():
            figures = agreement(own_verdicts(table, side), verdicts, among)
            row = {"side": SIDES[side], "instrument": way, "group": group}
            rows.append(row | {key: None if isnan(value) else value for key, value in figures.items()})
    return rows


def add_agreement(table: pd.DataFrame, found: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Add to an edge's table `all_agree` (see the function of that name), given the other ways' verdicts by side."""
    marks = [all_agree(own_verdicts(table, side), list(of_side.values())) for side, of_side in enumerate(found)]
    return table.assign(all_agree=pd.concat(map(pd.Series, marks), ignore_index=True))


def all_agree(own: np.ndarray, others: Sequence[np.ndarray]) -> pd.arrays.BooleanArray:
    """Mark features on which every way of comparing that can tell says the same.

    Args:
        own: `persists`, `disappears` or `untestable` for each feature.
        others: the same by each other way.

    Returns:
        True or False; missing where the feature is untestable, or no other way can tell.
    """
    can_tell = np.array([other != UNTESTABLE for other in others], dtype=bool).reshape(-1, len(own))
    same = np.array([other == own for other in others], dtype=bool).reshape(-1, len(own))
    missing = (own == UNTESTABLE) | ~can_tell.any(axis=0)
    return pd.arrays.BooleanArray((same | ~can_tell).all(axis=0), missing)


def _verdicts(correlation: Correlation, threshold: float, side: int) -> np.ndarray:
    found = np.where(is_found(correlation, side, threshold), PERSISTS, DISAPPEARS)
    return np.where(correlation.testable[side], found, UNTESTABLE)


def _by_best_match(correlation: Correlation, threshold: float, side: int) -> np.ndarray:
    """Verdicts by the best match alone, as in the original study."""
    by_r = np.where(best_matches(correlation, side)[0] >= threshold, PERSISTS, DISAPPEARS)
    return np.where(correlation.testable[side], by_r, UNTESTABLE)


def _in_any(verdicts: Sequence[np.ndarray]) -> np.ndarray:
    """Found where any says so, untestable where all are."""
    of_each = np.array(verdicts)
    found = np.where((of_each == PERSISTS).any(axis=0), PERSISTS, DISAPPEARS)
    return np.where((of_each == UNTESTABLE).all(axis=0), UNTESTABLE, found)
