"""Training SAEs from activation dumps: batches, the optimizer step, and going on after an interruption.

What an architecture minimises is in `sae_objectives`, the products that make a step quick in `sparse_products`.
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
from saelineage.saes.objectives import OBJECTIVES, Loss, SomeEntries, Weights, auxiliary_loss
from saelineage.saes.sae import Sae, n_latents
from saelineage.saes.sparse_products import CACHED_ROWS, screen

logger = logging.getLogger(__name__)

SCALE_TOKENS = 16_384
"""Tokens that mean and scale are measured on."""
LOG_EVERY_STEPS = 25
DENSE_TOKENS = 256
"""Tokens for which all latents are held at once, where too many fire for sparse products."""
THRESHOLD_BATCHES = 20
"""Batches over which BatchTopK's threshold is averaged."""
RAISE_RATE, LOWER_RATE, CONTROL_BAND = 0.02, 0.06, 0.25
"""The coefficient rises or falls by these shares in a step while log l0 is off by the band or more, by less within it.

It falls faster than it rises, for what too strong a penalty has silenced comes back slowly or never."""
MOST_AT_ONCE = 3.0
"""Largest power of e by which the coefficient answers at once to an l0 that is off."""
TARGET_MISSED = 0.1
"""An l0 that ends farther from its target than this share of it is warned of."""
GRADIENT_NORM = 1.0
"""Gradients are scaled down to this norm, so that the first, far larger ones do not slow Adam down for long."""
RESAMPLED_NORM = 0.2
"""Norm of a resampled latent's encoder, as a share of the others' mean ("Towards Monosemanticity", 2023)."""
CURVE_COLUMNS = ("step", "tokens", "loss", "fvu", "l0", "dead_fraction", "coefficient")


class Dump:
    """The shards of a dump as one long array of tokens, memory-mapped, read in any order.

    Attributes:
        d_in: width.
        max_norm: tokens whose activations are longer than this are left out: they are few, alike, and would dominate
            the loss.
        n_left_out: how many.
    """

    def __init__(self, paths: Sequence[Path | str], max_norm_ratio: float | None = None):
        """Open shards.

        Args:
            paths: the shards.
            max_norm_ratio: leave out tokens whose norm is more than this many times the median norm; None keeps all.

        Raises:
            InputError: if they were read at different hookpoints, have different widths, or hold no tokens.
        """
        self.shards = [ActivationShard(path) for path in paths]
        kinds = {(shard.header["hookpoint"], shard.d_in) for shard in self.shards}
        if len(kinds) != 1:
            raise InputError(
                f"activation shards differ in (hookpoint, width): {sorted(kinds)}; delete the dump and run again"
            )
        self.d_in = self.shards[0].d_in
        self._starts = np.cumsum([0, *(shard.n_tokens for shard in self.shards)])
        if not self._starts[-1]:
            raise InputError("the activations hold no tokens; look at saes.corpora and the train splits")
        self._acts = [shard.acts() for shard in self.shards]
        self.max_norm, self._kept, self.n_left_out = math.inf, None, 0
        if max_norm_ratio is not None:
            norms = np.concatenate([shard.norms().numpy() for shard in self.shards])
            self.max_norm = norm_limit(norms, max_norm_ratio)
            self._kept = np.flatnonzero(norms <= self.max_norm)
            self.n_left_out = len(norms) - len(self._kept)

    def __len__(self) -> int:
        return int(self._starts[-1]) - self.n_left_out

    def __getitem__(self, tokens: Int[np.ndarray, " token"]) -> Float[Tensor, "token d_in"]:
        """float32 activations of the tokens, in the order asked for."""
        if self._kept is not None:
            tokens = self._kept[tokens]
        found = torch.empty(len(tokens), self.d_in)
        shards = np.searchsorted(self._starts, tokens, side="right") - 1
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            found[mine] = self._acts[shard][tokens[mine] - self._starts[shard]].float()
        return found


