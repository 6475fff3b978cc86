"""Training objectives of the SAE architectures: the weights, the entries that the loss needs, and the loss.

A loss is the mean over tokens of |acts - recons|^2, summed over d_in, plus penalties. Activations are scaled to a mean
square of 1 per dimension. Weights are a dict with `W_enc` and `W_dec` [d_sae, d_in], `b_dec` [d_in] and the
architecture's own [d_sae]. The encoder is transposed, because its gradient is then a sum of rows. `Entries` and
`AllEntries` give equal results.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelineage.errors import InputError
from saelineage.saes.sae import Sae, check_k
from saelineage.saes.sparse_products import (
    AllEntries,
    Entries,
    Screen,
    all_above_zero,
    row_starts,
    top_of_all_tokens,
    top_of_each_token,
)

SMALLEST_THRESHOLD = 1e-6
"""Lower bound of JumpReLU's thresholds when training continues from an SAE, because their logarithms are trained."""
Weights = dict[str, Tensor]
SomeEntries = Entries | AllEntries
Factor = float | Float[Tensor, ""]
"""A number, or one on the device."""


class Loss(NamedTuple):
    """The loss of a batch, and figures of the batch."""

    loss: Float[Tensor, ""]
    error: Float[Tensor, "token d_in"]
    """acts - recons, without gradient."""
    fired: Bool[Tensor, " d_sae"]
    """True for latents that fire in the batch."""
    l0: Float[Tensor, ""]
    """Mean number of latents above zero per token."""


