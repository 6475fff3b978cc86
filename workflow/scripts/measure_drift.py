"""Measure how much changed from parent to child on every edge: predictions, activations and weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import PreTrainedModel

from saelineage.files.atomic import read_json, write_json
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.lineage.drift import DriftSums, drift_sums, is_visible, report, unexplained
from saelineage.models.divergences import DivergenceSums, divergence_sums
from saelineage.models.loading import open_model
from saelineage.models.vocabularies import common_ids, end_ids, share_rows
from saelineage.models.weights import weight_changes
from saelineage.plan.graph import POOLED
from saelineage.precision import AUTO
from saelineage.saes.sae import load_sae
from saelineage.tokens import TokenRows, read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


class Model(NamedTuple):
    """The files of a model that drift is measured from."""

    folder: Path
    sae_folder: Path
    """The SAE that verdicts rest on."""
    dumps: Mapping[str, Sequence[str]]
    """Activation shards of the probe by corpus."""
    path_to_sae_metrics: str


class Opened(NamedTuple):
    """A model in memory."""

    model: PreTrainedModel
    rows: Mapping[str, TokenRows]
    """Token rows by corpus, as this model reads them."""
    vocabulary: dict
    """`vocabularies.SharedRows.facts`."""


def measure_drift(
    edges: Sequence[tuple[str, str]],
    models: Mapping[str, Model],
    paths_to_rows: Mapping[str, str],
    batch_rows: int,
    max_rows: int,
    path_to_drift: str,
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Write the divergences, the drift of the activations and the changes of the weights of every edge.

    At most two models are in memory at a time. Edges of one parent are measured together.

    Args:
        edges: parent and child of each edge.
        models: the models of all edges, by name.
        paths_to_rows: token rows of the validation splits by corpus, for the divergences.
        batch_rows: rows in a forward pass.
        max_rows: rows to read of each corpus for the divergences.
        path_to_drift: the file to write.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.
    """
    rows = read_token_rows(paths_to_rows)

    def opened(name: str) -> Opened:
        folder = models[name].folder
        model = open_model(folder, device, model_dtype)
        return Opened(model, *share_rows(model, folder, rows, name, unshared))

    found: dict[tuple[str, str], dict] = {}
    for parent, children in by_parent(edges).items():
        of_parent = opened(parent)
        for child in children:
            of_child = opened(child)
            ids = common_ids(
                (of_parent.vocabulary, of_child.vocabulary),
                (models[parent].folder, models[child].folder),
                end_ids(rows),
            )
            found[parent, child] = {
                "divergences": divergences(of_parent, of_child, ids, batch_rows, max_rows),
                "weights": weight_changes(of_parent.model, of_child.model, ids),
            }
            del of_child  # before the next one is loaded
        del of_parent
    entries = [edge_entry((parent, child), models, **found[parent, child]) for parent, child in edges]
    write_json(path_to_drift, {"edges": entries})


def by_parent(edges: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The children of each parent, in order."""
    children: dict[str, list[str]] = {}
    for parent, child in edges:
        children.setdefault(parent, []).append(child)
    return children


def divergences(
    parent: Opened, child: Opened, ids: Sequence[int], batch_rows: int, max_rows: int
) -> dict[str, DivergenceSums]:
    """The summed divergences of two models on each corpus, and on all (`pooled`)."""
    models = parent.model, child.model
    sums = {
        corpus: divergence_sums(models, (rows, child.rows[corpus]), ids, batch_rows, max_rows)
        for corpus, rows in parent.rows.items()
    }
    pooled = DivergenceSums()
    for of_corpus in sums.values():
        pooled = pooled.plus(of_corpus)
    return {**sums, POOLED: pooled}


def edge_entry(
    edge: tuple[str, str], models: Mapping[str, Model], divergences: Mapping[str, DivergenceSums], weights: dict
) -> dict:
    """Everything that is written of an edge."""
    parent, child = (models[name] for name in edge)
    fvus = {side: fvu_by_corpus(of) for side, of in (("fvu_parent", parent), ("fvu_child", child))}
    drifts = activation_drifts(parent, child)
    figures = {}
    for corpus, sums in divergences.items():
        of_saes = {side: by_corpus[corpus] for side, by_corpus in fvus.items()}
        moved, bound = report(drifts[corpus]), unexplained(of_saes.values())
        of_saes |= {"unexplained": bound, "visible": is_visible(moved["drift"], bound)}
        figures[corpus] = sums.means() | moved | of_saes
    pooled = figures.pop(POOLED)
    return {"parent": edge[0], "child": edge[1], "corpora": figures, POOLED: pooled, "weights": weights}


def activation_drifts(parent: Model, child: Model) -> dict[str, DriftSums | None]:
    """The sums of the drift of activations on each corpus's probe, and on all (`pooled`)."""
    saes = load_sae(parent.sae_folder), load_sae(child.sae_folder)
    max_norms = saes[0].max_norm, saes[1].max_norm
    sums = {
        corpus: drift_sums(shards, child.dumps[corpus], max_norms, saes[0].target)
        for corpus, shards in parent.dumps.items()
    }
    pooled: DriftSums | None = DriftSums()
    for of_corpus in sums.values():
        pooled = None if pooled is None or of_corpus is None else pooled.add(of_corpus)
    return {**sums, POOLED: pooled}


def fvu_by_corpus(model: Model) -> dict[str, float | None]:
    """The fvu of a model's SAE on each corpus's validation split, and on all (`pooled`)."""
    (metrics,) = (
        entry for entry in read_json(model.path_to_sae_metrics)["saes"] if entry["sae"] == model.sae_folder.name
    )
    by_corpus = {**metrics["corpora"], POOLED: metrics[POOLED]}
    return {corpus: figures["fvu"] for corpus, figures in by_corpus.items()}


def split_dumps(
    paths: Sequence[str], models: Sequence[str], corpora: Sequence[str]
) -> dict[str, dict[str, Sequence[str]]]:
    """Shards by model and corpus, of paths that are in the order of models, then of corpora, then of shards."""
    n_shards = len(paths) // (len(models) * len(corpora))
    starts = iter(range(0, len(paths), n_shards))
    return {
        model: {corpus: paths[start : start + n_shards] for corpus, start in zip(corpora, starts, strict=False)}
        for model in models
    }


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        files, names, corpora = snakemake.input, snakemake.params.models, snakemake.params.corpora
        dumps = split_dumps(list(files.dumps), names, corpora)
        folders = (list(dict.fromkeys(Path(path).parent for path in paths)) for paths in (files.models, files.saes))
        measure_drift(
            edges=[(parent, child) for parent, child in snakemake.params.edges],
            models={
                name: Model(folder, sae_folder, dumps[name], path_to_sae_metrics)
                for name, folder, sae_folder, path_to_sae_metrics in zip(
                    names, *folders, files.sae_metrics, strict=True
                )
            },
            paths_to_rows=dict(zip(corpora, files.rows, strict=True)),
            batch_rows=snakemake.params.batch_rows,
            max_rows=snakemake.params.max_rows,
            path_to_drift=snakemake.output.drift,
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=snakemake.params.unshared,
            model_dtype=snakemake.params.model_dtype,
        )
