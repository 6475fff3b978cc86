"""Write one SAE's latents on the probe in the format of delphi's cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.features.delphi import N_SPLITS, save_cache
from saelineage.files.atomic import sha256_file, write_json
from saelineage.jobs.job import job
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def export_latents(
    paths_to_shards: list[str], paths_to_probe: Mapping[str, str], model_folder: Path, folder: Path
) -> dict:
    """Write the module's folder, config.json last, and return the digests of its files, whose names depend on d_sae.

    Args:
        paths_to_shards: feature shards, corpus after corpus.
        paths_to_probe: token rows by corpus, in the same order.
        model_folder: the model, whose tokenizer delphi opens.
        folder: the folder to write.
    """
    rows = read_token_rows(paths_to_probe)
    paths = save_cache(paths_to_shards, rows, folder, N_SPLITS)
    n_ctx = next(iter(rows.values())).info["n_ctx"]
    config = {
        "model_name": str(model_folder),
        "n_splits": len(paths),
        "n_tokens": sum(of_corpus.ids.size for of_corpus in rows.values()),
        "cache_ctx_len": n_ctx,
        "ctx_len": n_ctx,
    }
    write_json(folder / "config.json", config)
    return {"splits": {path.name: sha256_file(path) for path in paths}}


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= export_latents(
            paths_to_shards=list(snakemake.input.shards),
            paths_to_probe=dict(zip(snakemake.params.corpora, snakemake.input.probe, strict=True)),
            model_folder=Path(snakemake.input.model[0]).parent,
            folder=Path(snakemake.output.config).parent,
        )
