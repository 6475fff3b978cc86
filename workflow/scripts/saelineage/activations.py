"""Reading, replacing and storing the activations at one module of a model.

A shard is a safetensors file with `acts` [token, d_in], their Euclidean `norms` [token] and `positions` [token] (row x
n_ctx + place in the row). It holds text tokens only: BOS and EOS are masked out. The norm of a token that the model
does not share with the run's tokenizer (`models.vocabularies`) is NaN, which is below no limit, so that no SAE is
trained on it and no feature is compared there. Its header says which token rows it covers.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path, decode_header, encode_header
from saelineage.foreign.saelens_names import place_keys
from saelineage.models.predictions import Predictions, predict
from saelineage.precision import DTYPES
from saelineage.tokens import TokenRows

SINGLE_EXPERT = re.compile(r"(.*\.)?experts\.\d+(\..*)?")
CAUSAL_IDS = (5, 2, 7, 3, 6, 4, 8, 1)
"""Ids that `require_causal` gives a model; every vocabulary is larger."""
MOST_BACKWARD = {torch.float32: 1e-4}
"""Limit for the effect of later tokens on earlier logits, as a share of that on their own logits, by number format.

It is above the rounding that changes when other tokens share a matrix product, as tokens of one expert do.
"""
MOST_BACKWARD_ROUNDED = 0.1
"""The same for number formats of 16 bits, in which one step of a logit is up to a hundredth of its size, and rounding
can send a token to another expert. In a trained encoder the effect is larger."""


class _ReadError(Exception):
    """Ends a forward pass whose activations have been read."""


class Hookpoint(NamedTuple):
    """One side of a module."""

    module: str
    """Dotted name."""
    side: str
    """`input` or `output`."""

    @classmethod
    def parse(cls, text: str) -> "Hookpoint":
        """Split a dotted name such as `model.layers.0.mlp.down_proj.input`."""
        module, _, side = text.rpartition(".")
        return cls(module, side)


def adding(
    row: Int[Tensor, " token"], place: Int[Tensor, " token"], part: Float[Tensor, "token d_in"]
) -> Callable[[Tensor], Tensor]:
    """A change for `hooked` that adds `part`, in float32, to the activations of distinct tokens.

    Args:
        row, place: of the tokens.
        part: what is added to each.
    """

    def change(acts: Tensor) -> Tensor:
        changed = acts.to(torch.float32, copy=True)
        changed[row, place] += part
        return changed.to(acts.dtype)

    return change


@contextmanager
def hooked(model: nn.Module, hookpoint: str, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While the block runs, pass activations [row, n_ctx, d_in] to `change` and replace them by its result, if any.

    A module's input is its first argument, positional or by keyword. If the input or output is a tuple, as in Hugging
    Face blocks, its first tensor is used. Activations that the model has flattened to [row x n_ctx, d_in], as OPT does
    around fc1 and fc2, are passed on as [row, n_ctx, d_in].

    Raises:
        InputError: if the model has no such module, it is one of several experts, or the values there are not
            activations [row, n_ctx, d_in].
    """
    point = Hookpoint.parse(hookpoint)
    modules = dict(model.named_modules())
    _require_module(point, modules)
    if point.side not in ("input", "output"):
        raise InputError(f"activations.hookpoint must end in .input or .output, got '{hookpoint}'")

    called_with: list[torch.Size] = []

    def note_shape(module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keep the shape [row, n_ctx] of the ids that the model is called with."""
        ids = args[0] if args else kwargs.get("input_ids")
        called_with[:] = [ids.shape] if isinstance(ids, Tensor) else []

    def replaced(value: object) -> object:
        """Apply `change` to the first tensor of `value`."""
        first = value[0] if isinstance(value, tuple) else value
        acts = _unflattened(first, called_with)
        if acts is None:
            raise InputError(
                f"activations.hookpoint: '{hookpoint}' must give activations [row, n_ctx, d_in], but gives "
                f"{_kind(first)}; use the input or output of a layer or of a module in it"
            )
        changed = change(acts)
        if changed is None:
            return value
        changed = changed if acts is first else changed.flatten(0, 1)
        return (changed, *value[1:]) if isinstance(value, tuple) else changed

    def on_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (replaced(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, kwargs | {name: replaced(kwargs[name])}

    def on_output(module: nn.Module, args: tuple, output: object) -> object:
        return replaced(output)

    module = modules[point.module]
    handles = [
        model.register_forward_pre_hook(note_shape, with_kwargs=True),
        module.register_forward_pre_hook(on_input, with_kwargs=True)
        if point.side == "input"
        else module.register_forward_hook(on_output),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def read_activations(
    model: nn.Module, hookpoint: str, ids: Integer[Tensor, "row n_ctx"]
) -> Float[Tensor, "row n_ctx d_in"]:
    """The activations at one hookpoint for a batch of rows; see `read_all`."""
    return read_all(model, [hookpoint], ids)[0]


@torch.inference_mode()
def read_all(
    model: nn.Module, hookpoints: Sequence[str], ids: Integer[Tensor, "row n_ctx"]
) -> list[Float[Tensor, "row n_ctx _d_in"]]:
    """The activations at several hookpoints for a batch of rows, from one forward pass.

    The pass ends at the last of them: later layers and the logits are not computed.

    Raises:
        InputError: if the model never runs the module of a hookpoint.
    """
    read: dict[str, Tensor] = {}

    def keep(hookpoint: str) -> Callable[[Tensor], None]:
        def of_hookpoint(acts: Tensor) -> None:
            is_last = len({*read, hookpoint}) == len(set(hookpoints))
            read.setdefault(hookpoint, acts if is_last else acts.clone())  # later modules may change them in place
            if is_last:
                raise _ReadError

        return of_hookpoint

    with ExitStack() as stack:
        for hookpoint in dict.fromkeys(hookpoints):
            stack.enter_context(hooked(model, hookpoint, keep(hookpoint)))
        with suppress(_ReadError):
            model(input_ids=ids, use_cache=False)
    for hookpoint in hookpoints:
        _require_read(hookpoint in read, hookpoint)
    return [read[hookpoint] for hookpoint in hookpoints]


@torch.inference_mode()
def read_with_predictions(
    model: nn.Module, hookpoint: str, ids: Integer[Tensor, "row n_ctx"]
) -> tuple[Float[Tensor, "row n_ctx d_in"], Predictions]:
    """The activations at a hookpoint for a batch of rows, in float32, and the model's predictions.

    Raises:
        InputError: if the model never runs the hookpoint's module.
    """
    read: list[Tensor] = []

    def keep(acts: Tensor) -> None:
        read.append(acts.float())

    with hooked(model, hookpoint, keep):
        predictions = predict(model, ids)
    _require_read(bool(read), hookpoint)
    return read[0], predictions


@torch.inference_mode()
def require_causal(model: nn.Module, name: str) -> None:
    """Refuse a model whose prediction of a token sees later tokens, as those of encoders such as BERT do.

    Such a model is given the token that it should predict, so its losses and activations mean something else. The
    second half of a short row is exchanged, which must leave the logits of the first half as they were.

    Args:
        model: a model of transformers, in evaluation mode.
        name: its name in the config, for messages.

    Raises:
        InputError: if later tokens change earlier logits.
    """
    device, half = next(model.parameters()).device, len(CAUSAL_IDS) // 2
    ids = torch.tensor([CAUSAL_IDS, (*CAUSAL_IDS[:half], *reversed(CAUSAL_IDS[half:]))], device=device)
    # One row at a time: rows of one batch may be rounded differently.
    logits = [model(input_ids=row.unsqueeze(0), use_cache=False).logits[0].float() for row in ids]
    change = (logits[0] - logits[1]).abs().amax(dim=-1)
    share = float(change[:half].max() / change[half:].max())
    if share > MOST_BACKWARD.get(next(model.parameters()).dtype, MOST_BACKWARD_ROUNDED):
        raise InputError(
            f"models.{name}: the model must be causal, but later tokens change its earlier logits, as in an encoder "
            f"({type(model).__name__}; {share:.2g} of the change of their own logits); use a causal language model"
        )


@torch.inference_mode()
def same_output(model: nn.Module, hookpoint: str) -> str | None:
    """Name the module whose output the activations at a hookpoint are; None if there is none.

    An output is its module's own. An input is another module's output if a module that ran before, and runs once, gave
    the very same values; of several the one that ended last. Values are compared on a short row after the whole forward
    pass, when whoever keeps them sees them.
    """
    point = Hookpoint.parse(hookpoint)
    if point.side == "output":
        return point.module
    ended: list[tuple[str, Tensor]] = []
    before: list[int] = []
    acts: list[Tensor] = []

    def keep(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def on_output(module: nn.Module, args: tuple, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor):
                ended.append((name, first))

        return on_output

    def note(value: Tensor) -> None:
        acts.append(value.clone())
        before.append(len(ended))

    modules = [(name, module) for name, module in model.named_modules() if name]
    ids = torch.tensor([CAUSAL_IDS], device=next(model.parameters()).device)
    handles = [module.register_forward_hook(keep(name)) for name, module in modules]
    try:
        with hooked(model, hookpoint, note):
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(acts) != 1:
        return None
    n_runs = Counter(name for name, _ in ended)
    for name, output in reversed(ended[: before[0]]):
        if n_runs[name] == 1 and output.numel() == acts[0].numel() and torch.equal(output.view_as(acts[0]), acts[0]):
            return name
    return None


def dump_shards(
    model: nn.Module,
    paths: Mapping[str, Path | str],
    rows: TokenRows,
    within: range,
    batch_rows: int,
    dtype: str,
    saelens: Mapping[str, Mapping] | None = None,
) -> int:
    """Write the activations of some rows, a shard for each hookpoint, off one pass of the model over these rows.

    Args:
        model: the language model.
        paths: the shards, by hookpoint.
        rows: the token rows of one split.
        within: the rows to read.
        batch_rows: rows in a forward pass.
        dtype: number format of the files.
        saelens: each hookpoint by SAELens's names (`foreign.saelens_names.place_keys`), for SAEs trained on this.

    Returns:
        The number of tokens written to each shard.

    Raises:
        InputError: if an activation is not finite, or overflows in the files' number format.
    """
    parts: dict[str, list[dict[str, Tensor]]] = {hookpoint: [] for hookpoint in paths}
    positions = []
    n_ctx, device = rows.info["n_ctx"], next(model.parameters()).device
    for numbers, ids in rows.batches(batch_rows, within):
        mask = rows.text_mask(numbers)
        is_shared = torch.from_numpy(rows.shared(numbers)[mask])
        for hookpoint, acts in zip(paths, read_all(model, list(paths), torch.from_numpy(ids).to(device)), strict=True):
            text = stored(acts[torch.from_numpy(mask).to(acts.device)], dtype, f"'{paths[hookpoint]}'", hookpoint)
            norms = text.float().norm(dim=1).masked_fill(~is_shared, torch.nan)
            parts[hookpoint].append({"acts": text, "norms": norms})
        positions.append(np.flatnonzero(mask) + numbers.start * n_ctx)
    covered = {"ids_sha256": rows.digest, "first_row": within.start, "stop_row": within.stop, "n_ctx": n_ctx}
    for hookpoint, path in paths.items():
        header = {"hookpoint": hookpoint, **covered, "left_out_ids": rows.left_out_ids}
        header["saelens"] = dict(saelens[hookpoint] if saelens else place_keys(hookpoint))
        tensors = {name: torch.cat([part[name] for part in parts[hookpoint]]) for name in ("acts", "norms")}
        tensors["positions"] = torch.from_numpy(np.concatenate(positions))
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=encode_header(header))
        parts[hookpoint].clear()
    return sum(map(len, positions))


def stored(acts: Float[Tensor, "token d_in"], dtype: str, path: str, hookpoint: str) -> Float[Tensor, "token d_in"]:
    """Activations in the number format of a file or buffer, on the CPU.

    Args:
        acts: the activations.
        dtype: the number format.
        path: what they are stored in, for messages.
        hookpoint: where they were read, for messages.

    Raises:
        InputError: if one is not finite, or overflows in that format.
    """
    converted = acts.to(DTYPES[dtype]).cpu()
    if not bool(torch.isfinite(converted).all()):
        reason = (
            f"are too large for {dtype}; set activations.dtype to float32"
            if bool(torch.isfinite(acts).all())
            else "are not finite; use another model or activations.hookpoint"
        )
        raise InputError(f"{path}: activations at {hookpoint} {reason}")
    return converted


class ActivationShard:
    """One shard of a dump, memory-mapped.

    Attributes:
        header: hookpoint, ids_sha256, first_row, stop_row, n_ctx, left_out_ids, saelens.
        n_tokens, d_in: shape of the activations.
    """

    def __init__(self, path: Path | str):
        """Open a shard.

        Raises:
            InputError: if the file is not a complete activation shard.
        """
        self.path = Path(path)
        try:
            self._file = safe_open(path, framework="pt")
            self.header = decode_header(self._file.metadata())
            self._acts = self._file.get_slice("acts")
            self.n_tokens, self.d_in = self._acts.get_shape()
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"'{path}' is not a whole activation shard ({error}); delete it and run again") from error

    def acts(self) -> Float[Tensor, "token d_in"]:
        """The activations in the file's dtype; pages are read from disk when they are used."""
        return self._file.get_tensor("acts")

    def norms(self) -> Float[Tensor, " token"]:
        """Euclidean norms of the activations; NaN for tokens that the model does not share."""
        return self._file.get_tensor("norms")

    def positions(self) -> Integer[Tensor, " token"]:
        """Position of each token: row x n_ctx + place in the row."""
        return self._file.get_tensor("positions")

    def chunks(self, chunk_tokens: int) -> Iterator[Float[Tensor, "token d_in"]]:
        """Yield float32 activations, `chunk_tokens` at a time, in file order."""
        for start in range(0, self.n_tokens, chunk_tokens):
            yield self._acts[start : start + chunk_tokens].float()


def require_same_tokens(a: ActivationShard, b: ActivationShard) -> None:
    """Refuse activations of different tokens.

    Raises:
        InputError: naming both shards.
    """
    keys = ("hookpoint", "ids_sha256", "first_row", "stop_row", "n_ctx")
    different = [key for key in keys if a.header[key] != b.header[key]]
    if different or not torch.equal(a.positions(), b.positions()):
        raise InputError(
            f"activations must come from the same tokens and hookpoint, but '{a.path}' and '{b.path}' do not "
            f"({', '.join(different) or 'positions'}); delete both and rerun"
        )


def norm_limit(norms: Float[np.ndarray, " token"], ratio: float) -> float:
    """Norm above which activations count as outliers: `ratio` x the median of the nonzero norms.

    It is infinite if there are none.
    """
    nonzero = norms[norms > 0]
    return ratio * float(np.median(nonzero)) if len(nonzero) else math.inf


def _require_read(is_read: bool, hookpoint: str) -> None:
    """Refuse a hookpoint that gave no activations."""
    if not is_read:
        raise InputError(f"activations.hookpoint: the model never runs '{hookpoint}'; use a module inside it")


def _require_module(point: Hookpoint, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a module that the model does not have, or that sees a part of the tokens only.

    Raises:
        InputError: naming the module, and what can be read instead.
    """
    experts = next((name for name in _parents(point.module) if name.endswith("experts") and name in modules), None)
    if SINGLE_EXPERT.fullmatch(point.module) or (experts is not None and point.module not in modules):
        layer = (experts or point.module.partition(".experts")[0]).removesuffix(".experts")
        raise InputError(
            f"activations.hookpoint: hidden states of experts cannot be read, but '{point.module}' lies in one: an "
            "expert sees only the tokens sent to it, and the experts of a layer are fused into one module; use "
            f"{layer}.input or {layer}.output"
        )
    if point.module not in modules:
        raise InputError(
            f"activations.hookpoint: the model has no module '{point.module}'; {_nearest(point.module, modules)}"
        )


def _parents(name: str) -> Iterator[str]:
    """Yield the names of the modules that a module lies in, the outermost first."""
    parts = name.split(".")
    yield from (".".join(parts[:n_parts]) for n_parts in range(1, len(parts)))


def _unflattened(value: object, called_with: Sequence[torch.Size]) -> Float[Tensor, "row n_ctx d_in"] | None:
    """Activations as [row, n_ctx, d_in]; None if a value is not activations of all tokens."""
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return None
    if value.ndim == 2 and called_with and len(value) == called_with[0].numel():
        return value.unflatten(0, tuple(called_with[0]))
    return value if value.ndim == 3 else None


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _nearest(name: str, modules: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, [module for module in modules if module], n=3, cutoff=0.5)
    return f"the nearest names are {', '.join(close)}; correct it" if close else "look at model.named_modules()"
