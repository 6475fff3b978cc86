"""Find the passages on which each child's loss fell most beside parent and siblings, and the features that fire."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from saelineage.errors import InputError
from saelineage.features.shards import shards_by_sae
from saelineage.files.tables import write_parquet
from saelineage.files.tensors import read_tensors
from saelineage.jobs.job import job
from saelineage.labels.annotations import Annotations, load_annotations, text_of
from saelineage.labels.passages import Firings, place_of, read_firings, windows
from saelineage.lineage.gains import firing_there, gains, largest_gains, lowest
from saelineage.lineage.matching import SIDES, UNTESTABLE

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

MOST_LATENTS = 16
"""Features listed with a passage."""
OF_EDGE = ("verdict", "identified", "headline")
"""Columns of an edge's table that are kept beside its child's features."""
LOSSES = ("loss_parent", "loss_child", "loss_sibling")
PASSAGE_COLUMNS = ("corpus", "row", "place", "document", *LOSSES, "sibling", "gain")
TEXT_COLUMNS = ("before", "text", "after", "latents", "strengths")


class Edge(NamedTuple):
    """One edge and its files."""

    parent: str
    child: str
    siblings: list[str]
    path_to_verdicts: str
    path_to_passages: str
    path_to_features: str


def compare_losses(
    edges: Sequence[Edge],
    paths_to_losses: Mapping[str, str],
    shards: Mapping[tuple[str, str], list[str]],
    path_to_annotations: str,
    n_passages: int,
) -> None:
    """Write the passages of every edge whose child has siblings, and tables without rows for the others.

    Args:
        edges: the edges.
        paths_to_losses: the losses on the probe (`measure_losses`) of the models of edges with siblings, and of these.
        shards: feature shards of the SAE of each model that verdicts rest on, by (model, SAE).
        path_to_annotations: of the probe.
        n_passages: most passages of an edge.
    """
    annotations = load_annotations(path_to_annotations)
    losses = {name: read_losses(path, name, annotations) for name, path in paths_to_losses.items()}
    sae_of = {model: (model, sae) for model, sae in shards}
    for edge in edges:
        chosen = choose(edge, losses, annotations, n_passages)
        firings = read_firings(shards[sae_of[edge.child]], annotations)
        write_parquet(pd.concat([chosen, texts(chosen, firings, annotations)], axis=1), edge.path_to_passages)
        verdicts = pd.read_parquet(edge.path_to_verdicts)
        of_child = verdicts[(verdicts["side"] == SIDES[1]) & (verdicts["verdict"] != UNTESTABLE)]
        found = features(edge, chosen, losses, firings, annotations)
        found = found.merge(of_child[["latent", *OF_EDGE]], on="latent")
        write_parquet(found[["latent", *OF_EDGE, *found.columns.drop(["latent", *OF_EDGE])]], edge.path_to_features)


def read_losses(path: str, name: str, annotations: Annotations) -> np.ndarray:
    """The loss of every token of the probe under one model.

    Raises:
        InputError: if the file is damaged, or not of as many tokens as are annotated.
    """
    try:
        losses = read_tensors(path)[1]["losses"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"'{path}' must hold a model's losses, but is damaged ({error}); delete it and run again"
        ) from error
    if len(losses) != len(annotations.pieces):
        raise InputError(
            f"'{path}': losses must be of the probe's {len(annotations.pieces)} annotated tokens, but of "
            f"models.{name} there are {len(losses)}; delete it and run again"
        )
    return losses


def edge_gains(edge: Edge, losses: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gain of each token, the siblings' lowest loss, and the sibling that has it."""
    sibling, of = lowest({name: losses[name] for name in edge.siblings})
    return gains(losses[edge.child], losses[edge.parent], sibling), sibling, of


def choose(edge: Edge, losses: Mapping[str, np.ndarray], annotations: Annotations, n_passages: int) -> pd.DataFrame:
    """The tokens with the largest gains of an edge: columns `PASSAGE_COLUMNS`, and each token's number as the index."""
    if not edge.siblings:
        return pd.DataFrame(columns=list(PASSAGE_COLUMNS))
    gain, sibling, name = edge_gains(edge, losses)
    chosen = largest_gains(gain, annotations.documents, annotations.pieces, n_passages)
    places = [place_of(annotations, token) for token in chosen.tolist()]
    corpus, row, place = zip(*places, strict=True) if places else ((), (), ())
    columns = {
        "corpus": corpus,
        "row": row,
        "place": place,
        "document": annotations.documents[chosen],
        "loss_parent": losses[edge.parent][chosen],
        "loss_child": losses[edge.child][chosen],
        "loss_sibling": sibling[chosen],
        "sibling": name[chosen],
        "gain": gain[chosen],
    }
    return pd.DataFrame(columns, index=chosen)


def texts(chosen: pd.DataFrame, firings: Firings, annotations: Annotations) -> pd.DataFrame:
    """The text around chosen tokens, and the features that fire where they are predicted, `TEXT_COLUMNS`."""
    by_token, largest = firings.columns.tocsr(), firings.largest
    rows = []
    for token, stretch in zip(chosen.index, windows(chosen.index, annotations), strict=True):
        pieces, at = text_of(annotations, stretch), token - stretch.start
        there = slice(*by_token.indptr[token - 1 : token + 1])
        latents = by_token.indices[there]
        strengths = by_token.data[there] / largest[latents]
        first = np.lexsort((latents, -strengths))[:MOST_LATENTS]
        row = ("".join(pieces[:at]), pieces[at], "".join(pieces[at + 1 :]))
        rows.append((*row, latents[first].tolist(), strengths[first].astype(np.float64).tolist()))
    return pd.DataFrame(rows, columns=list(TEXT_COLUMNS), index=chosen.index)


def features(
    edge: Edge, chosen: pd.DataFrame, losses: Mapping[str, np.ndarray], firings: Firings, annotations: Annotations
) -> pd.DataFrame:
    """How often the child's features fire where the chosen tokens are predicted (`gains.firing_there`)."""
    corpora = np.searchsorted(list(annotations.starts.values()), np.arange(len(annotations.pieces)), side="right")
    candidates = annotations.documents >= 0
    if edge.siblings:
        candidates &= np.isfinite(edge_gains(edge, losses)[0])
    return firing_there(firings.columns, chosen.index.to_numpy(dtype=np.int64), candidates, corpora)


if __name__ == "__main__":
    with job(snakemake):
        files, results, params = snakemake.input, snakemake.output, snakemake.params
        of_edges = zip(params.edges, params.siblings, files.edges, results.passages, results.features, strict=True)
        compare_losses(
            edges=[Edge(parent, child, siblings, *paths) for (parent, child), siblings, *paths in of_edges],
            paths_to_losses=dict(zip(params.models, files.losses, strict=True)),
            shards=shards_by_sae(files.features, list(map(tuple, params.saes))),
            path_to_annotations=files.annotations,
            n_passages=params.n_passages,
        )