class Objective(ABC):
    """The training objective of one architecture, for SAEs of one size.

    Attributes:
        architecture: architecture of the trained SAE (`Sae.architecture`).
        decoder_norm: norm of the decoder's rows at the start.
        unit_norm: True if decoder rows are kept at norm 1, and gradients along them are left out.
        has_penalty: True if a coefficient decides the sparsity, and `target_l0` can steer it.
        revives: True if dead latents get the auxiliary loss; otherwise they can be resampled.
        needs_threshold: True if `trained` needs a threshold.
        rates: learning rates of some weights, as multiples of the general one.
        fresh_rates: the same, but only in a training that starts from random directions.
    """

    architecture: str
    decoder_norm, unit_norm, has_penalty, revives, needs_threshold = 1.0, True, False, False, False
    rates: Mapping[str, float] = {}
    fresh_rates: Mapping[str, float] = {}

    def __init__(self, settings: Mapping, d_in: int, d_sae: int):
        """Keep one SAE's settings (`graph.sae_settings`) and size."""
        self.settings, self.d_in, self.d_sae = settings, d_in, d_sae

    def own_tensors(self) -> Weights:
        """The architecture's own weights at the start."""
        return {"b_enc": torch.zeros(self.d_sae)}

    def bias(self, weights: Weights) -> Float[Tensor, " d_sae"]:
        """Bias that is added to (acts - b_dec) W_enc before entries are chosen."""
        return weights["b_enc"]

    def choose(self, screened: Screen, k: int | None = None) -> tuple[SomeEntries, Float[Tensor, " entry"] | None]:
        """Choose the entries that the loss needs.

        Args:
            screened: dense pre-activations.
            k: latents kept per token, where the architecture keeps a number of them; by default that of the settings.

        Returns:
            The entries and their pre-activations, `bias` included; `AllEntries` and None if too many are needed.
        """
        return all_above_zero(screened)

    @abstractmethod
    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, chosen: Tensor | None, coefficient: Factor
    ) -> Loss:
        """The loss at some entries.

        Args:
            entries: from `choose`, or all entries.
            acts: [token, d_in], scaled.
            weights: with gradients.
            chosen: pre-activations at `entries`, from `choose`; None computes them.
            coefficient: of the penalty, if there is one.
        """

    def trained(self, weights: Weights, threshold: float | None = None) -> Sae:
        """Make the trained SAE, which takes scaled activations.

        Args:
            weights: the trained weights.
            threshold: if `needs_threshold`, the mean over batches of the smallest activation kept.
        """
        if not self.needs_threshold:
            return self._sae(weights)
        assert threshold is not None
        return self._sae(weights, threshold=torch.full((self.d_sae,), threshold))

    def weights_of(self, sae: Sae) -> Weights:
        """Make the weights with which training continues from an SAE that takes scaled activations.

        If the objective keeps decoder rows at unit norm, they are scaled to it, and each latent by its row's norm.
        Latents then fire as before, except that TopK may choose others where the norms differ. A latent whose row is
        zero becomes zero and stays so, unless it is resampled.

        Raises:
            InputError: if the SAE is of another architecture.
        """
        if sae.architecture != self.architecture:
            raise InputError(
                f"saes.architecture: training from an SAE of architecture '{sae.architecture}' must give the same, but "
                f"'{self.settings['architecture']}' gives '{self.architecture}'; choose another architecture"
            )
        W_enc, W_dec = sae.W_enc.detach().T.contiguous(), sae.W_dec.detach()
        norms = W_dec.norm(dim=1) if self.unit_norm else torch.ones(self.d_sae)
        divisors = nonzero_norms(norms)[:, None]
        weights = {"W_enc": W_enc * norms[:, None], "W_dec": W_dec / divisors, "b_dec": sae.b_dec.detach()}
        return weights | self._own_weights_of(sae, norms)

    def _own_weights_of(self, sae: Sae, norms: Float[Tensor, " d_sae"]) -> Weights:
        """The architecture's own weights of an SAE whose latents are scaled by `norms`."""
        return {"b_enc": sae.b_enc.detach() * norms}

    def _misfit(self, error: Float[Tensor, "token d_in"]) -> Tensor:
        """What a reconstruction costs, summed over tokens: |error|^2.

        With `error_norm` it is the mean over models of the norm of the error, as in crosscoder_learning. To it, tokens
        that are hard to reconstruct matter less.
        """
        if not self.settings.get("error_norm"):
            return error.square().sum()
        n_models = self.settings["n_models"]
        return error.view(len(error), n_models, -1).norm(dim=2).sum() / n_models

    def _pre_acts(self, entries: SomeEntries, acts: Tensor, weights: Weights, chosen: Tensor | None) -> Tensor:
        inputs = acts, weights["W_enc"], weights["b_dec"], self.bias(weights)
        return (
            entries.pre_activations(*inputs)
            if isinstance(entries, AllEntries)
            else entries.pre_activations(*inputs, chosen)
        )

    def _sae(self, weights: Weights, **changes: Tensor) -> Sae:
        sae = Sae(self.architecture, self.d_in, self.d_sae, self.settings["k"])
        sae_weights = {name: tensor for name, tensor in weights.items() if hasattr(sae, name)} | changes
        with torch.no_grad():
            for name, tensor in sae_weights.items():
                sae.get_parameter(name).copy_(tensor.T if name == "W_enc" else tensor)
        return sae


class ReluL1(Objective):
    """ReLU with an L1 penalty on latent activations times the norms of their decoder rows.

    loss = |acts - recons|^2 + coefficient x sum_j f_j |W_dec_j| (Anthropic, "Update on how we train SAEs", April 2024).
    It needs no constraint on the norms, which start at 0.1 as in that update. If activations are those of `n_models`
    models side by side, the norms of a row's parts are added up instead ("Sparse Crosscoders for Cross-Layer Features
    and Model Diffing", Anthropic, 2024).
    """

    architecture = "relu"
    decoder_norm, unit_norm, has_penalty = 0.1, False, True

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, chosen: Tensor | None, coefficient: Factor
    ) -> Loss:
        """See `Objective.loss`."""
        latent_acts = self._pre_acts(entries, acts, weights, chosen).relu()
        error = acts - entries.decode(latent_acts, weights["W_dec"]) - weights["b_dec"]
        parts = weights["W_dec"].view(self.d_sae, self.settings.get("n_models", 1), -1)
        penalty = (latent_acts * entries.per_latent(parts.norm(dim=2).sum(1))).sum()
        loss = (self._misfit(error) + coefficient * penalty) / len(acts)
        return _as_loss(loss, error, entries, latent_acts)


