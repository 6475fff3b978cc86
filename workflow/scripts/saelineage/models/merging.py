"""Merging two models by spherical or linear interpolation, tensor by tensor.

The spherical formula and its switch to linear interpolation are those of mergekit's `slerp`
(github.com/arcee-ai/mergekit), after Shoemake, "Animating Rotation with Quaternion Curves" (1985), section 3.3.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, read_json, write_json, write_text
from saelineage.foreign.models import (
    CONFIG_FILE,
    GENERATION_FILE,
    WEIGHTS_FILE,
    named,
    require_same_function,
    text_config,
)
from saelineage.foreign.tokenizers import read_tokenizer, vocabulary_of
from saelineage.models.loading import MODULES_PER_TENSOR, MOST_MODULES, empty_model, load_model, open_state, untie
from saelineage.precision import DTYPES

logger = logging.getLogger(__name__)

LERP_ABOVE_COS = 0.9995
"""Absolute cosine above which tensors count as parallel, and `slerp` interpolates linearly."""


class Merged(NamedTuple):
    """A merged tensor and how it was merged."""

    tensor: Tensor
    cos: float | None
    """Cosine between the parents' flattened tensors, in [-1, 1]; None where one of them is zero."""
    branch: str
    """`slerp`, `lerp`, or `parent` at t = 0 and t = 1."""


def slerp(a: Tensor, b: Tensor, t: float) -> Merged:
    """Interpolate between two tensors along the arc between their directions.

    Both have one dtype. Each whole tensor counts as one vector. With theta the angle between the two, the result is
    sin((1 - t) theta) / sin(theta) a + sin(t theta) / sin(theta) b. Where |cos theta| > 0.9995, or one vector is zero,
    it is (1 - t) a + t b. At t = 0 and t = 1 it is the parent itself, bit for bit. It is computed in float64 and
    returned in the dtype of both.
    """
    if t in (0, 1):
        return Merged((b if t else a).clone(), _cos(a, b), "parent")
    cos = _cos(a, b)
    a64, b64 = a.double(), b.double()
    if cos is None or abs(cos) > LERP_ABOVE_COS:
        return Merged(((1 - t) * a64 + t * b64).to(a.dtype), cos, "lerp")
    theta = torch.arccos(torch.tensor(cos, dtype=torch.float64))
    merged = (torch.sin((1 - t) * theta) * a64 + torch.sin(t * theta) * b64) / torch.sin(theta)
    return Merged(merged.to(a.dtype), cos, "slerp")


def linear(a: Tensor, b: Tensor, t: float) -> Merged:
    """Interpolate linearly: (1 - t) a + t b, with the dtype and ends of `slerp`."""
    if t in (0, 1):
        return slerp(a, b, t)
    return Merged(((1 - t) * a.double() + t * b.double()).to(a.dtype), _cos(a, b), "lerp")


METHODS = {"slerp": slerp, "linear": linear}


def merge_state(
    a: dict[str, Tensor], b: dict[str, Tensor], t: float, names: tuple[str, str], method: str = "slerp"
) -> tuple[dict[str, Tensor], dict]:
    """Merge two models' tensors.

    Args:
        a, b: tensors by name, of the same dtypes.
        t: 0 is a, 1 is b.
        names: the parents' names, for error messages.
        method: one of `METHODS`.

    Returns:
        The merged tensors, and the `cos` and `branch` of each.

    Raises:
        InputError: if the models differ in the names or shapes of their tensors.
    """
    require_same_tensors(a, b, names)
    merged = {name: METHODS[method](a[name], b[name], t) for name in sorted(a)}
    tensors = {name: result.tensor.contiguous() for name, result in merged.items()}
    return tensors, {name: {"cos": result.cos, "branch": result.branch} for name, result in merged.items()}


