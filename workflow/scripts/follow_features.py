"""Follow the features of some models through a sweep of their merges."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from saelineage.features.shards import FeatureShard
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.merge_survival import feature_groups, followed, found_between, survival_curves
from saelineage.models.loading import on_device
from saelineage.models.merging.merge import open_merge
from saelineage.models.merging.parents import folders_of, open_parents
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO
from saelineage.saes.sae import load_sae
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


class Parent(NamedTuple):
    """The files of a parent whose features are followed."""

    sae_folder: Path
    """The SAE that verdicts rest on."""
    shards: Sequence[str]
    """Its features on the probe."""
    path_to_edge: str | None
    """The table of its edge to the merged model, where that is in the lineage."""
    path_to_labels: str | None


def follow_features(
    merges: Sequence[Mapping],
    over: Sequence[str],
    parent_folders: list[Path],
    base_folder: Path | None,
    parents: Mapping[str, Parent],
    paths_to_probe: Mapping[str, str],
    hookpoint: str,
    dtype: str,
    threshold: float,
    batch_rows: int,
    path_to_features: str,
    path_to_curves: str,
    gpus: int,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Correlate each parent's features with themselves on each merge, and count those that are found.

    Args:
        merges: the settings of each merge, which differ in those of `over`.
        over: the swept settings.
        parent_folders, base_folder: of the models that are merged.
        parents: their SAEs and features, by name.
        paths_to_probe: token rows of the probe by corpus.
        hookpoint: the place of the activations.
        dtype: number format of dumped activations.
        threshold: r from which a feature counts as found.
        batch_rows: rows in a forward pass.
        path_to_features: to write: `model`, `latent`, the swept settings, `r`, and of each feature `found_from` and
            `found_to`, the least and the largest value of the first setting at which it is found.
        path_to_curves: to write: `merge_survival.survival_curves`.
        gpus: GPUs of the job.
        unshared, model_dtype: as in the config.
    """
    rows = read_token_rows(paths_to_probe)
    opened = open_parents(parent_folders, base_folder, merges[0]["dtype"], merges[0]["vocabulary"])
    device = pick_device(gpus)
    saes = {name: load_sae(parent.sae_folder).to(device) for name, parent in parents.items()}
    shards = {name: [FeatureShard(path) for path in parent.shards] for name, parent in parents.items()}
    tables = []
    for settings in merges:
        model = on_device(open_merge(opened, settings, model_dtype, device), device)
        of_merge = share_rows(model, opened.folders[opened.leader], rows, "the merge", unshared).rows
        point = {setting: float(settings[setting]) for setting in over}
        for name, r in followed(model, hookpoint, of_merge, shards, saes, dtype, batch_rows).items():
            tables.append(pd.DataFrame({"model": name, "latent": np.arange(len(r)), **point, "r": r}))
        del model  # before the next one is made
    table = pd.concat(tables, ignore_index=True)
    write_parquet(table.merge(found_between(table, over[0], threshold), on=["model", "latent"]), path_to_features)
    groups = [group for name, parent in parents.items() for group in groups_of(name, parent, shards[name])]
    write_parquet(survival_curves(table, pd.concat(groups, ignore_index=True), over, threshold), path_to_curves)


def groups_of(name: str, parent: Parent, shards: Sequence[FeatureShard]) -> list[pd.DataFrame]:
    """The groups of a parent's features; all of them that fire, if it has no edge to the merged model."""
    corpora = most_frequent_corpus(shards)
    if parent.path_to_edge is None:
        latents = np.flatnonzero(corpora != "")
        return [pd.DataFrame({"model": name, "latent": latents, "kind": "all", "group": "all"})]
    labels = pd.read_parquet(parent.path_to_labels) if parent.path_to_labels else None
    winning = None if labels is None else labels[labels["wins"]]
    return list(feature_groups(name, pd.read_parquet(parent.path_to_edge), winning, corpora))


def most_frequent_corpus(shards: Sequence[FeatureShard]) -> np.ndarray:
    """The corpus of which each latent fires on the largest share of tokens; empty for one that never fires."""
    counts: dict[str, np.ndarray] = {}
    tokens: dict[str, int] = {}
    for shard in shards:
        fired = np.bincount(shard.latents.indices, minlength=shard.d_sae)
        counts[shard.corpus] = counts.get(shard.corpus, np.zeros(shard.d_sae, int)) + fired
        tokens[shard.corpus] = tokens.get(shard.corpus, 0) + int(shard.compared.sum())
    names = np.array([*counts, ""])
    shares = np.stack([counts[corpus] / max(1, tokens[corpus]) for corpus in counts])
    return names[np.where(shares.max(axis=0) > 0, shares.argmax(axis=0), len(counts))]


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        names = snakemake.params.parents
        n_shards = len(snakemake.input.features) // len(names)
        edges = dict(zip(snakemake.params.with_edges, snakemake.input.edges, strict=True))
        labels = dict(zip(snakemake.params.with_edges, snakemake.input.labels, strict=True))
        follow_features(
            merges=snakemake.params.merges,
            over=snakemake.params.over,
            parent_folders=folders_of(snakemake.input.parents),
            base_folder=next(iter(folders_of(snakemake.input.base)), None),
            parents={
                name: Parent(
                    folder,
                    snakemake.input.features[place * n_shards : (place + 1) * n_shards],
                    edges.get(name),
                    labels.get(name),
                )
                for place, (name, folder) in enumerate(
                    zip(names, [Path(path).parent for path in snakemake.input.saes[::2]], strict=True)
                )
            },
            paths_to_probe=dict(zip(snakemake.params.corpora, snakemake.input.rows, strict=True)),
            hookpoint=snakemake.params.hookpoint,
            dtype=snakemake.params.dtype,
            threshold=snakemake.params.threshold,
            batch_rows=snakemake.params.batch_rows,
            path_to_features=snakemake.output.features,
            path_to_curves=snakemake.output.curves,
            gpus=snakemake.resources.get("gpu", 0),
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
