"""Merging models: each tensor by its method, block by block, in memory or into a folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from saelineage.errors import InputError
from saelineage.files.atomic import read_json, write_json, write_text
from saelineage.files.tensors import ARRAY_HEADER_BYTES, FOR_TRANSFORMERS, writing_tensors
from saelineage.foreign.models import CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE, named, text_config
from saelineage.models.loading import open_state
from saelineage.models.merging import combinations
from saelineage.models.merging.coefficients import depths, line, require_patterns_match, value_for
from saelineage.models.merging.differences import (
    Largest,
    added,
    breadcrumbs,
    drawn,
    elected,
    generator_of,
    kept_and_left_out,
    n_of,
)
from saelineage.models.merging.parents import Parents, name_of, open_parents
from saelineage.models.merging.weights import FORMAT_NAMES, Weights, as_rows, row_slices
from saelineage.plan.merges import GREEDY, SETTINGS, needs_base
from saelineage.precision import opened_dtype, widest

Rows = Float[Tensor, "row entry"]


class MergedTensor(NamedTuple):
    """A merged tensor, made block by block."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    record: dict
    """How it is merged."""
    blocks: Iterator[Tensor]
    """Along the first dimension."""


class Sources:
    """One tensor in the parents and their base, in blocks of the rows that all have, in float64."""

    def __init__(self, name: str, parents: Parents):
        """Find the tensor."""
        self.name, self._models = name, parents.all
        first = parents.models[0].shapes[name]
        self._shared = parents.rows.shared if parents.rows and name in parents.embeddings else None
        self.shape = first if self._shared is None else (len(self._shared), *first[1:])

    def mask(self, rows: slice) -> Tensor | None:
        """Which of some rows all models have; None for all of them."""
        return None if self._shared is None else self._shared[rows]

    def read(self, model: int, rows: slice) -> Rows:
        """The shared ones of some rows of a model."""
        block = self._models[model].read(self.name, rows)
        return as_rows(block if self._shared is None else block[self._shared[rows][: len(block)]])

    def blocks(self, *models: int) -> Iterator[list[Rows]]:
        """All shared rows of some models, block by block."""
        for rows in row_slices(self.shape):
            yield [self.read(model, rows) for model in models]

    def differences(self, parent: int) -> Iterator[Rows]:
        """A parent's rows minus those of the base, which is the last model, block by block."""
        for of_parent, of_base in self.blocks(parent, len(self._models) - 1):
            yield of_parent - of_base

    @property
    def n_entries(self) -> int:
        """Number of entries in shared rows."""
        rows = torch.Size(self.shape).numel()
        return rows if self._shared is None else int(self._shared.sum()) * torch.Size(self.shape[1:]).numel()

    def gram(self, n_models: int) -> combinations.Gram:
        """Products of the first models' tensors with each other."""
        total = torch.zeros(n_models, n_models, dtype=torch.float64)
        for block in self.blocks(*range(n_models)):
            flat = torch.stack(block).flatten(1)
            total += flat @ flat.T
        return total.numpy()


Combine = Callable[[list[Rows]], Rows]
"""Makes a block of the merged tensor of the blocks of parents and base."""


def merged_tensors(parents: Parents, settings: Mapping) -> Iterator[tuple[str, MergedTensor]]:
    """Merge models tensor by tensor, in the order of the tensors' names.

    Args:
        parents: the models.
        settings: `plan.merges.merge_settings`.

    Yields:
        The name of each tensor, and the tensor, whose blocks must be taken before the next one is asked for.

    Raises:
        InputError: if a pattern matches no tensor, layers cannot be told, parents are antipodal, a number does not fit
            into the number format, or tensors of whole numbers differ.
    """
    names = sorted(parents.models[0].shapes)
    require_patterns_match({key: settings[key] for key in SETTINGS if key in settings}, names)
    depth = depths(names, parents.before_layers) if settings.get("lines") else dict.fromkeys(names, 0.0)
    sources = {name: Sources(name, parents) for name in names if _is_merged(parents, name)}
    differences = _Differences(parents, settings, list(sources.values()))
    for name in names:
        stored = parents.models[0].dtype(name)
        if name not in sources:
            yield name, _equal_tensor(parents.models, name)
            continue
        source = sources[name]
        factor = line(settings.get("lines"), depth[name])
        if differences.are_used:
            combine, record = differences.of(source, factor)
        else:
            combine, record = _combination(source, parents, settings, factor)
        dtype = parents.dtype or stored
        yield name, MergedTensor(source.shape, dtype, record, _blocks(source, parents, combine, dtype))


