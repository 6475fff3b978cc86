"""Twins: an edge's losses and gains beside those of models that the same training, or any training, would have made.

A *twin* is the child's training from another seed; a *continued* model is the parent trained further on its own
corpora. Each takes the child's place, and its SAE is made as the child's is. A feature that is lost in the child and
kept in the twin was lost by chance; one that is lost in a continued model too was lost by training on, not by the
child's text.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from saelineage.correlations.matches import Correlation
from saelineage.lineage.evidence import named
from saelineage.lineage.matching import DISAPPEARS, EMERGES, SIDES, is_found
from saelineage.lineage.shares import Share, share

HEADLINE = "headline"
GROUPS = ("identified", HEADLINE, "all")
"""Features that figures are given for; all but `all` are columns of an edge's table."""


class Found(NamedTuple):
    """The features of one SAE that another SAE can be searched for, and those that it has."""

    testable: Bool[np.ndarray, " d_sae"]
    found: Bool[np.ndarray, " d_sae"]
    """Splits and merges included."""


def found_in(correlation: Correlation, name: str, threshold: float) -> Found:
    """Search one SAE of a pair for the features of the other.

    Args:
        correlation: of the two.
        name: `{model}.{sae}` of the SAE whose features are searched for.
        threshold: r at or above this is a match.
    """
    side = correlation.names.index(name)
    return Found(correlation.testable[side], is_found(correlation, side, threshold))


def compare(edge: pd.DataFrame, of_parent: Found, of_child: Found) -> dict[str, dict]:
    """Compare what is lost and new on an edge with a model in the child's place.

    Features that are untestable there are left out.

    Args:
        edge: the edge's table, with columns `side`, `study_verdict`, `identified` and `headline`.
        of_parent: the parent's features in that model's SAE.
        of_child: the child's features in that model's SAE.

    Returns:
        For each of `GROUPS`:

        - `persist_share`, of the parent's features that persist in that model;
        - `lost_too`, of the features that are not found in the child, the share not found in that model either; the
          other ones, `lost_beyond` in number, are lost in the child alone;
        - `new_too`, of the child's features that are not found in the parent, the share found in that model; the other
          ones, `new_beyond` in number, are new in the child alone.

        Shares have their n and interval (`evidence.named`).
    """
    parent, child = (edge[edge["side"] == side] for side in SIDES)
    return {group: _figures(parent, child, of_parent, of_child, group) for group in GROUPS}


def _figures(parent: pd.DataFrame, child: pd.DataFrame, of_parent: Found, of_child: Found, group: str) -> dict:
    counted = of_parent.testable & _members(parent, group)
    lost = counted & (parent["study_verdict"] == DISAPPEARS).to_numpy()
    new = of_child.testable & _members(child, group) & (child["study_verdict"] == EMERGES).to_numpy()
    return {
        **named("persist_share", _share(of_parent.found, counted)),
        **named("lost_too", _share(~of_parent.found, lost)),
        "lost_beyond": int((lost & of_parent.found).sum()),
        **named("new_too", _share(of_child.found, new)),
        "new_beyond": int((new & ~of_child.found).sum()),
    }


def _members(side: pd.DataFrame, group: str) -> Bool[np.ndarray, " d_sae"]:
    return side[group].to_numpy() if group in side else np.full(len(side), True)


def _share(marked: Bool[np.ndarray, " d_sae"], among: Bool[np.ndarray, " d_sae"]) -> Share:
    """The share of some features that are marked."""
    return share(int((marked & among).sum()), int(among.sum()))
