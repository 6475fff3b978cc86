"""Reading rows token by token: each step reads what is new beside what the model keeps of the tokens before.

All rows of a batch are of one length, so that no place of them is padding.
"""

from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel


class Past(NamedTuple):
    """What a model keeps of the tokens that it has read. Reading on changes it in place."""

    kept: object = None
    """Keys and values; None of a model that keeps nothing, which reads its rows from the beginning again."""
    n_tokens: int = 0
    """The number of tokens of each row that it is of."""


class Step(NamedTuple):
    """A model after some tokens."""

    log_probs: Float[Tensor, "row id"]
    """Of the next token, over the ids that may follow, in float64."""
    past: Past


@torch.inference_mode()
def step(model: PreTrainedModel, rows: Int[Tensor, "row place"], past: Past, allowed: Int[Tensor, " id"]) -> Step:
    """Read what is new in some rows.

    Args:
        model: the model.
        rows: all tokens so far, of which at least the last one is new.
        past: of the tokens before.
        allowed: the ids that may follow.
    """
    output = _read(model, rows, past)
    return Step(output.logits[:, -1][:, allowed].double().log_softmax(-1), _past(output, rows))


@torch.inference_mode()
def read_on(model: PreTrainedModel, rows: Int[Tensor, "row place"]) -> Past:
    """What a model keeps of some rows; nothing of rows without tokens."""
    return _past(_read(model, rows, Past()), rows) if rows.shape[1] else Past()


def _read(model: PreTrainedModel, rows: Int[Tensor, "row place"], past: Past) -> Any:
    given: dict[str, object] = {} if past.kept is None else {"past_key_values": past.kept}
    if "logits_to_keep" in signature(model.forward).parameters:
        given["logits_to_keep"] = 1  # those of a whole prompt would be large
    return model(input_ids=rows[:, past.n_tokens :], use_cache=True, **given)


def _past(output: object, rows: Int[Tensor, "row place"]) -> Past:
    kept = getattr(output, "past_key_values", None)
    return Past() if kept is None else Past(kept, rows.shape[1])
