"""Measure how well each feature of a parent can be read linearly from a child's activations."""

from typing import TYPE_CHECKING

from saelineage.files.tables import write_parquet
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.readouts import read_out

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def read_out_features(
    paths_to_parent_acts: list[str], paths_to_child_acts: list[str], paths_to_features: list[str], path_to_readouts: str
) -> None:
    """Write the table of `readouts.read_out`.

    Args:
        paths_to_parent_acts, paths_to_child_acts: activation shards of the probe.
        paths_to_features: feature shards of the parent's SAE, in the same order.
        path_to_readouts: the parquet file to write.
    """
    write_parquet(read_out(paths_to_parent_acts, paths_to_child_acts, paths_to_features), path_to_readouts)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        read_out_features(
            paths_to_parent_acts=list(snakemake.input.parent_acts),
            paths_to_child_acts=list(snakemake.input.child_acts),
            paths_to_features=list(snakemake.input.features),
            path_to_readouts=snakemake.output.readouts,
        )
