"""Next-token losses, apart from `models.loading`, because that imports transformers, which takes seconds."""

import torch
from torch import Tensor


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy in nats of each id given the ids before it, [row, n_ctx - 1] in float64.

    Args:
        logits: [row, n_ctx, d_vocab].
        ids: [row, n_ctx].
    """
    predicted, targets = logits[:, :-1].flatten(0, 1).float(), ids[:, 1:]
    losses = torch.nn.functional.cross_entropy(predicted, targets.flatten(), reduction="none")
    return losses.double().view(targets.shape)


def next_token_loss(logits: Tensor, ids: Tensor) -> tuple[float, int, int]:
    """Sum of the next-token losses of a batch.

    Args:
        logits: [row, n_ctx, d_vocab].
        ids: [row, n_ctx].

    Returns:
        The summed cross-entropy in nats, the number of correct greedy predictions, and the number of predictions.
    """
    targets = ids[:, 1:]
    n_correct = int((logits[:, :-1].argmax(-1) == targets).sum())
    return float(token_losses(logits, ids).sum()), n_correct, targets.numel()
