"""Settings of a merge that are chosen by what merged models do on validation text."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from saelineage.models.divergences import DivergenceSums, divergence_sums
from saelineage.models.loading import evaluate, on_device, open_model
from saelineage.models.merging.merge import open_merge
from saelineage.models.merging.parents import Parents
from saelineage.models.vocabularies import share_rows
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


def greedy_weights(losses: Sequence[float], measure: Callable[[list[float]], float]) -> list[float]:
    """Choose the models of a greedy soup (arXiv 2203.05482, recipe 1).

    Models are tried from the least own loss on. One is added to the mean of those chosen if the mean's loss does not
    become larger by it.

    Args:
        losses: of each model alone.
        measure: the loss of the mean of models with some weights.

    Returns:
        1 for each model that is chosen, 0 for the others.
    """
    order = sorted(range(len(losses)), key=lambda place: losses[place])
    weights = [0.0] * len(losses)
    weights[order[0]], least = 1.0, losses[order[0]]
    for place in order[1:]:
        tried = [1.0 if other == place else weight for other, weight in enumerate(weights)]
        loss = measure(tried)
        if loss <= least:
            weights, least = tried, loss
    return weights


def least_changing(density: float, change: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Choose the divisor of random differences that changes outputs least (DAREx-q, arXiv 2410.09344).

    Args:
        density: the share of differences that is kept, and the least divisor.
        change: how much a divisor changes outputs.

    Returns:
        The divisor, of equally good ones the least, and the change by each that was tried.
    """
    changes = {float(q): change(float(q)) for q in np.linspace(density, 1, N_DIVISORS)}
    return min(changes, key=lambda q: (changes[q], q)), changes


def mean_loss(parents: Parents, settings: Mapping, measuring: Measuring) -> float:
    """The mean over corpora of a merge's loss, in nats per token."""
    model = on_device(open_merge(parents, settings, measuring.model_dtype, measuring.device), measuring.device)
    rows = _as_read(model, parents, measuring)
    return sum(evaluate(model, of, measuring.batch_rows)["loss"] for of in rows.values()) / len(rows)


def mean_divergence(parents: Parents, settings: Mapping, measuring: Measuring) -> float:
    """How far random differences change each parent's predictions: the mean KL divergence from parent to pruned one.

    Each parent is pruned alone, with a weight and a lambda of 1, so no labels and no other parent have a part in it.
    """
    sums = DivergenceSums()
    for place, folder in enumerate(parents.folders):
        alone = parents._replace(folders=(folder,), models=(parents.models[place],), rows=None)
        own = dict(settings) | {"parents": [parents.names[place]], "weights": [1.0], "lambda": 1.0, "lines": None}
        models = (
            open_model(folder, measuring.device, measuring.model_dtype),
            on_device(open_merge(alone, own, measuring.model_dtype, measuring.device), measuring.device),
        )
        n_ids = min(model.config.get_text_config().vocab_size for model in models)
        for rows in _as_read(models[0], alone, measuring).values():
            sums = sums.plus(divergence_sums(models, (rows, rows), range(n_ids), measuring.batch_rows, len(rows.ids)))
        del models
    return sums.forward / max(1, sums.n_predictions)


def _as_read(model: PreTrainedModel, parents: Parents, measuring: Measuring) -> Mapping[str, TokenRows]:
    folder = parents.folders[parents.leader]
    return share_rows(model, folder, measuring.rows, "the merge", measuring.unshared).rows
