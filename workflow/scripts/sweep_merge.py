"""Measure merges of some models over a grid of settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.loading import evaluate, on_device, open_model
from saelineage.models.merging.merge import open_merge, parent_shares
from saelineage.models.merging.parents import folders_of, open_parents
from saelineage.models.merging.sweeps import mark_best
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def sweep_merge(
    merges: Sequence[Mapping],
    over: Sequence[str],
    parent_folders: list[Path],
    base_folder: Path | None,
    beside: Sequence[Path],
    paths_to_validation: Mapping[str, str],
    batch_rows: int,
    path_to_sweep: str,
    gpus: int,
    best_by: str = "mean_loss",
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Measure each merge without writing it, and list the models that it is shown beside.

    Args:
        merges: the settings of each merge (`plan.merges.merge_settings`), which differ in those of `over`.
        over: the swept settings.
        parent_folders, base_folder: of the models that are merged.
        beside: folders of the models that the merges are shown beside: the parents, and what they descend from.
        paths_to_validation: files of token rows by corpus.
        batch_rows: rows in a batch.
        path_to_sweep: to write: `model` (null for merges), the swept settings, `corpus`, `loss`, `accuracy`,
            `n_predictions`, and of merges `barrier`, the loss minus the parents' mean loss with the merge's weights
            (NaN where they have none, `merge.parent_shares`), and `is_best`.
        gpus: GPUs of the job.
        best_by: a criterion of `models.merging.sweeps`.
        unshared: what to do with rows with tokens that the merge does not have.
        model_dtype: as in the config.
    """
    validation = read_token_rows(paths_to_validation)
    parents = open_parents(parent_folders, base_folder, merges[0]["dtype"], merges[0]["vocabulary"])
    device = pick_device(gpus)
    metrics: dict[str, dict] = {}
    for folder in beside:
        model = open_model(folder, device, model_dtype)
        shared = share_rows(model, folder, validation, folder.name, unshared).rows
        metrics[folder.name] = {corpus: evaluate(model, of, batch_rows) for corpus, of in shared.items()}
    rows: list[dict] = []
    for settings in merges:
        model = on_device(open_merge(parents, settings, model_dtype, device), device)
        shared = share_rows(model, parents.folders[parents.leader], validation, "the merge", unshared).rows
        shares = parent_shares(settings, len(parents.models))
        point = {"model": None} | {setting: settings[setting] for setting in over}
        for corpus in validation:
            measured = evaluate(model, shared[corpus], batch_rows)
            losses = [metrics[name][corpus]["loss"] for name in parents.names]
            line = float("nan") if shares is None else float(np.dot(shares, losses))
            rows.append(point | {"corpus": corpus} | measured | {"barrier": measured["loss"] - line})
        del model  # before the next one is made
    others = [{"model": name, "corpus": corpus} | metrics[name][corpus] for name in metrics for corpus in validation]
    columns = ["model", *over, "corpus", "loss", "accuracy", "n_predictions", "barrier"]
    table = mark_best(pd.DataFrame([*rows, *others], columns=columns), over, best_by)
    write_parquet(table.astype(dict.fromkeys([*over, "barrier"], float)), path_to_sweep)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        sweep_merge(
            merges=snakemake.params.merges,
            over=snakemake.params.over,
            parent_folders=folders_of(snakemake.input.parents),
            base_folder=next(iter(folders_of(snakemake.input.base)), None),
            beside=folders_of(snakemake.input.beside),
            paths_to_validation=dict(zip(snakemake.params.corpora, snakemake.input.validation, strict=True)),
            batch_rows=snakemake.params.batch_rows,
            path_to_sweep=snakemake.output.sweep,
            gpus=snakemake.resources.get("gpu", 0),
            best_by=snakemake.params.best_by,
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
