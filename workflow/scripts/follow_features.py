"""Follow the features of some models through a sweep of their merges."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from saelineage.features.shards import FeatureShard, shards_by_sae
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.merge_survival import followed
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


def follow_features(
    merges: Sequence[Mapping],
    over: Sequence[str],
    parent_folders: list[Path],
    base_folder: Path | None,
    parents: Mapping[str, Parent],
    paths_to_probe: Mapping[str, str],
    hookpoint: str,
    dtype: str,
    batch_rows: int,
    path_to_features: str,
    gpus: int,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Correlate each parent's features with themselves on each merge.

    Args:
        merges: the settings of each merge, which differ in those of `over`.
        over: the swept settings.
        parent_folders, base_folder: of the models that are merged.
        parents: their SAEs and features, by name.
        paths_to_probe: token rows of the probe by corpus.
        hookpoint: the place of the activations.
        dtype: number format of dumped activations.
        batch_rows: rows in a forward pass.
        path_to_features: to write: `model`, `latent`, the swept settings and `r`.
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
    write_parquet(table, path_to_features)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        names = snakemake.params.parents
        shards = shards_by_sae(snakemake.input.features, names)
        follow_features(
            merges=snakemake.params.merges,
            over=snakemake.params.over,
            parent_folders=folders_of(snakemake.input.parents),
            base_folder=next(iter(folders_of(snakemake.input.base)), None),
            parents={
                name: Parent(folder, shards[name])
                for name, folder in zip(names, folders_of(snakemake.input.saes), strict=True)
            },
            paths_to_probe=dict(zip(snakemake.params.corpora, snakemake.input.rows, strict=True)),
            hookpoint=snakemake.params.hookpoint,
            dtype=snakemake.params.dtype,
            batch_rows=snakemake.params.batch_rows,
            path_to_features=snakemake.output.features,
            gpus=snakemake.resources.get("gpu", 0),
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
