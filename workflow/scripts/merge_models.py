"""Merge two language models tensor by tensor."""

from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.files.atomic import read_json
from saelineage.jobs.job import job, logger
from saelineage.models.merging import merge_folders

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def merge_models(parent_folders: list[Path], t: float, dtype: str | None, folder: Path, method: str = "slerp") -> dict:
    """Write the merged model's folder with the first parent's tokenizer and config.

    Returns:
        Facts for the manifest: `same_weights_as`, if the merge has the weights of one of its parents, and `warnings`,
        if the parents' vocabularies differ.
    """
    equal = merge_folders(parent_folders[0], parent_folders[1], t, dtype, folder, method)
    vocabulary = read_json(folder / "merge.json").get("vocabulary")
    facts: dict[str, object] = {"warnings": [f"models.{folder.name}: {vocabulary['note']}"]} if vocabulary else {}
    if equal is None:
        return facts
    logger.warning("the merged model has exactly the weights of '%s': t is %g, or both parents are the same", equal, t)
    return facts | {"same_weights_as": equal}


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= merge_models(
            parent_folders=list(dict.fromkeys(Path(path).parent for path in snakemake.input.parents)),
            t=snakemake.params.model["t"],
            dtype=snakemake.params.model["dtype"],
            folder=Path(snakemake.output.weights).parent,
            method=snakemake.params.model["method"],
        )
