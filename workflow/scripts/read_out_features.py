"""Measure how well the features of both ends of an edge are read linearly from the activations of the other end."""

from typing import TYPE_CHECKING

import pandas as pd
import torch

from saelineage.files.tables import write_parquet
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.matching import SIDES
from saelineage.lineage.readouts import read_out
from saelineage.transfers import CPU

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def read_out_features(
    paths_to_acts: tuple[list[str], list[str]],
    paths_to_features: tuple[list[str], list[str]],
    path_to_readouts: str,
    device: torch.device = CPU,
) -> None:
    """Write the tables of `readouts.read_out` of both sides, the parent's first, with a column `side`.

    Args:
        paths_to_acts: activation shards of the parent and of the child on the probe.
        paths_to_features: feature shards of the parent's and of the child's SAE, in the same order.
        path_to_readouts: the parquet file to write.
        device: the device to compute on.
    """
    tables = [
        read_out(paths_to_acts[side], paths_to_acts[1 - side], paths_to_features[side], device=device).assign(side=name)
        for side, name in enumerate(SIDES)
    ]
    table = pd.concat(tables, ignore_index=True)
    write_parquet(table[["side", *table.columns.drop("side")]], path_to_readouts)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        read_out_features(
            paths_to_acts=(list(snakemake.input.parent_acts), list(snakemake.input.child_acts)),
            paths_to_features=(list(snakemake.input.parent_features), list(snakemake.input.child_features)),
            path_to_readouts=snakemake.output.readouts,
            device=pick_device(snakemake.resources.get("gpu", 0)),
        )
