"""Attributions: a first-order estimate of what ablating each single feature does to a model's loss.

Ablating latent i subtracts latent_acts_i W_dec_i from the activations of a token. To first order the summed loss L then
changes by -latent_acts_i <dL/dacts, W_dec_i>, so one forward and one backward pass give the effects of all latents
(attribution patching: Nanda 2023; Syed et al., arXiv 2310.10348; for features of SAEs, with the SAE's error left in as
in `ablations`, Marks et al., arXiv 2403.19647). It is exact where the loss is linear along the ablation. It errs most
for features that make a prediction all but certain, because there the slope is nearly zero. So the gradient is not
taken at the activations themselves but where all latents are at `KEPT` of their activations (docs/decisions/0028).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.activations import hooked
from saelineage.errors import InputError
from saelineage.lineage.ablations import group_part
from saelineage.models.losses import token_losses
from saelineage.models.predictions import predict
from saelineage.saes.encoding import ENCODED_VALUES
from saelineage.saes.sae import Sae, SparseLatents
from saelineage.tokens import TokenRows

KEPT = 0.85
"""Share of all latent activations at the point of which the gradient is taken; 1 would be the activations."""


class Attributed(NamedTuple):
    """Summed effects on the loss of ablating each latent alone, by corpus."""

    corpora: tuple[str, ...]
    """Sorted."""
    sums: Float[np.ndarray, "corpus d_sae"]
    """The estimated change of the summed loss in nats, above 0 where the feature helps."""
    n_firings: Int[np.ndarray, "corpus d_sae"]
    n_tokens: Int[np.ndarray, " corpus"]
    """Tokens predicted."""


def attributed_effects(
    model: PreTrainedModel,
    sae: Sae,
    hookpoint: str,
    rows: Mapping[str, TokenRows],
    batch_rows: int,
    max_rows: int | None = None,
) -> Attributed:
    """Estimate the change in a model's loss when each of its features is ablated alone, by corpus.

    Gradients are taken of the activations at the hookpoint only; meanwhile the model's weights are frozen. As in
    `ablations`, BOS, EOS and outliers are left as they are, and the losses of later tokens of a row count.

    Args:
        model, sae, hookpoint: the model, and the SAE trained on its activations at the hookpoint.
        rows: token rows by corpus.
        batch_rows: rows in a pass.
        max_rows: rows of each corpus, at most (`TokenRows.spread`); None takes all.
    """
    corpora = tuple(sorted(rows))
    sums = torch.zeros(len(corpora), sae.d_sae, dtype=torch.float64, device=model.device)
    firings = torch.zeros(len(corpora), sae.d_sae, dtype=torch.int64, device=model.device)
    n_tokens = np.zeros(len(corpora), dtype=np.int64)
    for place, corpus in enumerate(corpora):
        of_corpus = rows[corpus]
        for numbers, array in of_corpus.batches(batch_rows, of_corpus.spread(max_rows)):
            predicted, is_text = of_corpus.predicted(numbers), of_corpus.compared(numbers)
            counts = torch.from_numpy(is_text).to(model.device), torch.from_numpy(predicted).to(model.device)
            with _frozen(model):
                latents, effects = _firing_effects(sae, *_read(model, sae, hookpoint, array, *counts))
            sums[place].index_add_(0, latents, effects)
            firings[place] += torch.bincount(latents, minlength=sae.d_sae)
            n_tokens[place] += int(predicted[:, 1:].sum())
    return Attributed(corpora, sums.cpu().numpy(), firings.cpu().numpy(), n_tokens)


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """While the block runs, no weight asks for a gradient, so that nothing is kept for one."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_()


@torch.enable_grad()
def _read(
    model: PreTrainedModel,
    sae: Sae,
    hookpoint: str,
    array: Int[np.ndarray, "row n_ctx"],
    is_text: Bool[Tensor, "row n_ctx"],
    predicted: Bool[Tensor, "row n_ctx"],
) -> tuple[SparseLatents, Float[Tensor, "token d_in"]]:
    """The latents on the tokens that the SAE reads, and there the gradient of the summed loss, see `KEPT`."""
    read: list[tuple[SparseLatents, Tensor, Tensor]] = []

    def weakened(acts: Tensor) -> Tensor:
        with torch.no_grad():
            dtype, acts = acts.dtype, acts.float()
            kept = is_text & (acts.norm(dim=-1) <= sae.max_norm)
            latents, changed = sae.encode_sparse(acts[kept]), acts.clone()
            changed[kept] -= (1 - KEPT) * group_part(sae, latents)
        read.append((latents, kept, changed.requires_grad_()))
        return changed.to(dtype)

    ids = torch.from_numpy(array).to(model.device)
    with hooked(model, hookpoint, weakened):
        loss = token_losses(predict(model, ids), ids, predicted).sum()
    if len(read) != 1:
        raise InputError(
            f"activations.hookpoint: the model must run '{hookpoint}' once, but runs it {len(read)} times; use "
            "another module"
        )
    latents, kept, acts = read[0]
    (gradient,) = torch.autograd.grad(loss, acts)
    return latents, gradient[kept]


@torch.inference_mode()
def _firing_effects(
    sae: Sae, latents: SparseLatents, gradient: Float[Tensor, "token d_in"]
) -> tuple[Int[Tensor, " entry"], Float[Tensor, " entry"]]:
    """The latent of each firing, and its estimated effect on the summed loss in float64."""
    indptr, indices, values = latents
    step, slopes = max(1, ENCODED_VALUES // sae.d_sae), [values.new_empty(0)]
    for start in range(0, len(gradient), step):  # few tokens at a time, as in encoding
        of_all = gradient[start : start + step].float() @ sae.W_dec.T
        bounds = indptr[start : start + step + 1]
        token = torch.repeat_interleave(torch.arange(len(of_all), device=gradient.device), bounds.diff())
        slopes.append(of_all[token, indices[bounds[0] : bounds[-1]].long()])
    return indices.long(), -(values.double() * torch.cat(slopes).double())
