"""Training SAEs from activation dumps: batches, the optimizer step, and resuming after an interruption.

`saes.objectives` holds the losses of the architectures, `saes.sparse_products` the products that make a step fast.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from saelineage.activations import ActivationShard, norm_limit
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, decode_header, encode_header
from saelineage.precision import native_bf16
from saelineage.saes.folding import fold_centring
from saelineage.saes.objectives import OBJECTIVES, Loss, SomeEntries, TopK, Weights, auxiliary_loss, nonzero_norms
from saelineage.saes.resets import reset_latents
from saelineage.saes.sae import Sae, n_latents
from saelineage.saes.sparse_products import CACHED_ROWS, screen

logger = logging.getLogger(__name__)

SCALE_TOKENS = 16_384
"""Tokens on which mean and scale are measured."""
LOG_EVERY_STEPS = 25
DENSE_TOKENS = 256
"""Tokens in a chunk when all latents are computed, which bounds the memory."""
THRESHOLD_BATCHES = 20
"""Batches over which BatchTopK's threshold is averaged."""
RAISE_RATE, LOWER_RATE, CONTROL_BAND = 0.02, 0.06, 0.25
"""Fractions by which the coefficient rises or falls in a step if the error of log l0 is at least the band.

Within the band they shrink with the error. The coefficient falls faster than it rises, because latents silenced by too
strong a penalty recover slowly or never."""
MOST_AT_ONCE = 3.0
"""Largest exponent of e in the immediate response of the coefficient to an error of l0."""
TARGET_MISSED = 0.1
"""Relative error of the final l0 above which a warning is logged."""
GRADIENT_NORM = 1.0
"""Largest norm of the gradients. Scaling down the first ones, which are far larger, keeps Adam from slowing down."""
RESAMPLED_NORM = 0.2
"""Norm of a resampled latent's encoder, as a fraction of the others' mean norm ("Towards Monosemanticity", 2023)."""
CURVE_COLUMNS = ("step", "tokens", "loss", "fvu", "l0", "dead_fraction", "coefficient")


class Dump:
    """The shards of a dump as one memory-mapped array of tokens, read in any order.

    Attributes:
        d_in: width of the activations.
        centred: True if the mean over dimensions is subtracted from each token's activations (`Sae.centred`).
        max_norm: norm above which activations count as outliers. Their tokens are left out, because outliers are few
            and alike, and would dominate the loss.
        n_left_out: number of tokens left out.
    """

    def __init__(self, paths: Sequence[Path | str], max_norm_ratio: float | None = None, centred: bool = False):
        """Open shards.

        Args:
            paths: the shards.
            max_norm_ratio: outlier cut-off, as a multiple of the median norm; None keeps all tokens.
            centred: subtract the mean over dimensions, for training from an SAE of such activations.

        Raises:
            InputError: if the shards differ in hookpoint or width, or hold no tokens.
        """
        self.shards = [ActivationShard(path) for path in paths]
        kinds = {(shard.header["hookpoint"], shard.d_in) for shard in self.shards}
        if len(kinds) != 1:
            raise InputError(
                f"activation shards differ in (hookpoint, width): {sorted(kinds)}; delete the dump and run again"
            )
        self.d_in, self.centred = self.shards[0].d_in, centred
        self._starts = np.cumsum([0, *(shard.n_tokens for shard in self.shards)])
        if not self._starts[-1]:
            raise InputError("the activations hold no tokens; look at saes.corpora and the train splits")
        self._acts = [shard.acts() for shard in self.shards]
        self.max_norm, self._kept, self.n_left_out = math.inf, None, 0
        norms = np.concatenate([shard.norms().numpy() for shard in self.shards])
        if max_norm_ratio is not None or np.isnan(norms).any():  # NaN: tokens that the model does not share
            self.max_norm = math.inf if max_norm_ratio is None else norm_limit(norms, max_norm_ratio)
            self._kept = np.flatnonzero(norms <= self.max_norm)
            self.n_left_out = len(norms) - len(self._kept)

    def __len__(self) -> int:
        return int(self._starts[-1]) - self.n_left_out

    def __getitem__(self, tokens: Int[np.ndarray, " token"]) -> Float[Tensor, "token d_in"]:
        """float32 activations of the tokens, in the given order."""
        if self._kept is not None:
            tokens = self._kept[tokens]
        acts = torch.empty(len(tokens), self.d_in)
        shards = np.searchsorted(self._starts, tokens, side="right") - 1
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            acts[places] = self._acts[shard][tokens[places] - self._starts[shard]].float()
        return acts - acts.mean(1, keepdim=True) if self.centred else acts


