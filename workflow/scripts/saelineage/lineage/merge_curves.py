"""The share of parents' features that are found along a sweep of merges, by group of features."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.shares import share

ALL = "all"
SINCE, OF_IDENTIFIED = "since ", ", identified"
"""Kinds of groups: `since base` by the verdict of the edge from the base, and `since base, identified`."""
SHARE = ["share", "share_n", "share_low", "share_high"]


def found_between(followed: pd.DataFrame, setting: str, threshold: float) -> pd.DataFrame:
    """The least and the largest value of a setting at which each feature is found, r >= threshold.

    Args:
        followed: `model`, `latent`, `r`, and the setting; with a second setting, over all its values.
        setting: the swept setting.
        threshold: as in the config's `lineage.threshold`.

    Returns:
        `model`, `latent`, `found_from` and `found_to`, NaN for features that are found nowhere.
    """
    found = followed[followed["r"] >= threshold].groupby(["model", "latent"])[setting]
    bounds = found.agg(found_from="min", found_to="max").reset_index()
    features = followed[["model", "latent"]].drop_duplicates()
    return features.merge(bounds, on=["model", "latent"], how="left")


def survival_curves(
    followed: pd.DataFrame, groups: pd.DataFrame, over: Sequence[str], threshold: float
) -> pd.DataFrame:
    """The share of each parent's features that are found, at each point and by group.

    Args:
        followed: `model`, `latent`, `r` and the swept settings.
        groups: `model`, `latent`, `kind` and `group` of each feature that counts; a feature may be in several.
        over: the swept settings.
        threshold: r from which a feature counts as found.

    Returns:
        `model`, `kind`, `group`, the swept settings, and the `share` with its `share_n`, `share_low` and `share_high`
        (Wilson). A feature whose r is undefined, because it never fires on the merge, is not found.
    """
    keys = ["model", "kind", "group", *over]
    table = followed.merge(groups, on=["model", "latent"]).assign(found=lambda rows: rows["r"] >= threshold)
    counts = table.groupby(keys, sort=False)["found"].agg(n_found="sum", n="size").reset_index()
    return pd.DataFrame([_with_share(row, keys) for row in counts.to_dict("records")], columns=[*keys, *SHARE])


def _with_share(row: Mapping, keys: Sequence[str]) -> dict:
    found = share(int(row["n_found"]), int(row["n"]))
    low, high = found.interval or (None, None)
    return {key: row[key] for key in keys} | dict(zip(SHARE, (found.value, found.n, low, high), strict=True))


def feature_groups(
    model: str, edge: pd.DataFrame, labels: pd.DataFrame | None, corpora: np.ndarray
) -> Iterator[pd.DataFrame]:
    """The groups of a parent's testable features: all, identified, by verdict, corpus and kind of label.

    Args:
        model: the parent.
        edge: the table of its edge to the merged model.
        labels: `latent` and `kind` of the label that wins, where features have labels.
        corpora: the corpus on which each latent fires most often.
    """
    rows = _testable(edge, SIDES[0])
    latents, identified = rows["latent"].to_numpy(), _identified(rows)
    yield _group(model, latents, ALL, ALL)
    yield _group(model, latents[identified], "identified", "identified")
    yield _group(model, latents, "verdict", rows["verdict"].to_numpy())
    yield _group(model, latents, "corpus", corpora[latents])
    if labels is not None:
        known = labels[labels["latent"].isin(latents)]
        yield _group(model, known["latent"].to_numpy(), "label", known["kind"].to_numpy())


def origin_groups(model: str, origin: str, edge: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The groups of a parent's testable features by what they are since the model that it comes from.

    They say which features of a fine-tuned model, of those that are new in it, arrive in a merge.

    Args:
        model: the parent of the merge.
        origin: a parent of that model.
        edge: the table of the edge from `origin` to `model`.
    """
    rows = _testable(edge, SIDES[1])
    latents, verdicts, identified = rows["latent"].to_numpy(), rows["verdict"].to_numpy(), _identified(rows)
    yield _group(model, latents, f"{SINCE}{origin}", verdicts)
    yield _group(model, latents[identified], f"{SINCE}{origin}{OF_IDENTIFIED}", verdicts[identified])


def _testable(edge: pd.DataFrame, side: str) -> pd.DataFrame:
    return edge[(edge["side"] == side) & (edge["verdict"] != UNTESTABLE)]


def _identified(rows: pd.DataFrame) -> np.ndarray:
    return rows["identified"].fillna(value=False).to_numpy(bool)


def _group(model: str, latents: np.ndarray, kind: str, group: str | np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"model": model, "latent": latents, "kind": kind, "group": group})
