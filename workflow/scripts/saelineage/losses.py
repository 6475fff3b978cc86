"""What a prediction costs, apart from the models, for opening models loads transformers, which takes seconds."""

import torch
from torch import Tensor


def next_token_loss(logits: Tensor, ids: Tensor) -> tuple[float, int, int]:
    """Summed cross-entropy in nats, correct greedy predictions, and predictions, of ids from the ids before them.

    Args:
        logits: [row, n_ctx, d_vocab].
        ids: [row, n_ctx].
    """
    predicted, targets = logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
    return float(losses.double().sum()), int((predicted.argmax(-1) == targets).sum()), targets.numel()
