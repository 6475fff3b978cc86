"""Choose features that persist and features that disappear, and collect text on which they fire."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saelineage.correlations.matches import Correlation, load_correlation
from saelineage.features.shards import shards_by_sae
from saelineage.files.atomic import write_json
from saelineage.jobs.job import job_log
from saelineage.jobs.manifests import record_job
from saelineage.labels.annotations import Annotations, load_annotations
from saelineage.labels.passages import Firings, read_firings, require_same_tokens
from saelineage.report.dashboards import related_features
from saelineage.report.examples import Choice, describe, disappearing_features, named_features, persisting_features

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

    It holds `n_models`; `named` and `persisting`, lists of features; and `disappearing`, per edge from a root `parent`,
    `child` and `features`. A feature has

    - `members`: `model`, `sae`, `latent`, `max_activation` on the probe; the first decides which text is shown;
    - `r`: the members' pairwise Pearson r over all probe tokens, null where undefined;
    - `density`: share of probe tokens on which the first member fires;
    - `passages`: `corpus`, `row` and `first`, where the text stands; `tokens`, its pieces; `activations`, a list per
      member with a number per token;
    - where it is named, `concept`, the `part` of it that it follows with `score`, `precision` and `recall`, its own
      `labels` with their `score` (one or none), and `found`, the models it is found in;
    - where it persists, `n_models` and `least_r` on the way from match to match;
    - where it disappears, `r_child` and `r_seed` (null without a second seed).

    Args:
        features: `lineage/features.parquet`.
        edges: verdicts of each (parent, child) whose parent is a root.
        seed_correlations: per root, the correlation of its first SAE with its second, where it has two.
        shards: feature shards of each (model, SAE).
        annotations: of the probe.
        labels: per root, `labels/{model}/{sae}.parquet` with the column `sae`.
        models: parents before children.
        roots: models without parents.
        threshold: r at or above this is a match.
        concepts: names of concepts; of each, the root's feature that follows it best is shown.
        n_features: features chosen overall, and per edge.
        n_examples: passages for each.
        path_to_examples: where to.
    """
    saes = features.drop_duplicates("model").set_index("model")["sae"].to_dict()
    persisting = persisting_features(features, roots, models, n_features)
    disappearing = {
        edge: disappearing_features(edge, saes, table, seed_correlations.get(edge[0]), threshold, n_features)
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
    choices = [*named, *persisting, *(choice for found in disappearing.values() for choice in found)]
    firings = read_shown(choices, shards, annotations)

    def described(found: list[Choice]) -> list[dict]:
        return [describe(choice, firings, annotations, n_examples) for choice in found]

    examples = {
        "n_models": len(models),
        "named": described(named),
        "persisting": described(persisting),
        "disappearing": [
            {"parent": parent, "child": child, "features": described(found)}
            for (parent, child), found in disappearing.items()
        ],
    }
    write_json(path_to_examples, examples)


def read_shown(
    choices: list[Choice], shards: dict[tuple[str, str], list[str]], annotations: Annotations
) -> dict[tuple[str, str], Firings]:
    """The firings of the features that are shown, by (model, SAE)."""
    wanted: dict[tuple[str, str], list[int]] = {}
    for choice in choices:
        for model, sae, latent in choice.members:
            wanted.setdefault((model, sae), []).append(latent)
    firings = {key: read_firings(shards[key], annotations, latents) for key, latents in sorted(wanted.items())}
    if firings:
        require_same_tokens({".".join(key): found for key, found in firings.items()})
    return firings


if __name__ == "__main__":
    with job_log(snakemake.log[0], snakemake.input):
        seed_correlations = [load_correlation(path) for path in snakemake.input.seed_correlations]
        collect_examples(
            features=pd.read_parquet(snakemake.input.features),
            edges={tuple(Path(path).stem.split("__")): pd.read_parquet(path) for path in snakemake.input.edges},
            seed_correlations={found.names[0].split(".")[0]: found for found in seed_correlations},
            shards=shards_by_sae(snakemake.input.shards),
            annotations=load_annotations(snakemake.input.annotations),
            labels={
                Path(path).parent.name: pd.read_parquet(path).assign(sae=Path(path).stem)
                for path in snakemake.input.labels
            },
            models=snakemake.params.models,
            roots=snakemake.params.roots,
            threshold=snakemake.params.threshold,
            concepts=snakemake.params.report["concepts"],
            n_features=snakemake.params.report["n_features"],
            n_examples=snakemake.params.report["n_examples"],
            path_to_examples=snakemake.output.examples,
        )
        record_job(snakemake)
