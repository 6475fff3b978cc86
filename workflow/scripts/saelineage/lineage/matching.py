"""Matching: which features of one side of an edge are found on the other side.

A feature need not have a single match: it can be split among several features of the other side, or several can be
merged into one. `study_verdict` is the three-way verdict of Horn and Elliott (2024, arXiv 2410.12391) on what is found,
with splits and merges; `verdicts` asks further what became of features that are not.
"""

from collections.abc import Iterable, Mapping
from math import nan

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from saelineage.correlations.assignments import mutual_best
from saelineage.correlations.matches import Correlation, Matches
from saelineage.lineage.shares import Share, pooled, share

PERSISTS, DISAPPEARS, INHERITED, EMERGES, UNTESTABLE = "persists", "disappears", "inherited", "emerges", "untestable"
SIDES = ("parent", "child")
"""Names in tables of the two sides of an edge's correlation."""
STUDY_VERDICTS = ((PERSISTS, DISAPPEARS), (INHERITED, EMERGES))
"""Per side, the study's verdict on a feature that is found on the other side and on one that is not."""
ONE_TO_ONE, SPLIT, MERGED = "1:1", "split", "merged"
"""Ways in which a feature is found on the other side."""
SPLIT_GAIN = 0.05
"""Least gain in r of the parts together over the whole's best match alone."""


def edge_table(correlation: Correlation, threshold: float) -> pd.DataFrame:
    """Match both sides of an edge, the parent's features first; columns as in `side_table`."""
    return pd.concat([side_table(correlation, side, threshold) for side in range(2)], ignore_index=True)


def side_table(correlation: Correlation, side: int, threshold: float) -> pd.DataFrame:
    """Find each feature of a side on the other side, with the matches that it rests on.

    A feature is found (a parent's persists, a child's is inherited) where its best r is at or above the threshold, or
    where it takes part in a split (a parent's feature is divided among several of the child's) or in a merge (the same,
    read backwards). A feature is divided where R with its parts (`parts.combined_r`) is at or above the threshold and
    at least `SPLIT_GAIN` above its best r, so that a small companion of a match makes no split. Otherwise a parent's
    disappears, a child's emerges.

    Args:
        correlation: of a parent's (side 0) and a child's (side 1) features.
        side: whose features.
        threshold: r at or above this is a match.

    Returns:
        One row per feature, with columns `side` (`parent`, `child`); `latent`; `study_verdict`; `kind` (`1:1`, `split`,
        `merged`; empty where the feature is not found); `r` and `match`, its best match whatever its r (NaN and -1
        where there is none); `mutual`, true where that match's best match is this feature; `assigned` and
        `r_assigned`, its partner in the one-to-one assignment (-1 and NaN where it has none); `firings`; `density`.
    """
    r, match = best_matches(correlation, side)
    assigned, mutual = (
        _seen_from(side, partners, correlation)
        for partners in (correlation.one_to_one, mutual_best(correlation.pearson))
    )
    kind = _kinds(correlation, side, threshold)
    yes, no = STUDY_VERDICTS[side]
    return pd.DataFrame(
        {
            "side": SIDES[side],
            "latent": np.arange(len(r)),
            "study_verdict": np.select([~correlation.testable[side], kind != ""], [UNTESTABLE, yes], no),
            "kind": kind,
            "r": r,
            "match": match,
            "mutual": mutual >= 0,
            "assigned": assigned,
            "r_assigned": _kept(correlation.pearson, side, assigned),
            "firings": correlation.firings[side].sum(axis=0),
            "density": correlation.density(side),
        }
    )


def sides_of(model: str, edges: Iterable[Mapping[str, str]]) -> list[tuple[int, str]]:
    """The places of the edges that a model is part of, and its side in each.

    Args:
        model: its name.
        edges: the names of the models of each edge, by side.
    """
    return [(place, side) for place, edge in enumerate(edges) for side in SIDES if edge[side] == model]


