"""What each SAE architecture minimises: its tensors, the entries its loss needs, and the loss.

All losses are means over tokens of |acts - recons|^2 (summed over d_in, for activations of mean square 1 per dimension)
plus penalties. Weights are a dict with `W_enc` and `W_dec` [d_sae, d_in] (the encoder transposed, for its gradient is a
sum of rows), `b_dec` [d_in] and the architecture's own [d_sae]. `entries` are `Entries` or `AllEntries` with equal
results.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
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
"""Where JumpReLU's thresholds start that were zero in the SAE that training goes on from."""
Weights = dict[str, Tensor]
SomeEntries = Entries | AllEntries


class Loss(NamedTuple):
    """The loss of a batch and what it is made of."""

    loss: Float[Tensor, ""]
    error: Float[Tensor, "token d_in"]
    """acts - recons, without gradient."""
    fired: Bool[Tensor, " d_sae"]
    """Latents that fire in the batch."""
    l0: Float[Tensor, ""]
    """Mean number of latents above zero per token."""


class Objective(ABC):
    """One architecture, for SAEs of one size.

    Attributes:
        architecture: what it is once trained (`Sae.architecture`).
        decoder_norm: norm of the decoder's rows at the start.
        unit_norm: whether they are kept there, gradients along them left out.
        has_penalty: whether a coefficient decides the sparsity (and `target_l0` can).
        revives: whether dead latents get the auxiliary loss; without it they can be resampled.
        needs_threshold: whether `trained` asks for one.
        rates: learning rates of single weights, as multiples of the others'.
    """

    architecture: str
    decoder_norm, unit_norm, has_penalty, revives, needs_threshold = 1.0, True, False, False, False
    rates: Mapping[str, float] = {}

    def __init__(self, settings: Mapping, d_in: int, d_sae: int):
        """Take one SAE's settings (`graph.sae_settings`)."""
        self.settings, self.d_in, self.d_sae = settings, d_in, d_sae

    def own_tensors(self) -> Weights:
        """The architecture's own weights at the start."""
        return {"b_enc": torch.zeros(self.d_sae)}

    def bias(self, weights: Weights) -> Float[Tensor, " d_sae"]:
        """What is added to (acts - b_dec) W_enc before entries are chosen."""
        return weights["b_enc"]

    def choose(self, screened: Screen) -> tuple[SomeEntries, Float[Tensor, " entry"] | None]:
        """The entries that the loss needs and their pre-activations (with `bias`); None where all are needed."""
        return all_above_zero(screened)

    @abstractmethod
    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, known: Tensor | None, coefficient: float
    ) -> Loss:
        """The loss at chosen entries.

        Args:
            entries, known: from `choose`, or all entries.
            acts: [token, d_in], scaled.
            weights: with gradients.
            coefficient: of the penalty, where there is one.
        """

    def trained(self, weights: Weights, threshold: float | None = None) -> Sae:
        """The SAE, taking scaled activations.

        Args:
            weights: as trained.
            threshold: where `needs_threshold`, the mean over batches of the smallest activation kept.
        """
        own = {"threshold": torch.full((self.d_sae,), threshold)} if self.needs_threshold else {}
        return self._sae(weights, **own)

    def weights_of(self, sae: Sae) -> Weights:
        """The weights with which training goes on from a trained SAE that takes scaled activations.

        Decoder rows are brought to unit norm where the objective keeps them there; latents are then in other units,
        each by its row's norm, and fire as before (TopK's choice may differ where norms do).

        Raises:
            InputError: if the SAE is of another architecture.
        """
        if sae.architecture != self.architecture:
            raise InputError(
                f"saes.architecture: an SAE that starts from one of architecture '{sae.architecture}' must become one, "
                f"but '{self.settings['architecture']}' is trained into '{self.architecture}'; choose another"
            )
        W_enc, W_dec = sae.W_enc.detach().T.contiguous(), sae.W_dec.detach()
        norms = W_dec.norm(dim=1) if self.unit_norm else torch.ones(self.d_sae)
        weights = {"W_enc": W_enc * norms[:, None], "W_dec": W_dec / norms[:, None], "b_dec": sae.b_dec.detach()}
        return weights | self._own_weights_of(sae, norms)

    def _own_weights_of(self, sae: Sae, norms: Float[Tensor, " d_sae"]) -> Weights:
        """The architecture's own weights of an SAE, latents being in units `norms` times as large."""
        return {"b_enc": sae.b_enc.detach() * norms}

    def _pre_acts(self, entries: SomeEntries, acts: Tensor, weights: Weights, known: Tensor | None) -> Tensor:
        return entries.pre_activations(acts, weights["W_enc"], weights["b_dec"], self.bias(weights), known)

    def _sae(self, weights: Weights, **own: Tensor) -> Sae:
        sae = Sae(self.architecture, self.d_in, self.d_sae, self.settings["k"])
        own = {name: tensor for name, tensor in weights.items() if hasattr(sae, name)} | own
        with torch.no_grad():
            for name, tensor in own.items():
                getattr(sae, name).copy_(tensor.T if name == "W_enc" else tensor)
        return sae


