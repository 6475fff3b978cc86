"""Similarities of two SAEs' features that come from weights alone: no tokens, no activations.

`decoder_cosine`, `encoder_cosine` and `logit_effect_cosine` compare all pairs and give `Matches`, as Pearson r does
(`correlations`); `mmcs` and `pw_mcc` are one number for two SAEs. docs/similarities.md says which is valid when.

Products are float32, norms and means float64. A latent whose vector is zero has no direction: its cosines are NaN.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from saelineage.activations import Hookpoint
from saelineage.correlations.match_finder import MatchFinder
from saelineage.correlations.matches import SIDES, Matches, match_tensors, matches_of_tensors
from saelineage.errors import InputError
from saelineage.files.tensors import read_tensors, write_tensors
from saelineage.saes.sae import Sae

QUANTILES = (0.05, 0.5, 0.95)
VOCABULARY_ROWS = 8_192
MAX_ASSIGNED = 8_192
"""Latents that `pw_mcc` assigns unless asked for more; memory grows with their square, time at most with their cube."""


class NoSimilarityError(InputError):
    """Two SAEs, or their models, are such that a similarity is not defined for them; the others may be."""


def decoder_cosine(a: Sae, b: Sae, **settings: int | float) -> Matches:
    """Cosine of the directions that two features write: rows of W_dec; in [-1, 1].

    Means something only where both SAEs read activations in one basis, as between a model and its fine-tune.

    Args:
        a, b: the SAEs.
        **settings: see `cosines`.

    Raises:
        NoSimilarityError: if their d_in differ.
    """
    require_one_width(a, b)
    return cosines(a.W_dec, b.W_dec, **settings)


def encoder_cosine(a: Sae, b: Sae, **settings: int | float) -> Matches:
    """Cosine of the directions that two features read: columns of W_enc; in [-1, 1]. Otherwise as `decoder_cosine`."""
    require_one_width(a, b)
    return cosines(a.W_enc.T, b.W_enc.T, **settings)


class LogitMap(NamedTuple):
    """What is linear of a model on the way from a hookpoint to the logits."""

    to_norm: Float[Tensor, "d_in d_model"]
    """To the input of the unembedding: what is written to the residual stream, times the final norm's gain."""
    unembedding: Float[Tensor, "d_vocab d_model"]


def logit_effect_cosine(a: Sae, b: Sae, map_a: LogitMap, map_b: LogitMap, **settings: int | float) -> Matches:
    """Cosine of the direct effects of two features on the logits; in [-1, 1].

    An effect is a decoder row times `LogitMap`: the direct path of the logit lens (nostalgebraist, 2020) and of direct
    logit attribution (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021). Left out are what
    later blocks make of the feature, and the scale that the final norm divides each token by. The mean over the
    vocabulary is subtracted, for softmax does not see it.

    Effects [d_sae, d_vocab] are never held. `logit_coordinates` turns them, exactly, into coordinates of twice d_model
    with the same products, so that all pairs cost as much as cosines of vectors that short.

    Args:
        a, b: the SAEs.
        map_a, map_b: of their models, see `logit_map`.
        **settings: see `cosines`.

    Raises:
        NoSimilarityError: if the models' vocabularies differ in size.
    """
    coordinates = logit_coordinates(map_a.unembedding, map_b.unembedding)
    effects = [
        sae.W_dec.detach() @ path.to_norm @ own.float()
        for sae, path, own in zip((a, b), (map_a, map_b), coordinates, strict=True)
    ]
    return cosines(*effects, **settings)