def require_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor], names: tuple[str, str]) -> None:
    """Refuse to merge models whose tensors differ in name or shape.

    Raises:
        InputError: naming the models and the first tensor that differs.
    """
    for name in sorted(a.keys() | b.keys()):
        shapes = [tuple(state[name].shape) if name in state else None for state in (a, b)]
        if shapes[0] != shapes[1]:
            held = ", ".join(f"'{model}' has {shape or 'none'}" for model, shape in zip(names, shapes, strict=True))
            raise InputError(
                f"merged models must have the same shape, but for tensor '{name}' {held}; merge models of one base"
            )


class MergedVocabulary(NamedTuple):
    """The embeddings of two models that do not have the same tokens. The merged model has the first one's."""

    shared: Tensor
    """True for each row of the first model's embeddings that both have, and that is merged."""
    firsts: dict[str, Tensor]
    """The first model's embeddings with all their rows."""
    n_rows: tuple[int, int]
    only_first: tuple[str, ...]
    """Tokens that the first model has alone; their rows are its own."""
    only_second: tuple[str, ...]
    """Tokens that the second model has alone; they are not in the merged model."""

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put merged rows back among the first model's own."""
        whole = dict(tensors)
        for name, first in self.firsts.items():
            whole[name] = first.clone()
            whole[name][self.shared] = tensors[name]
        return whole

    def counts(self) -> dict[str, int]:
        """Numbers of rows and tokens, for the record."""
        kept = int((~self.shared).sum())
        return {
            "rows_first": self.n_rows[0],
            "rows_second": self.n_rows[1],
            "rows_merged": int(self.shared.sum()),
            "rows_of_first": kept,
            "tokens_of_first": len(self.only_first),
            "tokens_left_out": len(self.only_second),
        }

    def sentence(self, names: tuple[str, str]) -> str:
        """Say what is merged."""
        parts = [
            f"the embeddings of '{names[0]}' have {self.n_rows[0]} rows and those of '{names[1]}' {self.n_rows[1]}: "
            f"{int(self.shared.sum())} are merged, and {int((~self.shared).sum())} are those of '{names[0]}'"
        ]
        if self.only_first:
            parts.append(f"'{names[0]}' alone has the tokens {named(map(repr, self.only_first))}")
        if self.only_second:
            parts.append(
                f"the merge has not the tokens that '{names[1]}' alone has ({len(self.only_second)}: "
                f"{named(map(repr, self.only_second))}); put '{names[1]}' first to keep them"
            )
        return "; ".join(parts)


class Parents(NamedTuple):
    """Two models that can be merged."""

    names: tuple[str, str]
    states: tuple[dict[str, Tensor], dict[str, Tensor]]
    """Tensors under the names that files have, the same in both. A tied output embedding is among the input ones."""
    dtype: torch.dtype | None
    """Number format of all tensors; None where each has its own, the same in both."""
    config: PretrainedConfig
    """Of the merged model: the first parent's, untied where the other one is."""
    vocabulary: MergedVocabulary | None = None
    """The rows of embeddings that both have, if those of the two are not the same; `states` then hold these alone."""


