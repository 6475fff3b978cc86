"""Next-token losses, apart from `models.loading`, because that imports transformers, which takes seconds."""

import torch
from torch import Tensor


def token_losses(logits: Tensor, ids: Tensor, predicted: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats of each id given the ids before it, [row, n_ctx - 1] in float64.

    Args:
        logits: [row, n_ctx, d_vocab].
        ids: [row, n_ctx].
        predicted: [row, n_ctx] mask of the ids whose losses count (`TokenRows.predicted`); others have none. None
            counts all.
    """
    predictions, targets = logits[:, :-1].flatten(0, 1).float(), ids[:, 1:]
    losses = torch.nn.functional.cross_entropy(predictions, targets.flatten(), reduction="none")
    losses = losses.double().view(targets.shape)
    return losses if predicted is None else losses.masked_fill(~predicted[:, 1:], 0.0)


def next_token_loss(logits: Tensor, ids: Tensor, predicted: Tensor | None = None) -> tuple[float, int, int]:
    """Sum of the next-token losses of a batch.

    Args:
        logits: [row, n_ctx, d_vocab].
        ids: [row, n_ctx].
        predicted: as for `token_losses`.

    Returns:
        The summed cross-entropy in nats, the number of correct greedy predictions, and the number of predictions.
    """
    targets = ids[:, 1:]
    is_correct = logits[:, :-1].argmax(-1) == targets
    loss = float(token_losses(logits, ids, predicted).sum())
    if predicted is None:
        return loss, int(is_correct.sum()), targets.numel()
    return loss, int((is_correct & predicted[:, 1:]).sum()), int(predicted[:, 1:].sum())
