"""Latent scaling: how strongly a model's activations follow a crosscoder's latent.

Decoder norms say what training made of a latent, not what a model writes. A rare feature of the child alone reaches the
encoder rows of other latents too, and so disturbs what these write into the parent. The rare latent's decoder makes up
for that in both models, so its part for the parent has a norm although the parent lacks the feature. Under an L1
penalty, on the other hand, the part for a model that has a feature may vanish.

Latent scaling asks the activations (Minder et al., "Overcoming sparsity artifacts in crosscoders to interpret
chat-tuning", arXiv 2504.02922). With latent activations f_t, a direction d and vectors Y_t of one model,

    beta = argmin_b sum_t |Y_t - b f_t d|^2 = sum_t f_t (Y_t . d) / (|d|^2 sum_t f_t^2).

Y is taken twice, for a latent j and model m:
    error: the activations minus the reconstruction without latent j, acts_m - (recons_m - f_j W_dec_mj);
    reconstruction: recons_m, of all latents and the bias.

d is the decoder direction of the *writer*, the model of a pair that writes the latent more strongly, and

    nu = beta of the other model / beta of the writer.

nu on error is near 1 if the other model has the feature in the same direction, and near 0 if it does not, or if its
part of the feature was taken by other latents; then nu on reconstruction is high. The paper calls a latent exclusive
to a model if nu on error is below 0.2 and nu on reconstruction below 0.5 (`lineage.exclusivity`).

A feature that the other model writes in another direction has a low nu too. So beta x |d| is compared once more with
the other model's own direction as d (`own_ratio_*`). What a decoder makes up for cancels in the reconstruction, so a
feature that is really there is high on both.

All of this is in centred and scaled activations. Sums are in float64. For each token they need the products of its
latents alone, so nothing of the size [token, d_sae] is made.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.errors import InputError
from saelineage.saes.encoding import SparseLatents
from saelineage.saes.sparse_products import Entries, sampled_products

PARENT, CHILD = SIDES = ("parent", "child")
ERROR, RECONSTRUCTION = "error", "reconstruction"


class Couple(NamedTuple):
    """A model whose activations are asked, and a model whose decoder directions are used."""

    model: str
    direction: str


def couples_of(pairs: Iterable[tuple[str, str]]) -> list[Couple]:
    """Each model of each pair with each direction of the pair, once."""
    return sorted({Couple(model, direction) for pair in pairs for model in pair for direction in pair})


@dataclass
class ScalingSums:
    """Sums over tokens. `add` joins two sets of tokens, so that those of each document can be resampled."""

    couples: list[Couple]
    n_tokens: int
    n_firings: Int[np.ndarray, " d_sae"]
    """Tokens on which each latent fires."""
    squares: Float[np.ndarray, " d_sae"]
    """sum f^2."""
    on_error: Float[np.ndarray, "couple d_sae"]
    """sum f ((acts - recons) . d), of the model's activations and the other's direction."""
    on_recons: Float[np.ndarray, "couple d_sae"]
    """sum f (recons . d)."""

    def add(self, other: "ScalingSums") -> "ScalingSums":
        """The sums over both sets of tokens."""
        assert self.couples == other.couples
        return ScalingSums(
            self.couples,
            self.n_tokens + other.n_tokens,
            self.n_firings + other.n_firings,
            self.squares + other.squares,
            self.on_error + other.on_error,
            self.on_recons + other.on_recons,
        )


@torch.no_grad()
def scaling_sums(
    crosscoder: Crosscoder, acts: Float[Tensor, "token joint"], latents: SparseLatents, couples: Sequence[Couple]
) -> ScalingSums:
    """Sum over the tokens of a batch.

    Memory holds float64 copies of the batch's activations and reconstructions, and of one model's decoder.

    Args:
        crosscoder: the crosscoder.
        acts: the models' centred and scaled activations, side by side (`Crosscoder.joint`).
        latents: their latent activations.
        couples: from `couples_of`.
    """
    d_sae, by_model = crosscoder.d_sae, acts.view(len(acts), len(crosscoder.models), crosscoder.d_in)
    entries, values = Entries(latents.indptr, latents.indices.long(), d_sae), latents.values.double()

    def summed(products: Float[Tensor, " entry"]) -> Float[np.ndarray, " d_sae"]:
        """Sum of value x product over each latent's entries; on the CPU, where the order of additions is fixed."""
        sums = torch.zeros(d_sae, dtype=torch.float64)
        return sums.index_add_(0, entries.latents.cpu(), (values * products).cpu()).numpy()

    recons, error = {}, {}
    for model in {couple.model for couple in couples}:
        number = crosscoder.models.index(model)
        W_dec = crosscoder.W_dec[number].double().contiguous()
        recons[model] = entries.decode(values, W_dec) + crosscoder.b_dec[number].double()
        error[model] = by_model[:, number].double() - recons[model]
    on_error, on_recons = np.zeros((len(couples), d_sae)), np.zeros((len(couples), d_sae))
    for direction in {couple.direction for couple in couples}:
        W_dec = crosscoder.W_dec[crosscoder.models.index(direction)].double().contiguous()
        for number, couple in enumerate(couples):
            if couple.direction == direction:
                on_error[number] = summed(sampled_products(error[couple.model], W_dec, entries))
                on_recons[number] = summed(sampled_products(recons[couple.model], W_dec, entries))
    n_firings = torch.bincount(entries.latents, minlength=d_sae).cpu().numpy()
    return ScalingSums(list(couples), len(acts), n_firings, summed(values), on_error, on_recons)


