"""Write the table of a model's features and the dashboard of each, as scripts that the page loads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saelineage.correlations.decoders import NoSimilarityError
from saelineage.correlations.logit_maps import logit_map
from saelineage.correlations.matches import Correlation, load_correlation
from saelineage.features.shards import shards_by_sae
from saelineage.files.atomic import read_json, write_text
from saelineage.foreign.releases import neuronpedia_address
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.labels.annotations import Annotations, load_annotations
from saelineage.labels.passages import Firings, read_firings, require_same_tokens
from saelineage.models.loading import load_model
from saelineage.report.dashboards import (
    FEATURES_PER_CHUNK,
    Dashboards,
    Related,
    Shown,
    feature_table,
    logit_effects,
    packed,
    read_edges,
    related_features,
    vocabulary_texts,
    with_importance,
)
from saelineage.saes.sae import CONFIG_FILE, load_sae
from saelineage.tokens import load_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def write_dashboards(
    model: str,
    sae: str,
    features: pd.DataFrame,
    edges: dict[tuple[str, str], pd.DataFrame],
    shards: dict[tuple[str, str], list[str]],
    annotations: Annotations,
    labels: pd.DataFrame,
    explanations: pd.DataFrame | None,
    no_change_correlations: Iterable[Correlation],
    model_folder: Path,
    sae_folder: Path,
    hookpoint: str,
    place: str,
    shown: Shown,
    folder: Path,
) -> None:
    """Write `table.js`, and `{first latent}.js` for every chunk of features.

    Args:
        model, sae: the model, and the name of the SAE that verdicts rest on.
        features: `lineage/{hookpoint}/features.parquet`.
        edges: the table of each (parent, child), `with_importance`.
        shards: feature shards of each (model, SAE) of the lineage.
        annotations: of the probe.
        labels: `labels/{hookpoint}/{model}/{sae}.parquet`.
        explanations: `labels/{hookpoint}/{model}/{sae}.explanations.parquet`; None if there are none.
        no_change_correlations: the correlations of the no-change control of the model's SAE.
        model_folder: of the language model.
        sae_folder: of its SAE.
        hookpoint: the name of the hookpoint.
        place: where activations are read there.
        shown: the number of passages shown of each feature.
        folder: output folder.
    """
    related = related_features(model, features, edges)
    firings = read_firings(shards[model, sae], annotations)
    boards = Dashboards(firings, annotations, shown)
    no_change = no_change_r(f"{model}.{sae}", no_change_correlations, len(boards))
    published = neuronpedia_address(read_json(sae_folder / CONFIG_FILE)["metadata"].get("neuronpedia_id"))
    table = feature_table(model, features, edges, firings, annotations, labels, explanations, no_change, published)
    write_text(folder / "table.js", packed(f"{hookpoint}/{model}/table", table))
    add_related(boards, related, shards, annotations, {f"{model}.{sae}": firings})
    effects = effects_on_logits(model_folder, sae_folder, place)
    for first in range(0, len(boards), FEATURES_PER_CHUNK):
        chunk = boards.chunk(first, None if effects is None else effects(first))
        write_text(folder / f"{first:06d}.js", packed(f"{hookpoint}/{model}/{first:06d}", chunk))


def add_related(
    boards: Dashboards,
    related: Sequence[Related],
    shards: Mapping[tuple[str, str], list[str]],
    annotations: Annotations,
    firings_of_model: Mapping[str, Firings],
) -> None:
    """Add other models' features to the dashboards, with one other SAE's firings in memory at a time."""
    for other in related:
        latents = np.unique(other.latents[other.latents >= 0]).tolist()
        firings = read_firings(shards[other.model, other.sae], annotations, latents)
        require_same_tokens({**firings_of_model, f"{other.model}.{other.sae}": firings})
        boards.add(other, firings)


def no_change_r(name: str, correlations: Iterable[Correlation], d_sae: int) -> np.ndarray:
    """Each feature's best r when the model is unchanged, averaged over correlations; NaN if there are none.

    Args:
        name: of the SAE, `{model}.{sae}`, one side of each correlation.
        correlations: the correlations, read one at a time.
        d_sae: its number of features.
    """
    best = [correlation.pearson.best[correlation.names.index(name)][:, 0] for correlation in correlations]
    return np.mean(best, axis=0) if best else np.full(d_sae, np.nan)


def effects_on_logits(model_folder: Path, sae_folder: Path, hookpoint: str) -> Callable[[int], list[dict]] | None:
    """A function from a chunk's first latent to its effects on the logits; None if no linear path is known."""
    try:
        path = logit_map(load_model(model_folder), hookpoint)
    except NoSimilarityError as error:
        logger.info("no effects on the logits are shown: %s", error)
        return None
    decoder = load_sae(sae_folder).W_dec.detach().numpy()
    tokenizer = load_tokenizer(model_folder)
    ids = sorted(number for number in tokenizer.get_vocab().values() if number < len(path.unembedding))
    to_norm, unembedding = path.to_norm.numpy(), path.unembedding[ids].numpy()  # without rows that are no token's
    texts = vocabulary_texts(tokenizer, ids)

    def of_chunk(first: int) -> list[dict]:
        return logit_effects(decoder[first : first + FEATURES_PER_CHUNK], to_norm, unembedding, texts)

    return of_chunk


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        labels = pd.read_parquet(snakemake.input.labels)
        write_dashboards(
            model=snakemake.wildcards.model,
            sae=dict(snakemake.params.saes)[snakemake.wildcards.model],
            features=pd.read_parquet(snakemake.input.features),
            edges=with_importance(
                *(
                    read_edges(paths, snakemake.params.edges)
                    for paths in (snakemake.input.edges, snakemake.input.importance)
                )
            ),
            shards=shards_by_sae(snakemake.input.shards, list(map(tuple, snakemake.params.saes))),
            annotations=load_annotations(snakemake.input.annotations),
            labels=labels[labels["wins"]],
            explanations=pd.read_parquet(snakemake.input.explanations[0]) if snakemake.input.explanations else None,
            no_change_correlations=map(load_correlation, snakemake.input.no_change, snakemake.params.no_change),
            model_folder=Path(snakemake.input.model[0]).parent,
            sae_folder=Path(snakemake.input.sae[0]).parent,
            hookpoint=snakemake.wildcards.hookpoint,
            place=snakemake.params.hookpoint,
            shown=Shown(snakemake.params.report["n_top"], tuple(snakemake.params.report["quantiles"])),
            folder=Path(snakemake.output.data),
        )
