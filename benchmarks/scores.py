"""Score verdicts where the truth is known: lists of lost and new features, and what an instrument sees and spares.

Lists of features that a reader may take for lost (of the parent) or new (in the child):

    all         drifted, gone or new, of all testable features
    identified  the same, of those that every other SAE seed of their model has
    gone        gone or new, of all testable features
    robust      identified, and absent from every SAE seed of the other model
    headline    identified, with the verdict gone or new, and the upper bound of r below the threshold

Per list: `precision`, the share of those listed that are truly lost or new; `recall`, the share listed of the features
that truly are; `recall_planted`, the same of things rather than of latents: of the grafts or planted features that are
lost or new, those that a listed latent follows; `false`, the share listed of the kept.

An instrument has a *sensitivity*, the share of identified features that changed which it does not call persisting
(inherited), and a *specificity*, the share of those kept which it does. Both are counted on the parent's side, for what
is lost, and on the child's, for what is new. Of new things those count that the child's own SAEs identify, whether the
instrument's SAE has a latent for them or not. One is seen if an identified latent follows it and none of those that do
is called inherited.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from saelineage.lineage.matching import INHERITED, PERSISTS, SIDES, UNTESTABLE
from saelineage.lineage.shares import share
from saelineage.lineage.verdicts import DRIFTED, GONE, NEW

LISTS = ("all", "identified", "gone", "robust", "headline")
COUNTS = ("n_changed", "listed_changed", "n_kept", "listed_kept", "touched", "n_planted", "planted_listed")
"""Columns of lists that add up: the testable features that changed and those of them that are listed, those kept and
those of them that are listed, those that are neither; the grafts or planted features that changed, and those of them
that a listed latent follows."""
SEEN = ("n_changed", "seen", "n_kept", "spared")
"""Columns of `detection` that add up."""
LEAST_SENSITIVITY, LEAST_SPECIFICITY = 0.9, 0.95
"""What an instrument must reach in both directions to be fit."""
NO_LATENT: Int[np.ndarray, " latent"] = np.empty(0, dtype=np.int64)


class Truth(NamedTuple):
    """What is known of the features of one side of an edge. Those that are neither are not counted."""

    changed: Bool[np.ndarray, " d_sae"]
    """Lost by the child, or new in it."""
    kept: Bool[np.ndarray, " d_sae"]
    follows: Int[np.ndarray, " d_sae"] | None = None
    """The number of the graft or planted feature that each changed feature follows, -1 for the others; None where a
    feature that changed stands for itself."""
    n_planted: int = 0
    """Grafts or planted features that changed, whether followed or not."""

    @classmethod
    def nothing_changed(cls, d_sae: int) -> "Truth":
        """All features are kept."""
        return cls(np.zeros(d_sae, dtype=bool), np.ones(d_sae, dtype=bool))

    @classmethod
    def all_changed(cls, d_sae: int) -> "Truth":
        """No feature is kept."""
        return cls(np.ones(d_sae, dtype=bool), np.zeros(d_sae, dtype=bool))

    @classmethod
    def unknown(cls, d_sae: int) -> "Truth":
        """Nothing is known."""
        return cls(np.zeros(d_sae, dtype=bool), np.zeros(d_sae, dtype=bool))

    def followed(self, among: Bool[np.ndarray, " d_sae"]) -> Int[np.ndarray, " number"]:
        """The grafts or planted features that at least one of some features follows."""
        numbers = NO_LATENT if self.follows is None else self.follows[among]
        return np.unique(numbers[numbers >= 0])


def testable(rows: pd.DataFrame) -> Bool[np.ndarray, " row"]:
    """Features that fire often enough; one that no readout finds is among them."""
    return (rows["study_verdict"] != UNTESTABLE).to_numpy()


def lists_of(rows: pd.DataFrame) -> dict[str, tuple[Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]]:
    """For each list of one side of an edge's table, the features that could be on it and those that are."""
    could_be = testable(rows)
    changed = rows["verdict"].isin([DRIFTED, GONE, NEW]).to_numpy()
    identified = could_be & rows["identified"].to_numpy()
    return {
        "all": (could_be, changed),
        "identified": (identified, changed),
        "gone": (could_be, rows["verdict"].isin([GONE, NEW]).to_numpy()),
        "robust": (identified, rows["robust"].to_numpy()),
        "headline": (identified, rows["headline"].to_numpy()),
    }


def score(rows: pd.DataFrame, truth: Truth) -> list[dict]:
    """Count, for each list of one side of an edge's table, what is right and what is wrong (`COUNTS`)."""
    counted = []
    for name, (among, listed) in lists_of(rows).items():
        changed, kept = among & truth.changed, among & truth.kept
        counts = {
            "n_changed": changed.sum(),
            "listed_changed": (changed & listed).sum(),
            "n_kept": kept.sum(),
            "listed_kept": (kept & listed).sum(),
            "touched": (among & ~truth.changed & ~truth.kept).sum(),
            "n_planted": truth.n_planted,
            "planted_listed": len(truth.followed(among & listed)),
        }
        counted.append({"list": name} | {key: int(count) for key, count in counts.items()})
    return counted