def token_batches(
    n_tokens: int, wanted: int, batch_tokens: int, seed: int, first: int = 0
) -> Iterator[Int[np.ndarray, " token"]]:
    """Full batches of token numbers, `wanted` tokens in all: whole passes over all tokens, each in a new order.

    Args:
        n_tokens: tokens there are.
        wanted: tokens to give out; what does not fill a batch is left.
        batch_tokens: tokens in a batch.
        seed: of the orders.
        first: batches to pass over.
    """
    random = np.random.default_rng(seed)
    waiting = np.empty(0, dtype=np.int64)
    for number in range(wanted // batch_tokens):
        while len(waiting) < batch_tokens:
            waiting = np.concatenate([waiting, random.permutation(n_tokens)])
        if number >= first:
            yield waiting[:batch_tokens]
        waiting = waiting[batch_tokens:]


class Scaling(NamedTuple):
    """How raw activations are brought to unit variance per dimension on average."""

    mean: Float[Tensor, " d_in"]
    scale: float
    """acts are multiplied by this, so that E|acts - mean|^2 = d_in."""


def measure_scaling(acts: Float[Tensor, "token d_in"]) -> Scaling:
    """The mean of activations and the scale that gives their deviations a mean square of 1.

    Raises:
        InputError: if the activations do not vary.
    """
    chunks = acts.split(DENSE_TOKENS)  # float64 copies of all of them could be large
    mean = torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0) / len(acts)
    mean_square = sum(float((chunk.double() - mean).square().sum()) for chunk in chunks) / acts.numel()
    if mean_square == 0:
        raise InputError(
            "the activations at activations.hookpoint do not vary at all; look at the hookpoint and the model"
        )
    return Scaling(mean.float(), mean_square**-0.5)


def initial_directions(d_in: int, d_sae: int, norm: float, seed: int) -> Float[Tensor, "d_sae d_in"]:
    """Random directions of one length; decoder and encoder both start from them (arXiv 2406.04093, section 2.3)."""
    directions = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
    return directions * (norm / directions.norm(dim=1, keepdim=True))


def fold_scale(sae: Sae, scale: float) -> None:
    """Change weights trained on scale x acts into weights that take acts, with equal latents."""
    with torch.no_grad():
        sae.W_enc.mul_(scale)
        sae.W_dec.div_(scale)
        sae.b_dec.div_(scale)


class StepFigures(NamedTuple):
    """What one optimizer step reports."""

    loss: Tensor
    """Without the auxiliary loss."""
    error: Float[Tensor, "token d_in"]
    """acts - recons."""
    l0: Tensor
    fired: Bool[Tensor, " d_sae"]


