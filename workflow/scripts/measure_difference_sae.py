"""Measure a difference SAE on the probe, and compare its directions with those of both models' SAEs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.crosscoders.differences import recorded_max_norms, sums_by_corpus
from saelineage.files.tables import write_parquet
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.differences import latent_table, summary_table
from saelineage.saes.sae import load_sae

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def measure_difference_sae(
    folder: Path,
    names: Mapping[str, str],
    paths_to_shards: Mapping[str, Mapping[str, Sequence[str]]],
    compared: Mapping[str, Path],
    same_above: float,
    min_firings: int,
    path_to_latents: str,
    path_to_summary: str,
    gpus: int,
    threads: int,
) -> None:
    """Write the table of latents and that of figures by corpus (`lineage.differences`).

    Args:
        folder: of the difference SAE.
        names: `parent`, `child`, `role` and `seed`, which both tables begin with.
        paths_to_shards: activations of the probe by side (`parent`, `child`) and corpus.
        compared: folders of the SAEs of `parent` and `child`, and of a second one of the parent, `unchanged`, if there
            is one.
        same_above: cosine from which two directions count as the same.
        min_firings: latents that fire on fewer tokens are not counted by direction.
        path_to_latents, path_to_summary: to write.
        gpus: GPUs of the job.
        threads: threads that search the cosines.
    """
    device, sae = pick_device(gpus), load_sae(folder)
    sae.to(device)
    by_corpus = sums_by_corpus(sae, paths_to_shards, recorded_max_norms(folder), device)
    decoders = {role: load_sae(of_role).W_dec for role, of_role in compared.items()}
    latents = latent_table(sae.W_dec.cpu(), decoders, by_corpus, same_above, threads)
    summary = summary_table(latents, by_corpus, same_above, min_firings)
    for table, path in ((latents, path_to_latents), (summary, path_to_summary)):
        for place, (name, value) in enumerate(names.items()):
            table.insert(place, name, value)
        write_parquet(table, path)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        corpora, wildcards = snakemake.params.corpora, snakemake.wildcards
        n = len(snakemake.input.child) // len(corpora)
        measure_difference_sae(
            folder=Path(snakemake.input.weights).parent,
            names={
                "parent": wildcards.parent,
                "child": wildcards.child,
                "role": snakemake.params.role,
                "seed": wildcards.seed,
            },
            paths_to_shards={
                side: {corpus: list(paths[place * n : (place + 1) * n]) for place, corpus in enumerate(corpora)}
                for side, paths in (("parent", snakemake.input.parent), ("child", snakemake.input.child))
            },
            compared={
                role: Path(paths[0]).parent
                for role in ("parent", "child", "unchanged")
                if (paths := snakemake.input.get(f"{role}_sae"))
            },
            same_above=snakemake.params.same_above,
            min_firings=snakemake.params.min_firings,
            path_to_latents=snakemake.output.latents,
            path_to_summary=snakemake.output.summary,
            gpus=snakemake.resources.get("gpu", 0),
            threads=snakemake.threads,
        )
