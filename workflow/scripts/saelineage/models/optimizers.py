"""AdamW for weights in bfloat16 that are trained as if they were float32."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import BFloat16, Float32, Int16
from torch import Tensor, nn

BLOCK_WEIGHTS = 1 << 22
"""Weights of one tensor that are updated at a time."""
HALF = 1 << 15
"""Half a step of a bfloat16 number, in steps of float32."""


class MasterAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with a float32 master copy of weights in bfloat16.

    A step of training is often less than half a step of a bfloat16 number (a 256th of it), and would be rounded away.
    The master copy takes it. Its upper 16 bits, rounded, are the bfloat16 weight itself, so only the lower 16 are
    kept: a weight, its gradient, the master copy and both moments take 2 + 2 + 2 + 8 bytes. Weights in other formats
    are their own master copies.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        """Keep the settings; state is made at the first step."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no training here has a closure
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if (gradient := weight.grad) is not None:
                    self._update(weight, gradient, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, bit for bit; the method of torch would convert it to the format of the weights."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, state in state_dict["state"].items():
            weight = weights[number]
            self.state[weight] = {
                key: value.to(weight.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in state.items()
            }

    def _update(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update one tensor, a block of it at a time."""
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros(weight.numel(), dtype=torch.float32, device=weight.device)
            state["mean_square"] = torch.zeros_like(state["mean"])
            if weight.dtype == torch.bfloat16:
                state["lower"] = torch.zeros_like(state["mean"], dtype=torch.int16)
        state["step"] += 1
        flat, gradient = weight.data.view(-1), gradient.reshape(-1)
        for start in range(0, weight.numel(), BLOCK_WEIGHTS):
            part = slice(start, start + BLOCK_WEIGHTS)
            moments = state["mean"][part], state["mean_square"][part]
            master = joined(flat[part], state["lower"][part]) if "lower" in state else flat[part].float()
            _adamw(master, gradient[part].float(), moments, state["step"], group)
            if "lower" in state:
                flat[part], state["lower"][part] = split(master)
            else:
                flat[part] = master


def split(master: Float32[Tensor, " n"]) -> tuple[BFloat16[Tensor, " n"], Int16[Tensor, " n"]]:
    """Split float32 numbers into the nearest bfloat16 numbers, from halves away from zero, and their lower 16 bits."""
    bits = master.view(torch.int32)
    upper = ((bits + HALF) >> 16).to(torch.int16).view(torch.bfloat16)
    return upper, (((bits & 0xFFFF) ^ HALF) - HALF).to(torch.int16)


def joined(weight: BFloat16[Tensor, " n"], lower: Int16[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """The float32 numbers that `split` split."""
    bits = lower.to(torch.int32) & 0xFFFF
    upper = weight.view(torch.int16).to(torch.int32) - (bits >> 15)  # which it was rounded up by
    return (upper * 65_536 + bits).view(torch.float32)


def _adamw(
    weight: Float32[Tensor, " n"],
    gradient: Float32[Tensor, " n"],
    moments: tuple[Float32[Tensor, " n"], Float32[Tensor, " n"]],
    step: int,
    group: dict[str, Any],
) -> None:
    """One step of AdamW, in place."""
    (beta1, beta2), (mean, mean_square) = group["betas"], moments
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    mean.lerp_(gradient, 1 - beta1)
    mean_square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (mean_square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    weight.addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1**step))