def measure_scaling_sums(
    crosscoder: Crosscoder, batches: Iterable[Float[Tensor, "_token joint"]], pairs: Sequence[tuple[str, str]]
) -> ScalingSums:
    """Encode batches of `joint` activations, and sum over all of them.

    Raises:
        InputError: if there are no batches, or a pair names a model that the crosscoder does not have.
    """
    if unknown := {model for pair in pairs for model in pair} - set(crosscoder.models):
        raise InputError(f"pairs must be of the crosscoder's models {crosscoder.models}, got {sorted(unknown)}; rerun")
    encoder, couples = crosscoder.encoder(), couples_of(pairs)
    sums: ScalingSums | None = None
    for acts in batches:
        of_batch = scaling_sums(crosscoder, acts, encoder.encode(acts), couples)
        sums = of_batch if sums is None else sums.add(of_batch)
    if sums is None:
        raise InputError("latent scaling needs tokens, but there are none; look at the probe splits")
    return sums


def decoder_products(crosscoder: Crosscoder, couples: Iterable[Couple]) -> dict[Couple, Float[np.ndarray, " d_sae"]]:
    """Scalar product of each latent's decoder directions in the two models of each couple, in float64."""
    products = {}
    for couple in couples:
        left, right = (crosscoder.W_dec[crosscoder.models.index(model)].double() for model in couple)
        products[couple] = (left * right).sum(1).cpu().numpy()
    return products


def betas(
    sums: ScalingSums, products: Mapping[Couple, Float[np.ndarray, " d_sae"]], couples: Iterable[Couple]
) -> dict[str, dict[Couple, Float[np.ndarray, " d_sae"]]]:
    """beta in closed form.

    With e = acts - recons, the error without latent j is e + f_j W_dec_mj, so its product with f_j d is
    sum f_j (e . d) + sum f_j^2 (W_dec_mj . d).

    Args:
        sums: of the couples and maybe others.
        products: from `decoder_products`, of the couples and of each direction with itself.
        couples: whose beta is asked for.

    Returns:
        beta of each couple on `error` and on `reconstruction`; NaN for latents that never fire or whose direction is
        zero.
    """
    of_targets: dict[str, dict[Couple, np.ndarray]] = {ERROR: {}, RECONSTRUCTION: {}}
    for couple in couples:
        number = sums.couples.index(couple)
        own = sums.squares * products[couple]
        scale = sums.squares * products[Couple(couple.direction, couple.direction)]
        of_targets[ERROR][couple] = quotients(sums.on_error[number] + own, scale)
        of_targets[RECONSTRUCTION][couple] = quotients(sums.on_recons[number], scale)
    return of_targets


def pair_table(
    sums: ScalingSums, products: Mapping[Couple, Float[np.ndarray, " d_sae"]], parent: str, child: str
) -> pd.DataFrame:
    """Scaling of each latent in two models.

    Args:
        sums: from `scaling_sums`, of the two models and maybe others.
        products: from `decoder_products` of the same couples. They are the same for all sums, so for resampled ones
            they need not be computed again.
        parent, child: the two models.

    Returns:
        Columns:
        - `latent`, `n_firings`.
        - `norm_parent`, `norm_child`: norms of the decoder directions.
        - `relative_norm`: (1 + (norm_child - norm_parent) / max(norm_child, norm_parent)) / 2 (arXiv 2504.02922): 0 for
          the parent alone, 1 for the child alone.
        - `cosine`: of the decoder directions. Means something only where the models share a basis.
        - `writer`: `parent` or `child`, whichever writes more: beta on error x norm, each in its own direction.
        - `beta_error_parent`, `beta_error_child`, `beta_reconstruction_parent`, `beta_reconstruction_child`: in the
          writer's direction.
        - `nu_error`, `nu_reconstruction`: beta of the other model over that of the writer.
        - `own_ratio_error`, `own_ratio_reconstruction`: beta x norm of the other model over that of the writer, each in
          its own direction.
        A ratio is NaN where what it is a share of is not above 0.
    """
    models = {PARENT: parent, CHILD: child}
    scaled = betas(sums, products, couples_of([(parent, child)]))
    norms = {side: np.sqrt(products[Couple(model, model)]) for side, model in models.items()}
    own = {
        target: {side: np.nan_to_num(beta[Couple(model, model)]) * norms[side] for side, model in models.items()}
        for target, beta in scaled.items()
    }
    from_child = own[ERROR][CHILD] > own[ERROR][PARENT]

    def of_other_and_writer(of_sides: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        sides = of_sides[PARENT], of_sides[CHILD]
        return np.where(from_child, *sides), np.where(from_child, *sides[::-1])

    columns: dict[str, np.ndarray] = {
        "latent": np.arange(len(sums.n_firings)),
        "n_firings": sums.n_firings,
        **{f"norm_{side}": norms[side] for side in SIDES},
        "relative_norm": (1 + quotients(norms[CHILD] - norms[PARENT], np.maximum(*norms.values()))) / 2,
        "cosine": quotients(products[Couple(parent, child)], norms[PARENT] * norms[CHILD]),
        "writer": np.where(from_child, CHILD, PARENT),
    }
    for target, beta in scaled.items():
        of_sides = {
            side: np.where(from_child, beta[Couple(model, child)], beta[Couple(model, parent)])
            for side, model in models.items()
        }
        columns |= {f"beta_{target}_{side}": of_side for side, of_side in of_sides.items()}
        columns[f"nu_{target}"] = quotients(*of_other_and_writer(of_sides))
        columns[f"own_ratio_{target}"] = quotients(*of_other_and_writer(own[target]))
    return pd.DataFrame(columns)


def quotients(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients; NaN where the divisor is not above 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