def _is_merged(parents: Parents, name: str) -> bool:
    """True of tensors of fractions; those of whole numbers are taken over."""
    kinds = {model.name: model.dtype(name).is_floating_point for model in parents.all}
    if len(set(kinds.values())) > 1:
        whole = [model for model, is_float in kinds.items() if not is_float]
        raise InputError(
            f"a tensor must hold whole numbers in all models or in none, but '{name}' does in {named(whole)} alone; "
            "merge models of one base"
        )
    return next(iter(kinds.values()))


def _combination(source: Sources, parents: Parents, settings: Mapping, factor: float) -> tuple[Combine, dict]:
    """Methods that multiply each parent's tensor, and the base's, by a number."""
    method, n = settings["method"], len(parents.models)
    record: dict = {}
    of_base = 0.0
    weights = [value_for(weight, source.name) for weight in settings.get("weights", [])]
    t = settings.get("t")
    t = None if t is None else value_for(t, source.name)
    if method in ("linear", GREEDY):
        factors = [1 - t, t] if t is not None else combinations.linear(weights)
    elif method == "slerp":
        assert t is not None  # slerp has a default
        gram = source.gram(n)
        factors, branch = combinations.slerp(gram, t)
        is_parent = sorted(factors) == [0, 1] and factor == 1
        record = {"cos": combinations.cosine(gram), "branch": "parent" if is_parent else branch}
    elif method == "karcher":
        factors = combinations.karcher(source.gram(n), weights, settings["norms"])
    else:  # task_arithmetic and transfer
        scale = value_for(settings["lambda"], source.name)
        ahead = [1.0] if method == "transfer" else []
        added_factors, of_base = combinations.task_arithmetic(weights, scale)
        factors, of_base = [*ahead, *added_factors], of_base - len(ahead)
    if factor != 1.0:
        if method == "transfer":  # its lines scale what is transferred, not the parent that it goes to
            factors, of_base = [1.0, *(factor * each for each in factors[1:])], factor * of_base
        else:
            factors, of_base = [factor * each for each in factors], 1 - factor * (1 - of_base)
    every = [*factors, of_base] if parents.base is not None else factors
    return lambda blocks: _combined(blocks, every), record | {"factors": every}


def _combined(blocks: list[Rows], factors: Sequence[float]) -> Rows:
    """Sum of factor x block; the block itself, to the sign of its zeros, where the others have no part."""
    used = [(block, factor) for block, factor in zip(blocks, factors, strict=True) if factor]
    if len(used) == 1 and used[0][1] == 1:
        return used[0][0]
    total = torch.zeros_like(blocks[0])
    for block, factor in used:
        total.add_(block, alpha=factor)
    return total


