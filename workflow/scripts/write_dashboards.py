"""Write the table of a model's features, and a dashboard of each, as the page loads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saelineage.correlations.cosines import NoSimilarityError, logit_map
from saelineage.correlations.matches import load_correlation
from saelineage.features.shards import shards_by_sae
from saelineage.files.atomic import write_text
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job_log, logger
from saelineage.jobs.manifests import record_job
from saelineage.labels.annotations import Annotations, load_annotations
from saelineage.labels.passages import read_firings, require_same_tokens
from saelineage.models.loading import load_model
from saelineage.report.dashboards import (
    FEATURES_PER_CHUNK,
    Dashboards,
    Related,
    Shown,
    feature_table,
    logit_effects,
    packed,
    related_features,
    vocabulary_texts,
)
from saelineage.saes.sae import load_sae
from saelineage.tokens import load_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def write_dashboards(
    model: str,
    features: pd.DataFrame,
    edges: dict[tuple[str, str], pd.DataFrame],
    shards: dict[tuple[str, str], list[str]],
    annotations: Annotations,
    labels: pd.DataFrame,
    explanations: pd.DataFrame | None,
    floor_correlations: list[str],
    model_folder: Path,
    sae_folder: Path,
    hookpoint: str,
    shown: Shown,
    folder: Path,
) -> None:
    """Write `table.js` and `{first latent}.js` for every chunk of features.

    Args:
        model: whose features.
        features: `lineage/features.parquet`.
        edges: the table of each (parent, child).
        shards: feature shards of each (model, SAE) of the lineage.
        annotations: of the probe.
        labels: `labels/{model}/{sae}.parquet`.
        explanations: `labels/{model}/{sae}.explanations.parquet`; None where there are none.
        floor_correlations: correlations of the model's SAE with what it is where nothing changed.
        model_folder, sae_folder: of the model.
        hookpoint: where activations are read.
        shown: how much of each feature is shown.
        folder: where to.
    """
    related = related_features(model, features, edges)
    sae = sae_folder.name
    firings = read_firings(shards[model, sae], annotations)
    boards = Dashboards(firings, annotations, shown)
    floors = best_where_nothing_changed(f"{model}.{sae}", floor_correlations, len(boards))
    table = feature_table(model, features, edges, firings, annotations, labels, explanations, floors)
    write_text(folder / "table.js", packed(f"{model}/table", table))
    add_related(boards, related, shards, annotations, {f"{model}.{sae}": firings})
    effects = effects_on_logits(model_folder, sae_folder, hookpoint)
    for first in range(0, len(boards), FEATURES_PER_CHUNK):
        chunk = boards.chunk(first, None if effects is None else effects(first))
        write_text(folder / f"{first:06d}.js", packed(f"{model}/{first:06d}", chunk))


def add_related(
    boards: Dashboards,
    related: Sequence[Related],
    shards: Mapping[tuple[str, str], list[str]],
    annotations: Annotations,
    own: dict,
) -> None:
    """Put other models' features beside the model's, with one other SAE's firings in memory at a time."""
    for other in related:
        latents = np.unique(other.latents[other.latents >= 0]).tolist()
        firings = read_firings(shards[other.model, other.sae], annotations, latents)
        require_same_tokens(own | {f"{other.model}.{other.sae}": firings})
        boards.add(other, firings)


def best_where_nothing_changed(name: str, paths: list[str], d_sae: int) -> np.ndarray:
    """Each feature's best r with SAEs of its own model, the mean over them; NaN where there is none."""
    best = []
    for path in paths:
        found = load_correlation(path)
        best.append(found.pearson.best[found.names.index(name)][:, 0])
    return np.mean(best, axis=0) if best else np.full(d_sae, np.nan)


def effects_on_logits(model_folder: Path, sae_folder: Path, hookpoint: str) -> object:
    """A function from a chunk's first latent to its effects on the logits; None where no linear path is known."""
    try:
        path = logit_map(load_model(model_folder), hookpoint)
    except NoSimilarityError as error:
        logger.info("no effects on the logits are shown: %s", error)
        return None
    decoder = load_sae(sae_folder).W_dec.detach().numpy()
    to_norm, unembedding = path.to_norm.numpy(), path.unembedding.numpy()
    texts = vocabulary_texts(load_tokenizer(model_folder), len(unembedding))
    return lambda first: logit_effects(decoder[first : first + FEATURES_PER_CHUNK], to_norm, unembedding, texts)


if __name__ == "__main__":
    with job_log(snakemake.log[0], snakemake.input):
        prepare_cpu(snakemake.threads)
        labels = pd.read_parquet(snakemake.input.labels)
        write_dashboards(
            model=snakemake.wildcards.model,
            features=pd.read_parquet(snakemake.input.features),
            edges={tuple(Path(path).stem.split("__")): pd.read_parquet(path) for path in snakemake.input.edges},
            shards=shards_by_sae(snakemake.input.shards),
            annotations=load_annotations(snakemake.input.annotations),
            labels=labels[labels["wins"]],
            explanations=pd.read_parquet(snakemake.input.explanations[0]) if snakemake.input.explanations else None,
            floor_correlations=snakemake.input.floors,
            model_folder=Path(snakemake.input.model[0]).parent,
            sae_folder=Path(snakemake.input.sae[0]).parent,
            hookpoint=snakemake.params.hookpoint,
            shown=Shown(snakemake.params.report["n_top"], tuple(snakemake.params.report["quantiles"])),
            folder=Path(snakemake.output.data),
        )
        record_job(snakemake)
