"""Revivals: which features that a child lost come back when the child is trained on its parent's corpora.

A *revived* model is the child, trained further on its parent's corpora. A feature that comes back after few tokens may
have been hidden rather than forgotten; it may also have been learnt again. Two controls stand beside it: the
*continued* child, trained further on its own corpora for as many tokens, and the *unchanged* child, whose SAE alone was
trained on. What returns there too was missed by the child's SAE, or returns by any training.
"""

from collections.abc import Mapping
from math import comb

import numpy as np
import pandas as pd
from jaxtyping import Bool

from saelineage.lineage.evidence import Load, named
from saelineage.lineage.matching import DISAPPEARS, PERSISTS, SIDES
from saelineage.lineage.shares import share
from saelineage.lineage.twins import HEADLINE, Found, found_in
from saelineage.lineage.verdicts import DRIFTED, GONE
from saelineage.plan.graph import CONTINUED, REVIVED

GROUPS = (HEADLINE, GONE, DRIFTED)
"""Features that figures are given for: gone for sure, all that are gone, and drifted. None is found in the child."""


def revivals(
    table: pd.DataFrame, name: str, pairs: Mapping[str, Mapping[str, str]], load: Load, threshold: float
) -> tuple[pd.DataFrame, list[dict]]:
    """Search the revived models of an edge, and their controls, for the parent's features.

    Args:
        table: of the edge, with verdicts.
        name: `{model}.{sae}` of the parent's SAE.
        pairs: by revived model, the pairs of that SAE with each of `Comparisons.revival_pairs`.
        load: gives a pair by its name.
        threshold: r at or above this is a match.

    Returns:
        - the table with a column `returns_in`, for the parent's features that are gone or have drifted the revived
          models in which they are found, unless they are also found in a control, joined by commas; otherwise empty;
        - a row per revived model, group and kind (`figures`), with `model`.
    """
    returns = np.full(len(table), "", dtype=object)
    is_parent = (table["side"] == SIDES[0]).to_numpy()
    parents, rows = table[is_parent], []
    lost = np.any([members(parents, group) for group in GROUPS], axis=0)
    of_parent = np.full(len(parents), "", dtype=object)
    for model, of_model in pairs.items():
        found = {kind: found_in(load(pair).correlation, name, threshold) for kind, pair in of_model.items()}
        rows += [{"model": model} | row for row in figures(parents, found)]
        for latent in np.flatnonzero(lost & only_revived(found)):
            of_parent[latent] = ", ".join(filter(None, [of_parent[latent], model]))
    returns[is_parent] = of_parent
    return table.assign(returns_in=returns), rows


def members(parents: pd.DataFrame, group: str) -> Bool[np.ndarray, " d_sae"]:
    """Mark the parent's features of one of `GROUPS`."""
    of_group = parents[HEADLINE] if group == HEADLINE else parents["verdict"] == group
    return (of_group & (parents["study_verdict"] == DISAPPEARS)).to_numpy()


def only_revived(found: Mapping[str, Found]) -> Bool[np.ndarray, " d_sae"]:
    """Mark features that the revived model has and no control has, of those that are testable in all."""
    controls = [of_kind.found for kind, of_kind in found.items() if kind != REVIVED]
    return found[REVIVED].found & ~np.any(controls, axis=0) & testable_in_all(found)


def testable_in_all(found: Mapping[str, Found]) -> Bool[np.ndarray, " d_sae"]:
    """Mark features that fire often enough to be searched for in every kind of model."""
    return np.all([of_kind.testable for of_kind in found.values()], axis=0)


def figures(parents: pd.DataFrame, found: Mapping[str, Found]) -> list[dict]:
    """Count the features that return in a revived model and in its controls.

    Args:
        parents: the parent's features of an edge, with columns `latent`, `study_verdict`, `verdict` and `headline`.
        found: the parent's features in the SAE of each kind of model.

    Returns:
        A row for each of `GROUPS` and kind, with:

        - `returned`, the share of the group's features that is found there, with its n and interval, of those that are
          testable in all kinds;
        - `kept`, the same of the features that persist in the child: the most that can be expected of `returned`;
        - of the revived model alone, `beyond` and `short`, the number of the group's features that it has and the
          continued model has not, and the other way round; `p`, the chance that so uneven a split of both comes from
          a fair coin (`sign_test`); and `latents`, those that it has and no control has.
    """
    testable = testable_in_all(found)
    persists = testable & (parents["verdict"] == PERSISTS).to_numpy()
    rows = []
    for group in GROUPS:
        lost = testable & members(parents, group)
        for kind, of_kind in found.items():
            row = {
                "group": group,
                "kind": kind,
                **named("returned", share(int((of_kind.found & lost).sum()), int(lost.sum()))),
                **named("kept", share(int((of_kind.found & persists).sum()), int(persists.sum()))),
            }
            of_revived = {
                "latents": [int(latent) for latent in parents["latent"].to_numpy()[only_revived(found) & lost]]
            }
            rows.append(row | (_paired(found, lost) | of_revived if kind == REVIVED else {}))
    return rows


def _paired(found: Mapping[str, Found], lost: Bool[np.ndarray, " d_sae"]) -> dict:
    """Lost features that one of the revived and the continued model has alone."""
    revived, continued = found[REVIVED].found & lost, found[CONTINUED].found & lost
    beyond, short = int((revived & ~continued).sum()), int((continued & ~revived).sum())
    return {"beyond": beyond, "short": short, "p": sign_test(beyond, short)}


def sign_test(one: int, other: int) -> float:
    """The two-sided p of a sign test: of one + other throws of a fair coin, so uneven a split or a more uneven one.

    The exact form of McNemar's test (1947, Psychometrika 12, 153-157).
    """
    n, least = one + other, min(one, other)
    return min(1.0, 2 * sum(comb(n, k) for k in range(least + 1)) / 2**n)