class ReluL1(Objective):
    """ReLU with an L1 penalty on latent activations times their decoder rows' norms.

    loss = |acts - recons|^2 + coefficient x sum_j f_j |W_dec_j| (Anthropic, "Update on how we train SAEs", April 2024),
    which needs no constraint on the norms; they start at 0.1 as there.
    """

    architecture = "relu"
    decoder_norm, unit_norm, has_penalty = 0.1, False, True

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, known: Tensor | None, coefficient: float
    ) -> Loss:
        """See `Objective.loss`."""
        latent_acts = self._pre_acts(entries, acts, weights, known).relu()
        error = acts - entries.decode(latent_acts, weights["W_dec"]) - weights["b_dec"]
        penalty = (latent_acts * entries.per_latent(weights["W_dec"].norm(dim=1))).sum()
        loss = (error.square().sum() + coefficient * penalty) / len(acts)
        return _as_loss(loss, error, entries, latent_acts)


class TopK(Objective):
    """The k largest pre-activations of each token (arXiv 2406.04093, section 2.3).

    Decoder rows stay at unit norm. Dead latents get the auxiliary loss AuxK (its appendix A.2).
    """

    architecture, revives = "topk", True

    def __init__(self, settings: Mapping, d_in: int, d_sae: int):
        """See `Objective`.

        Raises:
            InputError: if k is not between 1 and d_sae.
        """
        super().__init__(settings, d_in, d_sae)
        check_k(settings["k"], d_in, d_sae)

    def choose(self, screened: Screen) -> tuple[Entries, Tensor]:
        """See `Objective.choose`."""
        return top_of_each_token(screened, self.settings["k"])

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, known: Tensor | None, coefficient: float
    ) -> Loss:
        """See `Objective.loss`."""
        latent_acts = self._pre_acts(entries, acts, weights, known).relu()
        error = acts - entries.decode(latent_acts, weights["W_dec"]) - weights["b_dec"]
        return _as_loss(error.square().sum() / len(acts), error, entries, latent_acts)


class BatchTopK(TopK):
    """The k x tokens largest pre-activations of a whole batch (Bussmann et al., arXiv 2412.06410, section 3).

    Once trained it is a JumpReLU SAE: its one threshold is the mean over batches of the smallest activation kept.
    """

    architecture, needs_threshold = "jumprelu", True

    def choose(self, screened: Screen) -> tuple[Entries, Tensor]:
        """See `Objective.choose`."""
        return top_of_all_tokens(screened, self.settings["k"] * len(screened.pre_acts))


class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK whose first latents must reconstruct on their own (Bussmann et al., arXiv 2503.17547, section 3).

    The loss is the mean over nested prefixes of the latents of |acts - recons of the prefix|^2.
    """

    def __init__(self, settings: Mapping, d_in: int, d_sae: int):
        """See `Objective`.

        Raises:
            InputError: if a prefix would be empty or no larger than the one before.
        """
        super().__init__(settings, d_in, d_sae)
        self.ends = [round(fraction * d_sae) for fraction in settings["matryoshka_fractions"]] + [d_sae]
        if any(later <= earlier for earlier, later in zip([0, *self.ends], self.ends, strict=False)):
            raise InputError(
                f"saes.matryoshka_fractions must rise from above 0 to below 1 by at least one latent of {d_sae} each, "
                f"got {settings['matryoshka_fractions']}; correct them"
            )

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, known: Tensor | None, coefficient: float
    ) -> Loss:
        """See `Objective.loss`."""
        latent_acts = self._pre_acts(entries, acts, weights, known).relu()
        segments = self._decode_segments(entries, latent_acts, weights["W_dec"])
        errors = acts - weights["b_dec"] - segments.cumsum(0)
        return _as_loss(errors.square().sum() / len(errors) / len(acts), errors[-1], entries, latent_acts)

    def _decode_segments(
        self, entries: Entries, latent_acts: Float[Tensor, " entry"], W_dec: Tensor
    ) -> Float[Tensor, "segment token d_in"]:
        """What the latents between two prefixes' ends add: one decoding, with a row for each segment and token."""
        ends = torch.tensor(self.ends, device=W_dec.device)
        rows = torch.bucketize(entries.latents, ends, right=True) * entries.n_tokens + entries.tokens
        order = torch.argsort(rows, stable=True)
        by_segment = Entries(row_starts(rows, len(ends) * entries.n_tokens), entries.latents[order], self.d_sae)
        recons = by_segment.decode(latent_acts.index_select(0, order), W_dec)
        return recons.view(len(ends), entries.n_tokens, self.d_in)


