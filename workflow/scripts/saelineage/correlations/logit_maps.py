"""The linear part of a model's path from a hookpoint to its logits, for any architecture.

Nothing is looked up by the name of an architecture. A short pass through the model shows which module is its final norm
and that this norm reads the residual stream; vectors sent through the norm show its gain, and whether it subtracts the
mean; a second pass shows that what is added inside a block reaches the output of the block by a matrix. A model that
does not pass these tests has no map, and the reason is given.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelineage.activations import Hookpoint, hooked
from saelineage.correlations.decoders import NoSimilarityError

N_IDS = 5
"""Tokens of the passes that are made to find a path."""
LARGE = 1024.0
"""Size of the vectors sent through a norm, at which the small number that it adds to the variance does not count."""
SAME, NEAR = 1e-4, 1e-2
"""Relative differences below which vectors count as equal: of one module's numbers, and of a block's."""
SCALE_ONE = 1e-3


@runtime_checkable
class HasUnembedding(Protocol):
    """A language model of transformers."""

    def get_output_embeddings(self) -> nn.Module | None:
        """The unembedding, if there is one."""


class LogitMap(NamedTuple):
    """The linear part of a model's path from a hookpoint to the logits.

    Constants that multiply all logits alike, as Cohere and Granite have, are left out; so are biases, which do not
    depend on the activations, and the soft cap of Gemma 2.
    """

    to_norm: Float[Tensor, "d_in d_model"]
    """The map to the input of the unembedding: the map to the residual stream, less the mean over d_model where the
    final norm is a LayerNorm, times the final norm's gain."""
    unembedding: Float[Tensor, "d_vocab d_model"]


class Pass(NamedTuple):
    """Modules and their values in one pass through a model."""

    inputs: dict[str, Tensor]
    """First argument of each module that was called with a tensor of the shape of the unembedding's input."""
    outputs: dict[str, Tensor]
    """Output, or the first of several, of such shape, in the order in which the modules ended."""


@torch.no_grad()
def logit_map(model: nn.Module, hookpoint: str) -> LogitMap:
    """The linear path from a hookpoint to the logits of a model.

    The hookpoint can be the input or output of a block, which are the residual stream; a place whose values are added
    to the residual stream, such as the output of the MLP; or the input of the matrix that makes them, such as that of
    down_proj.

    Raises:
        NoSimilarityError: for another hookpoint, a model without a linear unembedding, or one in which no RMSNorm or
            LayerNorm lies between the last block and the unembedding.
    """
    unembedding = model.get_output_embeddings() if isinstance(model, HasUnembedding) else None
    if not isinstance(unembedding, nn.Linear):
        raise NoSimilarityError("the model has no linear unembedding (lm_head)")
    blocks, block = _block_of(model, hookpoint)
    gain, is_centred = norm_parts(_final_norm(model, unembedding, blocks), unembedding.in_features)
    path = _to_residual(model, hookpoint, block, unembedding.in_features)
    if is_centred:
        path = path - path.mean(dim=1, keepdim=True)
    return LogitMap((path * gain).float(), unembedding.weight.detach().float().cpu())


