"""Rank the features of every edge by importance: the effect on their model's loss, and how far they are its own."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from saelineage.correlations.cosines import logit_vectors
from saelineage.correlations.decoders import NoSimilarityError
from saelineage.correlations.logit_maps import LogitMap, logit_map
from saelineage.correlations.matches import Correlation, load_correlation
from saelineage.files.folders import folders_of
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.ablations import agreement, feature_effects
from saelineage.lineage.attributions import attributed_effects
from saelineage.lineage.by_corpus import densities_by_corpus
from saelineage.lineage.directions import match_cosines, unit_directions
from saelineage.lineage.importance import PER_TOKENS, Effects, add_exact, heads, importance_table, per_thousand
from saelineage.lineage.matching import SIDES, sides_of
from saelineage.models.loading import load_model, open_model
from saelineage.models.vocabularies import share_rows
from saelineage.plan.graph import POOLED
from saelineage.precision import AUTO
from saelineage.saes.sae import Sae, load_sae
from saelineage.tokens import TokenRows, read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


class Edge(NamedTuple):
    """One edge and its files."""

    models: dict[str, str]
    """The names of the `parent` and the `child`."""
    path_to_verdicts: str
    correlation: tuple[str, str]
    """The file of the correlation behind it, and the partner in that file."""
    path_to_importance: str


class Read(NamedTuple):
    """A model in memory, with what its features are measured on."""

    model: PreTrainedModel
    sae: Sae
    hookpoint: str
    rows: Mapping[str, TokenRows]
    batch_rows: int
    max_rows: int


def rank_features(
    edges: Sequence[Edge],
    model_folders: Mapping[str, Path],
    sae_folders: Mapping[str, Path],
    paths_to_rows: Mapping[str, str],
    hookpoint: str,
    max_rows: int,
    n_exact: int,
    batch_rows: int,
    path_to_agreement: str,
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Write the importance of the features of every edge, and how far estimated effects agree with measured ones.

    One model is in memory at a time, and each is loaded once. Of each, the unembedding is kept, to compare the effects
    of features and matches on the logits.

    Args:
        edges: the edges.
        model_folders, sae_folders: each model's folder, and that of the SAE that verdicts rest on.
        paths_to_rows: token rows, by corpus.
        hookpoint: where the SAEs read the models.
        max_rows: rows to read of each corpus.
        n_exact: lost features, and new ones, that are also ablated one by one.
        batch_rows: rows in a pass.
        path_to_agreement: the table of agreements.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.
    """
    rows = read_token_rows(paths_to_rows)
    verdicts = [pd.read_parquet(edge.path_to_verdicts) for edge in edges]
    paths: dict[str, ToLogits | None] = {}
    correlations = [load_correlation(*edge.correlation) for edge in edges]
    tables: dict[tuple[int, str], pd.DataFrame] = {}
    for name, folder in model_folders.items():
        model, sae = open_model(folder, device, model_dtype), load_sae(sae_folders[name]).to(device)
        read = Read(model, sae, hookpoint, share_rows(model, folder, rows, name, unshared).rows, batch_rows, max_rows)
        attributed = attributed_effects(*read)
        effects = Effects(attributed.corpora, per_thousand(attributed.sums, attributed.n_tokens), attributed.n_firings)
        n_tokens = dict(zip(attributed.corpora, attributed.n_tokens.tolist(), strict=True))
        of_model = {
            (place, side): importance_table(
                verdicts[place][verdicts[place]["side"] == side], effects, *densities(correlations[place], side)
            )
            for place, side in sides_of(name, [edge.models for edge in edges])
        }
        exact = exact_effects(read, heads(of_model.values(), n_exact), n_tokens)
        tables |= {at: add_exact(table, exact) for at, table in of_model.items()}
        del read
        if model.dtype != torch.float32:  # in 16 bits a linear path cannot be told from one that is not
            del model
            model = load_model(folder)
        paths[name] = to_logits(model, sae, hookpoint)
        del model  # before the next one is opened
    for place, edge in enumerate(edges):
        both = pd.concat([tables[place, side] for side in SIDES], ignore_index=True)
        parent, child = (paths[edge.models[side]] for side in SIDES)
        write_parquet(both.assign(logit_cosine=logit_cosines(both, parent, child)), edge.path_to_importance)
    write_parquet(agreements(edges, tables), path_to_agreement)


class ToLogits(NamedTuple):
    """An SAE, and the linear path of what it writes to the logits of its model."""

    sae: Sae
    path: LogitMap


