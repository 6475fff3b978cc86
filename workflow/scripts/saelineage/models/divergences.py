"""Kullback-Leibler divergence between two models' predictions of the next token."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.models.predictions import Predictions, predict
from saelineage.tokens import TokenRows

BLOCK_VALUES = 1 << 17
"""Logits of one model that are held in float64 at a time. Blocks that fit a processor's cache are also the fastest."""


class DivergenceSums(NamedTuple):
    """Summed divergences over predictions; sums of several sets of predictions add."""

    forward: float = 0.0
    """KL(parent || child) in nats."""
    reverse: float = 0.0
    """KL(child || parent) in nats."""
    n_predictions: int = 0

    def plus(self, other: "DivergenceSums") -> "DivergenceSums":
        """The sums over both sets."""
        return DivergenceSums(
            self.forward + other.forward, self.reverse + other.reverse, self.n_predictions + other.n_predictions
        )

    def means(self) -> dict[str, float | int | None]:
        """Nats per prediction: `kl` from parent to child and `kl_reverse`, None where nothing is predicted."""
        n = self.n_predictions
        means = {"kl": self.forward / n, "kl_reverse": self.reverse / n} if n else {"kl": None, "kl_reverse": None}
        return {**means, "n_predictions": n}


def token_divergences(
    parent: Float[Tensor, "token d_vocab"], child: Float[Tensor, "token d_vocab"]
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """KL(parent || child) and KL(child || parent) of each token's two predictions, in nats and float64.

    With p and q the softmax of the two models' logits, KL(p || q) = sum_i p_i (log p_i - log q_i). Both are exactly 0
    where the logits are equal.
    """
    log_p, log_q = parent.double().log_softmax(-1), child.double().log_softmax(-1)
    difference = log_p - log_q
    return (log_p.exp() * difference).sum(-1), -(log_q.exp() * difference).sum(-1)


@torch.inference_mode()
def divergence_sums(
    models: tuple[PreTrainedModel, PreTrainedModel],
    rows: tuple[TokenRows, TokenRows],
    ids: Sequence[int],
    batch_rows: int,
    max_rows: int,
) -> DivergenceSums:
    """Sum the divergences of two models over the predictions that count for both (`TokenRows.predicted`).

    Args:
        models: the parent and the child.
        rows: the same token rows as each of them reads them.
        ids: the ids, ascending, that both models share; the softmax of both is over these.
        batch_rows: rows in a forward pass.
        max_rows: rows to read, at most (`TokenRows.spread`).
    """
    sums = DivergenceSums()
    for numbers, *batches in _together(rows, batch_rows, rows[0].spread(max_rows)):
        counts = torch.from_numpy(rows[0].predicted(numbers) & rows[1].predicted(numbers))
        counts[:, 0] = False  # the first id of a row is not predicted
        predictions = [predict(model, batch.to(model.device)) for model, batch in zip(models, batches, strict=True)]
        size = min(of_model.block_positions for of_model in predictions)
        for positions in (counts.flatten().nonzero().flatten() - 1).split(size):
            sums = sums.plus(_block_sums(predictions, positions, ids))
    return sums


def _block_sums(
    predictions: Sequence[Predictions], positions: Int[Tensor, " position"], ids: Sequence[int]
) -> DivergenceSums:
    """The sums over some positions, whose logits are made at once and compared few at a time."""
    sums, n = DivergenceSums(), max(1, BLOCK_VALUES // len(ids))
    logits = [of_model.at(positions) for of_model in predictions]
    for start in range(0, len(positions), n):
        forward, reverse = token_divergences(*(_shared(of_model[start : start + n], ids) for of_model in logits))
        sums = sums.plus(DivergenceSums(float(forward.sum()), float(reverse.sum()), len(forward)))
    return sums


def _together(
    rows: tuple[TokenRows, TokenRows], batch_rows: int, within: range
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Yield row numbers, and the ids that each of the two models reads there."""
    for (numbers, first), (_, second) in zip(*(of.batches(batch_rows, within) for of in rows), strict=True):
        yield numbers, torch.from_numpy(first), torch.from_numpy(second)


def _shared(logits: Float[Tensor, "token d_vocab"], ids: Sequence[int]) -> Float[Tensor, "token id"]:
    """The logits of some ids."""
    is_prefix = len(ids) == ids[-1] + 1
    return logits[:, : len(ids)] if is_prefix else logits[:, list(ids)]