class _Differences:
    """Methods that keep some entries of the parents' differences from the base."""

    def __init__(self, parents: Parents, settings: Mapping, sources: Sequence[Sources]):
        """Find what is kept of whole models, where it is not found tensor by tensor."""
        self._settings, self._parents = settings, parents
        self._method = settings["method"]
        self.are_used = "density" in settings
        self._of_model: list[Largest] = []
        self._std: list[float] = []
        if settings.get("trim") != "model":
            return
        total = sum(source.n_entries for source in sources)
        for place in range(len(parents.models)):

            def blocks(place: int = place) -> Iterator[Rows]:
                return chain.from_iterable(source.differences(place) for source in sources)

            self._of_model.append(Largest(blocks, n_of(total, settings["density"])))
            self._std.append(_std(blocks()) if self._method == "compress" else 0.0)

    def of(self, source: Sources, factor: float) -> tuple[Combine, dict]:
        """How a tensor is merged."""
        settings, n = self._settings, len(self._parents.models)
        keepers = [self._keeper(source, place) for place in range(n)]
        weights = [value_for(weight, source.name) for weight in settings.get("weights", [1.0])]
        scale = factor * value_for(settings["lambda"], source.name)
        normalize = settings.get("normalize")
        record: dict = {"kept": [0] * n}

        def combine(blocks: list[Rows]) -> Rows:
            base, kept = blocks[-1], []
            for place, (block, keep) in enumerate(zip(blocks[:-1], keepers, strict=True)):
                kept.append(keep(block - base))
                record["kept"][place] += int((kept[-1] != 0).sum())
            total = elected(kept, weights, normalize) if normalize is not None else added(kept, weights)
            return base + scale * total

        return combine, record

    def _keeper(self, source: Sources, place: int) -> Callable[[Rows], Rows]:
        """A function that leaves out entries of one block after the other of a parent's difference."""
        settings = self._settings
        density = value_for(settings["density"], source.name)
        if self._method.startswith("dare"):
            return self._random(source, place, density)
        if self._method.startswith("breadcrumbs"):
            gamma = value_for(settings["gamma"], source.name)
            if settings["mask"] == "row":
                return lambda block: block * breadcrumbs(block, density, gamma)
            n_kept, n_top = kept_and_left_out(source.n_entries, density, gamma)
            top = Largest(lambda: source.differences(place), n_top)
            all_kept = Largest(lambda: source.differences(place), n_top + n_kept)
            return lambda block: block * (all_kept.next(block) & ~top.next(block))
        if self._of_model:
            largest = self._of_model[place]
        else:
            largest = Largest(lambda: source.differences(place), n_of(source.n_entries, density))
        if self._method != "compress":
            return lambda block: block * largest.next(block)
        std = self._std[place] if self._std else _std(source.differences(place))
        size = std * value_for(settings["alpha"], source.name)
        return lambda block: block.sign() * largest.next(block) * size

    def _random(self, source: Sources, place: int, density: float) -> Callable[[Rows], Rows]:
        """DARE: random entries, divided by what makes up for the others."""
        settings, name = self._settings, self._parents.names[place]

        def random() -> np.random.Generator:
            return generator_of(settings["seed"], name, source.name)

        if settings["rescale"] == "l1":  # of the tensor, before and after
            again, before, after = random(), 0.0, 0.0
            for block in source.differences(place):
                sizes = block.abs()
                before += float(sizes.sum())
                after += float((sizes * drawn(block, density, again)).sum())
            factor = before / after if after else 1.0
            generator = random()
            return lambda block: block * drawn(block, density, generator) * factor
        divisor = value_for(settings["q"], source.name) if settings["rescale"] == "q" else density
        if density == 0:
            return torch.zeros_like
        generator = random()
        return lambda block: block * drawn(block, density, generator) / divisor


def _std(blocks: Iterator[Rows]) -> float:
    """Standard deviation of all entries, in two sums in float64."""
    n, total, squares = 0, 0.0, 0.0
    for block in blocks:
        n, total, squares = n + block.numel(), total + float(block.sum()), squares + float(block.square().sum())
    return max(0.0, squares / n - (total / n) ** 2) ** 0.5 if n else 0.0


def _blocks(source: Sources, parents: Parents, combine: Combine, dtype: torch.dtype) -> Iterator[Tensor]:
    """Merge a tensor block by block; rows that not all models have are the leading parent's."""
    models = range(len(parents.all))
    for rows in row_slices(source.shape):
        merged = combine([source.read(model, rows) for model in models])
        mask = source.mask(rows)
        if mask is None or bool(mask.all()):
            block = merged.reshape(rows.stop - rows.start, *source.shape[1:]) if source.shape else merged.reshape(())
            block = block.to(dtype)
        else:
            block = parents.models[parents.leader].read(source.name, rows).to(dtype).clone()
            block[mask] = merged.reshape(-1, *source.shape[1:]).to(dtype)
        if not bool(torch.isfinite(block).all()):
            raise InputError(
                f"merged numbers must be finite, but some of tensor '{source.name}' are not in {name_of(dtype)}, the "
                f"largest merged one being {float(merged.abs().max()):.3g}; set the merge's dtype to float32, or use "
                "smaller coefficients"
            )
        yield block


def _equal_tensor(models: Sequence[Weights], name: str) -> MergedTensor:
    """A tensor of whole numbers, which all parents must have alike."""
    shape = models[0].shapes[name]
    whole = slice(0, shape[0] if shape else 1)
    first = models[0].read(name, whole)
    for other in models[1:]:
        if not torch.equal(first, other.read(name, whole)):
            raise InputError(
                f"tensors of whole numbers must be the same in all parents, but '{name}' is not in '{models[0].name}' "
                f"and '{other.name}'; merge models of one base"
            )
    return MergedTensor(shape, first.dtype, {}, iter([first]))


def parent_shares(settings: Mapping, n_parents: int) -> list[float] | None:
    """The share of each parent in a merge, summing to one: of two by t, of more by their weights.

    None where there is none: values by tensors' names are not those of the whole model, and neither a single parent,
    nor one that differences are added to, nor negative weights make a line between parents.
    """
    t, weights = settings.get("t"), settings.get("weights", [])
    if t is not None:
        return [1 - t, t] if isinstance(t, float | int) else None
    numbers = [float(weight) for weight in weights if isinstance(weight, float | int)]
    if n_parents == 1 or len(numbers) != n_parents or min(numbers) < 0 or not sum(numbers):
        return None
    return combinations.linear(numbers)


