"""AdamW with a master copy: exact splits, PyTorch's steps, and updates too small for bfloat16."""

import math

import torch
from torch import nn

from saelineage.models.optimizers import MasterAdamW, joined, split

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


def test_a_float32_number_is_its_bfloat16_number_and_its_lower_bits():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(100_000, generator=generator) * torch.logspace(-40, 30, 100_000)
    # 1 + 2^-8 lies half-way between the bfloat16 numbers 1 and 1 + 2^-7; zeros keep their signs.
    numbers = torch.cat([numbers, torch.tensor([0.0, -0.0, 1 + 2**-8, -1 - 2**-8, 1 + 2**-9, 2.0 - 2**-23])])
    upper, lower = split(numbers)
    assert (upper.dtype, lower.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(joined(upper, lower).view(torch.int32), numbers.view(torch.int32))
    assert upper[-4:].tolist() == [1 + 2**-7, -1 - 2**-7, 1.0, 2.0]
    is_half = (numbers.view(torch.int32) & 0xFFFF) == 1 << 15
    assert torch.equal(upper[~is_half], numbers.bfloat16()[~is_half])


def steps(weight: nn.Parameter, optimizer: torch.optim.Optimizer, n: int) -> None:
    """Some steps with gradients that both formats hold."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        weight.grad = torch.randn(weight.shape, generator=generator).bfloat16().to(weight.dtype)
        optimizer.step()


def test_its_master_copy_takes_the_steps_of_pytorch_s_adamw():
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    reference = nn.Parameter(start.float())
    steps(reference, torch.optim.AdamW([reference], **SETTINGS), 30)
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(start.to(dtype))
        optimizer = MasterAdamW([weight], **SETTINGS)
        steps(weight, optimizer, 30)
        if dtype == torch.bfloat16:
            master = joined(weight.data.flatten(), optimizer.state[weight]["lower"]).view(7, 5)
            assert torch.allclose(weight.float(), master, rtol=2**-8, atol=0)
            assert not torch.equal(weight.float(), master)
        else:
            master = weight.data
        assert torch.allclose(master, reference.data, atol=1e-6)


def test_updates_too_small_for_bfloat16_add_up():
    # Adam's first steps on a constant gradient are lr each: 100 of 2^-12 take 1 to 1 - 100 / 4096 = 0.9756. A step of
    # bfloat16 below 1 is 2^-8, so that each update alone would be rounded away.
    assert torch.tensor(1.0).bfloat16() - 2**-12 == 1
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=2**-12, betas=(0.9, 0.999))
    for _ in range(100):
        weight.grad = torch.full((3,), 0.5, dtype=torch.bfloat16)
        optimizer.step()
    assert weight.tolist() == [math.floor((1 - 100 / 4096) * 256 + 0.5) / 256] * 3


def test_its_state_is_taken_over_bit_for_bit():
    weights = [nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(0)).bfloat16()) for _ in range(2)]
    optimizers = [MasterAdamW([{"params": [weight]}], **SETTINGS) for weight in weights]
    steps(weights[0], optimizers[0], 5)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    weights[1].data.copy_(weights[0].data)
    states = [optimizer.state[weight] for optimizer, weight in zip(optimizers, weights, strict=True)]
    assert states[0].keys() == states[1].keys() == {"step", "mean", "mean_square", "lower"}
    assert all(torch.equal(torch.as_tensor(states[0][key]), torch.as_tensor(states[1][key])) for key in states[0])
    assert states[1]["lower"].dtype == torch.int16
    for weight, optimizer in zip(weights, optimizers, strict=True):
        steps(weight, optimizer, 3)
    assert torch.equal(*weights)
    assert torch.equal(states[0]["lower"], optimizers[1].state[weights[1]]["lower"])
