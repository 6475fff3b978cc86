"""Continuations of text by a language model, with one feature held at a value or written into its activations.

All prompts of a batch are of one length. Each new token is read beside what the model keeps of those before.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.activations import adding, hooked
from saelineage.behaviour.steps import Past, read_on, step
from saelineage.saes.encoding import SparseLatents
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows

Change = Callable[[Tensor, int], Tensor]
"""What is done to the activations [row, place, d_in] of prompts and of what follows, from a first place on."""


class Prompts(NamedTuple):
    """Beginnings of token rows, of one length, each to be continued."""

    ids: Int[Tensor, "row place"]
    is_text: Bool[Tensor, "row place"]
    """Tokens whose activations may be changed: those that features are compared on. All that follow may be, too."""

    @property
    def last(self) -> int:
        """The place of the last token."""
        return self.ids.shape[1] - 1


class Continuations(NamedTuple):
    """The most likely continuation of each prompt."""

    log_probs: Float[Tensor, "row id"]
    """Of each id that may follow, for the first new token, in float64."""
    ids: Int[Tensor, "row new_token"]
    """The new tokens."""


def prompts_of(
    rows: Sequence[TokenRows], numbers: Integer[np.ndarray, " prompt"], length: int, device: torch.device
) -> Prompts:
    """The beginnings of some token rows, as one model reads them.

    Args:
        rows: the token rows that each prompt is taken from.
        numbers: the row of each prompt.
        length: tokens of each prompt.
        device: of the tensors.
    """
    ids = np.zeros((len(numbers), length), dtype=np.int64)
    is_text = np.ones(ids.shape, dtype=bool)
    for place, (of_corpus, number) in enumerate(zip(rows, numbers.tolist(), strict=True)):
        row = range(number, number + 1)
        ids[place] = of_corpus.read(row)[0, :length]
        is_text[place] = of_corpus.compared(row)[0, :length]
    return Prompts(torch.from_numpy(ids).to(device), torch.from_numpy(is_text).to(device))


def begun(model: PreTrainedModel, prompts: Prompts) -> Past:
    """What a model keeps of prompts, but for their last tokens: where nothing is changed before these, it can be used
    for every continuation."""
    return read_on(model, prompts.ids[:, : prompts.last])


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    prompts: Prompts,
    ids: Int[Tensor, " id"],
    n_new: int,
    past: Past,
    hookpoint: str | None = None,
    change: Change | None = None,
) -> Continuations:
    """Continue each prompt by the most likely token, again and again.

    Args:
        model: the model.
        prompts: the prompts.
        ids: the ids that may follow.
        n_new: new tokens, at least 1.
        past: from `begun`, which is not changed; empty to read the prompts from the beginning.
        hookpoint, change: what is done to the activations there; None leaves them as they are.
    """
    rows, first, past = prompts.ids, None, deepcopy(past)
    for _ in range(n_new):
        with _changed(model, hookpoint, change, past.n_tokens):
            read = step(model, rows, past, ids)
        past, first = read.past, read.log_probs if first is None else first
        rows = torch.cat([rows, ids[read.log_probs.argmax(-1, keepdim=True)]], dim=1)
    assert first is not None
    return Continuations(first, rows[:, prompts.last + 1 :])


def _changed(
    model: PreTrainedModel, hookpoint: str | None, change: Change | None, start: int
) -> AbstractContextManager[None]:
    """While the block runs, the model's activations from a place on are changed; as they are without a change."""
    if hookpoint is None or change is None:
        return nullcontext()
    return hooked(model, hookpoint, lambda acts: change(acts, start))


def held(
    sae: Sae,
    prompts: Prompts,
    latents: Int[Tensor, " row"],
    values: Float[Tensor, " row"],
    first: int,
) -> Change:
    """Hold one latent of each row at a value: acts become acts + (value - latent_acts_i) W_dec_i.

    At 0 this is the ablation of `lineage.ablations`: the latent's contribution is taken out, and the SAE's error stays.
    As there, tokens that are no text and tokens whose norm exceeds `Sae.max_norm` stay as they are.

    Args:
        sae: of the model whose activations are changed.
        prompts: the rows.
        latents, values: of each row.
        first: the first place from which on it is held.
    """
    encoder = sae.encoder()

    def change(acts: Tensor, start: int) -> Tensor:
        changed = acts.to(torch.float32, copy=True)
        is_held = torch.ones(acts.shape[:2], dtype=torch.bool, device=acts.device)
        of_prompts = prompts.is_text[:, start : start + acts.shape[1]]
        is_held[:, : of_prompts.shape[1]] = of_prompts
        is_held[:, : max(first - start, 0)] = False
        row, place = (is_held & (changed.norm(dim=-1) <= sae.max_norm)).nonzero(as_tuple=True)
        own = activations_of(encoder.encode(changed[row, place]), latents[row])
        changed[row, place] += (values[row] - own).unsqueeze(1) * sae.W_dec[latents[row]]
        return changed.to(acts.dtype)

    return change


def added(prompts: Prompts, vectors: Float[Tensor, "row d_in"]) -> Change:
    """Add a vector to the activations of each prompt's last token, and to no other."""

    def change(acts: Tensor, start: int) -> Tensor:
        place = prompts.last - start
        if not 0 <= place < acts.shape[1]:
            return acts
        every = torch.arange(len(vectors), device=acts.device)
        return adding(every, torch.full_like(every, place), vectors)(acts)

    return change


def activations_of(latents: SparseLatents, chosen: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """The activation of one latent of each token; 0 where it does not fire."""
    token = torch.repeat_interleave(torch.arange(len(chosen), device=chosen.device), latents.indptr.diff())
    is_chosen = latents.indices == chosen[token]
    own = torch.zeros(len(chosen), device=chosen.device)
    return own.index_copy(0, token[is_chosen], latents.values[is_chosen])
