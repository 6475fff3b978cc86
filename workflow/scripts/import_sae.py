"""Import an SAE that somebody else trained, if it fits the model's activations."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from saelineage.activations import ActivationShard, norm_limit
from saelineage.errors import InputError
from saelineage.files.atomic import read_json, sha256_file
from saelineage.foreign.places import has_parallel_blocks, norm_kind, norms_outputs
from saelineage.foreign.sae_formats.registry import SaeSource, describe_source
from saelineage.foreign.sae_formats.saelens import INPUT_KEYS
from saelineage.foreign.sae_inputs import RunInput, SaeInput, compare_with_run, is_centred
from saelineage.foreign.saelens_names import TRANSFORMER_LENS_MODEL, place_keys, resolves
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job
from saelineage.saes import metrics as sae_metrics
from saelineage.saes.folding import fold_centring
from saelineage.saes.imports import ImportedSae, find_sae, read_sae
from saelineage.saes.metrics import SaeSums
from saelineage.saes.sae import Sae, save_sae

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)

MEASURED_TOKENS = 32_768
CHUNK_TOKENS = 2048
SILENT_L0 = 1.0
DENSE_FVU = 0.3
"""Fraction of variance unexplained up to which a dense SAE is read rightly; TopK weights read as ReLU left 0.68."""
LOUD_TIMES_K = 4
"""Active latents per token, as a multiple of k, above which the SAE is probably read wrongly."""


def import_sae(
    model: str,
    sae: str,
    settings: dict,
    max_norm_ratio: float | None,
    paths_to_activations: list[str],
    folder: Path,
    model_config: Mapping | None = None,
    model_sources: Sequence[str] = (),
    model_name: str | None = None,
    revision: str | None = None,
) -> dict:
    """Write the SAE's folder, and return its source and its quality for the manifest.

    Args:
        model, sae: the model that it becomes an SAE of, and its name there.
        settings: the config's `import` block.
        max_norm_ratio: outlier cut-off, as a multiple of the median norm, unless the SAE comes with one; None for no
            cut-off.
        paths_to_activations: the model's shards on the probe, of all corpora.
        folder: the folder to write.
        model_config: the model's config.json, if it is known.
        model_sources: the repository or folder that the model comes from, if any.
        model_name: the name by which others open the model; by default its name here.
        revision: the revision of the repository that the model comes from, if any.

    Raises:
        InputError: if the SAE cannot be read, was trained on other activations as its config says, or does not
            reconstruct these.
    """
    key = f"saes.import (for {model}.{sae})"
    shards = [ActivationShard(path) for path in paths_to_activations]
    header = shards[0].header
    run = RunInput(
        header["hookpoint"],
        header["n_ctx"],
        model,
        tuple(model_sources),
        d_in=shards[0].d_in,
        norm=None if model_config is None else norm_kind(model_config),
        norms_outputs=None if model_config is None else norms_outputs(model_config),
        parallel=None if model_config is None else has_parallel_blocks(model_config),
        revision=revision,
    )
    warnings: list[str] = []

    def check(source: SaeSource) -> None:
        warnings.extend(compare_with_run(describe_source(source), run, key))

    source = find_sae(settings, key, check)
    described = describe_source(source)
    for warning in warnings:
        logger.warning(warning)
    imported = read_sae(source)
    if is_centred(described, run, key):
        fold_centring(imported.sae)
    name = f"'{source.folder}'" if source.commit is None else f"'{settings['repo']}' at commit {source.commit}"
    require_width(imported.sae, shards[0], name)
    if max_norm_ratio is not None and math.isinf(imported.sae.max_norm):
        norms = np.concatenate([shard.norms().numpy() for shard in shards])
        imported.sae.max_norm = norm_limit(norms, max_norm_ratio)
    sums = measure(imported.sae, shards, MEASURED_TOKENS)
    if sums.moments.n == 0:
        raise InputError(
            f"{name}: an imported SAE must apply to some tokens, but the activations of all {sums.n_left_out} that "
            f"were tried are longer than its max_norm, {imported.sae.max_norm:g}; correct metadata.max_norm in its "
            "cfg.json"
        )
    record = {
        "format": imported.format,
        "commit": source.commit,
        "files": {path.name: sha256_file(path) for path in imported.files},
        "fvu": sae_metrics.fvu(sums),
        "l0": sae_metrics.l0(sums),
        "n_tokens": sums.moments.n,
        "n_left_out": sums.n_left_out,
        "d_sae": imported.sae.d_sae,
        "k": imported.k,
        "centred": imported.sae.centred,
        "warnings": warnings,
    }
    logger.info("%s: fvu %s, l0 %.4g on %d tokens", name, record["fvu"], record["l0"], record["n_tokens"])
    require_fit(imported, sums, settings, name)
    provenance = {"context_size": header["n_ctx"], "l0": record["l0"]} | input_metadata(
        described, header, model_name or model
    )
    provenance |= registered_metadata(settings)
    imported_from = {"model": model, "sae": sae, "hookpoint": header["hookpoint"], "import": settings, "found": record}
    save_sae(imported.sae, folder, provenance | {"saelineage": imported_from | {"original": described.original}})
    return record


def registered_metadata(settings: Mapping) -> dict:
    """What SAELens's registry says of an SAE that an `import` block names by its release."""
    registered = settings.get("saelens", {}).get("neuronpedia_id")
    return {} if registered is None else {"neuronpedia_id": registered}


