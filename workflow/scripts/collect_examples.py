"""Choose features that persist and features that are gone, and collect text on which they fire."""

from typing import TYPE_CHECKING

import pandas as pd

from saelineage.correlations.matches import Correlation, load_correlation
from saelineage.features.shards import shards_by_sae
from saelineage.files.atomic import write_json
from saelineage.jobs.job import job
from saelineage.labels.annotations import Annotations, load_annotations
from saelineage.labels.passages import Firings, read_firings, require_same_tokens
from saelineage.plan.sae_names import SaeName
from saelineage.report.dashboards import read_edges, related_features, sae_of_each_model, with_importance
from saelineage.report.examples import Choice, describe, gone_features, named_features, persisting_features

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def collect_examples(
    features: pd.DataFrame,
    edges: dict[tuple[str, str], pd.DataFrame],
    seed_correlations: dict[str, Correlation],
    shards: dict[tuple[str, str], list[str]],
    annotations: Annotations,
    labels: dict[str, pd.DataFrame],
    models: list[str],
    roots: list[str],
    threshold: float,
    concepts: list[str],
    n_features: int,
    n_examples: int,
    path_to_examples: str,
) -> None:
    """Write `examples.json`.

    It holds `n_models`; `named` and `persisting`, lists of features; and `gone`, with `parent`, `child` and
    `features` of each edge from a root. A feature has

    - `members`: `model`, `sae`, `latent`, `max_activation` on the probe; the text is chosen for the first;
    - `r`: the members' pairwise Pearson r over all probe tokens, null where undefined;
    - `density`: share of probe tokens on which the first member fires;
    - `passages`: `corpus`, `row` and `first`, the place of the text; `tokens`, its pieces; `activations`, a list per
      member with a number per token;
    - if it is named: `concept`; the `part` of the concept that it follows, with `score`, `precision` and `recall`; its
      winning `labels` with their `score` (one or none); and `found`, the models it is found in;
    - if it persists: `n_models`, and `least_r` on the path of matches;
    - if it is gone: `importance`, `r_child` and `r_seed` (null without a second seed).

    Args:
        features: `lineage/{hookpoint}/features.parquet`.
        edges: verdicts of each (parent, child) whose parent is a root, `with_importance`.
        seed_correlations: per root, the correlation of its first SAE with its second, where it has two.
        shards: feature shards of each (model, SAE).
        annotations: of the probe.
        labels: per root, `labels/{hookpoint}/{model}/{sae}.parquet` with the column `sae`.
        models: parents before children.
        roots: models without parents.
        threshold: r at or above this is a match.
        concepts: names of concepts; for each, the root's feature that follows it best is shown.
        n_features: number of persisting features, and of those that are gone per edge.
        n_examples: number of passages for each.
        path_to_examples: output path.
    """
    saes = sae_of_each_model(features)
    persisting = persisting_features(features, roots, models, n_features)
    gone = {
        edge: gone_features(edge, saes, table, seed_correlations.get(edge[0]), threshold, n_features)
        for edge, table in edges.items()
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
    of_edges = (choice for choices in gone.values() for choice in choices)
    firings = read_shown([*named, *persisting, *of_edges], shards, annotations)

    def described(choices: list[Choice]) -> list[dict]:
        return [describe(choice, firings, annotations, n_examples) for choice in choices]

    examples = {
        "n_models": len(models),
        "named": described(named),
        "persisting": described(persisting),
        "gone": [
            {"parent": parent, "child": child, "features": described(choices)}
            for (parent, child), choices in gone.items()
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
        files = zip(snakemake.input.seed_correlations, snakemake.params.seed_partners, strict=True)
        seed_correlations = [load_correlation(path, partner) for path, partner in files]
        collect_examples(
            features=pd.read_parquet(snakemake.input.features),
            edges=with_importance(
                *(
                    read_edges(paths, snakemake.params.edges)
                    for paths in (snakemake.input.edges, snakemake.input.importance)
                )
            ),
            seed_correlations={SaeName.parse(pair.names[0]).model: pair for pair in seed_correlations},
            shards=shards_by_sae(snakemake.input.shards, list(map(tuple, snakemake.params.saes))),
            annotations=load_annotations(snakemake.input.annotations),
            labels={
                model: pd.read_parquet(path).assign(sae=sae)
                for path, (model, sae) in zip(snakemake.input.labels, snakemake.params.root_saes, strict=True)
            },
            models=snakemake.params.models,
            roots=snakemake.params.roots,
            threshold=snakemake.params.threshold,
            concepts=snakemake.params.report["concepts"],
            n_features=snakemake.params.report["n_features"],
            n_examples=snakemake.params.report["n_examples"],
            path_to_examples=snakemake.output.examples,
        )