def token_batches(
    n_tokens: int, n_drawn: int, batch_tokens: int, seed: int, first: int = 0
) -> Iterator[Int[np.ndarray, " token"]]:
    """Yield full batches of token numbers from consecutive passes over all tokens, each pass in a new order.

    Args:
        n_tokens: number of tokens in a pass.
        n_drawn: number of tokens to yield; those that do not fill a batch are dropped.
        batch_tokens: tokens in a batch.
        seed: seed of the orders.
        first: number of batches to skip.
    """
    random = np.random.default_rng(seed)
    upcoming = np.empty(0, dtype=np.int64)
    for number in range(n_drawn // batch_tokens):
        while len(upcoming) < batch_tokens:
            upcoming = np.concatenate([upcoming, random.permutation(n_tokens)])
        if number >= first:
            yield upcoming[:batch_tokens]
        upcoming = upcoming[batch_tokens:]


class Scaling(NamedTuple):
    """Mean and scale of activations; scaled ones have a variance of 1 per dimension on average."""

    mean: Float[Tensor, " d_in"]
    scale: float
    """Factor on acts, so that E|scale x (acts - mean)|^2 = d_in."""


def measure_scaling(acts: Float[Tensor, "token d_in"]) -> Scaling:
    """Measure the mean of activations and the scale that gives deviations from it a mean square of 1.

    Raises:
        InputError: if the activations do not vary.
    """
    chunks = acts.split(DENSE_TOKENS)  # because float64 copies of all activations could be large
    mean = torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0) / len(acts)
    mean_square = sum(float((chunk.double() - mean).square().sum()) for chunk in chunks) / acts.numel()
    if mean_square == 0:
        raise InputError(
            "the activations at activations.hookpoint do not vary at all; look at the hookpoint and the model"
        )
    return Scaling(mean.float(), mean_square**-0.5)


def initial_directions(d_in: int, d_sae: int, norm: float, seed: int) -> Float[Tensor, "d_sae d_in"]:
    """Draw random directions of one norm, from which decoder and encoder start (arXiv 2406.04093, section 2.3)."""
    directions = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
    return directions * (norm / directions.norm(dim=1, keepdim=True))


