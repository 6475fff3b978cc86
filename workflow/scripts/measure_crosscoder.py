"""Ask a crosscoder, for each edge, which of its latents each model writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.correlations.bootstrap import documents_of
from saelineage.crosscoders.crosscoder import load_crosscoder
from saelineage.crosscoders.document_groups import group_of_tokens, kept_latents, sums_by_group
from saelineage.crosscoders.dumps import open_in_step
from saelineage.crosscoders.latent_scaling import couples_of
from saelineage.files.tables import write_parquet
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.crosscoder_shares import decoder_norms, measure_pairs
from saelineage.lineage.exclusivity import ExclusivityRules
from saelineage.tokens import read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def measure_crosscoder(
    folder: Path,
    paths_to_shards: Mapping[str, Mapping[str, Sequence[str]]],
    paths_to_latents: Sequence[str],
    paths_to_rows: Mapping[str, str],
    pairs: Sequence[Mapping[str, str]],
    rules: ExclusivityRules,
    n_groups: int,
    n_replicates: int,
    seed: int,
    path_to_latents: str,
    path_to_shares: str,
    path_to_curves: str,
    path_to_norms: str,
    gpus: int,
) -> None:
    """Write the verdicts of all latents on all pairs of models, their shares and curves, and the decoders' norms.

    Args:
        folder: the crosscoder's folder.
        paths_to_shards: activations of the probe by model and corpus.
        paths_to_latents: its latents on the probe, in the order of one model's activations.
        paths_to_rows: token rows of the probe by corpus.
        pairs: `edge`, `parent`, `child` and `role` of each pair.
        rules: the bounds of verdicts.
        n_groups: groups of documents that intervals are resampled from.
        n_replicates, seed: of the resampling.
        path_to_latents, path_to_shares, path_to_curves: to write (`lineage.crosscoder_shares.Exclusivity`); shares
            also say the `fvu_parent` and `fvu_child` of the crosscoder.
        path_to_norms: to write (`lineage.crosscoder_shares.decoder_norms`).
        gpus: GPUs of the job.
    """
    device, crosscoder = pick_device(gpus), load_crosscoder(folder)
    crosscoder.sae.to(device)
    corpora = list(paths_to_rows)
    joined = {model: [path for corpus in corpora for path in of[corpus]] for model, of in paths_to_shards.items()}
    dumps = open_in_step(joined, max_norms=crosscoder.max_norms)
    first = next(iter(dumps.values()))
    documents = {corpus: documents_of(rows) for corpus, rows in read_token_rows(paths_to_rows).items()}
    of_shards = [corpus for corpus in corpora for _ in paths_to_shards[crosscoder.models[0]][corpus]]
    groups = group_of_tokens(first, documents, of_shards, n_groups)
    couples = couples_of((pair["parent"], pair["child"]) for pair in pairs)
    sums, fvu = sums_by_group(crosscoder, dumps, kept_latents(paths_to_latents, first), groups, couples, device)
    measured = measure_pairs(sums, crosscoder, pairs, rules, n_replicates, seed)
    of_model = fvu.fvu()
    of_sides = {f"fvu_{side}": measured.shares[side].map(of_model) for side in ("parent", "child")}
    write_parquet(measured.latents, path_to_latents)
    write_parquet(measured.shares.assign(**of_sides), path_to_shares)
    write_parquet(measured.curves, path_to_curves)
    write_parquet(decoder_norms(crosscoder, measured.latents, rules.min_firings), path_to_norms)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        shards, corpora, models = list(snakemake.input.shards), snakemake.params.corpora, snakemake.params.models
        n = len(shards) // (len(models) * len(corpora))
        starts = iter(range(0, len(shards), n))
        measure_crosscoder(
            folder=Path(snakemake.input.weights).parent,
            paths_to_shards={
                model: {corpus: shards[(start := next(starts)) : start + n] for corpus in corpora} for model in models
            },
            paths_to_latents=snakemake.input.encoded,
            paths_to_rows=dict(zip(corpora, snakemake.input.rows, strict=True)),
            pairs=snakemake.params.pairs,
            rules=ExclusivityRules(**snakemake.params.rules),
            n_groups=snakemake.params.n_groups,
            n_replicates=snakemake.params.replicates["n_replicates"],
            seed=snakemake.params.replicates["seed"],
            path_to_latents=snakemake.output.latents,
            path_to_shares=snakemake.output.shares,
            path_to_curves=snakemake.output.curves,
            path_to_norms=snakemake.output.norms,
            gpus=snakemake.resources.get("gpu", 0),
        )
