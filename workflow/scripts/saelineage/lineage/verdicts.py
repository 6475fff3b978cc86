"""Verdicts: what became of each feature of a parent, and where each feature of a child comes from.

A feature that no latent of the other SAE follows may still be there: other firings of the same thing, or a thing that
the other SAE spends its latents elsewhere for. So not to be found is not to be gone. A parent's feature *persists*, has
*drifted*, or is *gone*; a child's is *inherited*, has *drifted*, or is *new*. What cannot be told is *untestable*.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from saelineage.correlations.few_documents import rests_on_few
from saelineage.lineage.matching import (
    INHERITED,
    MERGED,
    ONE_TO_ONE,
    PERSISTS,
    SIDES,
    SPLIT,
    STUDY_VERDICTS,
    UNTESTABLE,
)

DRIFTED, GONE, NEW = "drifted", "gone", "new"
VERDICTS = ((PERSISTS, DRIFTED, GONE), (INHERITED, DRIFTED, NEW))
"""Per side, the verdicts on testable features: found, changed but still there, in this model alone."""
RELOCATED, RESCALED, PARTIAL = CHANGES = ("relocated", "rescaled", "partial")
"""Changes: the same firings are written in another direction; they are written with another strength; only a part of
the tokens is left, or there are others beside it."""
LARGEST_RATIO = 2.0
"""A feature whose strength changed by a larger factor, up or down, is rescaled (docs/benchmarks.md)."""
NESTING = (0.8, 1.25)
"""Bounds of r / s for a feature and a match of which one fires on a part of the other's tokens (`is_partial`)."""
LEAST_PART_COSINE = 0.75
"""Least cosine of a part's direction and its whole's (docs/benchmarks.md)."""
MATCHED_ON = ("cosine", "parts_cosine", "strength_ratio", "spread_ratio")
"""Columns of `directions.add_directions`."""
LEAST_READOUT = 0.1
"""A feature with a smaller R2 on its own model's activations cannot be read out linearly at all."""
SHARED_BASIS = 0.5
"""Least median cosine of mutual matches at which the directions of two models can be compared.

Two models whose neurons are permuted compute the same and share no direction."""


class Rules(NamedTuple):
    """The bounds of verdicts; keys of the config's `lineage`."""

    threshold: float
    """A feature is found on the other side if r is at or above this."""
    drifted_from: float
    """One that is not found has drifted if its best match is mutual and has r at or above this,"""
    readout_from: float
    """or if it is read out from the other model's activations with this share of the R2 from its own model's."""
    relocated_below: float
    """One that is found has drifted if the decoder directions of the match have a smaller cosine."""
    identified_from: float
    """Least share of the other SAE seeds of a feature's model in which an identified feature is found."""

    @classmethod
    def of(cls, settings: Mapping) -> "Rules":
        """The rules in the config's `lineage` block."""
        return cls(**{key: settings[key] for key in cls._fields})