class TopK(Objective):
    """The k largest pre-activations of each token (arXiv 2406.04093, section 2.3).

    Decoder rows stay at unit norm. Dead latents get the auxiliary loss AuxK (appendix A.2). From random directions the
    decoder learns three times as fast as the encoder (docs/decisions/0009).
    """

    architecture, revives = "topk", True
    fresh_rates: Mapping[str, float] = {"W_dec": 3.0}

    def __init__(self, settings: Mapping, d_in: int, d_sae: int):
        """See `Objective`.

        Raises:
            InputError: if k is not between 1 and d_sae, or annealed from a smaller one.
        """
        super().__init__(settings, d_in, d_sae)
        check_k(settings["k"], d_in, d_sae)
        if (k_start := settings.get("k_start")) is not None and k_start < settings["k"]:
            raise InputError(
                f"k_start must be at least k = {settings['k']}, to which it is annealed, got {k_start}; raise it"
            )

    def choose(self, screened: Screen, k: int | None = None) -> tuple[Entries, Tensor]:
        """See `Objective.choose`."""
        return top_of_each_token(screened, k or self.settings["k"])

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, chosen: Tensor | None, coefficient: Factor
    ) -> Loss:
        """See `Objective.loss`."""
        latent_acts = self._pre_acts(entries, acts, weights, chosen).relu()
        error = acts - entries.decode(latent_acts, weights["W_dec"]) - weights["b_dec"]
        return _as_loss(self._misfit(error) / len(acts), error, entries, latent_acts)


class BatchTopK(TopK):
    """The k x tokens largest pre-activations of a whole batch (Bussmann et al., arXiv 2412.06410, section 3).

    The trained SAE is a JumpReLU SAE. Its one threshold is the mean over batches of the smallest activation kept.
    """

    architecture, needs_threshold = "jumprelu", True

    def choose(self, screened: Screen, k: int | None = None) -> tuple[Entries, Tensor]:
        """See `Objective.choose`."""
        return top_of_all_tokens(screened, (k or self.settings["k"]) * len(screened.pre_acts))


