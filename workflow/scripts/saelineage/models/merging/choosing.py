"""Settings of a merge that are chosen by what merged models do on validation text."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from saelineage.errors import InputError
from saelineage.models.divergences import DivergenceSums, divergence_sums
from saelineage.models.loading import evaluate, on_device, open_model
from saelineage.models.merging.merge import open_merge
from saelineage.models.merging.parents import Parents, open_parents
from saelineage.models.vocabularies import common_ids, end_ids, share_rows
from saelineage.tokens import TokenRows

N_DIVISORS = 10
"""Divisors that are tried, evenly from the density to 1."""


class Measuring(NamedTuple):
    """How merged models are measured."""

    rows: Mapping[str, TokenRows]
    """Token rows of the validation split by corpus."""
    batch_rows: int
    device: torch.device
    model_dtype: str
    unshared: str


def greedy_weights(n_models: int, measure: Callable[[list[float]], float]) -> tuple[list[float], list[float]]:
    """Choose the models of a greedy soup (arXiv 2203.05482, recipe 1).

    Models are tried from the least own loss on. One is added to the mean of those chosen if the mean's loss does not
    become larger by it.

    Args:
        n_models: number of models to choose from.
        measure: the loss of the mean of models with some weights.

    Returns:
        1 for each model that is chosen and 0 for the others, and the loss of each model alone.
    """
    alone = [[float(place == other) for other in range(n_models)] for place in range(n_models)]
    losses = [measure(weights) for weights in alone]
    first, *others = sorted(range(n_models), key=lambda place: losses[place])
    weights, least = alone[first], losses[first]
    for place in others:
        tried = [weight + own for weight, own in zip(weights, alone[place], strict=True)]
        loss = measure(tried)
        if loss <= least:
            weights, least = tried, loss
    return weights, losses


def least_changing(density: float, change: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Choose the divisor of random differences that changes outputs least (DAREx-q, arXiv 2410.09344).

    Args:
        density: the share of differences that is kept, and the least divisor.
        change: how much a divisor changes outputs.

    Returns:
        The divisor, of equally good ones the least, and the change by each that was tried.

    Raises:
        InputError: if a change is not finite.
    """
    changes = {float(q): change(float(q)) for q in np.linspace(density, 1, N_DIVISORS)}
    if not all(map(math.isfinite, changes.values())):
        raise InputError(f"changes of predictions must be finite to choose q by them, but they are {changes}; give q")
    return min(changes, key=lambda q: (changes[q], q)), changes


def mean_loss(parents: Parents, settings: Mapping, measuring: Measuring) -> float:
    """The mean over corpora of a merge's loss, in nats per token."""
    model = on_device(open_merge(parents, settings, measuring.model_dtype, measuring.device), measuring.device)
    rows = _as_read(model, parents, measuring)
    return sum(evaluate(model, of, measuring.batch_rows)["loss"] for of in rows.values()) / len(rows)


def mean_divergence(folders: Sequence[Path], base: Path, settings: Mapping, measuring: Measuring) -> float:
    """How far random differences change each parent's predictions: the mean KL divergence from parent to pruned one.

    Each parent is pruned alone, with a weight and a lambda of 1, so no labels and no other parent have a part in it.
    """
    sums = DivergenceSums()
    for folder in folders:
        alone = open_parents([folder], base, settings["dtype"], settings["vocabulary"])
        own = dict(settings) | {"parents": [folder.name], "weights": [1.0], "lambda": 1.0, "lines": None}
        models = (
            open_model(folder, measuring.device, measuring.model_dtype),
            on_device(open_merge(alone, own, measuring.model_dtype, measuring.device), measuring.device),
        )
        read = [share_rows(model, folder, measuring.rows, folder.name, measuring.unshared) for model in models]
        ids = common_ids([of.facts for of in read], (folder, folder), end_ids(measuring.rows))
        for corpus in measuring.rows:
            rows = (read[0].rows[corpus], read[1].rows[corpus])
            sums = sums.plus(divergence_sums(models, rows, ids, measuring.batch_rows, len(rows[0].ids)))
        del models
    return sums.forward / max(1, sums.n_predictions)


def _as_read(model: PreTrainedModel, parents: Parents, measuring: Measuring) -> Mapping[str, TokenRows]:
    folder = parents.folders[parents.leader]
    return share_rows(model, folder, measuring.rows, "the merge", measuring.unshared).rows