class JumpRelu(Objective):
    """JumpReLU with an L0 penalty (Rajamanoharan et al., arXiv 2407.14435, equations 9 to 12).

    loss = |acts - recons|^2 + coefficient x sum_j [pre_j > threshold_j], whose gradient reaches the thresholds through
    a rectangle of width `bandwidth` around them. Thresholds are exponentials, and start at `initial_threshold`. Both
    are in units of a pre-activation's standard deviation at the start; the paper's 0.001, for activations of norm 1,
    are 0.001 sqrt(d_in) of these. They are larger here, and thresholds learn ten times as fast as the rest, for
    thresholds have a long way to go to where few latents fire: the paper's trainings last hundreds of thousands of
    steps. The paper's ReLU before the jump is left out: it differs only where a threshold is below half the bandwidth.
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
        """Shifted: entries above zero are those above the rectangle's lower end. Thresholds get no gradient here."""
        return weights["b_enc"] - weights["log_threshold"].detach().exp() + self.bandwidth / 2

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, known: Tensor | None, coefficient: float
    ) -> Loss:
        """See `Objective.loss`."""
        threshold = entries.per_latent(weights["log_threshold"].exp())
        pre_acts = self._pre_acts(entries, acts, weights, known) + threshold.detach() - self.bandwidth / 2
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
    loss = |acts - recons|^2 + coefficient x sum_j ReLU(pi_j) + |acts - ReLU(pi) W_dec - b_dec|^2, the last with the
    decoder held.
    """

    architecture, has_penalty = "gated", True

    def own_tensors(self) -> Weights:
        """See `Objective.own_tensors`."""
        return {name: torch.zeros(self.d_sae) for name in ("b_gate", "b_mag", "r_mag")}

    def _own_weights_of(self, sae: Sae, norms: Float[Tensor, " d_sae"]) -> Weights:
        return {name: getattr(sae, name).detach() * norms for name in ("b_gate", "b_mag")} | {
            "r_mag": sae.r_mag.detach().clone()
        }

    def bias(self, weights: Weights) -> Tensor:
        """See `Objective.bias`."""
        return weights["b_gate"]

    def loss(
        self, entries: SomeEntries, acts: Tensor, weights: Weights, known: Tensor | None, coefficient: float
    ) -> Loss:
        """See `Objective.loss`."""
        gates = self._pre_acts(entries, acts, weights, known)
        raw = gates - entries.per_latent(weights["b_gate"])
        magnitudes = raw * entries.per_latent(weights["r_mag"].exp()) + entries.per_latent(weights["b_mag"])
        latent_acts = magnitudes.relu() * (gates > 0)
        error = acts - entries.decode(latent_acts, weights["W_dec"]) - weights["b_dec"]
        of_gates = acts - entries.decode(gates.relu(), weights["W_dec"].detach()) - weights["b_dec"].detach()
        loss = error.square().sum() + coefficient * gates.relu().sum() + of_gates.square().sum()
        return _as_loss(loss / len(acts), error, entries, latent_acts)


OBJECTIVES = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka_batchtopk": MatryoshkaBatchTopK,
    "relu": ReluL1,
    "jumprelu": JumpRelu,
    "gated": Gated,
}


def auxiliary_loss(
    acts: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_in"],
    dead: Bool[Tensor, " d_sae"],
    weights: Weights,
) -> Float[Tensor, ""]:
    """AuxK (arXiv 2406.04093, appendix A.2): how badly the d_in / 2 largest dead latents reconstruct what is left over.

    |error - recons of dead latents|^2, a mean over tokens; 0 without dead latents.
    """
    numbers = dead.nonzero().flatten()
    if not len(numbers):
        return acts.new_zeros(())
    k = min(len(numbers), max(1, acts.shape[1] // 2))
    pre_acts = (acts - weights["b_dec"].detach()) @ weights["W_enc"][numbers].T + weights["b_enc"][numbers]
    values, indices = pre_acts.topk(k, dim=1)
    latent_acts = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    return (error - latent_acts @ weights["W_dec"][numbers]).square().sum() / len(acts)


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
    """Sum over the tokens that a [d_sae] tensor was broadcast over."""
    return grad if grad.shape == like.shape else grad.sum(0)