@torch.no_grad()
def logit_map(model: nn.Module, hookpoint: str) -> LogitMap:
    """The linear path from a hookpoint to the logits, of a model laid out as Llama and Mistral are.

    Hookpoints can be the input or output of a block, which are the residual stream; the output of its MLP, which is
    added to that; and the input of the MLP's down_proj, which down_proj maps there.

    Raises:
        NoSimilarityError: if the hookpoint is another one, or the model is laid out otherwise.
    """
    unembedding = model.get_output_embeddings()
    if not isinstance(unembedding, nn.Linear):
        raise NoSimilarityError("the model has no linear unembedding (lm_head)")
    norm = getattr(model.base_model, "norm", None)
    if "RMSNorm" not in type(norm).__name__:
        raise NoSimilarityError(f"the model's final norm must be an RMSNorm called 'norm', found {type(norm).__name__}")
    # a vector of ones has root mean square 1: what comes out is the gain, however the class stores it, up to a scale
    gain = norm(torch.ones(unembedding.in_features, device=unembedding.weight.device))
    to_residual = _to_residual(model, hookpoint, unembedding.in_features)
    return LogitMap((to_residual * gain).float(), unembedding.weight.detach().float())


def _to_residual(model: nn.Module, hookpoint: str, d_model: int) -> Float[Tensor, "d_in d_model"]:
    """What activations at a hookpoint add to the residual stream, as a matrix."""
    point = Hookpoint.parse(hookpoint)
    found = re.fullmatch(r"(.*\blayers\.\d+)\.?(.*)", point.module)
    part = (found[2], point.side) if found else None
    if part not in [("", "input"), ("", "output"), ("mlp", "output"), ("mlp.down_proj", "input")]:
        raise NoSimilarityError(
            f"'{hookpoint}' has no linear path to the logits that is known here; those of a block, of its mlp's output "
            "and of mlp.down_proj's input are"
        )
    # ASSUME: a norm between the MLP and the residual stream is called so, as in Gemma 2 and OLMo 2
    if part[0] and hasattr(model.get_submodule(found[1]), "post_feedforward_layernorm"):
        raise NoSimilarityError(f"'{found[1]}' has a norm behind its mlp, so the path to the logits is not linear")
    if part[0] != "mlp.down_proj":
        return torch.eye(d_model)
    return model.get_submodule(point.module).weight.detach().T


@torch.no_grad()
def logit_coordinates(
    a: Float[Tensor, "d_vocab_a d_model_a"], b: Float[Tensor, "d_vocab_b d_model_b"]
) -> tuple[Float[Tensor, "d_model_a coordinate"], Float[Tensor, "d_model_b coordinate"]]:
    """Maps R_a, R_b from the inputs of two unembeddings to coordinates in which products are those of logits.

    With U_a, U_b the unembeddings less their means over the vocabulary: R_a R_a^T = U_a^T U_a, R_a R_b^T = U_a^T U_b
    and R_b R_b^T = U_b^T U_b, so v R_a and w R_b have the norms and the product of v U_a^T and w U_b^T. They are the
    two halves of a square root of the Gram matrix of [U_a U_b], which is summed in float64 a block of the vocabulary at
    a time.

    Raises:
        NoSimilarityError: if the vocabularies differ in size.
    """
    if len(a) != len(b):
        raise NoSimilarityError(f"the models' vocabularies differ: {len(a)} and {len(b)} logits")
    width = a.shape[1] + b.shape[1]
    gram, total = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for own, other in zip(a.split(VOCABULARY_ROWS), b.split(VOCABULARY_ROWS), strict=True):
        rows = torch.cat([own, other], dim=1).double()
        gram += rows.T @ rows
        total += rows.sum(0)
    gram -= torch.outer(total, total) / len(a)
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp(min=0).sqrt()  # rounding leaves zeros slightly below
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
        top_matches, keep_above, n_bins: what is kept, see `match_finder.MatchFinder`.
        block_features: rows whose cosines are held at once.
        threads: how many look through them at once; torch has its own number.
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


def mmcs(found: Matches) -> tuple[float, float]:
    """Mean max cosine similarity: the mean over features of the best cosine, of side a and of side b; in [-1, 1].

    Sharkey, Braun & Millidge, "Taking features out of superposition with sparse autoencoders" (2022), of decoder
    cosines; it is the same mean of any measure. Features without a cosine are left out; NaN where that leaves none.
    """
    return tuple(_mean(best[:, 0]) for best in found.best)