def read_parents(folders: Sequence[Path], dtype: str | None) -> Parents:
    """Read two model folders of this run that are to be merged.

    Where the embeddings of one model are tied and those of the other are not, the tied one gets an output embedding of
    its own with the same numbers.

    Args:
        folders: the models' folders.
        dtype: number format of the tensors; None keeps each tensor's own, or takes the widest for all of them if the
            models differ, so that no number is rounded before it is merged.

    Raises:
        InputError: if the models' configs differ in what changes the logits, or their tensors in names or shapes.
    """
    names = folders[0].name, folders[1].name
    configs = [AutoConfig.from_pretrained(folder, trust_remote_code=False) for folder in folders]
    for warning in require_same_function(configs[0].to_dict(), configs[1].to_dict(), names):
        logger.warning("%s", warning)
    states = [read_state(folder, dtype) for folder in folders]
    for place, state in enumerate(states):
        more = states[1 - place].keys() - state.keys()
        if len(more) == 1 and _is_tied(folders[place]):
            (name,) = more
            state[name] = _head(folders[place], state).contiguous()
            logger.info("'%s' has tied embeddings; they are untied, as in '%s'", names[place], names[1 - place])
            untie(configs[0])
    states, vocabulary = share_vocabulary(states, folders, configs[0])
    require_same_tensors(states[0], states[1], names)
    if vocabulary is not None:
        logger.warning("%s", vocabulary.sentence(names))
    if dtype is not None:
        return Parents(names, (states[0], states[1]), DTYPES[dtype], configs[0], vocabulary)
    widest = _common_dtype(states, names)
    if widest is not None:
        states = [{name: tensor.to(widest) for name, tensor in state.items()} for state in states]
        if vocabulary is not None:
            firsts = {name: tensor.to(widest) for name, tensor in vocabulary.firsts.items()}
            vocabulary = vocabulary._replace(firsts=firsts)
    return Parents(names, (states[0], states[1]), widest, configs[0], vocabulary)


def share_vocabulary(
    states: Sequence[dict[str, Tensor]], folders: Sequence[Path], config: PretrainedConfig
) -> tuple[list[dict[str, Tensor]], MergedVocabulary | None]:
    """Keep the rows of two models' embeddings that both have: rows of the same token, or of no token in both.

    Args:
        states: the models' tensors.
        folders: their folders, with their own tokenizers.
        config: of the first.

    Returns:
        The tensors, and the rows that were kept; None, and the tensors as they were, if these are all.
    """
    embeddings = _embeddings(states, config)
    if not embeddings:
        return list(states), None
    n_rows = len(states[0][embeddings[0]]), len(states[1][embeddings[0]])
    tokenizers = [read_tokenizer(folder) for folder in folders]
    first, second = (vocabulary_of(each).tokens if each and all(tokenizers) else {} for each in tokenizers)
    different = {number for number in first.keys() | second.keys() if first.get(number) != second.get(number)}
    shared = torch.tensor([number < n_rows[1] and number not in different for number in range(n_rows[0])])
    if bool(shared.all()) and n_rows[0] == n_rows[1]:
        return list(states), None
    firsts = {name: states[0][name] for name in embeddings}
    kept = [
        state | {name: state[name][: len(shared)][shared[: len(state[name])]].contiguous() for name in embeddings}
        for state in states
    ]
    only = [
        tuple(words[number] for number in sorted(different & words.keys()) if number < rows)
        for words, rows in zip((first, second), n_rows, strict=True)
    ]
    return kept, MergedVocabulary(shared, firsts, n_rows, only[0], only[1])


def _embeddings(states: Sequence[dict[str, Tensor]], config: PretrainedConfig) -> list[str]:
    """Names of the tensors with a row for each token: input and output embeddings, and biases of the latter."""
    model = empty_model(config, max(MOST_MODULES, MODULES_PER_TENSOR * len(states[0])))
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules = {name.rpartition(".")[2] for name, module in model.named_modules() if any(module is end for end in ends)}
    names = [name for name in states[0] if name in states[1] and modules & set(name.split("."))]
    return [name for name in names if states[0][name].shape[1:] == states[1][name].shape[1:]]


def merge_parents(parents: Parents, t: float, method: str = "slerp") -> tuple[dict[str, Tensor], dict]:
    """Merge two models' tensors (`merge_state`), with rows of embeddings that both have where not all are shared."""
    tensors, record = merge_state(*parents.states, t, parents.names, method)
    return tensors if parents.vocabulary is None else parents.vocabulary.whole(tensors), record


def read_state(folder: Path, dtype: str | None) -> dict[str, Tensor]:
    """Read the tensors of a model folder, converted to `dtype`; None keeps each tensor's own."""
    state = load_file(folder / WEIGHTS_FILE)
    return state if dtype is None else {name: tensor.to(DTYPES[dtype]) for name, tensor in state.items()}