def fold_scale(sae: Sae, scale: float) -> None:
    """Fold a scale into the weights: an SAE of scale x acts becomes one of acts, with equal latents."""
    with torch.no_grad():
        sae.W_enc.mul_(scale)
        sae.W_dec.div_(scale)
        sae.b_dec.div_(scale)


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
        coefficient: the current coefficient of the sparsity penalty.
        control: state of the control that steers l0 to `target_l0`.
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
        groups = [
            {"params": [tensor], "rate": self.objective.rates.get(name, 1.0)} for name, tensor in self.weights.items()
        ]
        self.optimizer = _Adam(groups, lr=settings["learning_rate"], betas=tuple(settings["adam_betas"]), fused=True)
        self.low_precision = settings["precision"] == "bfloat16" or (
            settings["precision"] == "auto" and native_bf16(self.device)
        )
        self.coefficient = settings["sparsity_coefficient"]
        self.silent_tokens = torch.zeros(d_sae, dtype=torch.int64, device=self.device)
        self.step_number = 0
        self.control: dict[str, float] = {}
        self._buffer = torch.empty(0)

    def _fresh_weights(self, mean: Tensor) -> Weights:
        """Make initial weights: the same random directions in encoder and decoder, and the objective's own weights."""
        sizes = self.objective.d_in, self.objective.d_sae
        directions = initial_directions(*sizes, self.objective.decoder_norm, self.settings["seed"])
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
        batch = self._backward(acts, entries, chosen)
        with torch.no_grad():
            gradients = {name: tensor.grad for name, tensor in self.weights.items() if tensor.grad is not None}
            if self.objective.unit_norm:
                _leave_out_parallel(gradients["W_dec"], self.weights["W_dec"])
            norm = torch.nn.utils.get_total_norm(list(gradients.values()))
            self.optimizer.grad_scale = (norm / GRADIENT_NORM).clamp_min(1)
            self.optimizer.step()
            if self.objective.unit_norm:
                self.weights["W_dec"].div_(nonzero_norms(self.weights["W_dec"].norm(dim=1))[:, None])
            self.silent_tokens = torch.where(batch.fired, 0, self.silent_tokens + len(acts))
        self.step_number += 1
        self._control(batch.l0)
        self._resample(acts, batch.error)
        return StepFigures(batch.loss, batch.error, batch.l0, batch.fired)

    @torch.no_grad()
    def choose(self, acts: Float[Tensor, "token d_in"]) -> tuple[SomeEntries, Float[Tensor, " entry"] | None]:
        """Choose the entries that the loss of a batch needs; returns their pre-activations too (`Objective.choose`)."""
        weights, shape = self.weights, (len(acts), len(self.silent_tokens))
        dtype = torch.bfloat16 if self.low_precision else torch.float32
        if self._buffer.shape != shape:
            self._buffer = torch.empty(shape, dtype=dtype, device=self.device)
        bias = self.objective.bias(weights)
        screened = screen(acts, weights["W_enc"], weights["b_dec"], bias, self.low_precision, self._buffer)
        return self.objective.choose(screened)

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
        tensors["silent_tokens"] = self.silent_tokens
        rest = {"step_number": self.step_number, "coefficient": self.coefficient, "control": self.control}
        return tensors, rest

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
        self.silent_tokens = tensors["silent_tokens"].to(self.device)
        self.step_number, self.coefficient, self.control = (
            rest[name] for name in ("step_number", "coefficient", "control")
        )

    def _backward(self, acts: Tensor, entries: SomeEntries, chosen: Tensor | None) -> Loss:
        """Compute the gradients of the whole loss, over chunks of tokens if all latents are needed."""
        coefficient = self._penalty()
        chunks = [acts] if chosen is not None else acts.split(DENSE_TOKENS)
        parts = []
        for chunk in chunks:
            part = self.objective.loss(entries, chunk, self.weights, chosen, coefficient)
            share = len(chunk) / len(acts)
            (part.loss * share).backward()
            parts.append(part._replace(loss=part.loss.detach() * share, l0=part.l0 * share))
        batch = Loss(
            loss=torch.stack([part.loss for part in parts]).sum(),
            error=torch.cat([part.error for part in parts]),
            fired=torch.stack([part.fired for part in parts]).any(0),
            l0=torch.stack([part.l0 for part in parts]).sum(),
        )
        if self.objective.revives and self.settings["aux_coefficient"] and bool((dead := self.dead()).any()):
            auxiliary = auxiliary_loss(acts, batch.error, dead, self.weights)
            (self.settings["aux_coefficient"] * auxiliary).backward()
        return batch

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

    def _penalty(self) -> float:
        """Factor of the penalty in this step: the coefficient; without a target it rises from zero."""
        return self.coefficient if self.settings["target_l0"] else self.coefficient * self._warmup()

    def _control(self, l0: Tensor) -> None:
        """Move the coefficient towards the one that gives `target_l0`.

        Over the warm-up the goal moves geometrically from the first batch's l0 to the target. Without it the
        coefficient would overshoot, because l0 follows it with a delay. An integral part follows the goal with a
        bounded change per step; a proportional part responds immediately.
        """
        target = self.settings["target_l0"]
        if not self.objective.has_penalty or not target:
            return
        log_l0 = math.log(max(float(l0), 1e-3))
        self.control = self.control or {"log_first": log_l0, "coefficient": self.coefficient}
        passed = self._warmup()
        error = log_l0 - (1 - passed) * self.control["log_first"] - passed * math.log(target)
        rate = RAISE_RATE if error > 0 else LOWER_RATE
        self.control["coefficient"] *= math.exp(rate * max(-1.0, min(1.0, error / CONTROL_BAND)))
        self.coefficient = self.control["coefficient"] * math.exp(max(-MOST_AT_ONCE, min(1.0, 3 * error)))

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


