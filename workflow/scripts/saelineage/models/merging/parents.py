"""Models that are to be merged: whether they can be, in which number format, and which of their rows."""

import logging
from collections.abc import Collection, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from saelineage.errors import InputError
from saelineage.foreign.models import named, require_same_function
from saelineage.models.loading import MODULES_PER_TENSOR, MOST_MODULES, empty_model, untie
from saelineage.models.merging.vocabulary import REFUSE, SharedRows, shared_rows
from saelineage.models.merging.weights import Weights
from saelineage.precision import DTYPES

logger = logging.getLogger(__name__)


class Parents(NamedTuple):
    """Models that can be merged."""

    folders: tuple[Path, ...]
    models: tuple[Weights, ...]
    """Under the same names of tensors. A tied output embedding is among the input ones."""
    base: Weights | None
    """The model from which differences are taken, if there is one."""
    dtype: torch.dtype | None
    """Number format of all merged tensors; None where each keeps its own, the same in all parents."""
    config: PretrainedConfig
    """Of the merged model: a parent's, untied where another one is."""
    embeddings: tuple[str, ...]
    """Names of the tensors with a row for each token, the input embeddings first."""
    before_layers: tuple[str, ...]
    """Names of the tensors that lie before the layers: the input embeddings of tokens and positions."""
    rows: SharedRows | None
    """The rows of embeddings that all have, if not all are the same."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parents' names."""
        return tuple(model.name for model in self.models)

    @property
    def leader(self) -> int:
        """Number of the parent whose config and tokenizer the merged model has."""
        return 0 if self.rows is None else self.rows.leader

    @property
    def all(self) -> tuple[Weights, ...]:
        """The parents, and the base if there is one."""
        return self.models if self.base is None else (*self.models, self.base)


def open_parents(
    folders: Sequence[Path], base: Path | None, dtype: str | None = None, vocabulary: str = REFUSE
) -> Parents:
    """Open models of this run that are to be merged.

    Where the embeddings of some models are tied and those of others are not, all merge as untied.

    Args:
        folders: the parents' folders.
        base: the folder of their base, if the method needs one.
        dtype: number format of the merged tensors; None keeps each tensor's own, or takes the widest for all of them if
            the parents differ, so that no number is rounded before it is merged.
        vocabulary: what to do with tokens that not all models have (`vocabulary.shared_rows`).

    Raises:
        InputError: if the models' configs differ in what changes the logits, or their tensors in names or shapes, or
            their tokens do not allow it.
    """
    every = [*folders, *([base] if base else [])]
    configs = [AutoConfig.from_pretrained(folder, trust_remote_code=False) for folder in every]
    for folder, config in zip(every[1:], configs[1:], strict=True):
        for warning in require_same_function(configs[0].to_dict(), config.to_dict(), (every[0].name, folder.name)):
            logger.warning("%s", warning)
    models = [Weights(folder) for folder in every]
    _untie(models, configs)
    empty = _empty(configs[0], models[0])
    embeddings = _embeddings(models, empty)
    n_rows = [model.shapes[embeddings[0]][0] for model in models] if embeddings else []
    rows = shared_rows(every, n_rows, len(folders), vocabulary) if embeddings else None
    _require_same_tensors(models, embeddings if rows else [])
    parents = models[: len(folders)]
    if rows is not None:
        logger.warning("%s", rows.sentence([model.name for model in models]))
    config = configs[0 if rows is None else rows.leader]
    if any(not of.tie_word_embeddings for of in configs):
        untie(config)
    if rows is not None:
        config.get_text_config().vocab_size = len(rows.shared)
    chosen = DTYPES[dtype] if dtype else _common_dtype(parents)
    return Parents(
        tuple(folders),
        tuple(parents),
        models[-1] if base else None,
        chosen,
        config,
        tuple(embeddings),
        _before_layers(models[0].shapes, empty),
        rows,
    )


def _empty(config: PretrainedConfig, weights: Weights) -> PreTrainedModel:
    """A model without weights."""
    return empty_model(config, max(MOST_MODULES, MODULES_PER_TENSOR * len(weights.shapes)))


def _untie(models: Sequence[Weights], configs: Sequence[PretrainedConfig]) -> None:
    """Give models with tied embeddings an output embedding under the name that others have, with the same numbers."""
    every = {name for model in models for name in model.shapes}
    for model, config in zip(models, configs, strict=True):
        more = every - model.shapes.keys()
        if len(more) != 1 or not config.tie_word_embeddings:
            continue
        inputs = _embeddings([model], _empty(config, model))
        if inputs:
            model.alias(more.pop(), inputs[0])
            logger.info("'%s' has tied embeddings; they are merged as untied, as others have them", model.name)


def _before_layers(names: Collection[str], model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the tensors of a model's input embeddings, those of tokens and of positions."""
    modules = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return tuple(name for name in names if modules & set(name.split(".")))


def _embeddings(models: Sequence[Weights], model: PreTrainedModel) -> list[str]:
    """Names of the tensors with a row for each token: input embeddings first, then output ones and their biases."""
    names = []
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        modules = {name.rpartition(".")[2] for name, module in model.named_modules() if module is end}
        names += [
            name
            for name, shape in models[0].shapes.items()
            if modules & set(name.split("."))
            and all(name in other.shapes and other.shapes[name][1:] == shape[1:] for other in models)
        ]
    return list(dict.fromkeys(names))


def _require_same_tensors(models: Sequence[Weights], except_rows: Sequence[str]) -> None:
    """Refuse to merge models whose tensors differ in name or shape, but for the number of rows of some."""
    for name in sorted({name for model in models for name in model.shapes}):
        shapes = [model.shapes.get(name) for model in models]
        if name in except_rows:
            shapes = [None if shape is None else shape[1:] for shape in shapes]
        if len(set(shapes)) > 1:
            held = ", ".join(f"'{model.name}' has {model.shapes.get(name, 'none')}" for model in models)
            raise InputError(
                f"merged models must have the same shape, but for tensor '{name}' {held}; merge models of one base"
            )


def _common_dtype(models: Sequence[Weights]) -> torch.dtype | None:
    """The number format that holds all numbers of the models exactly; None if no tensor's formats differ."""
    formats = [{name: model.dtype(name) for name in model.shapes} for model in models]
    if all(of == formats[0] for of in formats):
        return None
    widest = reduce(torch.promote_types, (dtype for of in formats for dtype in of.values()))
    held = [
        f"'{model.name}' in {named({name_of(dtype) for dtype in of.values()})}"
        for model, of in zip(models, formats, strict=True)
    ]
    logger.warning(
        "the models' tensors are in different number formats (%s), so the merge is %s throughout; to have another one, "
        "set the merge's dtype",
        *(", ".join(held), name_of(widest)),
    )
    return widest


def folders_of(paths: Sequence[Path | str]) -> list[Path]:
    """The folders of some models' files, each once."""
    return list(dict.fromkeys(Path(path).parent for path in paths))


def name_of(dtype: torch.dtype) -> str:
    """The name of a number format as a config.json has it."""
    return str(dtype).removeprefix("torch.")
