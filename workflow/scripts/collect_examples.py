"""Choose features that persist, are gone or are new, and collect text on which they fire."""

from typing import TYPE_CHECKING

import pandas as pd

from saelineage.features.shards import shards_by_sae
from saelineage.files.atomic import write_json
from saelineage.jobs.job import job
from saelineage.labels.annotations import Annotations, load_annotations
from saelineage.labels.passages import Firings, read_firings, require_same_tokens
from saelineage.lineage.importance import CHANGED
from saelineage.lineage.matching import SIDES
from saelineage.report.dashboards import read_edges, related_features, sae_of_each_model
from saelineage.report.examples import Choice, changed_features, describe, named_features, persisting_features

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def collect_examples(
    features: pd.DataFrame,
    edges: dict[tuple[str, str], pd.DataFrame],
    importance: dict[tuple[str, str], pd.DataFrame],
    shards: dict[tuple[str, str], list[str]],
    annotations: Annotations,
    labels: dict[str, pd.DataFrame],
    models: list[str],
    roots: list[str],
    shares_numbers: bool,
    threshold: float,
    concepts: list[str],
    n_features: int,
    n_changed: int,
    n_examples: int,
    path_to_examples: str,
) -> None:
    """Write `examples.json`.

    It holds `n_models`; `named` and `persisting`, lists of features; and `changed`, with `parent`, `child`, and the
    features that are `gone` and `new`, of each edge. A feature has

    - `members`: `model`, `sae`, `latent`, `max_activation` on the probe, `label` with its `score` (null if it follows
      nothing known); the text is chosen for the first;
    - `r`: the members' pairwise Pearson r over all probe tokens, null where undefined;
    - `passages`: `corpus`, `row` and `first`, the place of the text; `tokens`, its pieces; `activations`, a list per
      member with a number per token;
    - if it is named or persists: `density`, the share of probe tokens on which the first member fires;
    - if it is named: `concept`; the `part` of the concept that it follows, with `score`, `precision` and `recall`; its
      winning `labels` with their `score` (one or none); and `found`, the models it is found in;
    - if it persists: `n_models`, and `least_r` on the path of matches;
    - if it is gone or new: `headline` (for sure) and `identified`; `importance`, `effect` and `exact_effect` (null if
      not measured), on its `contrast_corpus`; `returns_in`, the revived models in which it is found and in no control
      (null if there are none); `match`, the closest latent of the other model (null without one), with
      `match_r`, `match_r_low` and `match_r_high`; and by corpus the `densities` of the two.

    Args:
        features: `lineage/{hookpoint}/features.parquet`.
        edges: verdicts of each (parent, child).
        importance: `lineage/{hookpoint}/importance/{edge}.parquet` of the same edges.
        shards: feature shards of each (model, SAE).
        annotations: of the probe.
        labels: per model, `labels/{hookpoint}/{model}/{sae}.parquet` with the column `sae`.
        models: parents before children.
        roots: models without parents.
        shares_numbers: whether a latent's number means the same latent in all SAEs (anchored ones).
        threshold: r at or above this is a match.
        concepts: names of concepts; for each, the root's feature that follows it best is shown.
        n_features: number of persisting features.
        n_changed: number of new features, and of those that are gone, per edge.
        n_examples: number of passages for each feature that is named or persists; one that changed has one.
        path_to_examples: output path.
    """
    saes = sae_of_each_model(features)
    persisting = persisting_features(features, roots, models, n_features)
    changed = {
        (edge, side): changed_features(edge, side, saes, table, importance[edge], threshold, shares_numbers, n_changed)
        for edge, table in edges.items()
        for side in SIDES
    }
    named = [
        choice
        for root in roots
        if root in saes  # a model without edges has no features here
        for choice in named_features(
            concepts,
            root,
            labels[root],
            related_features(root, features, edges),
            features[features["model"] == root].set_index("latent")["density"],
        )
    ]
    of_edges = (choice for choices in changed.values() for choice in choices)
    firings = read_shown([*named, *persisting, *of_edges], shards, annotations)
    winning = {model: table[table["wins"]].set_index("latent") for model, table in labels.items()}

    def described(choices: list[Choice], n_passages: int) -> list[dict]:
        return [describe(choice, firings, annotations, winning, n_passages) for choice in choices]

    examples = {
        "n_models": len(models),
        "named": described(named, n_examples),
        "persisting": described(persisting, n_examples),
        "changed": [
            {"parent": edge[0], "child": edge[1]} | {CHANGED[side]: described(changed[edge, side], 1) for side in SIDES}
            for edge in edges
        ],
    }
    write_json(path_to_examples, examples)


def read_shown(
    choices: list[Choice], shards: dict[tuple[str, str], list[str]], annotations: Annotations
) -> dict[tuple[str, str], Firings]:
    """Read the firings of the features that are shown, by (model, SAE)."""
    latents: dict[tuple[str, str], list[int]] = {}
    for choice in choices:
        for model, sae, latent in choice.members:
            latents.setdefault((model, sae), []).append(latent)
    firings = {key: read_firings(shards[key], annotations, shown) for key, shown in sorted(latents.items())}
    if firings:
        require_same_tokens({".".join(key): of_sae for key, of_sae in firings.items()})
    return firings


if __name__ == "__main__":
    with job(snakemake):
        collect_examples(
            features=pd.read_parquet(snakemake.input.features),
            edges=read_edges(snakemake.input.edges, snakemake.params.edges),
            importance=read_edges(snakemake.input.importance, snakemake.params.edges),
            shards=shards_by_sae(snakemake.input.shards, list(map(tuple, snakemake.params.saes))),
            annotations=load_annotations(snakemake.input.annotations),
            labels={
                model: pd.read_parquet(path).assign(sae=sae)
                for path, (model, sae) in zip(snakemake.input.labels, snakemake.params.saes, strict=True)
            },
            models=snakemake.params.models,
            roots=snakemake.params.roots,
            shares_numbers=snakemake.params.shares_numbers,
            threshold=snakemake.params.threshold,
            concepts=snakemake.params.report["concepts"],
            n_features=snakemake.params.report["n_features"],
            n_changed=snakemake.params.report["n_changed"],
            n_examples=snakemake.params.report["n_examples"],
            path_to_examples=snakemake.output.examples,
        )