def detection(rows: pd.DataFrame, truth: Truth, identifiable: Int[np.ndarray, " number"] = NO_LATENT) -> dict:
    """Count the identified features of one side that changed and are seen, and those that are kept and spared.

    Args:
        rows: of one side of an edge's table.
        truth: of the same features.
        identifiable: where things were grafted or planted, those that the side's own SAEs identify.
    """
    among = testable(rows) & rows["identified"].to_numpy()
    persists = rows["verdict"].isin([PERSISTS, INHERITED]).to_numpy()
    kept, changed = among & truth.kept, among & truth.changed
    n_changed, seen = int(changed.sum()), int((changed & ~persists).sum())
    if truth.follows is not None:
        shown = np.setdiff1d(truth.followed(among), truth.followed(among & persists))
        n_changed, seen = len(identifiable), len(np.intersect1d(shown, identifiable))
    return {"n_changed": n_changed, "seen": seen, "n_kept": int(kept.sum()), "spared": int((kept & persists).sum())}


def identifiable(rows: pd.DataFrame, truth: Truth) -> Int[np.ndarray, " number"]:
    """The grafts or planted features that an identified feature of an SAE follows."""
    return truth.followed(testable(rows) & rows["identified"].to_numpy())


def persisting(rows: pd.DataFrame, truth: Truth) -> list[dict]:
    """Count the features called persisting (inherited) and those expected to be, of all and of the identified."""
    among = testable(rows) & (truth.changed | truth.kept)
    persists = rows["verdict"].isin([PERSISTS, INHERITED]).to_numpy()
    groups = {"all": among, "identified": among & rows["identified"].to_numpy()}
    return [
        {
            "of": name,
            "n": int(group.sum()),
            "persisting": int((group & persists).sum()),
            "expected": int((group & truth.kept).sum()),
        }
        for name, group in groups.items()
    ]


def classes(rows: pd.DataFrame, truth: Truth) -> list[dict]:
    """Count the verdicts on the identified features that changed and on those that were kept."""
    identified, verdicts = rows["identified"].to_numpy(), rows["verdict"].to_numpy()
    counted = []
    for name, among in (("changed", identified & truth.changed), ("kept", identified & truth.kept)):
        names, counts = np.unique(verdicts[among].astype(str), return_counts=True)
        counted += [
            {"truth": name, "verdict": verdict, "n": int(count)} for verdict, count in zip(names, counts, strict=True)
        ]
    return counted


def with_ratios(counts: pd.DataFrame) -> pd.DataFrame:
    """Add precision, both recalls and the false share to counts; NaN where there is nothing to take a share of."""
    listed = counts["listed_changed"] + counts["listed_kept"]
    return counts.assign(
        precision=counts["listed_changed"] / listed.where(listed > 0),
        recall=counts["listed_changed"] / counts["n_changed"].where(counts["n_changed"] > 0),
        recall_planted=counts["planted_listed"] / counts["n_planted"].where(counts["n_planted"] > 0),
        false=counts["listed_kept"] / counts["n_kept"].where(counts["n_kept"] > 0),
    )


def summed(lists: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Counts and ratios of lists, over organisms or scenarios."""
    return with_ratios(lists.groupby(list(by), sort=False)[list(COUNTS)].sum()).reset_index()


def fitness(detected: pd.DataFrame, by: Sequence[str] = ("instrument",)) -> pd.DataFrame:
    """Sensitivity and specificity of instruments in both directions, each with its n and Wilson's 95 % interval.

    Args:
        detected: rows of `detection`, with `side` and the columns `by`.
        by: what makes a row.

    Returns:
        Per row `sees_lost`, `sees_new`, `spares_kept` and `spares_inherited`, with `n_`, `_low` and `_high` of each;
        and `fit`: true if all four reach their bounds, None where one has no features.
    """
    counts = detected.groupby([*by, "side"], sort=False)[list(SEEN)].sum()
    rows = []
    for key in dict.fromkeys(index[:-1] for index in counts.index):
        sides = [counts.loc[(*key, side)] for side in SIDES]
        shares = {
            name: share(int(of_side[count]), int(of_side[of]))
            for names, count, of in (
                (("sees_lost", "sees_new"), "seen", "n_changed"),
                (("spares_kept", "spares_inherited"), "spared", "n_kept"),
            )
            for name, of_side in zip(names, sides, strict=True)
        }
        bounds = (LEAST_SENSITIVITY,) * 2 + (LEAST_SPECIFICITY,) * 2
        reached = [
            one.value >= bound for one, bound in zip(shares.values(), bounds, strict=True) if one.value is not None
        ]
        row = dict(zip(by, key, strict=True))
        for name, (value, n, interval) in shares.items():
            low, high = interval or (None, None)
            row |= {name: value, f"n_{name}": n, f"{name}_low": low, f"{name}_high": high}
        fit = False if False in reached else True if len(reached) == len(shares) else None
        rows.append(row | {"fit": fit})
    return pd.DataFrame(rows)