@torch.no_grad()
def norm_parts(norm: nn.Module, d_model: int) -> tuple[Float[Tensor, " d_model"], bool]:
    """The gain of an RMSNorm or a LayerNorm, however its class stores it, and whether it subtracts the mean.

    Raises:
        NoSimilarityError: if the module is neither.
    """
    parameter = next(norm.parameters(), torch.zeros(()))

    def normed(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        return norm(vector.to(parameter).expand(1, 1, -1))[0, 0].float().cpu()

    signs = torch.ones(d_model)
    signs[1::2] = -1
    bias = normed(torch.zeros(d_model))
    scaled, shifted = (normed(LARGE * vector) - bias for vector in (signs, signs + 1))
    is_centred = _is_near(shifted, scaled, SAME)
    gain = scaled / _unit(signs, is_centred)
    probe = torch.randn(d_model, generator=torch.Generator().manual_seed(0))
    if not _is_near(normed(LARGE * probe) - bias, gain * _unit(probe, is_centred), SAME):
        raise NoSimilarityError(f"the model's final norm must be an RMSNorm or a LayerNorm, not {type(norm).__name__}")
    return gain, is_centred


def _unit(vector: Float[Tensor, " d_model"], is_centred: bool) -> Float[Tensor, " d_model"]:
    """A vector, less its mean if `is_centred`, divided by its root mean square."""
    moved = vector - vector.mean() if is_centred else vector
    return moved / moved.square().mean().sqrt()


def _block_of(model: nn.Module, hookpoint: str) -> tuple[str, str]:
    """The list of a model's blocks, and the block in which a hookpoint lies."""
    parts = Hookpoint.parse(hookpoint).module.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    blocks, block = ".".join(parts[:place]), ".".join(parts[: place + 1])
    if not isinstance(dict(model.named_modules()).get(blocks), nn.ModuleList):
        raise _no_path(hookpoint)
    return blocks, block


def _final_norm(model: nn.Module, unembedding: nn.Linear, blocks: str) -> nn.Module:
    """The module between the residual stream, as the last block leaves it, and the unembedding."""
    seen, head_input = _observed(model, unembedding)
    last = f"{blocks}.{len(model.get_submodule(blocks)) - 1}"  # type: ignore[arg-type]  # `_block_of` found a list
    equal = [name for name, value in seen.outputs.items() if torch.equal(value, head_input)]
    name = next(iter(equal), None) or next(
        (name for name, value in seen.outputs.items() if _is_proportional(value, head_input)), None
    )
    if name is None or name == last or name.startswith(f"{blocks}."):
        raise NoSimilarityError("the model has no norm between its last block and the unembedding")
    norm_input, residual = seen.inputs.get(name), seen.outputs.get(last)
    if norm_input is None or residual is None or not torch.equal(norm_input, residual):
        raise NoSimilarityError(
            f"the unembedding reads the output of '{name}', which does not read the residual stream, the output of "
            f"'{last}'"
        )
    return model.get_submodule(name)


def _observed(model: nn.Module, unembedding: nn.Linear) -> tuple[Pass, Tensor]:
    """Run a model on a few ids, and return its modules' values and the input of its unembedding."""
    seen, head_inputs = Pass({}, {}), []

    def has_shape(value: object) -> bool:
        return isinstance(value, Tensor) and value.shape == (1, N_IDS, unembedding.in_features)

    def note(name: str, args: tuple, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if args and has_shape(args[0]):
            seen.inputs[name] = args[0]
        if isinstance(value, Tensor) and has_shape(value) and name not in seen.outputs:
            seen.outputs[name] = value

    def noting(name: str) -> object:
        return lambda module, args, output: note(name, args, output)

    handles = [module.register_forward_hook(noting(name)) for name, module in model.named_modules()]
    handles.append(unembedding.register_forward_hook(lambda module, args, output: head_inputs.append(args[0])))
    try:
        model(input_ids=_ids(model), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen, head_inputs[0]


def _to_residual(model: nn.Module, hookpoint: str, block: str, d_model: int) -> Float[Tensor, "d_in d_model"]:
    """The contribution of activations at a hookpoint to the residual stream, as a matrix."""
    point = Hookpoint.parse(hookpoint)
    if point.module == block:
        return torch.eye(d_model)
    module = model.get_submodule(point.module)
    path = _matrix(module) if point.side == "input" else torch.eye(d_model)
    if path is None or path.shape[1] != d_model:
        raise _no_path(hookpoint)
    return path * _scale_to_residual(model, hookpoint, block, path)


def _matrix(module: nn.Module) -> Float[Tensor, "d_in d_out"] | None:
    """The matrix by which a linear module multiplies rows; None for another module."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    matrix = weight.detach().float().cpu()
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer in transformers, which holds its weight transposed
        return matrix
    return matrix.T if isinstance(module, nn.Linear) else None


def _scale_to_residual(model: nn.Module, hookpoint: str, block: str, path: Float[Tensor, "d_in d_model"]) -> float:
    """The factor between `path` and what a change at a hookpoint does to the output of its block.

    It is 1 except in models that scale what they add to the residual stream. The change is as large as the residual
    stream itself, so that whatever is not linear shows.

    Raises:
        NoSimilarityError: if the change is not by this path.
    """
    generator = torch.Generator().manual_seed(0)
    before = _block_output(model, hookpoint, block, None)
    direction = torch.randn(len(path), generator=generator)
    change = direction * (before.norm() / (direction @ path).norm())
    moved, expected = _block_output(model, hookpoint, block, change) - before, change @ path
    scale = float(moved @ expected / (expected @ expected))
    if not _is_near(moved, scale * expected, NEAR) or scale <= 0:
        raise _no_path(hookpoint)
    return 1.0 if abs(scale - 1) < SCALE_ONE else scale


def _block_output(
    model: nn.Module, hookpoint: str, block: str, change: Float[Tensor, " d_in"] | None
) -> Float[Tensor, " d_model"]:
    """A block's output at the last of a few ids, with a change to the activations there at a hookpoint."""
    outputs: list[Tensor] = []

    def add(acts: Tensor) -> Tensor | None:
        if change is None:
            return None
        if acts.shape[-1] != len(change):
            raise _no_path(hookpoint)
        changed = acts.clone()
        changed[0, -1] += change.to(acts)
        return changed

    with hooked(model, hookpoint, add), hooked(model, f"{block}.output", outputs.append):
        model(input_ids=_ids(model), use_cache=False)
    return outputs[0][0, -1].float().cpu()


def _ids(model: nn.Module) -> Int[Tensor, "1 n_ctx"]:
    return torch.arange(1, N_IDS + 1, device=next(model.parameters()).device).unsqueeze(0)


def _is_near(value: Tensor, expected: Tensor, share: float) -> bool:
    """True if two vectors differ by at most a share of the length of the second."""
    return bool((value - expected).norm() <= share * expected.norm())


def _is_proportional(value: Tensor, expected: Tensor) -> bool:
    scale = (value * expected).sum() / value.square().sum()
    return bool(scale > 0) and _is_near(scale * value, expected, SAME)


def _no_path(hookpoint: str) -> NoSimilarityError:
    return NoSimilarityError(
        f"'{hookpoint}' has no linear path to the logits; a block's input and output have one, and so has what is "
        "added to the residual stream as it is, such as the output of most MLPs and the input of their last matrix"
    )
