"""Act on the new features of an edge: in the child, and in the parent, which has not got them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch

from saelineage.activations import read_activations
from saelineage.behaviour.acts import act, features_of, new_features, random_features, summarise
from saelineage.behaviour.edges import Reader, open_edge
from saelineage.behaviour.patching import patched_groups, recovered
from saelineage.files.folders import folders_of
from saelineage.files.tables import write_parquet
from saelineage.foreign.tokenizers import REFUSE
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.job import job
from saelineage.labels.annotations import load_annotations
from saelineage.labels.passages import read_firings
from saelineage.lineage.matching import SIDES
from saelineage.precision import AUTO
from saelineage.saes.sae import load_sae
from saelineage.tokens import load_tokenizer, read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


class Edge(NamedTuple):
    """One edge and its files."""

    models: dict[str, str]
    """The names of the `parent` and the `child`."""
    model_folders: dict[str, Path]
    """Their folders, likewise."""
    sae_folder: Path
    """The child's SAE that verdicts rest on."""
    features: Sequence[str]
    """Its feature shards of the probe."""
    path_to_verdicts: str
    path_to_importance: str


class Written(NamedTuple):
    """The tables of an edge."""

    path_to_acts: str
    """`acts.act`."""
    path_to_summary: str
    """`acts.summarise`."""
    path_to_patches: str
    """`patching.recovered`."""


def act_on_features(
    edge: Edge,
    paths_to_rows: Mapping[str, str],
    path_to_annotations: str,
    tokenizer_folder: Path,
    hookpoint: str,
    n_features: int,
    max_rows: int,
    batch_rows: int,
    n_replicates: int,
    seed: int,
    written: Written,
    device: torch.device,
    unshared: str = REFUSE,
    model_dtype: str = AUTO,
) -> None:
    """Write what an edge's new features do in the child and in the parent, and the loss that they recover there.

    Both models are in memory. A parent whose activations have another width than the child's cannot be given features
    of the child: of such an edge there are the child's rows alone, and no loss is recovered.

    Args:
        edge: the edge.
        paths_to_rows: token rows of the probe, by corpus.
        path_to_annotations: of the probe.
        tokenizer_folder: of the run's tokenizer.
        hookpoint: where the SAEs read the models.
        n_features: new features that are acted on, the most important first.
        max_rows: rows to read of each corpus for the loss.
        batch_rows: rows in a forward pass.
        n_replicates: replicates of documents and of features, for intervals.
        seed: of these and of the random features.
        written: the tables.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.
    """
    rows, annotations = read_token_rows(paths_to_rows), load_annotations(path_to_annotations)
    verdicts, importance = (pd.read_parquet(path) for path in (edge.path_to_verdicts, edge.path_to_importance))
    latents = new_features(importance, n_features)
    firings = read_firings(edge.features, annotations, latents)
    features = features_of(latents, random_features(latents, verdicts, seed), firings, annotations)
    sae = load_sae(edge.sae_folder).to(device)
    readers, ids = open_edge(edge.models, edge.model_folders, rows, device, unshared, model_dtype)
    takes_part = has_width(readers[SIDES[0]], hookpoint, sae.d_in)
    acting = readers if takes_part else {SIDES[1]: readers[SIDES[1]]}
    acts = act(acting, sae, hookpoint, features, annotations, ids, load_tokenizer(tokenizer_folder), batch_rows)
    write_parquet(acts, written.path_to_acts)
    write_parquet(summarise(acts, n_replicates, seed), written.path_to_summary)
    groups = patched_groups(verdicts, seed) if takes_part else []
    patches = recovered(readers, sae, hookpoint, groups, batch_rows, max_rows, n_replicates, seed)
    write_parquet(patches, written.path_to_patches)


def has_width(reader: Reader, hookpoint: str, d_in: int) -> bool:
    """True if a model's activations at the hookpoint are as wide as an SAE's input."""
    of_corpus = next(iter(reader.rows.values()))
    acts = read_activations(reader.model, hookpoint, torch.from_numpy(of_corpus.read(range(1))).to(reader.model.device))
    if acts.shape[-1] != d_in:
        logger.warning("the parent is left out: its activations have width %d, the child's %d", acts.shape[-1], d_in)
    return acts.shape[-1] == d_in


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        files, results, params = snakemake.input, snakemake.output, snakemake.params
        (sae,) = folders_of(files.sae)
        act_on_features(
            edge=Edge(
                models={side: getattr(snakemake.wildcards, side) for side in SIDES},
                model_folders={side: Path(getattr(files, side)[0]).parent for side in SIDES},
                sae_folder=sae,
                features=list(files.features),
                path_to_verdicts=str(files.verdicts),
                path_to_importance=str(files.importance),
            ),
            paths_to_rows=dict(zip(params.corpora, files.rows, strict=True)),
            path_to_annotations=str(files.annotations),
            tokenizer_folder=Path(str(files.tokenizer)).parent,
            hookpoint=params.hookpoint,
            n_features=params.n_features,
            max_rows=params.max_rows,
            batch_rows=params.batch_rows,
            n_replicates=params.replicates["n_replicates"],
            seed=params.replicates["seed"],
            written=Written(results.acts, results.summary, results.patches),
            device=pick_device(snakemake.resources.get("gpu", 0)),
            unshared=params.unshared,
            model_dtype=params.model_dtype,
        )
