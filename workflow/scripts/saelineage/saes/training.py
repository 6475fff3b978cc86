"""Training SAEs, all of them on the same batches, and resuming after an interruption.

`Training` is the SAEs that see one sequence of batches. `train_saes` gives it the batches of a dump,
`streams.train_streams` those of a model that is read meanwhile.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, decode_header, encode_header
from saelineage.saes.batches import SCALE_TOKENS, Scaling, TokenActs, measure_scaling, on_device
from saelineage.saes.folding import fold_centring
from saelineage.saes.sae import Sae
from saelineage.saes.trainer import SaeTrainer, StepFigures

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 25
THRESHOLD_BATCHES = 20
"""Batches over which BatchTopK's threshold is averaged."""
TARGET_MISSED = 0.1
"""Relative error of the final l0 above which a warning is logged."""
CURVE_COLUMNS = ("step", "tokens", "loss", "fvu", "l0", "dead_fraction", "coefficient")


Watch = Callable[[int, dict], None]
"""Called with the number of an SAE and each point of its curve; a resumed training repeats earlier points."""


class Trained(NamedTuple):
    """A trained SAE and its training curve."""

    sae: Sae
    """The SAE, of unscaled activations."""
    curve: pd.DataFrame
    """Columns `CURVE_COLUMNS`, a row every `LOG_EVERY_STEPS` steps and at the end."""


def ignore(number: int, point: dict) -> None:
    """Watch nothing."""


class Training:
    """SAEs that are trained together, on the same batches.

    Attributes:
        n_steps: steps of the whole training.
        batch_tokens: tokens in a batch.
        trainers: one for each SAE.
        curves: the points of each SAE's curve.
        scaling: mean and scale of the activations.
    """

    def __init__(
        self,
        settings: Sequence[Mapping],
        n_tokens: int,
        scaling: Scaling,
        device: torch.device,
        starts: Sequence[Sae | None],
        watch: Watch = ignore,
    ):
        """Set up the trainers.

        Args:
            settings: settings of each SAE, with its `seed`. They must agree in `batch_tokens`.
            n_tokens: tokens of the training; those that do not fill a batch are left out.
            scaling: mean and scale of the activations.
            device: device to train on.
            starts: an SAE for each to start from, or None for random directions.
            watch: called with each point of a curve.

        Raises:
            InputError: if there are fewer tokens than in a batch.
        """
        self.batch_tokens = settings[0]["batch_tokens"]
        self.n_steps = n_tokens // self.batch_tokens
        if self.n_steps == 0:
            raise InputError(
                f"saes.batch_tokens ({self.batch_tokens}) must not exceed the {n_tokens} training tokens; lower it"
            )
        self.scaling, self._device, self._watch = scaling, device, watch
        self.trainers = [
            SaeTrainer(of_sae, scaling.mean * scaling.scale, self.n_steps, device, _scaled(start, scaling.scale))
            for of_sae, start in zip(settings, starts, strict=True)
        ]
        self.curves: list[list[dict]] = [[] for _ in self.trainers]

    @property
    def step_number(self) -> int:
        """Number of steps made."""
        return self.trainers[0].step_number

    @property
    def is_done(self) -> bool:
        """True after the last step."""
        return self.step_number >= self.n_steps

    @property
    def needs_threshold(self) -> bool:
        """True if an SAE's threshold is measured at the end."""
        return any(trainer.objective.needs_threshold for trainer in self.trainers)

    def step(self, acts: Float[Tensor, "token d_in"]) -> None:
        """Make one step of each SAE on a batch of unscaled activations on the device."""
        acts = acts * self.scaling.scale
        figures = [trainer.step(acts) for trainer in self.trainers]
        if self.step_number % LOG_EVERY_STEPS == 0 or self.is_done:
            for number, (trainer, of_step) in enumerate(zip(self.trainers, figures, strict=True)):
                self.curves[number].append(_curve_point(acts, of_step, trainer))
                self._watch(number, self.curves[number][-1])

    def latest(self) -> dict[str, str]:
        """The last point of the last SAE's curve, for a progress bar."""
        point = self.curves[-1][-1] if self.curves[-1] else {}
        return {name: f"{point[name]:.3g}" for name in ("loss", "l0", "fvu", "dead_fraction") if name in point}

    def thresholds(self, batches: Iterable[Float[Tensor, "token d_in"]]) -> list[float | None]:
        """Measure BatchTopK's thresholds.

        Args:
            batches: unscaled activations of tokens of the training, on the device; read if `needs_threshold`.

        Returns:
            For each SAE its threshold; None for other architectures.
        """
        if not self.needs_threshold:
            return [None] * len(self.trainers)
        kept: list[list[float]] = [[] for _ in self.trainers]
        for acts in batches:
            for trainer, of_trainer in zip(self.trainers, kept, strict=True):
                if trainer.objective.needs_threshold:
                    smallest = trainer.smallest_kept(acts * self.scaling.scale)
                    of_trainer += [] if smallest is None else [smallest]
        return [
            (float(np.mean(values)) if values else 0.0) if trainer.objective.needs_threshold else None
            for trainer, values in zip(self.trainers, kept, strict=True)
        ]

    def finished(self, thresholds: Sequence[float | None], max_norm: float, is_centred: bool) -> list[Trained]:
        """Make the SAEs of unscaled activations.

        Args:
            thresholds: as `thresholds` gives them.
            max_norm: norm above which activations counted as outliers.
            is_centred: True if the mean over dimensions was subtracted from each token's activations.
        """
        trained = []
        for trainer, curve, threshold in zip(self.trainers, self.curves, thresholds, strict=True):
            logger.info("trained %d steps of %d tokens: %s", self.n_steps, self.batch_tokens, curve[-1])
            _warn_off_target(trainer, curve[-1]["l0"])
            weights = {name: tensor.detach().cpu() for name, tensor in trainer.weights.items()}
            sae = trainer.objective.trained(weights, threshold)
            fold_scale(sae, self.scaling.scale)
            if is_centred:
                fold_centring(sae)
            sae.max_norm = max_norm
            trained.append(Trained(sae.eval(), pd.DataFrame(curve, columns=list(CURVE_COLUMNS))))
        return trained

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """The state from which training can resume: tensors, and values for JSON."""
        tensors: dict[str, Tensor] = {}
        rest: dict[str, list] = {"trainers": [], "curves": self.curves}
        for number, trainer in enumerate(self.trainers):
            of_trainer, values = trainer.state()
            tensors |= {f"{number}.{name}": tensor.cpu().contiguous() for name, tensor in of_trainer.items()}
            rest["trainers"].append(values)
        return tensors, rest

    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping) -> None:
        """Take over the state that `state` returned, and report the points of the curves so far."""
        for number, (trainer, values) in enumerate(zip(self.trainers, rest["trainers"], strict=True)):
            trainer.restore(part(tensors, f"{number}."), values)
        self.curves = rest["curves"]
        for number, curve in enumerate(self.curves):
            for point in curve:
                self._watch(number, point)