class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK with nested reconstructions (Bussmann et al., arXiv 2503.17547, section 3).

    The loss is the mean over nested prefixes of the latents of |acts - recons of the prefix|^2.
    """

    def __init__(self, settings: Mapping, d_in: int, d_sae: int):
        """See `Objective`.

        Raises:
            InputError: if a prefix is empty or not larger than the one before.
        """
        super().__init__(settings, d_in, d_sae)
        self.ends = [round(fraction * d_sae) for fraction in settings["matryoshka_fractions"]] + [d_sae]
        if any(later <= earlier for earlier, later in zip([0, *self.ends], self.ends, strict=False)):
            raise InputError(
                "saes.matryoshka_fractions must rise from above 0 to below 1, each by at least one latent of "
                f"{d_sae}, got {settings['matryoshka_fractions']}; correct them"
            )

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, chosen: Tensor | None, coefficient: Factor
    ) -> Loss:
        """See `Objective.loss`."""
        latent_acts = self._pre_acts(entries, acts, weights, chosen).relu()
        assert isinstance(entries, Entries)  # BatchTopK never needs all entries
        segments = self._decode_segments(entries, latent_acts, weights["W_dec"])
        errors = acts - weights["b_dec"] - segments.cumsum(0)
        return _as_loss(errors.square().sum() / len(errors) / len(acts), errors[-1], entries, latent_acts)

    def _decode_segments(
        self, entries: Entries, latent_acts: Float[Tensor, " entry"], W_dec: Tensor
    ) -> Float[Tensor, "segment token d_in"]:
        """Reconstructions from the latents between the ends of consecutive prefixes.

        One decoding gives them all, with a row for each segment and token.
        """
        segments = torch.zeros_like(entries.latents)
        for end in self.ends[:-1]:
            segments += entries.latents >= end
        rows, order = torch.sort(segments * entries.n_tokens + entries.tokens, stable=True)
        by_segment = Entries(row_starts(rows, len(self.ends) * entries.n_tokens), entries.latents[order], self.d_sae)
        recons = by_segment.decode(latent_acts.index_select(0, order), W_dec)
        return recons.view(len(self.ends), entries.n_tokens, self.d_in)


class JumpRelu(Objective):
    """JumpReLU with an L0 penalty (Rajamanoharan et al., arXiv 2407.14435, equations 9 to 12).

    loss = |acts - recons|^2 + coefficient x sum_j [pre_j > threshold_j]. The gradient of the step reaches the
    thresholds through a rectangle of width `bandwidth` around them.

    Thresholds are trained as logarithms and start at `initial_threshold`. Threshold and bandwidth are in units of a
    pre-activation's standard deviation at the start. The paper's value of 0.001, for activations of norm 1, is
    0.001 sqrt(d_in) in these units. The defaults here are larger, and thresholds learn ten times as fast as other
    weights, because thresholds must move far before latents are sparse, and the paper trains for hundreds of thousands
    of steps. The paper's ReLU before the jump is left out, because it matters only where a threshold is below half the
    bandwidth.
    """

    architecture, has_penalty = "jumprelu", True
    rates: Mapping[str, float] = {"log_threshold": 10.0}

    def __init__(self, settings: Mapping, d_in: int, d_sae: int):
        """See `Objective`."""
        super().__init__(settings, d_in, d_sae)
        self.bandwidth = settings["bandwidth"]

    def own_tensors(self) -> Weights:
        """See `Objective.own_tensors`."""
        log_threshold = math.log(self.settings["initial_threshold"])
        return super().own_tensors() | {"log_threshold": torch.full((self.d_sae,), log_threshold)}

    def bias(self, weights: Weights) -> Tensor:
        """The encoder's bias, shifted so that entries above the rectangle's lower end are those above zero.

        Thresholds get no gradient from it.
        """
        return weights["b_enc"] - weights["log_threshold"].detach().exp() + self.bandwidth / 2

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, chosen: Tensor | None, coefficient: Factor
    ) -> Loss:
        """See `Objective.loss`."""
        threshold = entries.per_latent(weights["log_threshold"].exp())
        pre_acts = self._pre_acts(entries, acts, weights, chosen) + threshold.detach() - self.bandwidth / 2
        latent_acts = _Jump.apply(pre_acts, threshold, self.bandwidth)
        error = acts - entries.decode(latent_acts, weights["W_dec"]) - weights["b_dec"]
        penalty = _Step.apply(pre_acts, threshold, self.bandwidth).sum()
        return _as_loss((error.square().sum() + coefficient * penalty) / len(acts), error, entries, latent_acts)

    def trained(self, weights: Weights, threshold: float | None = None) -> Sae:
        """See `Objective.trained`."""
        return self._sae(weights, threshold=weights["log_threshold"].exp())

    def _own_weights_of(self, sae: Sae, norms: Float[Tensor, " d_sae"]) -> Weights:
        log_threshold = (sae.threshold.detach() * norms).clamp_min(SMALLEST_THRESHOLD).log()
        return super()._own_weights_of(sae, norms) | {"log_threshold": log_threshold}


class Gated(Objective):
    """Gated SAE (Rajamanoharan et al., arXiv 2404.16014, equations 5 to 8).

    Gates: pi = raw + b_gate; magnitudes: raw exp(r_mag) + b_mag; latents: ReLU(magnitude) where pi > 0.
    loss = |acts - recons|^2 + coefficient x sum_j ReLU(pi_j) + |acts - ReLU(pi) W_dec - b_dec|^2. The last term gives
    the decoder no gradient.
    """

    architecture, has_penalty = "gated", True

    def own_tensors(self) -> Weights:
        """See `Objective.own_tensors`."""
        return {name: torch.zeros(self.d_sae) for name in ("b_gate", "b_mag", "r_mag")}

    def _own_weights_of(self, sae: Sae, norms: Float[Tensor, " d_sae"]) -> Weights:
        return {
            "b_gate": sae.b_gate.detach() * norms,
            "b_mag": sae.b_mag.detach() * norms,
            "r_mag": sae.r_mag.detach().clone(),
        }

    def bias(self, weights: Weights) -> Tensor:
        """See `Objective.bias`."""
        return weights["b_gate"]

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, chosen: Tensor | None, coefficient: Factor
    ) -> Loss:
        """See `Objective.loss`."""
        gates = self._pre_acts(entries, acts, weights, chosen)
        raw = gates - entries.per_latent(weights["b_gate"])
        magnitudes = raw * entries.per_latent(weights["r_mag"].exp()) + entries.per_latent(weights["b_mag"])
        latent_acts = magnitudes.relu() * (gates > 0)
        error = acts - entries.decode(latent_acts, weights["W_dec"]) - weights["b_dec"]
        gate_error = acts - entries.decode(gates.relu(), weights["W_dec"].detach()) - weights["b_dec"].detach()
        loss = error.square().sum() + coefficient * gates.relu().sum() + gate_error.square().sum()
        return _as_loss(loss / len(acts), error, entries, latent_acts)


OBJECTIVES: dict[str, type[Objective]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka_batchtopk": MatryoshkaBatchTopK,
    "relu": ReluL1,
    "jumprelu": JumpRelu,
    "gated": Gated,
}


def nonzero_norms(norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Norms to divide decoder rows by: 1 for rows of zeros, as dead latents of published SAEs have them."""
    return torch.where(norms > 0, norms, 1.0)


