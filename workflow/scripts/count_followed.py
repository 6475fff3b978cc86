"""Count the features of parents that are found along a sweep of their merges, by group."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from saelineage.features.shards import FeatureShard, most_frequent_corpus, shards_by_sae
from saelineage.files.tables import write_parquet
from saelineage.jobs.job import job
from saelineage.lineage.merge_curves import feature_groups, found_between, origin_groups, survival_curves

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


class Parent(NamedTuple):
    """The files of a parent whose features were followed."""

    shards: Sequence[str]
    """Its features on the probe."""
    path_to_edge: str | None
    """The table of its edge to the merged model, where that is in the lineage."""
    path_to_labels: str | None
    paths_to_origins: Mapping[str, str]
    """The tables of the edges from its own parents to it, by parent."""


def count_followed(
    parents: Mapping[str, Parent],
    over: Sequence[str],
    threshold: float,
    path_to_features: str,
    path_to_curves: str,
    path_to_found: str,
) -> None:
    """Write the share of each parent's features that are found at each merge, by group.

    Args:
        parents: their files, by name.
        over: the swept settings.
        threshold: r from which a feature counts as found.
        path_to_features: r by feature and merge, of `follow_features`.
        path_to_curves: to write (`merge_curves.survival_curves`).
        path_to_found: to write (`merge_curves.found_between`, of the first setting).
    """
    groups = [group for name, parent in parents.items() for group in groups_of(name, parent)]
    followed = pd.read_parquet(path_to_features)
    write_parquet(survival_curves(followed, pd.concat(groups, ignore_index=True), over, threshold), path_to_curves)
    write_parquet(found_between(followed, over[0], threshold), path_to_found)


def groups_of(name: str, parent: Parent) -> list[pd.DataFrame]:
    """The groups of a parent's features; all of them that fire, if it has no edge to the merged model."""
    origins = [
        group
        for origin, path in parent.paths_to_origins.items()
        for group in origin_groups(name, origin, pd.read_parquet(path))
    ]
    corpora = most_frequent_corpus([FeatureShard(path) for path in parent.shards])
    if parent.path_to_edge is None:
        latents = np.flatnonzero(corpora != "")
        return [pd.DataFrame({"model": name, "latent": latents, "kind": "all", "group": "all"}), *origins]
    labels = pd.read_parquet(parent.path_to_labels) if parent.path_to_labels else None
    winning = None if labels is None else labels[labels["wins"]]
    return [*feature_groups(name, pd.read_parquet(parent.path_to_edge), winning, corpora), *origins]


if __name__ == "__main__":
    with job(snakemake):
        edges = dict(zip(snakemake.params.with_edges, snakemake.input.edges, strict=True))
        labels = dict(zip(snakemake.params.with_edges, snakemake.input.labels, strict=True))
        origins: dict[str, dict[str, str]] = {}
        for (origin, parent), path in zip(snakemake.params.origins, snakemake.input.origins, strict=True):
            origins.setdefault(parent, {})[origin] = path
        shards = shards_by_sae(snakemake.input.shards, snakemake.params.parents)
        count_followed(
            parents={
                name: Parent(paths, edges.get(name), labels.get(name), origins.get(name, {}))
                for name, paths in shards.items()
            },
            over=snakemake.params.over,
            threshold=snakemake.params.threshold,
            path_to_features=snakemake.input.followed,
            path_to_curves=snakemake.output.curves,
            path_to_found=snakemake.output.found,
        )