def merged_state(parents: Parents, settings: Mapping) -> dict[str, Tensor]:
    """All merged tensors in memory, by name."""
    return {
        name: torch.cat(list(of.blocks)) if of.shape else next(of.blocks)
        for name, of in merged_tensors(parents, settings)
    }


def open_merge(parents: Parents, settings: Mapping, model_dtype: str, device: torch.device) -> PreTrainedModel:
    """Merge models in memory, and open the result in a number format that follows from that of its weights."""
    merged = merged_state(parents, settings)
    dtype_of = partial(opened_dtype, model_dtype, device=device)
    return open_state(parents.config, merged, f"the merge of {parents.names}", dtype_of(widest(merged.values())))


def merge_folders(settings: Mapping, folders: Sequence[Path], base: Path | None, folder: Path) -> dict:
    """Merge model folders into another one, with a `merge.json` that says how each tensor was merged.

    Config, tokenizer and generation config are copied from a parent: the first, but see `vocabulary.INTERSECT`.

    Args:
        settings: `plan.merges.merge_settings`.
        folders: of the parents, in the order of the settings.
        base: of the model that differences are taken from, where the settings need one.
        folder: to write.

    Returns:
        Facts for the manifest: `same_weights_as`, a model whose weights the merged model has; `warnings`.

    Raises:
        InputError: if the models cannot be merged (`parents.open_parents`, `merged_tensors`).
    """
    if needs_base(settings) and base is None:
        raise InputError(f"{settings['method']} must have a base to take differences from; set the merge's base")
    parents = open_parents(folders, base, settings["dtype"], settings["vocabulary"])
    records, same = {}, {model.name: model for model in parents.all}
    header_bytes = ARRAY_HEADER_BYTES * (1 + len(parents.models[0].shapes))
    with writing_tensors(folder / WEIGHTS_FILE, header_bytes, FOR_TRANSFORMERS) as writer:
        for name, tensor in merged_tensors(parents, settings):
            parts = (_as_bytes(block) for block in _watched(tensor, name, same))
            writer.add_parts(name, _format(tensor.dtype), tensor.shape, parts)
            records[name] = tensor.record
    leader = folders[parents.leader]
    chosen = {"dtype": name_of(parents.dtype)} if parents.dtype else {}
    write_json(folder / CONFIG_FILE, _merged_config(leader, parents.config) | chosen)
    for name in ("tokenizer.json", "tokenizer_config.json", GENERATION_FILE):
        if (leader / name).exists():
            write_text(folder / name, (leader / name).read_text(encoding="utf-8"))
    of_base = {"base": base.name} if base else {}
    record = dict(settings) | {"parents": list(parents.names)} | of_base | {"tensors": records}
    facts: dict = {}
    if parents.rows is not None:
        note = parents.rows.sentence([model.name for model in parents.all])
        record["vocabulary_rows"] = parents.rows.counts() | {"note": note}
        facts["warnings"] = [f"models.{folder.name}: {note}"]
    write_json(folder / "merge.json", record)
    return facts | ({"same_weights_as": next(iter(same))} if same else {})


def _watched(tensor: MergedTensor, name: str, same: dict[str, Weights]) -> Iterator[Tensor]:
    """Yield a tensor's blocks, and take models out of `same` that differ in one of them."""
    start = 0
    for block in tensor.blocks:
        rows = slice(start, start + (len(block) if tensor.shape else 1))
        for model in list(same.values()):
            is_whole = model.shapes[name] == tensor.shape
            if not is_whole or not torch.equal(model.read(name, rows).to(block.dtype), block):
                del same[model.name]
        start = rows.stop
        yield block


def _as_bytes(block: Tensor) -> np.ndarray:
    return block.contiguous().reshape(-1).view(torch.uint8).numpy()


def _format(dtype: torch.dtype) -> str:
    """The name of a number format in safetensors."""
    others = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
    return (FORMAT_NAMES | others | {torch.bool: "BOOL"})[dtype]


def _merged_config(folder: Path, config: PretrainedConfig) -> dict:
    """The config.json of a parent, with what the merged model has of its own: untied embeddings, other rows."""
    content, own = read_json(folder / CONFIG_FILE), AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for part in (content, text_config(content)):
        assert isinstance(part, dict)
        if own.tie_word_embeddings and not config.tie_word_embeddings:
            part["tie_word_embeddings"] = False
        if "vocab_size" in part:
            part["vocab_size"] = config.get_text_config().vocab_size
    return content