def train_saes(
    dump: TokenActs,
    settings: Sequence[Mapping],
    device: torch.device,
    checkpoint: Path | None = None,
    watch: Watch = ignore,
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
    n_tokens = len(dump) if common["n_tokens"] is None else common["n_tokens"]
    saes_to_keep = [start for start in starts if start is not None]
    if n_tokens == 0 and len(saes_to_keep) == len(starts):
        return [untrained(sae, dump.max_norm) for sae in saes_to_keep]
    order_seed = common["seed"] if common["shuffle_seed"] is None else common["shuffle_seed"]
    sample = np.random.default_rng(order_seed).permutation(len(dump))[:SCALE_TOKENS]
    training = Training(settings, n_tokens, measure_scaling(dump[np.sort(sample)]), device, starts, watch)
    if checkpoint and checkpoint.exists():
        training.restore(*read_state(checkpoint))
        logger.info("resuming from step %d, from '%s'", training.step_number, checkpoint)
    order = (training.batch_tokens, order_seed)
    with progress(training.n_steps * training.batch_tokens, training.step_number * training.batch_tokens) as bar:
        for acts in on_device(dump.batches(n_tokens, *order, first=training.step_number), device):
            training.step(acts)
            bar.update(training.batch_tokens)
            bar.set_postfix(training.latest(), refresh=False)
            if checkpoint and training.step_number % common["checkpoint_steps"] == 0 and not training.is_done:
                write_state(checkpoint, *training.state())
    measured = on_device(dump.batches(THRESHOLD_BATCHES * training.batch_tokens, *order), device)
    return training.finished(training.thresholds(measured), dump.max_norm, dump.centred)


@contextmanager
def progress(n_tokens: int, n_done: int) -> Iterator[tqdm]:
    """A bar of tokens, unless standard error is no terminal."""
    with tqdm(total=n_tokens, initial=n_done, unit="token", unit_scale=True, disable=None) as bar:
        yield bar


def _scaled(start: Sae | None, scale: float) -> Sae | None:
    """Make an SAE of activations x `scale` with equal latents; None stays None."""
    if start is None:
        return None
    sae = deepcopy(start)
    fold_scale(sae, 1 / scale)
    return sae


def untrained(start: Sae, max_norm: float) -> Trained:
    """An SAE as it is, with the outlier cut-off of other activations and an empty curve."""
    sae = deepcopy(start)
    sae.max_norm = max_norm
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


def write_state(path: Path, tensors: Mapping[str, Tensor], rest: Mapping) -> None:
    """Write the state of a training, whole or not at all.

    Args:
        path: the file.
        tensors: its tensors, on the CPU.
        rest: values for JSON.
    """
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata=encode_header(dict(rest)))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read what `write_state` wrote."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, decode_header(file.metadata())  # noqa: SIM118


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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


def fold_scale(sae: Sae, scale: float) -> None:
    """Fold a scale into the weights: an SAE of scale x acts becomes one of acts, with equal latents."""
    with torch.no_grad():
        sae.W_enc.mul_(scale)
        sae.W_dec.div_(scale)
        sae.b_dec.div_(scale)
