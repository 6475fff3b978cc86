"""Read a corpus from its source and distribute its documents over splits."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.corpora.documents import MESSAGES, TEXT, read_documents, write_splits
from saelineage.files.atomic import write_json
from saelineage.files.hub import hub_commit
from saelineage.jobs.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def prepare_corpus(
    corpus: str, settings: dict, fractions: dict, files: list[str], paths: dict[str, Path], path_to_counts: str
) -> dict:
    """Write the three splits of a corpus and its counts, and return its commit on the hub for the manifest."""
    record = {}
    if settings["source"] == "hub":
        record["commit"] = hub_commit(settings["repo"], settings["revision"], "dataset", f"corpora.{corpus}")
        settings = settings | {"revision": record["commit"]}
    column = MESSAGES if settings.get("messages_column") else TEXT
    counts = write_splits(read_documents(corpus, settings, files), fractions, paths, corpus, column)
    write_json(path_to_counts, counts)
    return record


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= prepare_corpus(
            corpus=snakemake.wildcards.corpus,
            settings=snakemake.params.corpus,
            fractions=snakemake.params.splits,
            files=list(snakemake.input),
            paths={split: Path(snakemake.output[split]) for split in ("train", "validation", "probe")},
            path_to_counts=snakemake.output.counts,
        )
