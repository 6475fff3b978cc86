"""Label each feature of one SAE with the property of tokens that it follows best."""

from typing import TYPE_CHECKING

from saelineage.files.tables import write_parquet
from saelineage.jobs.job import job
from saelineage.labels.annotations import load_annotations
from saelineage.labels.labels import label

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def label_features(
    paths_to_features: list[str], path_to_annotations: str, min_firings: int, path_to_labels: str
) -> None:
    """Write the table of `labels.label`.

    Args:
        paths_to_features: feature shards of one SAE, all corpora.
        path_to_annotations: the annotations of the probe's tokens.
        min_firings: fewest firings in each half of the documents for a label.
        path_to_labels: the parquet file to write.
    """
    write_parquet(label(paths_to_features, load_annotations(path_to_annotations), min_firings), path_to_labels)


if __name__ == "__main__":
    with job(snakemake):
        label_features(
            paths_to_features=list(snakemake.input.shards),
            path_to_annotations=snakemake.input.annotations,
            min_firings=snakemake.params.min_firings,
            path_to_labels=snakemake.output.labels,
        )
