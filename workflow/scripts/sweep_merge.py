"""Measure merges of two models over a grid of coefficients."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from transformers import PreTrainedModel

from saelineage.files.atomic import read_json
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.models.loading import evaluate, on_device, open_state
from saelineage.models.merging import Parents, merge_parents, read_parents
from saelineage.models.vocabularies import share_rows
from saelineage.precision import AUTO, opened_dtype, widest
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def sweep_merge(
    parent_folders: list[Path],
    coefficients: list[float],
    dtype: str | None,
    paths_to_base_metrics: list[str],
    paths_to_validation: Mapping[str, str],
    batch_rows: int,
    path_to_sweep: str,
    gpus: int,
    method: str = "slerp",
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Write `t`, `corpus`, `loss`, `accuracy` and `n_predictions` by coefficient and corpus; t is NaN for the base."""
    validation = read_token_rows(paths_to_validation)
    parents = read_parents(parent_folders, dtype)
    device = pick_device(gpus)
    rows = []
    for t in coefficients:
        model = on_device(open_merge(parents, t, method, partial(opened_dtype, model_dtype, device=device)), device)
        shared = share_rows(model, parent_folders[0], validation, "the merge", unshared).rows
        measured = {corpus: evaluate(model, of, batch_rows) for corpus, of in shared.items()}
        del model  # before the next one is made
        rows += [{"t": t, "corpus": corpus} | measured[corpus] for corpus in validation]
    for path in paths_to_base_metrics:
        metrics = read_json(path)["corpora"]
        rows += [{"t": None, "corpus": corpus} | metrics[corpus] for corpus in validation]
    table = pd.DataFrame(rows)[["t", "corpus", "loss", "accuracy", "n_predictions"]]
    write_parquet(table.astype({"t": float}), path_to_sweep)


def open_merge(
    parents: Parents, t: float, method: str, dtype_of: Callable[[torch.dtype], torch.dtype]
) -> PreTrainedModel:
    """Merge two models in memory, and open the result in a number format that follows from that of its weights."""
    merged, _ = merge_parents(parents, t, method)
    name = f"the merge of '{parents.names[0]}' and '{parents.names[1]}'"
    return open_state(parents.config, merged, name, dtype_of(widest(merged.values())))


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        sweep_merge(
            parent_folders=list(dict.fromkeys(Path(path).parent for path in snakemake.input.parents)),
            coefficients=snakemake.params.t,
            dtype=snakemake.params.dtype,
            paths_to_base_metrics=list(snakemake.input.base),
            paths_to_validation=dict(zip(snakemake.params.corpora, snakemake.input.validation, strict=True)),
            batch_rows=snakemake.params.batch_rows,
            path_to_sweep=snakemake.output.sweep,
            gpus=snakemake.resources.get("gpu", 0),
            method=snakemake.params.method,
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
