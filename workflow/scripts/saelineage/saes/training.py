"""Training SAEs on a dump, all of them on the same batches, and resuming after an interruption."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, decode_header, encode_header
from saelineage.saes.batches import SCALE_TOKENS, Dump, Scaling, measure_scaling, token_batches
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


def fold_scale(sae: Sae, scale: float) -> None:
    """Fold a scale into the weights: an SAE of scale x acts becomes one of acts, with equal latents."""
    with torch.no_grad():
        sae.W_enc.mul_(scale)
        sae.W_dec.div_(scale)
        sae.b_dec.div_(scale)