class Trained(NamedTuple):
    """A trained SAE and its training curve."""

    sae: Sae
    """The SAE, of unscaled activations."""
    curve: pd.DataFrame
    """Columns `CURVE_COLUMNS`, a row every `LOG_EVERY_STEPS` steps and at the end."""


def train_saes(
    dump: Dump,
    settings: Sequence[Mapping],
    device: torch.device,
    checkpoint: Path | None = None,
    watch: Callable[[int, dict], None] = lambda number, point: None,
    starts: Sequence[Sae | None] | None = None,
) -> list[Trained]:
    """Train SAEs on a dump, all on the same batches; an interrupted training resumes from its last checkpoint.

    Args:
        dump: the activations.
        settings: settings of each SAE, with its `seed`. They must agree in `n_tokens`, `batch_tokens` and
            `checkpoint_steps`. The `shuffle_seed` of the first, or else its `seed`, orders the tokens.
        device: device to train on.
        checkpoint: file for the state of the training; None keeps none.
        watch: called with the number of an SAE and each point of its curve; a resumed training repeats earlier points.
        starts: an SAE for each to start from, or None for random directions. If `n_tokens` is 0, these SAEs are
            returned, with the outlier cut-off of `dump`.

    Raises:
        InputError: if the dump is smaller than a batch, or a loss is no longer finite.
    """
    common, starts = settings[0], starts or [None] * len(settings)
    batch_tokens, n_tokens = common["batch_tokens"], len(dump) if common["n_tokens"] is None else common["n_tokens"]
    saes_to_keep = [start for start in starts if start is not None]
    if n_tokens == 0 and len(saes_to_keep) == len(starts):
        return [_untrained(sae, dump) for sae in saes_to_keep]
    n_steps = n_tokens // batch_tokens
    if n_steps == 0:
        raise InputError(f"saes.batch_tokens ({batch_tokens}) must not exceed the {n_tokens} training tokens; lower it")
    order_seed = common["seed"] if common["shuffle_seed"] is None else common["shuffle_seed"]
    sample = np.random.default_rng(order_seed).permutation(len(dump))[:SCALE_TOKENS]
    scaling = measure_scaling(dump[np.sort(sample)])
    trainers = [
        SaeTrainer(sae_settings, scaling.mean * scaling.scale, n_steps, device, _scaled(start, scaling.scale))
        for sae_settings, start in zip(settings, starts, strict=True)
    ]
    curves = _restore(checkpoint, trainers)
    for number, curve in enumerate(curves):
        for point in curve:
            watch(number, point)
    first = trainers[0].step_number
    batches = token_batches(len(dump), n_tokens, batch_tokens, order_seed, first)
    with tqdm(
        total=n_steps * batch_tokens,
        initial=first * batch_tokens,
        unit="token",
        unit_scale=True,
        disable=None,  # unless standard error is a terminal
    ) as bar:
        for step, tokens in enumerate(batches, start=first + 1):
            acts = dump[tokens].to(device) * scaling.scale
            figures = [trainer.step(acts) for trainer in trainers]
            bar.update(batch_tokens)
            if step % LOG_EVERY_STEPS == 0 or step == n_steps:
                for number, (trainer, step_figures) in enumerate(zip(trainers, figures, strict=True)):
                    point = _curve_point(acts, step_figures, trainer)
                    curves[number].append(point)
                    watch(number, point)
                bar.set_postfix({name: f"{point[name]:.3g}" for name in ("loss", "l0", "fvu", "dead_fraction")})
            if checkpoint and step % common["checkpoint_steps"] == 0 and step < n_steps:
                _save(checkpoint, trainers, curves)
    trained = []
    for trainer, curve in zip(trainers, curves, strict=True):
        logger.info("trained %d steps of %d tokens: %s", n_steps, batch_tokens, curve[-1])
        _warn_off_target(trainer, curve[-1]["l0"])
        sae = _finished(trainer, dump, scaling, order_seed)
        trained.append(Trained(sae, pd.DataFrame(curve, columns=list(CURVE_COLUMNS))))
    return trained