def input_metadata(described: SaeInput, header: Mapping, model_name: str) -> dict:
    """SAELens's keys about the SAE's input: those of its own config, and the run's for what that does not say.

    What is not known of its training, such as the tokens that were left out, is not added.
    """
    metadata = {key: value for key, value in described.original.items() if key in INPUT_KEYS and value is not None}
    if described.is_transformer_lens:
        metadata.setdefault("model_class_name", TRANSFORMER_LENS_MODEL)  # SAELens's default for such names
    if not resolves(metadata.get("hook_name")):
        metadata |= header.get("saelens") or place_keys(header["hookpoint"])
    return {"model_name": model_name} | metadata


@torch.inference_mode()
def measure(sae: Sae, shards: list[ActivationShard], most_tokens: int) -> SaeSums:
    """Measure reconstructions of the first tokens of every shard, at most `most_tokens` together."""
    sums, encoder = SaeSums(), sae.encoder()
    for shard in shards:
        left = max(1, most_tokens // len(shards))
        for chunk, norms in zip(shard.chunks(CHUNK_TOKENS), shard.norms().split(CHUNK_TOKENS), strict=True):
            chunk = chunk[:left]
            acts = chunk[norms[:left] <= sae.max_norm]
            latents = encoder.encode(acts)
            recons = sae.decode_sparse(latents)
            of_chunk = sae_metrics.reconstruction_sums(sae.target(acts), recons, latents, sae.d_sae)
            of_chunk.n_left_out = len(chunk) - len(acts)
            sums = sums.add(of_chunk)
            left -= len(chunk)
            if left == 0:
                break
    return sums


def require_width(sae: Sae, shard: ActivationShard, name: str) -> None:
    """Refuse an SAE on activations of another width.

    Raises:
        InputError: naming both widths.
    """
    if sae.d_in != shard.d_in:
        raise InputError(
            f"{name}: an SAE for '{shard.header['hookpoint']}' must have d_in {shard.d_in}, but this has {sae.d_in}; "
            "set activations.hookpoint to the place it was trained at, or import another SAE"
        )


def require_fit(imported: ImportedSae, sums: SaeSums, settings: Mapping, name: str) -> None:
    """Refuse an SAE that does not reconstruct the activations, or not sparsely.

    Raises:
        InputError: with the metrics and the likely cause.
    """
    fvu, l0, d_sae = sae_metrics.fvu(sums), sae_metrics.l0(sums), imported.sae.d_sae
    max_fvu, max_share = settings["max_fvu"], settings["max_l0_fraction"]
    if fvu is not None and fvu <= max_fvu and l0 <= max_share * d_sae:  # false for NaN
        return
    cause = likely_cause(fvu, l0, imported, max_share)
    measured = "undefined" if fvu is None else f"{fvu:.4g}"
    raise InputError(
        f"{name}: an imported SAE must leave at most {max_fvu:g} of the variance unexplained (saes.import.max_fvu), "
        f"with at most {max_share:g} of its latents active on a token (saes.import.max_l0_fraction), but on "
        f"{sums.moments.n} probe tokens its fvu is {measured}, with {l0:.4g} of {d_sae} latents active per token (l0); "
        f"most likely {cause}"
    )


def likely_cause(fvu: float | None, l0: float, imported: ImportedSae, max_share: float) -> str:
    """Say why an SAE misses the limits, and the next step where there is one beside another SAE."""
    d_sae = imported.sae.d_sae
    if l0 < SILENT_L0:
        return "its input is too small for it (a scaling that was not folded in) or comes from another hookpoint"
    if l0 > max_share * d_sae and fvu is not None and fvu <= DENSE_FVU:
        return (
            "it is dense and read as what it is, because it reconstructs well; to import it all the same, set "
            f"saes.import.max_l0_fraction above {math.ceil(100 * l0 / d_sae) / 100:g}"
        )
    if l0 > max_share * d_sae or (imported.k is not None and l0 > LOUD_TIMES_K * imported.k):
        return "it is read as the wrong architecture (TopK weights as ReLU), or its input is too large"
    return "it was trained at another hookpoint or on another model"


if __name__ == "__main__":
    with job(snakemake) as record:
        prepare_cpu(snakemake.threads)
        made_from = snakemake.params.made_from
        record |= import_sae(
            model=snakemake.wildcards.model,
            sae=snakemake.wildcards.sae,
            settings=snakemake.params.source,
            max_norm_ratio=snakemake.params.max_norm_ratio,
            paths_to_activations=list(snakemake.input.activations),
            folder=Path(snakemake.output.weights).parent,
            model_config=read_json(snakemake.input.model_config),
            model_sources=[made_from[key] for key in ("repo", "folder") if key in made_from],
            model_name=snakemake.params.opened_as["name"],
            revision=made_from.get("revision"),
        )
