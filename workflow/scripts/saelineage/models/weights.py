"""Change of a model's weights from those of its parent, by layer."""

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saelineage.models.change_sums import ChangeSums, change_sums

LAYER = re.compile(r"(.*?\.\d+)\.")
"""Beginning of the names of a layer's weights, such as `model.layers.3` or `transformer.h.0`."""


@torch.no_grad()
def weight_changes(parent: PreTrainedModel, child: PreTrainedModel, ids: Sequence[int]) -> dict:
    """Compare all weights of two models by their names.

    Embeddings with different numbers of rows are compared in the rows of `ids` alone. Weights that are tied in both
    models count once.

    Args:
        parent, child: the models.
        ids: the ids that both models share.

    Returns:
        `all` and, by layer, `layers`: the `report` of their sums. Weights outside layers are listed under the name of
        their module. `left_out`: names of the weights that only one of the models has, or in another shape.
    """
    layers: dict[str, ChangeSums] = {}
    left_out = []
    for name, before, after in _pairs(parent, child):
        if before is not None and after is not None and before.shape != after.shape:
            before, after = _shared_rows(parent, child, before, after, ids)
        if before is None or after is None:
            left_out.append(name)
            continue
        layer = layer_of(name)
        layers[layer] = layers.get(layer, ChangeSums()).plus(change_sums(before, after))
    total = ChangeSums()
    for sums in layers.values():
        total = total.plus(sums)
    return {
        "all": total.report(),
        "layers": {layer: sums.report() for layer, sums in layers.items()},
        "left_out": left_out,
    }


def layer_of(name: str) -> str:
    """The layer that a weight belongs to by its name, or its module where it belongs to none."""
    found = LAYER.match(name)
    return found.group(1) if found else name.rpartition(".")[0]


def _pairs(parent: PreTrainedModel, child: PreTrainedModel) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """Yield the weights of each name in both models, the parent's order first; None where a model lacks it."""
    before, after = (dict(model.named_parameters(remove_duplicate=False)) for model in (parent, child))
    seen = set()
    for name in dict.fromkeys([*before, *after]):
        pair = before.get(name), after.get(name)
        if (key := tuple(map(id, pair))) not in seen:
            seen.add(key)
            yield name, *pair


def _shared_rows(
    parent: PreTrainedModel, child: PreTrainedModel, before: Tensor, after: Tensor, ids: Iterable[int]
) -> tuple[Tensor | None, Tensor | None]:
    """The rows of `ids` of two embeddings; None of tensors that are no embeddings, or of different width."""
    is_embedding = _is_embedding(parent, before) and _is_embedding(child, after)
    if not is_embedding or before.shape[1:] != after.shape[1:]:
        return None, None
    numbers = torch.tensor(list(ids), device=before.device)
    return before[numbers], after[numbers]


def _is_embedding(model: PreTrainedModel, weight: Tensor) -> bool:
    """True of a weight of a model's input or output embedding."""
    ends: list[nn.Module | None] = [model.get_input_embeddings(), model.get_output_embeddings()]
    return any(weight is of_end for end in ends if end is not None for of_end in end.parameters())
