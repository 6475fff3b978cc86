"""Measure how far SAEs of one model that were trained from several seeds agree, as a file that stands alone."""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saelineage.correlations.cosines import assigned_cosines
from saelineage.correlations.decoders import NoSimilarityError, mean_correlation
from saelineage.correlations.matches import Correlation, load_correlation
from saelineage.files.atomic import sha256_file, sha256_json, write_json
from saelineage.jobs.devices import prepare_cpu
from saelineage.jobs.job import job, package_versions
from saelineage.lineage.evidence import named
from saelineage.lineage.matching import agreement_share
from saelineage.plan.comparisons import names_in_pair
from saelineage.saes.sae import CONFIG_FILE, WEIGHTS_FILE, Sae, load_sae

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

FORMAT_VERSION = 1
"""Version of the file's keys and definitions."""
DEFINITIONS = {
    "pw_mcc": (
        "Pairwise mean correlation coefficient of decoders (arXiv 2505.20254): the mean cosine of decoder rows over "
        "the one-to-one assignment of two SAEs' latents with the largest sum, signs kept; pw_mcc_n latents are "
        "assigned, and zero rows are left out. Of a model: the mean over its pairs of seeds"
    ),
    "agreement": (
        "Share of features of either SAE whose best Pearson r with a feature of the other, over all probe tokens and "
        "zeros included, is at or above the threshold; agreement_n testable features of both directions, "
        "agreement_interval is Wilson's 95 % interval. Of a model: all its pairs of seeds together"
    ),
}


def compare_seeds(
    pairs: Mapping[str, Sequence[str]],
    load_weights: Callable[[str], Sae],
    load: Callable[[str], Correlation],
    threshold: float,
) -> dict[str, dict]:
    """Measure the pairs of every model.

    Args:
        pairs: names of the pairs of seeds, by model.
        load_weights: gives an SAE by its name, `{model}.{sae}`.
        load: gives a pair's correlation by its name.
        threshold: r at or above this is a match.

    Returns:
        Per model `pairs`, and `pw_mcc` and `agreement` over all of them (None where they are undefined).
    """
    measured = {}
    for model, names in pairs.items():
        rows = [_pair(name, load_weights, load(name), threshold) for name in names]
        cosines = [row["pw_mcc"] for row in rows if row["pw_mcc"] is not None]
        measured[model] = {
            "pw_mcc": sum(cosines) / len(cosines) if len(cosines) == len(rows) else None,
            "n_pairs": len(rows),
            **named("agreement", agreement_share(map(load, names), threshold)),
            "pairs": rows,
        }
    return measured


def _pair(name: str, load_weights: Callable[[str], Sae], correlation: Correlation, threshold: float) -> dict:
    """The figures of two SAEs, and the reason where PW-MCC is undefined."""
    a, b = names_in_pair(name)
    cosines, reason = np.empty(0), {}
    try:
        cosines = assigned_cosines(load_weights(a), load_weights(b))
    except NoSimilarityError as error:
        reason = {"left_out": str(error)}
    mean = {"pw_mcc": mean_correlation(cosines), "pw_mcc_n": len(cosines)}
    return {"a": a, "b": b} | mean | reason | named("agreement", agreement_share([correlation], threshold))


def described(folder: Path) -> dict:
    """An SAE's size and the digests of its files."""
    sae = load_sae(folder)
    sizes = {"architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae, "k": sae.k}
    return sizes | {"sha256": {name: sha256_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}}


def software(code_sha256: str) -> dict:
    """Versions of what made the figures."""
    own: dict[str, str] = {}
    with suppress(PackageNotFoundError):
        own = {"saelineage": version("saelineage")}
    return {"code_sha256": code_sha256, "python": platform.python_version(), "versions": own | package_versions()}


if __name__ == "__main__":
    with job(snakemake):
        prepare_cpu(snakemake.threads)
        folders = {
            f"{path.parent.name}.{path.name}": path for path in (Path(file).parent for file in snakemake.input.saes)
        }
        correlations = {Path(path).parent.name: path for path in snakemake.input.correlations}
        settings = snakemake.params
        measured = compare_seeds(
            pairs=settings.pairs,
            load_weights=lambda name: load_sae(folders[name]),
            load=lambda name: load_correlation(correlations[names_in_pair(name)[0]], names_in_pair(name)[1]),
            threshold=settings.threshold,
        )
        content = {
            "version": FORMAT_VERSION,
            "run": snakemake.config["run"],
            "hookpoint": settings.config["activations"]["hookpoints"][snakemake.wildcards.hookpoint],
            "threshold": settings.threshold,
            "definitions": DEFINITIONS,
            "models": measured,
            "saes": {name: described(folder) for name, folder in folders.items()},
            "config_sha256": sha256_json(settings.config),
            "software": software(settings.code),
        }
        write_json(snakemake.output.seeds, content)