def add_verdicts(table: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Add to a copy of an edge's table the columns `verdict`, `change`, `robust` and `headline`.

    - `untestable`: the feature fires too seldom, or it is neither found nor readable in its own model's activations.
    - `persists` or `inherited`: it is found, in the same direction. A part of a split or merge must point the way of
      its whole, and a whole that of all its parts together (`in_other_parts`).
    - `drifted`: it is found in another direction; or it is not found, but is read out, or its best match is mutual and
      close.
    - `gone` or `new`: nothing of this holds.

    `change` says more of a feature and its match: `relocated` is drifted because of its direction; `rescaled` is found,
    with a strength that changed by more than `LARGEST_RATIO`; `partial` is drifted, and one of the two fires on a part
    of the other's tokens (`is_partial`).

    `headline` marks features to report as lost or new: gone or new, identified in their own model, and without a match
    or with the upper bound of the interval of r below the threshold. Those that fire in too few documents for an
    interval are left out, and those whose activations come from a handful of documents (`few_documents`). `robust`
    marks those of them that no SAE of the other model has.

    Args:
        table: from `matching.edge_table`, with `recurrence`, `identified`, `absent`, `r_high` (NaN where there is no
            interval), `rests_on` (`few_documents.rests_on`), `readout` and `readout_of_own` (R2; NaN where not
            measured) and `MATCHED_ON` (NaN where not measured).
        rules: the bounds.
    """
    turned = (table["cosine"] < rules.relocated_below) & shares_basis(table)
    by_match = (table["kind"] == ONE_TO_ONE) | (in_other_parts(table) & (table["r"] >= rules.threshold))
    found = table["study_verdict"].isin([yes for yes, _ in STUDY_VERDICTS]) & (by_match | ~in_other_parts(table))
    relocated = found & by_match & turned
    not_measured, readable = table["readout_of_own"].isna(), table["readout_of_own"] >= LEAST_READOUT
    read_out = readable & (table["readout"] >= rules.readout_from * table["readout_of_own"])
    close = table["mutual"] & (table["r"] >= rules.drifted_from)
    of_child = table["side"] == SIDES[1]
    yes, drifted, no = (np.where(of_child, *names) for names in zip(*VERDICTS[::-1], strict=True))
    untestable = table["study_verdict"] == UNTESTABLE
    verdict = np.select(
        [untestable, found & ~relocated, relocated | read_out | close, ~readable & ~not_measured],
        [UNTESTABLE, yes, drifted, UNTESTABLE],
        no,
    )
    changes = [relocated, (verdict == DRIFTED) & ~turned & is_partial(table, rules), found & is_rescaled(table)]
    far = (table["r_high"] < rules.threshold) | table["r"].isna()
    headline = np.isin(verdict, [GONE, NEW]) & table["identified"] & far & ~rests_on_few(table["rests_on"].to_numpy())
    return table.assign(
        verdict=verdict,
        change=np.select([change & ~untestable for change in changes], [RELOCATED, PARTIAL, RESCALED], ""),
        headline=headline,
        robust=headline & table["absent"],
    )


def in_other_parts(table: pd.DataFrame) -> pd.Series:
    """Mark features found in a split or merge that writes another direction; none where no basis is shared.

    Of a part, its own direction counts: what is general may cover the tokens of what is specific without writing it.
    Of a whole, that of all its parts together counts.
    """
    is_part = table["kind"] == np.where(table["side"] == SIDES[0], MERGED, SPLIT)
    cosine = table["cosine"].where(is_part, table["parts_cosine"])
    return table["kind"].isin([SPLIT, MERGED]) & (cosine < LEAST_PART_COSINE) & shares_basis(table)


def is_partial(table: pd.DataFrame, rules: Rules) -> pd.Series:
    """Mark features of which a feature and its match fire alike, but one on a part of the other's tokens alone.

    Let s <= 1 be the ratio of their spreads. If the one with the smaller spread equals the other on some of its tokens
    and is zero elsewhere, then r = s, but for the means: r = s (1 - q) / (1 - p) for binary features of densities
    p < q. Of two that differ by independent noise on the same tokens, r / s = r. Of two with proportional activations,
    r = 1, whatever s. So r / s must lie in `NESTING`, s below the threshold, for this is why r does, and the strengths
    must be alike. Numbers of tokens do not tell, because most firings of a latent are weak, and its match's are not on
    the same tokens.
    """
    nested_r = np.minimum(table["spread_ratio"], 1 / table["spread_ratio"])
    nested = (table["r"] / nested_r).between(*NESTING) & (nested_r < rules.threshold)
    alike = table["strength_ratio"].between(1 / LARGEST_RATIO, LARGEST_RATIO)
    return nested & alike & shares_scale(table)


def is_rescaled(table: pd.DataFrame) -> pd.Series:
    """Mark single matches whose strength changed by more than `LARGEST_RATIO`; none where no scale is shared."""
    alike = table["strength_ratio"].between(1 / LARGEST_RATIO, LARGEST_RATIO) | table["strength_ratio"].isna()
    return (table["kind"] == ONE_TO_ONE) & ~alike & shares_scale(table)


def shares_basis(table: pd.DataFrame) -> bool:
    """True if directions of the two models can be compared: the median cosine of found mutual matches is high."""
    return bool(_mutual_matches(table)["cosine"].median() >= SHARED_BASIS)


def shares_scale(table: pd.DataFrame) -> bool:
    """True if strengths can be compared: the median ratio of found mutual matches is no change of strength itself.

    Two models whose activations differ in size altogether, or SAEs that read them in other units, rescale everything.
    """
    return bool(1 / LARGEST_RATIO <= _mutual_matches(table)["strength_ratio"].median() <= LARGEST_RATIO)


def _mutual_matches(table: pd.DataFrame) -> pd.DataFrame:
    """The parent's features that are found by a mutual match."""
    return table[(table["side"] == SIDES[0]) & table["mutual"] & (table["kind"] == ONE_TO_ONE)]
