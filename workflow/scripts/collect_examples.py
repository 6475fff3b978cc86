"""Choose features that persist and features that disappear, and collect text on which they fire."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saelineage.examples import Choice, Probe, describe, disappearing_features, persisting_features
from saelineage.files import write_json
from saelineage.logs import job_log
from saelineage.manifests import record_job
from saelineage.matches import Correlation, load_correlation
from saelineage.tokens import load_tokenizer, read_token_rows

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def collect_examples(
    features: pd.DataFrame,
    edges: dict[tuple[str, str], pd.DataFrame],
    seed_correlations: dict[str, Correlation],
    shards: dict[tuple[str, str], list[str]],
    paths_to_probe: list[str],
    tokenizer_folder: Path,
    models: list[str],
    roots: list[str],
    threshold: float,
    n_features: int,
    n_examples: int,
    path_to_examples: str,
) -> None:
    """Write `examples.json`.

    It holds `n_models`; `persisting`, a list of features; and `disappearing`, per edge from a root `parent`, `child`
    and `features`. A feature has

    - `members`: `model`, `sae`, `latent`, `max_activation` on the probe; the first decides which text is shown;
    - `r`: the members' pairwise Pearson r over all probe tokens, null where undefined;
    - `density`: share of probe tokens on which the first member fires;
    - `passages`: `corpus`, `row` and `first`, where the text stands; `tokens`, its pieces; `activations`, a list per
      member with a number per token;
    - where it persists, `n_models` and `least_r` on the way from match to match;
    - where it disappears, `r_child` and `r_seed` (null without a second seed).

    Args:
        features: `lineage/features.parquet`.
        edges: verdicts of each (parent, child) whose parent is a root.
        seed_correlations: per root, the correlation of its first SAE with its second, where it has two.
        shards: feature shards of each (model, SAE).
        paths_to_probe: token rows of the probe.
        tokenizer_folder: the run's tokenizer.
        models: parents before children.
        roots: models without parents.
        threshold: r at or above this is a match.
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
    choices: list[Choice] = [*persisting, *(choice for found in disappearing.values() for choice in found)]
    probe = Probe(shards, [member for choice in choices for member in choice.members], read_token_rows(paths_to_probe))
    tokenizer = load_tokenizer(tokenizer_folder)
    examples = {
        "n_models": len(models),
        "persisting": [describe(choice, probe, tokenizer, n_examples) for choice in persisting],
        "disappearing": [
            {
                "parent": parent,
                "child": child,
                "features": [describe(choice, probe, tokenizer, n_examples) for choice in found],
            }
            for (parent, child), found in disappearing.items()
        ],
    }
    write_json(path_to_examples, examples)


def shards_by_sae(paths: list[str]) -> dict[tuple[str, str], list[str]]:
    """Paths `features/{model}/{sae}/{corpus}/{shard}` by (model, SAE), in their order."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        found.setdefault(Path(path).parts[-4:-2], []).append(path)
    return found


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        seed_correlations = [load_correlation(path) for path in snakemake.input.seed_correlations]
        collect_examples(
            features=pd.read_parquet(snakemake.input.features),
            edges={tuple(Path(path).stem.split("__")): pd.read_parquet(path) for path in snakemake.input.edges},
            seed_correlations={found.names[0].split(".")[0]: found for found in seed_correlations},
            shards=shards_by_sae(snakemake.input.shards),
            paths_to_probe=snakemake.input.probe,
            tokenizer_folder=Path(snakemake.input.tokenizer).parent,
            models=snakemake.params.models,
            roots=snakemake.params.roots,
            threshold=snakemake.params.threshold,
            n_features=snakemake.params.report["n_features"],
            n_examples=snakemake.params.report["n_examples"],
            path_to_examples=snakemake.output.examples,
        )
        record_job(snakemake)
