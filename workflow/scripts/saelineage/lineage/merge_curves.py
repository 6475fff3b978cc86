"""The share of parents' features that are found along a sweep of merges, by group of features."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from saelineage.lineage.matching import SIDES, UNTESTABLE
from saelineage.lineage.shares import share

ALL = "all"
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
    rows = edge[(edge["side"] == SIDES[0]) & (edge["verdict"] != UNTESTABLE)]
    latents = rows["latent"].to_numpy()

    def named(kind: str, values: Sequence | np.ndarray, of: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({"model": model, "latent": of, "kind": kind, "group": values})

    identified = rows["identified"].fillna(value=False).to_numpy(bool)
    yield named(ALL, np.full(len(latents), ALL), latents)
    yield named("identified", np.full(int(identified.sum()), "identified"), latents[identified])
    yield named("verdict", rows["verdict"].to_numpy(), latents)
    yield named("corpus", corpora[latents], latents)
    if labels is not None:
        known = labels[labels["latent"].isin(latents)]
        yield named("label", known["kind"].to_numpy(), known["latent"].to_numpy())
