"""Next-token losses, apart from `models.loading`, because that imports transformers, which takes seconds."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from saelineage.models.predictions import Predictions


class LossSums(NamedTuple):
    """Sums over predictions; sums of several sets of predictions add."""

    loss: float = 0.0
    """Summed cross-entropy in nats."""
    n_correct: int = 0
    """Predictions whose most likely token is the right one."""
    n_predictions: int = 0

    def plus(self, other: "LossSums") -> "LossSums":
        """The sums over both sets."""
        return LossSums(
            self.loss + other.loss, self.n_correct + other.n_correct, self.n_predictions + other.n_predictions
        )

    def means(self) -> dict[str, float | int]:
        """`loss` in nats and `accuracy` in [0, 1] per prediction, and `n_predictions`."""
        n = self.n_predictions
        return {"loss": self.loss / n, "accuracy": self.n_correct / n, "n_predictions": n}


def token_losses(
    predictions: Predictions, ids: Int[Tensor, "row n_ctx"], predicted: Bool[Tensor, "row n_ctx"] | None = None
) -> Float[Tensor, "row place"]:
    """Cross-entropy in nats of each id given the ids before it, [row, n_ctx - 1] in float64.

    Where gradients are taken, the logits of several blocks are made once more for them and not kept.

    Args:
        predictions: of a model on these ids.
        ids: the rows.
        predicted: the ids whose losses count (`TokenRows.predicted`); others have none. None counts all.
    """
    positions, targets = _counted(ids, predicted)
    is_remade = torch.is_grad_enabled() and len(positions) > predictions.block_positions

    def of_block(positions: Tensor, targets: Tensor) -> Tensor:
        return _losses(predictions.at(positions), targets)

    blocks = zip(*(each.split(predictions.block_positions) for each in (positions, targets)), strict=True)
    parts = [checkpoint(of_block, *block, use_reentrant=False) if is_remade else of_block(*block) for block in blocks]
    losses = torch.zeros(ids.numel(), dtype=torch.float64, device=ids.device)
    return losses.index_copy(0, positions, torch.cat(parts)).view(ids.shape)[:, :-1]


@torch.no_grad()
def next_token_loss(
    predictions: Predictions, ids: Int[Tensor, "row n_ctx"], predicted: Bool[Tensor, "row n_ctx"] | None = None
) -> LossSums:
    """The sums over the next-token predictions of a batch; arguments as for `token_losses`."""
    sums = LossSums()
    positions, _ = _counted(ids, predicted)
    following = ids.flatten()
    for block, logits in predictions.blocks(positions):
        targets = following[block + 1]
        n_correct = int((logits.argmax(-1) == targets).sum())
        sums = sums.plus(LossSums(float(_losses(logits, targets).sum()), n_correct, len(block)))
    return sums


def _counted(ids: Tensor, predicted: Tensor | None) -> tuple[Tensor, Tensor]:
    """The positions after which a prediction counts, and the ids that are right there."""
    counts = torch.ones_like(ids, dtype=torch.bool) if predicted is None else predicted.clone()
    counts[:, 0] = False  # the first id of a row is not predicted
    places = counts.flatten().nonzero().flatten()
    return places - 1, ids.flatten()[places]


def _losses(logits: Float[Tensor, "token d_vocab"], targets: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Cross-entropy in nats, from float32 logits, in float64."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
