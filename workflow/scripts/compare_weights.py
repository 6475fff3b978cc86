"""Compare the features of two SAEs by their weights, and by their effects on the logits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saelineage.correlations.cosines import (
    best_summary,
    decoder_cosine,
    encoder_cosine,
    logit_effect_cosine,
    none_if_nan,
    pw_mcc,
    save_similarities,
)
from saelineage.correlations.decoders import NoSimilarityError
from saelineage.correlations.logit_maps import logit_map
from saelineage.correlations.matches import Matches
from saelineage.files.atomic import write_json
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job, logger
from saelineage.models.loading import load_model
from saelineage.models.vocabularies import shared_ids
from saelineage.saes.sae import Sae, load_sae

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def compare_weights(
    names: tuple[str, str],
    sae_folders: tuple[Path, Path],
    model_folders: tuple[Path, Path],
    hookpoint: str,
    settings: dict,
    path_to_similarities: str,
    path_to_summary: str,
) -> None:
    """Write the matches by every measure, and a summary of the best ones.

    A measure that is not defined for these two is left out, and the summary gives the reason.

    Args:
        names: the SAEs, as `{model}.{sae}`.
        sae_folders, model_folders: the SAEs and their models.
        hookpoint: where the SAEs read the models.
        settings: arguments of `cosines.cosines`.
        path_to_similarities, path_to_summary: the files to write.
    """
    a, b = (load_sae(folder) for folder in sae_folders)
    measures: dict[str, Callable[[], Matches]] = {
        "decoder_cosine": partial(decoder_cosine, a, b, **settings),
        "encoder_cosine": partial(encoder_cosine, a, b, **settings),
        "logit_effect_cosine": partial(logit_effects, a, b, model_folders, hookpoint, settings),
    }
    by_measure, left_out = {}, {}
    for name, measure in measures.items():
        try:
            by_measure[name] = measure()
        except NoSimilarityError as error:
            left_out[name] = str(error)
    one_to_one = float("nan")
    try:
        one_to_one = pw_mcc(a, b)
    except NoSimilarityError as error:
        left_out["pw_mcc"] = str(error)
    save_similarities(by_measure, names, path_to_similarities)
    summary = {"a": names[0], "b": names[1], "pw_mcc": none_if_nan(one_to_one), "left_out": left_out}
    measured = {name: best_summary(matches) for name, matches in by_measure.items()}
    write_json(path_to_summary, summary | {"measures": measured})


def logit_effects(a: Sae, b: Sae, model_folders: tuple[Path, Path], hookpoint: str, settings: dict) -> Matches:
    """The cosine of effects on the logits of the tokens that both models have. Models are in memory one at a time."""
    map_a, map_b = (logit_map(load_model(folder), hookpoint) for folder in model_folders)
    n_rows = len(map_a.unembedding), len(map_b.unembedding)
    ids = [number for number in shared_ids(model_folders) if number < min(n_rows)]
    logger.info("logits of %d tokens are compared, of %d and %d rows", len(ids), *n_rows)
    map_a, map_b = (each._replace(unembedding=each.unembedding[ids]) for each in (map_a, map_b))
    return logit_effect_cosine(a, b, map_a, map_b, **settings)


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        wildcards = snakemake.wildcards
        compare_weights(
            names=(f"{wildcards.model_a}.{wildcards.sae_a}", f"{wildcards.model_b}.{wildcards.sae_b}"),
            sae_folders=(Path(snakemake.input.sae_a[0]).parent, Path(snakemake.input.sae_b[0]).parent),
            model_folders=(Path(snakemake.input.model_a[0]).parent, Path(snakemake.input.model_b[0]).parent),
            hookpoint=snakemake.params.hookpoint,
            settings=snakemake.params.settings | {"threads": snakemake.threads},
            path_to_similarities=snakemake.output.similarities,
            path_to_summary=snakemake.output.summary,
        )
