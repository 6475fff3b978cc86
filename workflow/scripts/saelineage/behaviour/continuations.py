"""Continuations of text by a language model, with one feature held at a value or written into its activations.

Every place behind a prompt is filled one token at a time by running the whole row again, because hooks then see the
activations of every token. Rows of one batch end at different places; what stands behind a row's end is not seen by the
tokens before it, because models are causal.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.activations import adding, hooked
from saelineage.models.predictions import predict
from saelineage.saes.encoding import SparseLatents
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows

Change = Callable[[Tensor], Tensor]
"""What is done to the activations [row, place, d_in] of prompts."""


class Prompts(NamedTuple):
    """Beginnings of token rows, each to be continued."""

    ids: Int[Tensor, "row place"]
    """The beginnings, with places for what follows, whose values are not read."""
    lengths: Int[Tensor, " row"]
    """The number of tokens of each beginning."""
    is_text: Bool[Tensor, "row place"]
    """Tokens whose activations may be changed: those that features are compared on, and all behind a beginning."""


class Continuations(NamedTuple):
    """The most likely continuation of each prompt."""

    log_probs: Float[Tensor, "row id"]
    """Of each id that may follow, for the first new token, in float64."""
    ids: Int[Tensor, "row new_token"]
    """The new tokens."""


def prompts_of(
    rows: Sequence[TokenRows],
    numbers: Integer[np.ndarray, " prompt"],
    lengths: Integer[np.ndarray, " prompt"],
    n_new: int,
    device: torch.device,
) -> Prompts:
    """The beginnings of some token rows, as one model reads them.

    Args:
        rows: the token rows that each prompt is taken from.
        numbers: the row of each prompt.
        lengths: tokens of each prompt.
        n_new: places for new tokens.
        device: of the tensors.
    """
    shape = len(numbers), int(lengths.max(initial=0)) + n_new
    ids, is_text = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=bool)
    for place, (of_corpus, number, length) in enumerate(zip(rows, numbers.tolist(), lengths.tolist(), strict=True)):
        row = range(number, number + 1)
        ids[place, :length] = of_corpus.read(row)[0, :length]
        is_text[place, :length] = of_corpus.compared(row)[0, :length]
    on_device = (torch.from_numpy(of).to(device) for of in (ids, lengths.astype(np.int64), is_text))
    return Prompts(*on_device)


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    prompts: Prompts,
    ids: Int[Tensor, " id"],
    n_new: int,
    hookpoint: str | None = None,
    change: Change | None = None,
) -> Continuations:
    """Continue each prompt by the most likely token, again and again.

    Args:
        model: the model.
        prompts: with places for `n_new` tokens.
        ids: the ids that may follow.
        n_new: new tokens, at least 1.
        hookpoint, change: what is done to the activations there; None leaves them as they are.
    """
    rows, every = prompts.ids.clone(), torch.arange(len(prompts.ids), device=prompts.ids.device)
    first = None
    for step in range(n_new):
        width, last = int(prompts.lengths.max()) + step, prompts.lengths + step - 1
        with nullcontext() if change is None or hookpoint is None else hooked(model, hookpoint, change):
            logits = predict(model, rows[:, :width]).at(every * width + last)[:, ids]
        first = logits.double().log_softmax(-1) if first is None else first
        rows[every, last + 1] = ids[logits.argmax(-1)]
    assert first is not None
    places = prompts.lengths.unsqueeze(1) + torch.arange(n_new, device=rows.device)
    return Continuations(first, rows.gather(1, places))


def held(
    sae: Sae,
    prompts: Prompts,
    latents: Int[Tensor, " row"],
    values: Float[Tensor, " row"],
    first: Int[Tensor, " row"],
) -> Change:
    """Hold one latent of each row at a value: acts become acts + (value - latent_acts_i) W_dec_i.

    At 0 this is the ablation of `lineage.ablations`: the latent's contribution is taken out, and the SAE's error stays.
    As there, tokens that are no text and tokens whose norm exceeds `Sae.max_norm` stay as they are.

    Args:
        sae: of the model whose activations are changed.
        prompts: the rows.
        latents, values: of each row.
        first: the first place of each row from which on it is held.
    """
    encoder = sae.encoder()

    def change(acts: Tensor) -> Tensor:
        changed = acts.to(torch.float32, copy=True)
        width = acts.shape[1]
        is_held = prompts.is_text[:, :width] & (torch.arange(width, device=acts.device) >= first.unsqueeze(1))
        row, place = (is_held & (changed.norm(dim=-1) <= sae.max_norm)).nonzero(as_tuple=True)
        own = activations_of(encoder.encode(changed[row, place]), latents[row])
        changed[row, place] += (values[row] - own).unsqueeze(1) * sae.W_dec[latents[row]]
        return changed.to(acts.dtype)

    return change


def added(prompts: Prompts, vectors: Float[Tensor, "row d_in"]) -> Change:
    """Add a vector to the activations of each prompt's last token, and to no other."""
    return adding(torch.arange(len(vectors), device=vectors.device), prompts.lengths - 1, vectors)


def activations_of(latents: SparseLatents, chosen: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """The activation of one latent of each token; 0 where it does not fire."""
    token = torch.repeat_interleave(torch.arange(len(chosen), device=chosen.device), latents.indptr.diff())
    is_chosen = latents.indices == chosen[token]
    own = torch.zeros(len(chosen), device=chosen.device)
    return own.index_copy(0, token[is_chosen], latents.values[is_chosen])
