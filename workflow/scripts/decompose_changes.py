"""Decompose the change of each matrix from a model's parents into its singular values and vectors."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from saelineage.files.atomic import read_json, write_json
from saelineage.files.tables import write_parquet
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.models.matrix_changes import MatrixChange, edge_changes, edge_figures

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def decompose_changes(
    path_to_config: str, paths_to_weights: list[Path], path_to_matrices: str, path_to_edges: str, device: torch.device
) -> None:
    """Write a row for each matrix of each edge, and the figures of each edge.

    Args:
        path_to_config: config.json of the child.
        paths_to_weights: weights of the parents and, behind them, of the child, in folders of their names.
        path_to_matrices: the table to write.
        path_to_edges: the figures to write.
        device: the device to compute on.
    """
    *parents, child = paths_to_weights
    model_type, rows, edges = read_json(path_to_config)["model_type"], [], []
    for parent in parents:
        names = parent.parent.name, child.parent.name
        found = edge_changes((parent, child), names, model_type, device)
        edge = {"parent": names[0], "child": names[1]}
        rows += [edge | {"matrix": name} | change._asdict() for name, change in found.matrices.items()]
        edges.append(edge | edge_figures(found.matrices.values()) | {"left_out": found.left_out})
        if found.left_out:
            logger.info("'%s' and '%s' cannot be compared in %s", *names, ", ".join(found.left_out))
    columns = ["parent", "child", "matrix", *MatrixChange._fields]
    undefined = ["relative_change", "subspace_energy", "subspace_energy_if_random"]
    write_parquet(pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(undefined, float)), path_to_matrices)
    write_json(path_to_edges, {"edges": edges})


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        decompose_changes(
            path_to_config=snakemake.input.config,
            paths_to_weights=list(map(Path, snakemake.input.weights)),
            path_to_matrices=snakemake.output.matrices,
            path_to_edges=snakemake.output.edges,
            device=pick_device(snakemake.resources.get("gpu", 0)),
        )
