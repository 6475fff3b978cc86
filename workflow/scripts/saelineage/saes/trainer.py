"""One SAE in training: the optimizer step, the control of l0, and the state from which it resumes.

`saes.objectives` holds the losses of the architectures, `saes.sparse_products` the products that make a step fast.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelineage.errors import InputError
from saelineage.saes.number_formats import fastest_format, product_buffer, round_weights
from saelineage.saes.objectives import OBJECTIVES, Loss, SomeEntries, TopK, Weights, auxiliary_loss, nonzero_norms
from saelineage.saes.resets import reset_latents
from saelineage.saes.sae import Sae, n_latents
from saelineage.saes.sparse_products import AllEntries, row_blocks, screen

logger = logging.getLogger(__name__)

DENSE_TOKENS, DENSE_TOKENS_ON_GPU = 256, 4096
"""Tokens in a chunk when all latents are computed, which bounds the memory."""
CHUNK_ENTRIES = 2**19
"""Entries in a chunk of tokens on a CPU, about, when few latents are computed."""
LIST_DEAD_EVERY = 16
"""Steps on a GPU after which the dead latents are listed again, because their number must be known on the host."""
RAISE_RATE, LOWER_RATE, CONTROL_BAND = 0.02, 0.06, 0.25
"""Fractions by which the coefficient rises or falls in a step if the error of log l0 is at least the band.