def to_logits(model: PreTrainedModel, sae: Sae, hookpoint: str) -> ToLogits | None:
    """The path of an SAE's features to the logits; None if no linear one is known."""
    try:
        return ToLogits(sae, logit_map(model, hookpoint))
    except NoSimilarityError as error:
        logger.info("effects on the logits are not compared: %s", error)
        return None


def logit_cosines(table: pd.DataFrame, parent: ToLogits | None, child: ToLogits | None) -> np.ndarray:
    """The cosine of each feature's direct effect on the logits and that of its best match; NaN where none is known.

    Logits are those of the tokens that both models have rows for.

    Args:
        table: importance of both sides, with `side`, `latent` and `match`.
        parent, child: from `to_logits`.
    """
    if parent is None or child is None:
        return np.full(len(table), np.nan)
    n_rows = min(len(side.path.unembedding) for side in (parent, child))
    paths = (side.path._replace(unembedding=side.path.unembedding[:n_rows]) for side in (parent, child))
    units = [unit_directions(vectors.numpy()) for vectors in logit_vectors(parent.sae, child.sae, *paths)]
    cosines = np.empty(len(table))
    for number, side in enumerate(SIDES):
        rows = (table["side"] == side).to_numpy()
        latents, match = table["latent"].to_numpy()[rows], table["match"].to_numpy()[rows]
        cosines[rows] = match_cosines(units[number][latents], units[1 - number], match)
    return cosines


def exact_effects(read: Read, latents: Mapping[str, np.ndarray], n_tokens: Mapping[str, int]) -> dict[int, float]:
    """The measured effects of latents on the corpora under which they are listed, in nats per `PER_TOKENS` tokens."""
    exact: dict[int, float] = {}
    for corpus, of_corpus in latents.items():
        one_corpus = read._replace(rows={corpus: read.rows[corpus]})
        measured = feature_effects(
            *one_corpus[:4], latents=of_corpus, batch_rows=read.batch_rows, max_rows=read.max_rows
        )
        sums = measured["loss_change"].fillna(0.0) * measured["n_firings"]
        exact |= dict(zip(of_corpus.tolist(), (PER_TOKENS * sums / n_tokens[corpus]).tolist(), strict=True))
    return exact


def densities(correlation: Correlation, side: str) -> tuple[np.ndarray, np.ndarray]:
    """The share of each corpus's tokens on which each feature of a side fires, and each of the other side."""
    own = SIDES.index(side)
    return densities_by_corpus(correlation, own), densities_by_corpus(correlation, 1 - own)


def agreements(edges: Sequence[Edge], tables: Mapping[tuple[int, str], pd.DataFrame]) -> pd.DataFrame:
    """How far estimated and measured effects agree: per edge and side, and over all (`pooled`)."""
    columns = ["parent", "child", "side", "n", "pearson", "spearman"]
    rows = [
        edges[place].models | {"side": side} | _agreement(tables[place, side])
        for place in range(len(edges))
        for side in SIDES
    ]
    of_models = [table.assign(model=edges[place].models[side]) for (place, side), table in tables.items()]
    if of_models:  # a feature of several edges counts once
        every = pd.concat(of_models).drop_duplicates(["model", "latent"])
        rows.append({"parent": POOLED, "child": POOLED, "side": POOLED} | _agreement(every))
    return pd.DataFrame(rows, columns=columns)


def _agreement(table: pd.DataFrame) -> dict[str, int | float]:
    return agreement(table["effect"].to_numpy(dtype=np.float64), table["exact_effect"].to_numpy(dtype=np.float64))


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        files, params = snakemake.input, snakemake.params
        of_edges = zip(
            params.edges,
            files.edges,
            zip(files.correlations, params.partners, strict=True),
            snakemake.output.importance,
            strict=True,
        )
        rank_features(
            edges=[Edge(dict(zip(SIDES, names, strict=True)), *of_edge) for names, *of_edge in of_edges],
            model_folders=dict(zip(params.models, folders_of(files.models), strict=True)),
            sae_folders=dict(zip(params.models, folders_of(files.saes), strict=True)),
            paths_to_rows=dict(zip(params.corpora, files.rows, strict=True)),
            hookpoint=params.hookpoint,
            max_rows=params.settings["ablated_rows"],
            n_exact=params.settings["exact_features"],
            batch_rows=params.batch_rows,
            path_to_agreement=snakemake.output.agreement,
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=params.unshared,
            model_dtype=params.model_dtype,
        )