def best_matches(correlation: Correlation, side: int) -> tuple[Float[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae"]]:
    """The largest r of each feature of a side, and the partner; NaN and -1 where untestable or none is defined."""
    testable = correlation.testable[side]
    r, match = correlation.pearson.best[side][:, 0], correlation.pearson.partners[side][:, 0]
    return np.where(testable, r, np.nan), np.where(testable, match, -1)


def is_found(correlation: Correlation, side: int, threshold: float) -> Bool[np.ndarray, " d_sae"]:
    """Mark the testable features of a side that are found on the other side, splits and merges included."""
    return correlation.testable[side] & (_kinds(correlation, side, threshold) != "")


def matched_share(
    correlation: Correlation, side: int, threshold: float, among: Bool[np.ndarray, " d_sae"] | None = None
) -> Share:
    """The share of a side's testable features that are found on the other side, splits and merges included.

    Args:
        correlation: of two SAEs.
        side: whose features.
        threshold: r at or above this is a match.
        among: the features that count; None for all.
    """
    counted = correlation.testable[side] if among is None else correlation.testable[side] & among
    return share(int((counted & is_found(correlation, side, threshold)).sum()), int(counted.sum()))


def agreement_share(pairs: Iterable[Correlation], threshold: float) -> Share:
    """The share on which SAEs of one model agree, over all pairs of them and both directions."""
    return pooled(matched_share(correlation, side, threshold) for correlation in pairs for side in range(2))


def matching_shares(table: pd.DataFrame, threshold: float, side: str) -> dict[str, Share]:
    """The share of a side's testable features with a partner at or above the threshold, by three rules.

    Splits and merges are left out: a partner is one feature.

    Args:
        table: from `edge_table`.
        threshold: r at or above this is a match.
        side: `parent` or `child`.

    Returns:
        Under `best`, the best match, which several features may share (Horn and Elliott 2024, arXiv 2410.12391); under
        `mutual`, the best match where it is mutual; under `assignment`, the partner in the one-to-one assignment.
    """
    testable = table[(table["side"] == side) & (table["study_verdict"] != UNTESTABLE)]
    matched = {
        "best": testable["r"] >= threshold,
        "mutual": testable["mutual"] & (testable["r"] >= threshold),
        "assignment": testable["r_assigned"] >= threshold,
    }
    return {rule: share(int(matches.sum()), len(testable)) for rule, matches in matched.items()}


def agreement(
    one: np.ndarray, other: np.ndarray, among: Bool[np.ndarray, " d_sae"] | None = None
) -> dict[str, int | float]:
    """Measure how often two verdicts on the features of one SAE are the same, with Cohen's kappa.

    kappa = (p_o - p_e) / (1 - p_e), where p_o is the share of equal verdicts and p_e what is expected of verdicts drawn
    independently at each table's rates (Cohen 1960, Educational and Psychological Measurement 20, 37-46). 1 is full
    agreement, 0 is that of chance.

    Args:
        one, other: a verdict (text) for each feature of the SAE.
        among: the features that count; None for all.

    Returns:
        `n`, the features testable in both; `share`, those with the same verdict (NaN where there are none); `kappa`
        (NaN where each has but one verdict, the same one).

    Raises:
        ValueError: if the numbers of features differ.
    """
    if len(one) != len(other):
        raise ValueError(
            f"both verdicts must be on the same SAE, but are on {len(one)} and {len(other)} features; "
            "give tables of edges that share it"
        )
    both = (one != UNTESTABLE) & (other != UNTESTABLE) & (True if among is None else among)
    first, second, n = one[both], other[both], int(both.sum())
    same = int((first == second).sum())
    # n^2 p_e is a whole number, so n^2 (1 - p_e) is exactly zero where it should be
    by_chance = sum(int((first == verdict).sum()) * int((second == verdict).sum()) for verdict in set(first))
    kappa = (n * same - by_chance) / (n**2 - by_chance) if n**2 > by_chance else nan
    return {"n": n, "share": same / n if n else nan, "kappa": kappa}


def same_index_rate(correlation: Correlation, threshold: float) -> Share:
    """The share of matches with the same latent index on both sides, a sign of a shared initialisation.

    It is taken over the features of side 0 whose best match is at or above the threshold and whose latent index is
    testable on both sides. SAEs with unrelated initialisations agree on 1 in d_sae by chance.
    """
    r, match = best_matches(correlation, 0)
    n = min(len(testable) for testable in correlation.testable)
    counted = correlation.testable[0][:n] & correlation.testable[1][:n] & (r[:n] >= threshold)
    return share(int((counted & (match[:n] == np.arange(n))).sum()), int(counted.sum()))


def _kinds(correlation: Correlation, side: int, threshold: float) -> np.ndarray:
    """The kind of each feature's match; of a split and a merge the one with the larger R counts, on a tie the split."""
    split, merged = (_divided(correlation, side, whole, threshold) for whole in range(2))
    in_split = ~np.isnan(split) & ~(merged > split)
    single = best_matches(correlation, side)[0] >= threshold
    return np.select([in_split, ~np.isnan(merged), single], [SPLIT, MERGED, ONE_TO_ONE], "")


def _divided(correlation: Correlation, side: int, whole: int, threshold: float) -> Float[np.ndarray, " d_sae"]:
    """R of each feature of a side that takes part where features of side `whole` are divided (`verdicts`); else NaN."""
    if correlation.combined is None:
        return np.full(len(correlation.testable[side]), np.nan)
    combined, best = correlation.combined.r[whole], best_matches(correlation, whole)[0]
    divided = (combined >= threshold) & (combined >= best + SPLIT_GAIN)
    of_wholes = np.where(divided, combined, np.nan)
    if side == whole:
        return of_wholes
    whole_of = correlation.combined.whole_of[side]
    return np.where(whole_of >= 0, of_wholes[whole_of], np.nan)


def _kept(matches: Matches, side: int, partners: Int[np.ndarray, " d_sae"]) -> Float[np.ndarray, " d_sae"]:
    """The similarity of each feature of a side with its partner; NaN where it has none (-1) or it was not kept."""
    latents = np.arange(len(partners))
    similarities = matches.kept[latents, partners] if side == 0 else matches.kept[partners, latents]
    return np.where((partners >= 0) & (similarities != 0), similarities, np.nan)


def _seen_from(side: int, partners: Int[np.ndarray, " d_sae_a"], correlation: Correlation) -> np.ndarray:
    """Partners of side 0's features, as given, or as partners of side 1's."""
    if side == 0:
        return partners
    inverse = np.full(len(correlation.testable[1]), -1)
    paired = np.flatnonzero(partners >= 0)
    inverse[partners[paired]] = paired
    return inverse
