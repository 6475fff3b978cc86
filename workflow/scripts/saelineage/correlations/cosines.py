"""Similarities of two SAEs' features from weights alone, without tokens and activations.

`decoder_cosine`, `encoder_cosine` and `logit_effect_cosine` compare all pairs and return `Matches`, as Pearson r does
(`pearson`). `mmcs` and `pw_mcc` are one number for two SAEs. docs/similarities.md says which is valid when.

Products are float32, norms and means float64. A latent whose vector is zero has no direction: its cosines are NaN.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from saelineage.correlations import decoders
from saelineage.correlations.decoders import MAX_ASSIGNED, NoSimilarityError
from saelineage.correlations.logit_maps import LogitMap
from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import SIDES, Matches, match_tensors, matches_of_tensors
from saelineage.errors import InputError
from saelineage.files.tensors import read_tensors, write_tensors
from saelineage.saes.sae import Sae

QUANTILES = (0.05, 0.5, 0.95)
VOCABULARY_ROWS = 8_192


class Settings(TypedDict, total=False):
    """The settings of `cosines`."""

    top_matches: int
    keep_above: float
    n_bins: int
    block_features: int
    threads: int


def decoder_cosine(a: Sae, b: Sae, **settings: Unpack[Settings]) -> Matches:
    """Cosine of the directions that two features write (rows of W_dec), in [-1, 1].

    It is meaningful only if both SAEs read activations in one basis, as those of a model and its fine-tune do.

    Args:
        a, b: the SAEs.
        **settings: see `cosines`.

    Raises:
        NoSimilarityError: if their d_in differ.
    """
    require_one_width(a, b)
    return cosines(a.W_dec, b.W_dec, **settings)


def encoder_cosine(a: Sae, b: Sae, **settings: Unpack[Settings]) -> Matches:
    """Cosine of the directions that two features read (columns of W_enc). Otherwise as `decoder_cosine`."""
    require_one_width(a, b)
    return cosines(a.W_enc.T, b.W_enc.T, **settings)


def logit_effect_cosine(a: Sae, b: Sae, map_a: LogitMap, map_b: LogitMap, **settings: Unpack[Settings]) -> Matches:
    """Cosine of the direct effects of two features on the logits, in [-1, 1].

    An effect is a decoder row times `LogitMap`: the direct path of the logit lens (nostalgebraist, 2020) and of direct
    logit attribution (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021). It leaves out the
    effects through later blocks, and the scale by which the final norm divides each token. The mean over the vocabulary
    is subtracted, because softmax ignores it.

    Effects [d_sae, d_vocab] are never in memory. `logit_coordinates` turns them exactly into vectors of length
    2 x d_model with the same products, so that all pairs cost as much as cosines of such short vectors.

    Args:
        a, b: the SAEs.
        map_a, map_b: `logit_maps.logit_map` of their models.
        **settings: see `cosines`.

    Raises:
        NoSimilarityError: if the models' vocabularies differ in size.
    """
    return cosines(*logit_vectors(a, b, map_a, map_b), **settings)


def logit_vectors(
    a: Sae, b: Sae, map_a: LogitMap, map_b: LogitMap
) -> tuple[Float[Tensor, "d_sae_a coordinate"], Float[Tensor, "d_sae_b coordinate"]]:
    """Vectors whose products are those of the features' direct effects on the logits (`logit_effect_cosine`).

    Raises:
        NoSimilarityError: if the models' vocabularies differ in size.
    """
    coordinates = logit_coordinates(map_a.unembedding, map_b.unembedding)
    vectors_a, vectors_b = (
        sae.W_dec.detach().cpu() @ path.to_norm @ of_side.float()
        for sae, path, of_side in zip((a, b), (map_a, map_b), coordinates, strict=True)
    )
    return vectors_a, vectors_b


@torch.no_grad()
def logit_coordinates(
    a: Float[Tensor, "d_vocab_a d_model_a"], b: Float[Tensor, "d_vocab_b d_model_b"]
) -> tuple[Float[Tensor, "d_model_a coordinate"], Float[Tensor, "d_model_b coordinate"]]:
    """Maps R_a, R_b from the inputs of two unembeddings to coordinates that keep the products of logits.

    Let U_a, U_b be the unembeddings minus their means over the vocabulary. Then R_a R_a^T = U_a^T U_a,
    R_a R_b^T = U_a^T U_b and R_b R_b^T = U_b^T U_b, so v R_a and w R_b have the norms and the product of v U_a^T and
    w U_b^T. R_a and R_b are the two halves of a square root of the Gram matrix of [U_a U_b], which is summed in float64
    a block of the vocabulary at a time.

    Raises:
        NoSimilarityError: if the vocabularies differ in size.
    """
    if len(a) != len(b):
        raise NoSimilarityError(f"the models' vocabularies differ: {len(a)} and {len(b)} logits")
    width = a.shape[1] + b.shape[1]
    gram, total = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for rows_a, rows_b in zip(a.split(VOCABULARY_ROWS), b.split(VOCABULARY_ROWS), strict=True):
        rows = torch.cat([rows_a, rows_b], dim=1).double()
        gram += rows.T @ rows
        total += rows.sum(0)
    gram -= torch.outer(total, total) / len(a)
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp(min=0).sqrt()  # rounding may turn zeros negative
    return root[: a.shape[1]], root[a.shape[1] :]


def cosines(
    a: Float[Tensor, "d_sae_a width"],
    b: Float[Tensor, "d_sae_b width"],
    *,
    top_matches: int = 8,
    keep_above: float = 0.3,
    n_bins: int = 200,
    block_features: int = 1024,
    threads: int = 1,
) -> Matches:
    """Cosines of all pairs of rows, a block of rows of a at a time; NaN where a row is zero.

    Args:
        a, b: the vectors.
        top_matches, keep_above, n_bins: see `match_finder.MatchFinder`.
        block_features: rows whose cosines are computed at a time.
        threads: the number of threads that search the cosines. The number of torch's threads is set apart.
    """
    unit_a, unit_b = unit_rows(a), unit_rows(b)
    finder = MatchFinder(
        (len(a), len(b)), top_matches=top_matches, keep_above=keep_above, n_bins=n_bins, threads=threads
    )
    for first in range(0, len(a), block_features):
        block = unit_a[first : first + block_features] @ unit_b.T
        finder.offer(first, block.clamp_(-1, 1).numpy())
    return finder.result()


def unit_rows(vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """Rows divided by their norms, in float32; NaN where a row is zero."""
    exact = vectors.detach().cpu().double()
    return (exact / exact.norm(dim=1, keepdim=True)).float()


def mmcs(matches: Matches) -> tuple[float, float]:
    """Mean max cosine similarity: the mean over features of the best cosine, for side a and side b, in [-1, 1].

    Sharkey, Braun & Millidge, "Taking features out of superposition with sparse autoencoders" (2022), define it for
    decoder cosines. For other measures it is the same mean. Features without a cosine are left out; NaN if all are.
    """
    return _mean(matches.best[0][:, 0]), _mean(matches.best[1][:, 0])


def assigned_cosines(a: Sae, b: Sae, max_latents: int = MAX_ASSIGNED) -> Float[np.ndarray, " pair"]:
    """Decoder cosines of the pairs in the one-to-one assignment of latents (`decoders.assigned_cosines`).

    Raises:
        NoSimilarityError: if an SAE has more than `max_latents`, or their d_in differ.
    """
    rows = (sae.W_dec.detach().cpu().numpy() for sae in (a, b))
    return decoders.assigned_cosines(*rows, max_latents=max_latents)


def pw_mcc(a: Sae, b: Sae, max_latents: int = MAX_ASSIGNED) -> float:
    """Mean of `assigned_cosines`, in [-1, 1].

    Song et al., "Mechanistic Interpretability Should Prioritize Feature Consistency in SAEs" (arXiv 2505.20254).
    Cosines keep their sign, as in the authors' code: latents fire above zero only, so opposite directions are different
    features. Zero rows are left out (in the authors' code they count as 0); NaN if all rows are zero.

    Raises:
        NoSimilarityError: as `assigned_cosines`.
    """
    return _mean(assigned_cosines(a, b, max_latents))


def require_one_width(a: Sae, b: Sae) -> None:
    """Refuse SAEs of activations of different width.

    Raises:
        NoSimilarityError: naming the widths.
    """
    if a.d_in != b.d_in:
        raise NoSimilarityError(f"the SAEs read activations of different width: {a.d_in} and {b.d_in}")


def best_summary(matches: Matches) -> dict:
    """Summarize the best similarities per side: their number `n`, `mean_best` (`mmcs`) and `best_quantiles`.

    Mean and quantiles are None if no feature has a similarity.
    """
    return {
        side: {
            "n": int(np.isfinite(best[:, 0]).sum()),
            "mean_best": none_if_nan(mean),
            "best_quantiles": {str(share): none_if_nan(_quantile(best[:, 0], share)) for share in QUANTILES},
        }
        for side, best, mean in zip(SIDES, matches.best, mmcs(matches), strict=True)
    }


def none_if_nan(value: float) -> float | None:
    """The number itself, or None for NaN, which JSON cannot hold."""
    return None if np.isnan(value) else value


def save_similarities(by_measure: Mapping[str, Matches], names: tuple[str, str], path: Path | str) -> None:
    """Write matches by measure as one safetensors file: `{measure}/{tensor}` (docs/artifacts.md lists them).

    Args:
        by_measure: matches of all pairs, by measure.
        names: the two SAEs, `{model}.{sae}`.
        path: the file to write.
    """
    tensors: dict[str, np.ndarray] = {}
    for measure, matches in by_measure.items():
        tensors |= match_tensors(matches, measure)
    write_tensors(path, {"names": names, "measures": sorted(by_measure)}, tensors)


def load_similarities(path: Path | str) -> dict[str, Matches]:
    """Read a file from `save_similarities`.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        header, tensors = read_tensors(path)
        return {measure: matches_of_tensors(tensors, measure) for measure in header["measures"]}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"'{path}' must hold similarities, but is damaged or another file ({error}); delete it and run again"
        ) from error


def _mean(values: Float[np.ndarray, " value"]) -> float:
    """The mean of the values that are defined, in float64; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean(dtype=np.float64)) if len(defined) else float("nan")


def _quantile(values: Float[np.ndarray, " value"], share: float) -> float:
    """A quantile of the values that are defined; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(np.quantile(defined, share)) if len(defined) else float("nan")