def _scaled(start: Sae | None, scale: float) -> Sae | None:
    """Make an SAE of activations x `scale` with equal latents; None stays None."""
    if start is None:
        return None
    sae = deepcopy(start)
    fold_scale(sae, 1 / scale)
    return sae


def _untrained(start: Sae, dump: Dump) -> Trained:
    """An SAE as it is, with the outlier cut-off of other activations and an empty curve."""
    sae = deepcopy(start)
    sae.max_norm = dump.max_norm
    return Trained(sae, pd.DataFrame(columns=list(CURVE_COLUMNS)))


def _warn_off_target(trainer: SaeTrainer, l0: float) -> None:
    target = trainer.settings["target_l0"]
    if trainer.objective.has_penalty and target and abs(l0 / target - 1) > TARGET_MISSED:
        advice = "smaller" if l0 < target else "larger"
        logger.warning(
            "l0 ended at %.3g, more than a tenth away from saes.target_l0 = %g; train longer, or start with a %s "
            "saes.sparsity_coefficient",
            l0,
            target,
            advice,
        )


def _finished(trainer: SaeTrainer, dump: Dump, scaling: Scaling, order_seed: int) -> Sae:
    """Make the SAE of unscaled activations, measuring BatchTopK's threshold on tokens of the training."""
    threshold = None
    if trainer.objective.needs_threshold:
        batch_tokens = trainer.settings["batch_tokens"]
        batches = token_batches(len(dump), THRESHOLD_BATCHES * batch_tokens, batch_tokens, order_seed)
        smallest = [trainer.smallest_kept(dump[tokens].to(trainer.device) * scaling.scale) for tokens in batches]
        values = [value for value in smallest if value is not None]
        threshold = float(np.mean(values)) if values else 0.0
    sae = trainer.objective.trained(
        {name: tensor.detach().cpu() for name, tensor in trainer.weights.items()}, threshold
    )
    fold_scale(sae, scaling.scale)
    if dump.centred:
        fold_centring(sae)
    sae.max_norm = dump.max_norm
    return sae.eval()


def _save(path: Path, trainers: Sequence[SaeTrainer], curves: list[list[dict]]) -> None:
    """Write the state of a training, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, list] = {"trainers": [], "curves": curves}
    for number, trainer in enumerate(trainers):
        state, rest = trainer.state()
        tensors |= {f"{number}.{name}": tensor.cpu().contiguous() for name, tensor in state.items()}
        header["trainers"].append(rest)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=encode_header(header))


def _restore(path: Path | None, trainers: Sequence[SaeTrainer]) -> list[list[dict]]:
    """Restore the state of trainers from a file, if it exists, and return the curves so far."""
    if path is None or not path.exists():
        return [[] for _ in trainers]
    with safe_open(path, framework="pt") as file:
        header = decode_header(file.metadata())
        for number, (trainer, rest) in enumerate(zip(trainers, header["trainers"], strict=True)):
            prefix = f"{number}."
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            trainer.restore({name.removeprefix(prefix): file.get_tensor(name) for name in names}, rest)
    logger.info("resuming from step %d, from '%s'", trainers[0].step_number, path)
    return header["curves"]


def _curve_point(acts: Tensor, figures: StepFigures, trainer: SaeTrainer) -> dict:
    step, loss = trainer.step_number, float(figures.loss)
    if not math.isfinite(loss):
        raise InputError(
            f"the loss must stay finite, but is {loss} at step {step}; lower saes.learning_rate "
            f"({trainer.settings['learning_rate']}), or check the activations"
        )
    return {
        "step": step,
        "tokens": step * len(acts),
        "loss": loss,
        "fvu": float(figures.error.square().sum() / (acts - acts.mean(0)).square().sum()),  # of the batch
        "l0": float(figures.l0),
        "dead_fraction": float(trainer.dead().double().mean()),
        "coefficient": trainer.coefficient if trainer.objective.has_penalty else 0.0,
    }


def _leave_out_parallel(grad: Tensor, W_dec: Tensor) -> None:
    """Remove from each row's gradient the component along the row (arXiv 2406.04093, appendix A.2)."""
    for block, rows in zip(grad.split(CACHED_ROWS), W_dec.split(CACHED_ROWS), strict=True):
        block.addcmul_(rows, -(block * rows).sum(1, keepdim=True))
