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
from saelineage.lineage.matching import INHERITED, ONE_TO_ONE, PERSISTS, SIDES, STUDY_VERDICTS, UNTESTABLE

DRIFTED, GONE, NEW = "drifted", "gone", "new"
VERDICTS = ((PERSISTS, DRIFTED, GONE), (INHERITED, DRIFTED, NEW))
"""Per side, the verdicts on testable features: found, changed but still there, in this model alone."""
RELOCATED = "relocated"
"""A change: the same firings are written in another direction."""
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
    - `persists` or `inherited`: it is found, in the same direction.
    - `drifted`: it is found in another direction (`change` is `relocated`); or it is not found, but is read out, or its
      best match is mutual and close.
    - `gone` or `new`: nothing of this holds.

    `headline` marks features to report as lost or new: gone or new, identified in their own model, and without a match
    or with the upper bound of the interval of r below the threshold. Those that fire in too few documents for an
    interval are left out, and those whose activations come from a handful of documents (`few_documents`). `robust`
    marks those of them that no SAE of the other model has.

    Args:
        table: from `matching.edge_table`, with `recurrence`, `identified`, `absent`, `r_high` (NaN where there is no
            interval), `rests_on` (`few_documents.rests_on`), `readout` and `readout_of_own` (R2; NaN where not
            measured) and `cosine` (of the decoder directions of a feature and its best match; NaN where not measured).
        rules: the bounds.
    """
    found = table["study_verdict"].isin([yes for yes, _ in STUDY_VERDICTS])
    relocated = found & (table["kind"] == ONE_TO_ONE) & (table["cosine"] < rules.relocated_below) & shares_basis(table)
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
    far = (table["r_high"] < rules.threshold) | table["r"].isna()
    headline = np.isin(verdict, [GONE, NEW]) & table["identified"] & far & ~rests_on_few(table["rests_on"].to_numpy())
    return table.assign(
        verdict=verdict,
        change=np.where(relocated & ~untestable, RELOCATED, ""),
        headline=headline,
        robust=headline & table["absent"],
    )


def shares_basis(table: pd.DataFrame) -> bool:
    """True if directions of the two models can be compared: the median cosine of found mutual matches is high."""
    pairs = table[(table["side"] == SIDES[0]) & table["mutual"] & (table["kind"] == ONE_TO_ONE)]
    return bool(pairs["cosine"].median() >= SHARED_BASIS)
