"""Sampling text from a child beside its parent, token by token, so that what the child prefers comes out.

A *contrast* draws from softmax(log p_child - log p_parent) over the tokens with p_child of at least `PLAUSIBLE` of its
largest value, as contrastive decoding does with a large and a small model (Li et al., arXiv 2210.15097). The child
*alone* draws from p_child over the same tokens. The child beside *itself*, the contrast with the child in the parent's
place, draws from these tokens with equal chances, because the difference is 0: unlikely text that no parent is behind.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.behaviour.steps import Past, step

PLAUSIBLE = 0.1
"""Least probability of a token, as a share of the most likely one's."""
CONTRAST, ALONE, ITSELF = "contrast", "alone", "itself"
WAYS = (CONTRAST, ALONE, ITSELF)
"""Ways of sampling."""


@torch.inference_mode()
def sampled(
    child: PreTrainedModel,
    parent: PreTrainedModel,
    starts: tuple[Int[Tensor, "row start"], Int[Tensor, "row start"]],
    ids: Sequence[int],
    n_new: int,
    way: str,
    seed: int,
) -> Int[np.ndarray, "row new_token"]:
    """Sample continuations of beginnings of one length.

    Args:
        child, parent: the two models.
        starts: the beginnings, as the child and as the parent reads them.
        ids: the ids, ascending, that both models share; others never follow.
        n_new: new tokens.
        way: one of `WAYS`.
        seed: of the draws. Equal seeds give equal uniform numbers for every way, on every device.
    """
    allowed = torch.tensor(list(ids), device=child.device)
    uniforms = torch.from_numpy(np.random.default_rng(seed).random((n_new, len(starts[0])))).to(child.device)
    models = (child, parent) if way == CONTRAST else (child,)  # the other ways ask the child alone
    rows = [start.to(model.device) for start, model in zip(starts, models, strict=False)]
    pasts = [Past() for _ in models]
    drawn = []
    for uniform in uniforms:
        steps = [
            step(model, of_model, past, allowed) for model, of_model, past in zip(models, rows, pasts, strict=True)
        ]
        own, *other = (read.log_probs.to(child.device) for read in steps)
        beside = other[0] if other else own if way == ITSELF else torch.zeros_like(own)
        token = allowed[draw(own, beside, uniform)].unsqueeze(1)
        drawn.append(token)
        pasts = [read.past for read in steps]
        rows = [torch.cat([of_model, token.to(of_model.device)], dim=1) for of_model in rows]
    return torch.cat(drawn, dim=1).cpu().numpy()


def draw(
    child: Float[Tensor, "row id"], beside: Float[Tensor, "row id"], uniform: Float[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """Draw one place of each row from softmax(child - beside) over the plausible places.

    Args:
        child: log-probabilities by the child.
        beside: what is taken off; log-probabilities by the other model, or 0.
        uniform: in [0, 1), by which the place is drawn.
    """
    is_plausible = child >= child.amax(-1, keepdim=True) + np.log(PLAUSIBLE)
    scores = (child - beside).masked_fill(~is_plausible, -torch.inf)
    below = scores.softmax(-1).cumsum(-1)
    place = (below <= uniform.unsqueeze(-1) * below[:, -1:]).sum(-1)
    return place.clamp(max=child.shape[-1] - 1)