def auxiliary_loss(
    acts: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_in"],
    dead: Int[Tensor, " dead"],
    weights: Weights,
) -> Float[Tensor, ""]:
    """AuxK: the loss of reconstructing the residual from the d_in / 2 largest dead latents of each token.

    |error - recons of dead latents|^2, a mean over tokens; 0 without dead latents (arXiv 2406.04093, appendix A.2).
    `dead` holds their numbers.
    """
    if not len(dead):
        return acts.new_zeros(())
    k = min(len(dead), max(1, acts.shape[1] // 2))
    pre_acts = (acts - weights["b_dec"].detach()) @ weights["W_enc"][dead].T + weights["b_enc"][dead]
    values, indices = pre_acts.topk(k, dim=1)
    latent_acts = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    return (error - latent_acts @ weights["W_dec"][dead]).square().sum() / len(acts)


def _as_loss(loss: Tensor, error: Tensor, entries: SomeEntries, latent_acts: Tensor) -> Loss:
    fired, n_firings = entries.fired(latent_acts.detach())
    return Loss(loss, error.detach(), fired, n_firings / len(error))


class _Jump(torch.autograd.Function):
    """JumpReLU and its pseudo-derivative (arXiv 2407.14435, equations 4 and 11)."""

    @staticmethod
    def forward(ctx, pre_acts, threshold, bandwidth):
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return pre_acts * (pre_acts > threshold)

    @staticmethod
    def backward(ctx, grad):
        pre_acts, threshold = ctx.saved_tensors
        near = (pre_acts - threshold).abs() < ctx.bandwidth / 2
        grad_threshold = -grad * threshold / ctx.bandwidth * near
        return grad * (pre_acts > threshold), _summed_like(grad_threshold, threshold), None


class _Step(torch.autograd.Function):
    """The Heaviside step and its pseudo-derivative (arXiv 2407.14435, equation 12)."""

    @staticmethod
    def forward(ctx, pre_acts, threshold, bandwidth):
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return (pre_acts > threshold).to(pre_acts.dtype)

    @staticmethod
    def backward(ctx, grad):
        pre_acts, threshold = ctx.saved_tensors
        near = (pre_acts - threshold).abs() < ctx.bandwidth / 2
        return torch.zeros_like(pre_acts), _summed_like(-grad / ctx.bandwidth * near, threshold), None


def _summed_like(grad: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient over tokens if its tensor, [d_sae], was broadcast over them."""
    return grad if grad.shape == like.shape else grad.sum(0)