class SaeTrainer:
    """Adam on one SAE, in scaled activations.

    Attributes:
        weights: see `sae_objectives`.
        coefficient: of the sparsity penalty, as it stands.
        control: what the steering towards `target_l0` remembers.
        silent_tokens: [d_sae], tokens since each latent fired.
        step_number: steps made.
    """

    def __init__(
        self,
        settings: Mapping,
        mean: Float[Tensor, " d_in"],
        n_steps: int,
        device: torch.device | str = "cpu",
        start: Sae | None = None,
    ):
        """Start an SAE.

        Args:
            settings: one SAE's settings (`graph.sae_settings`), with its `seed`.
            mean: of the scaled activations, where b_dec starts.
            n_steps: how many steps there will be, which the learning-rate schedule needs.
            device: where to train.
            start: an SAE for scaled activations to start from, instead of random directions; it decides the size.

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
        weights = self._fresh_weights(mean) if start is None else self.objective.weights_of(start)
        self.weights: Weights = {
            name: tensor.to(self.device).requires_grad_() for name, tensor in sorted(weights.items())
        }
        groups = [
            {"params": [tensor], "rate": self.objective.rates.get(name, 1.0)} for name, tensor in self.weights.items()
        ]
        self.optimizer = torch.optim.Adam(
            groups, lr=settings["learning_rate"], betas=tuple(settings["adam_betas"]), fused=True
        )
        self.low_precision = settings["precision"] == "bfloat16" or (
            settings["precision"] == "auto" and native_bf16(self.device)
        )
        self.coefficient = settings["sparsity_coefficient"]
        self.silent_tokens = torch.zeros(d_sae, dtype=torch.int64, device=self.device)
        self.step_number = 0
        self.control: dict[str, float] = {}
        self._buffer = torch.empty(0)

    def _fresh_weights(self, mean: Tensor) -> Weights:
        """Random directions, the same in encoder and decoder, and the objective's own weights."""
        sizes = self.objective.d_in, self.objective.d_sae
        directions = initial_directions(*sizes, self.objective.decoder_norm, self.settings["seed"])
        weights = {"W_enc": directions, "W_dec": directions.clone(), "b_dec": mean.clone()}
        return weights | self.objective.own_tensors()

    def step(self, acts: Float[Tensor, "token d_in"]) -> StepFigures:
        """One optimizer step on a batch of scaled activations."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * self._schedule() * group["rate"]
        self.optimizer.zero_grad()
        entries, known = self.choose(acts)
        found = self._backward(acts, entries, known)
        with torch.no_grad():
            if self.objective.unit_norm:
                _leave_out_parallel(self.weights["W_dec"].grad, self.weights["W_dec"])
            norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in self.weights.values()])
            self.optimizer.grad_scale = (norm / GRADIENT_NORM).clamp_min(1)  # gradients are divided by it on their way
            self.optimizer.step()
            if self.objective.unit_norm:
                self.weights["W_dec"].div_(self.weights["W_dec"].norm(dim=1, keepdim=True))
            self.silent_tokens = torch.where(found.fired, 0, self.silent_tokens + len(acts))
        self.step_number += 1
        self._control(found.l0)
        self._resample(acts, found.error)
        return StepFigures(found.loss, found.error, found.l0, found.fired)

    @torch.no_grad()
    def choose(self, acts: Float[Tensor, "token d_in"]) -> tuple[SomeEntries, Float[Tensor, " entry"] | None]:
        """The entries that the loss of a batch needs, and their pre-activations."""
        weights, shape = self.weights, (len(acts), len(self.silent_tokens))
        dtype = torch.bfloat16 if self.low_precision else torch.float32
        if self._buffer.shape != shape:
            self._buffer = torch.empty(shape, dtype=dtype, device=self.device)
        bias = self.objective.bias(weights)
        screened = screen(acts, weights["W_enc"], weights["b_dec"], bias, self.low_precision, self._buffer)
        return self.objective.choose(screened)

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have not fired for `dead_after_tokens`."""
        return self.silent_tokens >= self.settings["dead_after_tokens"]

    def smallest_kept(self, acts: Float[Tensor, "token d_in"]) -> float | None:
        """The smallest activation above zero that is kept of a batch (BatchTopK); None where there is none."""
        known = self.choose(acts)[1]
        kept = known[known > 0]
        return float(kept.min()) if len(kept) else None

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Everything that decides how training goes on: tensors, and the rest as JSON."""
        tensors = {f"weights.{name}": tensor.detach() for name, tensor in self.weights.items()}
        for number, found in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in found.items()}
        tensors["silent_tokens"] = self.silent_tokens
        rest = {"step_number": self.step_number, "coefficient": self.coefficient, "control": self.control}
        return tensors, rest

    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping) -> None:
        """Go on from what `state` gave."""
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

    def _backward(self, acts: Tensor, entries: SomeEntries, known: Tensor | None) -> Loss:
        """Gradients of the whole loss; in chunks of tokens where all latents are needed, for losses are means."""
        coefficient = self._penalty()
        chunks = [acts] if known is not None else acts.split(DENSE_TOKENS)
        parts = []
        for chunk in chunks:
            part = self.objective.loss(entries, chunk, self.weights, known, coefficient)
            share = len(chunk) / len(acts)
            (part.loss * share).backward()
            parts.append(part._replace(loss=part.loss.detach() * share, l0=part.l0 * share))
        found = Loss(
            loss=torch.stack([part.loss for part in parts]).sum(),
            error=torch.cat([part.error for part in parts]),
            fired=torch.stack([part.fired for part in parts]).any(0),
            l0=torch.stack([part.l0 for part in parts]).sum(),
        )
        if self.objective.revives and self.settings["aux_coefficient"] and bool((dead := self.dead()).any()):
            auxiliary = auxiliary_loss(acts, found.error, dead, self.weights)
            (self.settings["aux_coefficient"] * auxiliary).backward()
        return found

    def _schedule(self) -> float:
        """The learning rate's factor: a linear rise, a plateau, a linear fall to zero."""
        warmup = self.settings["warmup_fraction"] * self.n_steps
        decay = self.settings["decay_fraction"] * self.n_steps
        rising = (self.step_number + 1) / warmup if warmup else 1.0
        falling = (self.n_steps - self.step_number) / decay if decay else 1.0
        return min(1.0, rising, falling)

    def _warmup(self) -> float:
        """How much of the penalty's warm-up has passed, from above 0 to 1."""
        warmup = self.settings["sparsity_warmup_fraction"] * self.n_steps
        return min(1.0, (self.step_number + 1) / warmup) if warmup else 1.0

    def _penalty(self) -> float:
        """The penalty's factor in this step: the coefficient, rising from zero where no target steers it."""
        return self.coefficient if self.settings["target_l0"] else self.coefficient * self._warmup()

    def _control(self, l0: Tensor) -> None:
        """Move the coefficient towards the one that gives `target_l0`.

        The goal falls from the first batch's l0 to the target over the warm-up (geometrically), for l0 follows the
        coefficient with a delay, and a coefficient that rises while l0 is far off overshoots. An integral part follows
        the goal with a bounded change in a step, a proportional part answers at once.
        """
        target = self.settings["target_l0"]
        if not self.objective.has_penalty or not target:
            return
        log_l0 = math.log(max(float(l0), 1e-3))
        self.control = self.control or {"log_first": log_l0, "coefficient": self.coefficient}
        passed = self._warmup()
        off = log_l0 - (1 - passed) * self.control["log_first"] - passed * math.log(target)
        rate = RAISE_RATE if off > 0 else LOWER_RATE
        self.control["coefficient"] *= math.exp(rate * max(-1.0, min(1.0, off / CONTROL_BAND)))
        self.coefficient = self.control["coefficient"] * math.exp(max(-MOST_AT_ONCE, min(1.0, 3 * off)))

    @torch.no_grad()
    def _resample(self, acts: Tensor, error: Tensor) -> None:
        """Give dead latents directions of tokens drawn by their squared loss ("Towards Monosemanticity", 2023).

        Every `resample_every_tokens` of the first half of training. Decoder rows get the others' mean norm, encoders a
        fifth of it, biases zero, and Adam forgets them.
        """
        every, seen = self.settings["resample_every_tokens"], self.step_number * len(acts)
        due = every and seen % every < len(acts) and 2 * self.step_number <= self.n_steps
        if not due or self.objective.revives:
            return
        dead = self.dead()
        if not bool(dead.any()) or bool(dead.all()):
            return
        losses = error.square().sum(1).double().square().cpu()
        if not 0 < float(losses.sum()) < math.inf:  # nothing is left to explain, or the training is about to end
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
    """One SAE that was trained."""

    sae: Sae
    """It takes unscaled activations."""
    curve: pd.DataFrame
    """`CURVE_COLUMNS`; one row every `LOG_EVERY_STEPS` steps."""


