"""The two models of an edge in memory, with what both can read and write."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from saelineage.lineage.matching import SIDES
from saelineage.models.loading import open_model
from saelineage.models.vocabularies import common_ids, end_ids, share_rows
from saelineage.tokens import TokenRows


class Reader(NamedTuple):
    """A model in memory, with what it reads."""

    model: PreTrainedModel
    rows: Mapping[str, TokenRows]
    """Token rows of the probe by corpus, as this model reads them."""


def open_edge(
    names: Mapping[str, str],
    folders: Mapping[str, Path],
    rows: Mapping[str, TokenRows],
    device: torch.device,
    unshared: str,
    model_dtype: str,
) -> tuple[dict[str, Reader], list[int]]:
    """Open both models of an edge.

    Args:
        names, folders: of the `parent` and the `child`.
        rows: token rows of the probe by corpus.
        device: the device to compute on.
        unshared: as in the config's `tokens` block.
        model_dtype: as in the config.

    Returns:
        The models by side, and the ids that both share, ascending.
    """
    readers, facts = {}, []
    for side in SIDES:
        model = open_model(folders[side], device, model_dtype)
        shared = share_rows(model, folders[side], rows, names[side], unshared)
        readers[side] = Reader(model, shared.rows)
        facts.append(shared.facts)
    parent, child = (folders[side] for side in SIDES)
    return readers, common_ids(facts, (parent, child), end_ids(rows))
