"""Training crosscoders with the engine of SAEs.

A crosscoder is the SAE of its models' activations side by side, so `saes.training.train_saes` trains it: the same
objectives, sparse products, auxiliary loss for dead latents, checkpoints and threshold.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from saelineage.crosscoders.crosscoder import ARCHITECTURES, Crosscoder
from saelineage.crosscoders.dumps import JointDump
from saelineage.errors import InputError
from saelineage.saes.objectives import OBJECTIVES
from saelineage.saes.training import Watch, ignore, train_saes


class TrainedCrosscoder(NamedTuple):
    """A trained crosscoder and its training curve."""

    crosscoder: Crosscoder
    curve: pd.DataFrame
    """As that of an SAE (`saes.training.Trained`)."""


def joint_settings(settings: Mapping, n_models: int) -> dict:
    """The settings of the SAE that a crosscoder is.

    Args:
        settings: those of an SAE. `expansion_factor` is the number of latents for each dimension of one model. `k` can
            be annealed (`k_start`, `k_anneal_fraction`; see `SaeTrainer.k`). With `error_norm` the loss is the mean
            over models of the norm of the error, not the squared error.
        n_models: number of models.

    Raises:
        InputError: if the architecture is none of a crosscoder's.
    """
    architecture = settings["architecture"]
    if OBJECTIVES[architecture].architecture not in ARCHITECTURES:
        raise InputError(
            f"a crosscoder's architecture must give one of {ARCHITECTURES}, but '{architecture}' does not; use "
            "batchtopk, or relu to compare with"
        )
    return {**settings, "expansion_factor": settings["expansion_factor"] / n_models, "n_models": n_models}


def train_crosscoders(
    dump: JointDump,
    settings: Sequence[Mapping],
    device: torch.device,
    checkpoint: Path | None = None,
    watch: Watch = ignore,
) -> list[TrainedCrosscoder]:
    """Train crosscoders, all on the same batches; an interrupted training resumes from its last checkpoint.

    Args:
        dump: the activations of the models.
        settings: settings of each crosscoder; see `joint_settings` and `train_saes`.
        device: device to train on.
        checkpoint: file for the state of the training; None keeps none.
        watch: called with the number of a crosscoder and each point of its curve.

    Raises:
        InputError: as for `joint_settings` and `train_saes`.
    """
    joint = [joint_settings(of_one, len(dump.models)) for of_one in settings]
    return [
        TrainedCrosscoder(Crosscoder(trained.sae, dump.scalings, dump.max_norms), trained.curve)
        for trained in train_saes(dump, joint, device, checkpoint, watch)
    ]