def merge_folders(a: Path, b: Path, t: float, dtype: str | None, folder: Path, method: str = "slerp") -> str | None:
    """Merge two model folders into a third, with a `merge.json` that says how each tensor was merged.

    Config, tokenizer and generation config are copied from the first parent. The merged weights are opened once before
    they are written.

    Returns:
        The name of the parent whose weights the merged model has; None if it has neither's.

    Raises:
        InputError: if the parents cannot be merged (`read_parents`), or the merged weights cannot be opened.
    """
    parents = read_parents([a, b], dtype)
    merged, branches = merge_parents(parents, t, method)
    states = parents.states if parents.vocabulary is None else (parents.states[0] | parents.vocabulary.firsts, {})
    pairs = [(name, state) for name, state in zip(parents.names, states, strict=True) if state]
    equal = next((name for name, state in pairs if all(torch.equal(merged[key], state[key]) for key in merged)), None)
    open_state(parents.config, merged, f"the merge of '{a.name}' and '{b.name}'", parents.dtype or "auto")
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(merged, temporary, metadata={"format": "pt"})
    chosen = {"dtype": _name_of(parents.dtype)} if parents.dtype else {}
    write_json(folder / CONFIG_FILE, _merged_config(a, parents.config) | chosen)
    for name in ("tokenizer.json", "tokenizer_config.json", GENERATION_FILE):
        if (a / name).exists():
            write_text(folder / name, (a / name).read_text(encoding="utf-8"))
    record = {"method": method, "parents": [a.name, b.name], "t": t, "tensors": branches}
    if parents.vocabulary is not None:
        record["vocabulary"] = parents.vocabulary.counts() | {"note": parents.vocabulary.sentence(parents.names)}
    write_json(folder / "merge.json", record)
    return equal


def _merged_config(folder: Path, config: PretrainedConfig) -> dict:
    """The config.json of the first parent, untied if the merged model is."""
    content = read_json(folder / CONFIG_FILE)
    if _is_tied(folder) and not config.tie_word_embeddings:
        for part in (content, text_config(content)):
            assert isinstance(part, dict)
            part["tie_word_embeddings"] = False
    return content


def _common_dtype(states: Sequence[dict[str, Tensor]], names: tuple[str, str]) -> torch.dtype | None:
    """The number format that holds all numbers of two models exactly; None if no tensor's formats differ."""
    a, b = states
    if all(a[name].dtype == b[name].dtype for name in a):
        return None
    widest = reduce(torch.promote_types, (tensor.dtype for state in states for tensor in state.values()))
    formats = [", ".join(sorted({_name_of(tensor.dtype) for tensor in state.values()})) for state in states]
    logger.warning(
        "the tensors of '%s' are %s and those of '%s' %s, so the merge is %s throughout; to have another number "
        "format, set the merge's dtype",
        *(names[0], formats[0], names[1], formats[1], _name_of(widest)),
    )
    return widest


def _name_of(dtype: torch.dtype) -> str:
    """The name of a number format as a config.json has it."""
    return str(dtype).removeprefix("torch.")


def _is_tied(folder: Path) -> bool:
    """True if a model's output embedding is its input embedding, as the config says."""
    return bool(getattr(AutoConfig.from_pretrained(folder, trust_remote_code=False), "tie_word_embeddings", False))


def _head(folder: Path, state: dict[str, Tensor]) -> Tensor:
    """The output embedding of a model with tied embeddings, in the number format of its tensors."""
    head = load_model(folder).get_output_embeddings().get_parameter("weight").detach()
    kind = next(tensor.dtype for tensor in state.values() if tensor.shape == head.shape)
    return head.to(kind)


def _cos(a: Tensor, b: Tensor) -> float | None:
    a64, b64 = a.double().flatten(), b.double().flatten()
    norms = float(a64.norm() * b64.norm())
    return None if norms == 0 else max(-1.0, min(1.0, float(a64 @ b64) / norms))
