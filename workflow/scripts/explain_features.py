"""Have a language-model service explain features of one SAE, and score its explanations."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saelineage.files.tables import write_parquet
from saelineage.jobs.job import job
from saelineage.labels.annotations import load_annotations
from saelineage.labels.completions import Answers
from saelineage.labels.explanations import (
    Explanation,
    asker,
    choose_excerpts,
    choose_latents,
    compared_tokens,
    dense_activation,
    explain,
)
from saelineage.labels.passages import read_firings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)
TYPES = {"score": float, "n_tokens": np.int64, "n_excerpts": np.int64, "n_undefined": np.int64}


def explain_features(
    paths_to_shards: list[str],
    path_to_annotations: str,
    settings: dict,
    min_firings: int,
    answers_folder: Path,
    path_to_explanations: str,
) -> dict:
    """Write a table of explanations with a row per drawn feature, ascending.

    Its columns are `latent` and the fields of `explanations.Explanation`.

    Args:
        paths_to_shards: feature shards of the SAE, all corpora.
        path_to_annotations: the annotations of the probe's tokens.
        settings: the config's `labels.explanations`.
        min_firings: fewest probe tokens that a drawn feature fires on.
        answers_folder: the folder where the service's answers are kept.
        path_to_explanations: the file to write.

    Returns:
        The addresses and models that the answers came from.
    """
    annotations = load_annotations(path_to_annotations)
    latents = choose_latents(paths_to_shards, settings["n_features"], min_firings, settings["seed"])
    compared = compared_tokens(paths_to_shards, annotations)
    firings = read_firings(paths_to_shards, annotations, latents.tolist())
    answers = Answers(answers_folder, settings["timeout_s"], settings["retries"])
    ask = asker(answers, settings)
    sizes = (settings["n_top"], settings["n_random"], settings["n_tokens"])
    rows = []
    for latent in latents.tolist():
        activation = dense_activation(firings, latent, compared)
        random = np.random.default_rng([settings["seed"], latent])
        excerpts = choose_excerpts(activation, annotations, *sizes, random)
        explanation = explain(excerpts, float(np.nanmax(activation)), ask)
        logger.info("latent %d: score %.3f over %d tokens", latent, explanation.score, explanation.n_tokens)
        rows.append({"latent": latent, **explanation._asdict()})
    logger.info("%d answers were requested; the others were kept from before", answers.n_asked)
    table = pd.DataFrame(rows, columns=["latent", *Explanation._fields])
    write_parquet(table.astype({"latent": np.int64, "explanation": "str", **TYPES}), path_to_explanations)
    return {"answered_by": sorted(map(list, answers.origins))}


if __name__ == "__main__":
    with job(snakemake) as record:
        record |= explain_features(
            paths_to_shards=snakemake.input.shards,
            path_to_annotations=snakemake.input.annotations,
            settings=snakemake.params.settings,
            min_firings=snakemake.params.min_firings,
            answers_folder=Path(snakemake.params.answers),
            path_to_explanations=snakemake.output.explanations,
        )