def train_saes(
    dump: Dump,
    settings: Sequence[Mapping],
    device: torch.device,
    checkpoint: Path | None = None,
    watch: Callable[[int, dict], None] = lambda number, point: None,
    starts: Sequence[Sae | None] | None = None,
) -> list[Trained]:
    """Train SAEs on a dump, all on the same batches; an interrupted training goes on from its last checkpoint.

    Args:
        dump: the activations.
        settings: of each SAE, with its `seed`; they agree on `n_tokens`, `batch_tokens` and `checkpoint_steps`, and the
            first one's `shuffle_seed` (or `seed`) orders the tokens.
        device: where to train.
        checkpoint: the file that the state is kept in; None keeps none.
        watch: told each point of a curve and whose it is, those from before an interruption again.
        starts: an SAE that each starts from, or None; with `n_tokens` 0 all stay what they are.

    Raises:
        InputError: if the dump is smaller than a batch, or a loss is no longer finite.
    """
    common, starts = settings[0], starts or [None] * len(settings)
    batch_tokens, wanted = common["batch_tokens"], len(dump) if common["n_tokens"] is None else common["n_tokens"]
    if wanted == 0 and None not in starts:
        return [Trained(_as_it_is(start, dump), pd.DataFrame(columns=list(CURVE_COLUMNS))) for start in starts]
    n_steps = wanted // batch_tokens
    if n_steps == 0:
        raise InputError(f"saes.batch_tokens ({batch_tokens}) must not exceed the {wanted} training tokens; lower it")
    order_seed = common["seed"] if common["shuffle_seed"] is None else common["shuffle_seed"]
    sample = np.random.default_rng(order_seed).permutation(len(dump))[:SCALE_TOKENS]
    scaling = measure_scaling(dump[np.sort(sample)])
    trainers = [
        SaeTrainer(one, scaling.mean * scaling.scale, n_steps, device, _scaled(start, scaling.scale))
        for one, start in zip(settings, starts, strict=True)
    ]
    curves = _restore(checkpoint, trainers)
    for number, curve in enumerate(curves):
        for point in curve:
            watch(number, point)
    first = trainers[0].step_number
    batches = token_batches(len(dump), wanted, batch_tokens, order_seed, first)
    with tqdm(
        total=n_steps * batch_tokens,
        initial=first * batch_tokens,
        unit="token",
        unit_scale=True,
        disable=None,  # where nobody looks at a terminal
    ) as bar:
        for step, tokens in enumerate(batches, start=first + 1):
            acts = dump[tokens].to(device) * scaling.scale
            figures = [trainer.step(acts) for trainer in trainers]
            bar.update(batch_tokens)
            if step % LOG_EVERY_STEPS == 0 or step == n_steps:
                for number, (trainer, found) in enumerate(zip(trainers, figures, strict=True)):
                    point = _curve_point(acts, found, trainer)
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
    """An SAE for activations x `scale` with equal latents."""
    if start is None:
        return None
    sae = deepcopy(start)
    fold_scale(sae, 1 / scale)
    return sae