Within the band they shrink with the error. The coefficient falls faster than it rises, because latents silenced by too
strong a penalty recover slowly or never."""
MOST_AT_ONCE = 3.0
"""Largest exponent of e in the immediate response of the coefficient to an error of l0."""
GRADIENT_NORM = 1.0
"""Largest norm of the gradients. Scaling down the first ones, which are far larger, keeps Adam from slowing down."""
RESAMPLED_NORM = 0.2
"""Norm of a resampled latent's encoder, as a fraction of the others' mean norm ("Towards Monosemanticity", 2023)."""


def initial_directions(d_in: int, d_sae: int, norm: float, seed: int, n_models: int = 1) -> Float[Tensor, "d_sae d_in"]:
    """Draw random directions of one norm, from which decoder and encoder start (arXiv 2406.04093, section 2.3).

    Activations of several models side by side have one direction in all of them, because models of a lineage share
    their basis: otherwise latents start as turned from model to model, and rare ones stay so.
    """
    directions = torch.randn(d_sae, d_in // n_models, generator=torch.Generator().manual_seed(seed)).repeat(1, n_models)
    return directions * (norm / directions.norm(dim=1, keepdim=True))


def settings_kept(settings: Mapping, start: Sae, l0: float | None) -> dict:
    """The settings that an SAE takes over from the one that it starts from, an imported one or a descendant of one.

    They keep its architecture and sparsity: k of a TopK SAE; for others the mean number of active latents, as
    `target_l0` or, under BatchTopK, as k. Weights, thresholds and size come with the start anyway.

    Args:
        settings: the SAE's settings; `from_start` lists those that the config leaves to the start (`plan.sae_names`).
        start: the SAE that training starts from.
        l0: its mean number of active latents per token.

    Raises:
        InputError: if l0 is needed but unknown.
    """
    left = settings.get("from_start", [])
    kept: dict[str, str | int | float] = {}
    architecture = settings["architecture"]
    if "architecture" in left and OBJECTIVES[architecture].architecture != start.architecture:
        architecture = start.architecture
        kept["architecture"] = architecture
    needs_k, needs_l0 = issubclass(OBJECTIVES[architecture], TopK), OBJECTIVES[architecture].has_penalty
    if "k" in left and needs_k:
        kept["k"] = start.k if start.k is not None else max(1, round(_require_l0(l0)))
    if "target_l0" in left and needs_l0:
        kept["target_l0"] = _require_l0(l0)
    return kept


def _require_l0(l0: float | None) -> float:
    if not l0:
        raise InputError(
            "an SAE that training starts from must record its l0 above 0 in metadata.l0 of its cfg.json; delete its "
            "folder and run again"
        )
    return l0


class StepFigures(NamedTuple):
    """Figures of one optimizer step."""

    loss: Tensor
    """The loss without the auxiliary loss."""
    error: Float[Tensor, "token d_in"]
    """acts - recons."""
    l0: Tensor
    fired: Bool[Tensor, " d_sae"]


class _Adam(torch.optim.Adam):
    """Adam whose fused step divides gradients by `grad_scale`, an attribute that torch does not declare."""

    grad_scale: Tensor


class SaeTrainer:
    """Trains one SAE with Adam on scaled activations.

    Attributes:
        weights: see `saes.objectives`.
        control: state of the control that steers l0 to `target_l0`, on the device.
        on_gpu: True if the host must not wait for the device within a step. Architectures with a penalty wait once, for
            the number of entries; all of them when dead latents are listed or resampled.
        dead_latents: the dead latents that the auxiliary loss revives.
        unsure_tokens: number of tokens so far for which other latents might have been chosen (`Entries.n_unsure`).
        silent_tokens: [d_sae], tokens since each latent last fired.
        step_number: number of steps made.
    """

    def __init__(
        self,
        settings: Mapping,
        mean: Float[Tensor, " d_in"],
        n_steps: int,
        device: torch.device | str = "cpu",
        start: Sae | None = None,
    ):
        """Set up the training of an SAE.

        Args:
            settings: one SAE's settings (`graph.sae_settings`), with its `seed`.
            mean: mean of the scaled activations, at which b_dec starts.
            n_steps: number of steps in the whole training, for the learning-rate schedule.
            device: device to train on.
            start: an SAE of scaled activations to start from, instead of random directions; it decides the size.

        Raises:
            InputError: if the settings do not fit the size, or `start` is of another architecture or width.
        """
        self.settings, self.n_steps, self.device = settings, n_steps, torch.device(device)
        d_in = len(mean)
        if start is not None and start.d_in != d_in:
            raise InputError(
                f"an SAE that training starts from must be as wide as the activations, but they are {d_in} wide and it "
                f"is {start.d_in}; compare models of one shape, or leave out anchored instruments (lineage.instruments)"
            )
        d_sae = start.d_sae if start is not None else n_latents(d_in, settings["expansion_factor"])
        self.objective = OBJECTIVES[settings["architecture"]](settings, d_in, d_sae)
        weights = self._fresh_weights(mean) if start is None else self._weights_from(start, mean)
        self.weights: Weights = {
            name: tensor.to(self.device).requires_grad_() for name, tensor in sorted(weights.items())
        }
        rates = {**self.objective.rates, **(self.objective.fresh_rates if start is None else {})}
        groups = [{"params": [tensor], "rate": rates.get(name, 1.0)} for name, tensor in self.weights.items()]
        self.optimizer = _Adam(groups, lr=settings["learning_rate"], betas=tuple(settings["adam_betas"]), fused=True)
        auto = settings["precision"] == "auto"
        self.number_format = fastest_format(d_in, d_sae, self.device) if auto else settings["precision"]
        self.on_gpu = self.device.type == "cuda"
        self._coefficient = self._number(settings["sparsity_coefficient"])
        self.silent_tokens = torch.zeros(d_sae, dtype=torch.int64, device=self.device)
        self.step_number = 0
        self.dead_latents = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.unsure_tokens = torch.zeros((), dtype=torch.int64, device=self.device)
        self.control: dict[str, Tensor] = {}
        self._buffer = torch.empty(0)

    @property
    def coefficient(self) -> float:
        """The current coefficient of the sparsity penalty."""
        return float(self._coefficient)

    def _number(self, value: float) -> Float[Tensor, ""]:
        """A number on the device, in float64."""
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def _fresh_weights(self, mean: Tensor) -> Weights:
        """Make initial weights: the same random directions in encoder and decoder, and the objective's own weights."""
        sizes, settings = (self.objective.d_in, self.objective.d_sae), self.settings
        norm, n_models = self.objective.decoder_norm, settings.get("n_models", 1)
        directions = initial_directions(*sizes, norm, settings["seed"], n_models)
        weights = {"W_enc": directions, "W_dec": directions.clone(), "b_dec": mean.clone()}
        return weights | self.objective.own_tensors()

    def _weights_from(self, start: Sae, mean: Tensor) -> Weights:
        """Make the weights of an SAE to start from, with fresh ones for a share `reset_share` of the latents."""
        weights = self.objective.weights_of(start)
        if share := self.settings.get("reset_share"):
            latents = torch.from_numpy(reset_latents(self.objective.d_sae, share, self.settings["seed"]))
            fresh = self._fresh_weights(mean)
            of_latents = [name for name in weights if name != "b_dec"]
            weights |= {name: weights[name].index_copy(0, latents, fresh[name][latents]) for name in of_latents}
            logger.info("%d of %d latents start afresh", len(latents), self.objective.d_sae)
        return weights

    def step(self, acts: Float[Tensor, "token d_in"]) -> StepFigures:
        """Make one optimizer step on a batch of scaled activations."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * self._schedule() * group["rate"]
        self.optimizer.zero_grad()
        entries, chosen = self.choose(acts)
        if isinstance(entries, AllEntries):
            self._buffer = torch.empty(0)  # its memory is needed for all latents
        elif entries.n_unsure is not None:
            self.unsure_tokens += entries.n_unsure
        batch = self._backward(acts, entries, chosen)
        with torch.no_grad():
            gradients = {name: tensor.grad for name, tensor in self.weights.items() if tensor.grad is not None}
            if self.objective.unit_norm:
                _leave_out_parallel(gradients["W_dec"], self.weights["W_dec"], self.on_gpu)
            norm = torch.nn.utils.get_total_norm(list(gradients.values()))
            self.optimizer.grad_scale = (norm / GRADIENT_NORM).clamp_min(1)
            self.optimizer.step()
            if self.objective.unit_norm:
                self.weights["W_dec"].div_(nonzero_norms(self.weights["W_dec"].norm(dim=1))[:, None])
            self.silent_tokens = torch.where(batch.fired, 0, self.silent_tokens + len(acts))
        self.step_number += 1
        self._control(batch.l0)
        self._resample(acts, batch.error)
        if self.on_gpu and self.step_number == self.n_steps and (n_unsure := int(self.unsure_tokens)):
            logger.warning(
                "of %d tokens bfloat16 may have hidden a latent that float32 would choose; saes.precision: float32 "
                "rules it out",
                n_unsure,
            )
        return StepFigures(batch.loss, batch.error, batch.l0, batch.fired)

    @torch.no_grad()
    def choose(self, acts: Float[Tensor, "token d_in"]) -> tuple[SomeEntries, Float[Tensor, " entry"] | None]:
        """Choose the entries that the loss of a batch needs; returns their pre-activations too (`Objective.choose`)."""
        weights, shape = self.weights, (len(acts), len(self.silent_tokens))
        if len(self._buffer) < len(acts):
            self._buffer = product_buffer(*shape, self.number_format, self.device)
        inputs = acts, weights["W_enc"], weights["b_dec"], self.objective.bias(weights)
        rounded = round_weights(weights["W_enc"], self.number_format)
        return self.objective.choose(screen(*inputs, rounded, self._buffer, self.on_gpu), self.k)

    @property
    def k(self) -> int:
        """Latents kept per token in the next step, by architectures that keep a number of them.

        Over the first `k_anneal_fraction` of the steps it falls geometrically from `k_start`, or d_sae if that is
        less, to the setting `k`: with many latents in each token all of them learn before they have to compete.
        """
        k, k_start = self.settings["k"], self.settings.get("k_start")
        n_annealed = self.n_steps * self.settings.get("k_anneal_fraction", 0.0)
        if k_start is None or self.step_number >= n_annealed:
            return k
        first = min(k_start, len(self.silent_tokens))
        return round(first * (k / first) ** (self.step_number / n_annealed))

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Mask of latents that have not fired for `dead_after_tokens`."""
        return self.silent_tokens >= self.settings["dead_after_tokens"]

    def smallest_kept(self, acts: Float[Tensor, "token d_in"]) -> float | None:
        """The smallest activation above zero that BatchTopK keeps of a batch; None if there is none."""
        chosen = self.choose(acts)[1]
        assert chosen is not None  # BatchTopK never needs all entries
        kept = chosen[chosen > 0]
        return float(kept.min()) if len(kept) else None

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """The state from which training can resume: tensors, and values for JSON."""
        tensors = {f"weights.{name}": tensor.detach() for name, tensor in self.weights.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {name: getattr(self, name) for name in ("silent_tokens", "dead_latents", "unsure_tokens")}
        control = {name: float(number) for name, number in self.control.items()}
        return tensors, {"step_number": self.step_number, "coefficient": self.coefficient, "control": control}

    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping) -> None:
        """Take over the state that `state` returned."""
        adam: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for key, tensor in tensors.items():
                kind, _, name = key.partition(".")
                if kind == "weights":
                    self.weights[name].copy_(tensor)
                elif kind == "adam":
                    number, _, name = name.partition(".")
                    adam.setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": adam})
        for name in ("silent_tokens", "dead_latents", "unsure_tokens"):
            setattr(self, name, tensors[name].to(self.device))
        self.step_number, self._coefficient = rest["step_number"], self._number(rest["coefficient"])
        self.control = {name: self._number(number) for name, number in rest["control"].items()}

    def _backward(self, acts: Tensor, entries: SomeEntries, chosen: Tensor | None) -> Loss:
        """Compute the gradients of the whole loss, over chunks of tokens if there are many entries."""
        coefficient = self._penalty()
        parts = []
        for chunk, some, values in self._chunks(acts, entries, chosen):
            part = self.objective.loss(some, chunk, self.weights, values, coefficient)
            share = len(chunk) / len(acts)
            (part.loss * share).backward()
            parts.append(part._replace(loss=part.loss.detach() * share, l0=part.l0 * share))
        batch = Loss(
            loss=torch.stack([part.loss for part in parts]).sum(),
            error=torch.cat([part.error for part in parts]),
            fired=torch.stack([part.fired for part in parts]).any(0),
            l0=torch.stack([part.l0 for part in parts]).sum(),
        )
        if self.objective.revives and self.settings["aux_coefficient"]:
            if not self.on_gpu or self.step_number % LIST_DEAD_EVERY == 0:
                self.dead_latents = self.dead().nonzero().flatten()
            if len(self.dead_latents):
                auxiliary = auxiliary_loss(acts, batch.error, self.dead_latents, self.weights)
                (self.settings["aux_coefficient"] * auxiliary).backward()
        return batch

    def _chunks(
        self, acts: Tensor, entries: SomeEntries, chosen: Tensor | None
    ) -> Iterator[tuple[Tensor, SomeEntries, Tensor | None]]:
        """Yield chunks of tokens, so many that memory stays bounded, with their entries and pre-activations."""
        if chosen is None or isinstance(entries, AllEntries):
            for chunk in acts.split(DENSE_TOKENS_ON_GPU if self.on_gpu else DENSE_TOKENS):
                yield chunk, entries, None
            return
        n_chunks = 1 if self.on_gpu else max(1, round(len(chosen) / CHUNK_ENTRIES))
        if n_chunks == 1:
            yield acts, entries, chosen
            return
        size = math.ceil(len(acts) / n_chunks)
        for first in range(0, len(acts), size):
            chunk = acts[first : first + size]
            some, place = entries.of_tokens(first, first + len(chunk))
            yield chunk, some, chosen[place]

    def _schedule(self) -> float:
        """Factor of the learning rate: a linear rise, a plateau, a linear fall to zero."""
        warmup = self.settings["warmup_fraction"] * self.n_steps
        decay = self.settings["decay_fraction"] * self.n_steps
        rising = (self.step_number + 1) / warmup if warmup else 1.0
        falling = (self.n_steps - self.step_number) / decay if decay else 1.0
        return min(1.0, rising, falling)

    def _warmup(self) -> float:
        """Fraction of the penalty's warm-up that has passed, above 0 and at most 1."""
        warmup = self.settings["sparsity_warmup_fraction"] * self.n_steps
        return min(1.0, (self.step_number + 1) / warmup) if warmup else 1.0

    def _penalty(self) -> Float[Tensor, ""]:
        """Factor of the penalty in this step: the coefficient; without a target it rises from zero."""
        return (self._coefficient if self.settings["target_l0"] else self._coefficient * self._warmup()).float()

    def _control(self, l0: Tensor) -> None:
        """Move the coefficient towards the one that gives `target_l0`.

        Over the warm-up the goal moves geometrically from the first batch's l0 to the target. Without it the
        coefficient would overshoot, because l0 follows it with a delay. An integral part follows the goal with a
        bounded change per step; a proportional part responds immediately.
        """
        target = self.settings["target_l0"]
        if not self.objective.has_penalty or not target:
            return
        log_l0 = l0.double().clamp_min(1e-3).log()
        self.control = self.control or {"log_first": log_l0, "coefficient": self._coefficient}
        passed = self._warmup()
        error = log_l0 - (1 - passed) * self.control["log_first"] - passed * math.log(target)
        rate = torch.where(error > 0, self._number(RAISE_RATE), self._number(LOWER_RATE))
        change = (rate * (error / CONTROL_BAND).clamp(-1, 1)).exp()
        self.control["coefficient"] = self.control["coefficient"] * change
        self._coefficient = self.control["coefficient"] * (3 * error).clamp(-MOST_AT_ONCE, 1).exp()

    @torch.no_grad()
    def _resample(self, acts: Tensor, error: Tensor) -> None:
        """Give dead latents directions of tokens drawn by their squared loss ("Towards Monosemanticity", 2023).

        It happens every `resample_every_tokens` in the first half of training. Decoder rows get the mean norm of the
        living, encoders `RESAMPLED_NORM` times the mean norm of the living, other weights their initial values, and
        Adam's moments are reset.
        """
        every, n_seen = self.settings["resample_every_tokens"], self.step_number * len(acts)
        due = every and n_seen % every < len(acts) and 2 * self.step_number <= self.n_steps
        if not due or self.objective.revives:
            return
        dead = self.dead()
        if not bool(dead.any()) or bool(dead.all()):
            return
        losses = error.square().sum(1).double().square().cpu()
        if not 0 < float(losses.sum()) < math.inf:  # nothing is left to explain, or the loss is no longer finite
            return
        generator = torch.Generator().manual_seed((self.settings["seed"] + self.step_number) % 2**32)
        drawn = torch.multinomial(losses, int(dead.sum()), replacement=True, generator=generator).to(self.device)
        directions = acts[drawn] - self.weights["b_dec"]
        directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
        numbers = dead.nonzero().flatten()
        fresh = self.objective.own_tensors()
        for name, tensor in self.weights.items():
            if name in ("W_enc", "W_dec"):
                share = RESAMPLED_NORM if name == "W_enc" else 1.0
                tensor[numbers] = directions * (share * tensor[~dead].norm(dim=1).mean())
            elif name in fresh:
                tensor[numbers] = fresh[name].to(self.device)[numbers]
            if name != "b_dec":
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.optimizer.state[tensor][moment][numbers] = 0
        self.silent_tokens[numbers] = 0
        logger.info("step %d: resampled %d dead latents", self.step_number, len(numbers))


def _leave_out_parallel(grad: Tensor, W_dec: Tensor, whole: bool) -> None:
    """Remove from each row's gradient the component along the row (arXiv 2406.04093, appendix A.2)."""
    for block in row_blocks(len(grad), whole):
        grad[block].addcmul_(W_dec[block], -(grad[block] * W_dec[block]).sum(1, keepdim=True))
