"""A model's logits, a block of positions at a time; apart from `models.loading`, because that imports transformers.

The logits of 16 rows of 1,024 tokens over a vocabulary of 262,144 are 17 GB in float32, and a loss needs copies of
them. So the model is run up to its last hidden state, and logits are made of a block of it, and reduced, at a time.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

BLOCK_LOGITS = 1 << 25
"""Logits that are made at a time (`plan.sizes.BLOCK_LOGITS`)."""


class Predictions(NamedTuple):
    """A model's predictions after each token of some rows, which are computed when they are asked for."""

    at: Callable[[Tensor], Tensor]
    """The logits [position, d_vocab] at some positions: row x n_ctx + place in the row."""
    block_positions: int
    """Positions whose logits are made at a time."""

    @classmethod
    def of(cls, logits: Float[Tensor, "row n_ctx d_vocab"], block_positions: int | None = None) -> "Predictions":
        """Logits that are there already."""
        flat = logits.flatten(0, 1)
        return cls(lambda positions: flat[positions], block_positions or max(1, BLOCK_LOGITS // flat.shape[1]))

    def blocks(
        self, positions: Int[Tensor, " position"]
    ) -> Iterator[tuple[Int[Tensor, " block"], Float[Tensor, "block d_vocab"]]]:
        """Yield the positions, and the logits there, a block at a time."""
        for block in positions.split(self.block_positions):
            if len(block):
                yield block, self.at(block)


class _TrunkError(Exception):
    """Ends a forward pass where its last hidden state is known."""

    def __init__(self, trunk: nn.Module, output: object):
        """Keep the module that gave it, and its output."""
        self.trunk, self.output = trunk, output


def predict(model: nn.Module, ids: Int[Tensor, "row n_ctx"], block_positions: int | None = None) -> Predictions:
    """Run a model up to its last hidden state.

    Logits are made of it by the model's own forward pass, in which the module that gave the hidden state, the *trunk*,
    gives a block of it instead. So whatever the architecture does to logits, such as a soft cap or a scale, is done.
    Where that is not possible (a model without such a module, or with a hook behind it), all logits are made at once.

    Args:
        model: a causal language model of transformers.
        ids: the rows.
        block_positions: positions whose logits are made at a time; None takes as many as `BLOCK_LOGITS` allows.
    """
    try:
        with _forwards(_enders(_trunks(model))):
            return Predictions.of(model(input_ids=ids, use_cache=False).logits, block_positions)
    except _TrunkError as end:
        trunk, output = end.trunk, end.output
    hidden = _first(output)
    if hidden is None or hidden.shape[:2] != ids.shape:
        return Predictions.of(model(input_ids=ids, use_cache=False).logits, block_positions)
    flat, flat_ids = hidden.flatten(0, 1), ids.flatten()

    def at(positions: Tensor) -> Tensor:
        given = _with_first(output, flat[positions].unsqueeze(0))
        with _forwards({trunk: lambda *args, **kwargs: given}):
            return model(input_ids=flat_ids[positions].unsqueeze(0), use_cache=False).logits[0]

    return Predictions(at, block_positions or max(1, BLOCK_LOGITS // at(torch.zeros(1, dtype=torch.int64)).shape[1]))


def _trunks(model: nn.Module) -> list[nn.Module]:
    """The modules that may give the last hidden state, the outer ones first, without those that have a hook behind."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    candidates = [getattr(model, getattr(model, "base_model_prefix", "") or "", None), decoder]
    trunks = [each for each in dict.fromkeys(candidates) if isinstance(each, nn.Module) and each is not model]
    hooked = {module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks} - {model}
    return [trunk for trunk in trunks if hooked <= set(trunk.modules()) - {trunk}]


def _enders(trunks: list[nn.Module]) -> dict[nn.Module, Callable]:
    """Forward methods with which the first of some modules to be called ends the pass when it is done."""
    running: list[nn.Module] = []

    def ender(trunk: nn.Module, forward: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> object:
            is_outermost = not running
            running.append(trunk)
            output = forward(*args, **kwargs)
            if is_outermost:
                raise _TrunkError(trunk, output)
            return output

        return run

    return {trunk: ender(trunk, trunk.forward) for trunk in trunks}


@contextmanager
def _forwards(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """While the block runs, modules have other forward methods."""
    with ExitStack() as stack:
        for module, forward in forwards.items():
            before = module.__dict__.get("forward")
            module.__dict__["forward"] = forward
            stack.callback(_restore, module, before)
        yield


def _restore(module: nn.Module, forward: Callable | None) -> None:
    """Give a module its forward method back; None is that of its class."""
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward


def _first(output: object) -> Tensor | None:
    """The first tensor of a module's output, which for a trunk is the last hidden state."""
    first = next(iter(output.values()), None) if isinstance(output, dict) else output
    first = first[0] if isinstance(first, tuple) and first else first
    return first if isinstance(first, Tensor) else None


def _with_first(output: object, first: Tensor) -> object:
    """A module's output with another first tensor."""
    if isinstance(output, dict):
        changed = copy.copy(output)
        changed[next(iter(output))] = first
        return changed
    return (first, *output[1:]) if isinstance(output, tuple) else first