def pw_mcc(a: Sae, b: Sae, max_latents: int = MAX_ASSIGNED) -> float:
    """Mean decoder cosine over the one-to-one assignment with the largest sum; in [-1, 1].

    Song et al., "Mechanistic Interpretability Should Prioritize Feature Consistency in SAEs" (arXiv 2505.20254). Each
    latent of the smaller SAE has a partner. Cosines keep their sign, as in the authors' code: latents fire above zero
    only, so opposite directions are other features. Zero rows are left out (there, they count as 0); NaN where there
    are no others.

    All cosines are held, in float64 and twice: on one core, 8,192 latents of 512 dimensions took 2 to 8 s and 1.6 GB,
    16,384 took 18 to 39 s and 4.7 GB. In the worst case the assignment takes time that grows with the cube of d_sae.

    Raises:
        NoSimilarityError: if an SAE has more than `max_latents`, or their d_in differ.
    """
    require_one_width(a, b)
    if max(a.d_sae, b.d_sae) > max_latents:
        raise NoSimilarityError(
            f"assigning {a.d_sae} x {b.d_sae} latents takes much memory; ask for it with "
            f"saelineage.correlations.cosines.pw_mcc(a, b, max_latents={max(a.d_sae, b.d_sae)})"
        )
    defined = [unit[~unit.isnan().any(dim=1)] for unit in map(unit_rows, (a.W_dec, b.W_dec))]
    cosine = (defined[0] @ defined[1].T).clamp(-1, 1).double().numpy()
    return _mean(cosine[linear_sum_assignment(cosine, maximize=True)])


def require_one_width(a: Sae, b: Sae) -> None:
    """Refuse SAEs of activations of different width.

    Raises:
        NoSimilarityError: naming the widths.
    """
    if a.d_in != b.d_in:
        raise NoSimilarityError(f"the SAEs read activations of different width: {a.d_in} and {b.d_in}")


def best_summary(found: Matches) -> dict:
    """Per side, of each feature's best similarity: `n` that have one, `mean_best` (`mmcs`) and `best_quantiles`.

    None where there is nothing to take them of.
    """
    return {
        side: {
            "n": int(np.isfinite(best[:, 0]).sum()),
            "mean_best": none_if_nan(mean),
            "best_quantiles": {str(share): none_if_nan(_quantile(best[:, 0], share)) for share in QUANTILES},
        }
        for side, best, mean in zip(SIDES, found.best, mmcs(found), strict=True)
    }


def none_if_nan(value: float) -> float | None:
    """A number as JSON can hold it."""
    return None if np.isnan(value) else value


def save_similarities(found: Mapping[str, Matches], names: tuple[str, str], path: Path | str) -> None:
    """Write matches by measure as one safetensors file: `{measure}/{tensor}` (docs/artifacts.md lists them).

    Args:
        found: matches of all pairs, by measure.
        names: the two SAEs, `{model}.{sae}`.
        path: where to.
    """
    tensors = {}
    for measure, matches in found.items():
        tensors |= match_tensors(matches, measure)
    write_tensors(path, {"names": names, "measures": sorted(found)}, tensors)


def load_similarities(path: Path | str) -> dict[str, Matches]:
    """Read what `save_similarities` wrote.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        header, tensors = read_tensors(path)
        return {measure: matches_of_tensors(tensors, measure) for measure in header["measures"]}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"'{path}' is not a whole file of similarities ({error}); delete it and run again") from error


def _mean(values: Float[np.ndarray, " value"]) -> float:
    """The mean of those that are defined, in float64; NaN of none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean(dtype=np.float64)) if len(defined) else float("nan")


def _quantile(values: Float[np.ndarray, " value"], share: float) -> float:
    """A quantile of those that are defined; NaN of none."""
    defined = values[~np.isnan(values)]
    return float(np.quantile(defined, share)) if len(defined) else float("nan")