def _as_it_is(start: Sae, dump: Dump) -> Sae:
    """An SAE for other activations than it was trained on, of which the longest mean nothing to it."""
    sae = deepcopy(start)
    sae.max_norm = dump.max_norm
    return sae


def _warn_off_target(trainer: SaeTrainer, l0: float) -> None:
    target = trainer.settings["target_l0"]
    if trainer.objective.has_penalty and target and abs(l0 / target - 1) > TARGET_MISSED:
        advice = "smaller" if l0 < target else "larger"
        logger.warning(
            "l0 ended at %.3g, off saes.target_l0 = %g by more than a tenth; train longer, or start with a %s "
            "saes.sparsity_coefficient",
            l0,
            target,
            advice,
        )


def _finished(trainer: SaeTrainer, dump: Dump, scaling: Scaling, order_seed: int) -> Sae:
    """The SAE for unscaled activations, with BatchTopK's threshold measured on tokens it was trained on."""
    threshold = None
    if trainer.objective.needs_threshold:
        batch_tokens = trainer.settings["batch_tokens"]
        batches = token_batches(len(dump), THRESHOLD_BATCHES * batch_tokens, batch_tokens, order_seed)
        smallest = [trainer.smallest_kept(dump[tokens].to(trainer.device) * scaling.scale) for tokens in batches]
        found = [value for value in smallest if value is not None]
        threshold = float(np.mean(found)) if found else 0.0
    sae = trainer.objective.trained(
        {name: tensor.detach().cpu() for name, tensor in trainer.weights.items()}, threshold
    )
    fold_scale(sae, scaling.scale)
    sae.max_norm = dump.max_norm
    return sae.eval()


def _save(path: Path, trainers: Sequence[SaeTrainer], curves: list[list[dict]]) -> None:
    """Write the state of a training, whole or not at all."""
    tensors, rest = {}, []
    for number, trainer in enumerate(trainers):
        own, others = trainer.state()
        tensors |= {f"{number}.{name}": tensor.cpu().contiguous() for name, tensor in own.items()}
        rest.append(others)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=encode_header({"trainers": rest, "curves": curves}))


def _restore(path: Path | None, trainers: Sequence[SaeTrainer]) -> list[list[dict]]:
    """Bring trainers to the state in a file, if there is one, and give the curves so far."""
    if path is None or not path.exists():
        return [[] for _ in trainers]
    with safe_open(path, framework="pt") as file:
        header = decode_header(file.metadata())
        for number, (trainer, rest) in enumerate(zip(trainers, header["trainers"], strict=True)):
            prefix = f"{number}."
            mine = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            trainer.restore({name.removeprefix(prefix): file.get_tensor(name) for name in mine}, rest)
    logger.info("going on from step %d, from '%s'", trainers[0].step_number, path)
    return header["curves"]


def _curve_point(acts: Tensor, figures: StepFigures, trainer: SaeTrainer) -> dict:
    step, loss = trainer.step_number, float(figures.loss)
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} at step {step}; lower saes.learning_rate ({trainer.settings['learning_rate']}), "
            "and look at the activations"
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
    """Take from each row's gradient what would only change the row's length (arXiv 2406.04093, appendix A.2)."""
    for block, rows in zip(grad.split(CACHED_ROWS), W_dec.split(CACHED_ROWS), strict=True):
        block.addcmul_(rows, -(block * rows).sum(1, keepdim=True))
