"""The schedule's shape and the clipping of the dense gradient."""

from __future__ import annotations

import itertools

import pytest
import torch

from trainer.config import OptimizerConfig
from trainer.optimizers import ClippedAdamW, schedule_factor


def test_cosine_rises_over_the_warmup_and_falls_to_zero() -> None:
    config = OptimizerConfig(warmup_steps=10, schedule="cosine")
    factors = [schedule_factor(step, 100, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == max(factors[8:12])
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(0.55 * torch.pi)).item()))
    assert factors[100] == pytest.approx(0.0)


def test_cosine_stays_at_zero_beyond_its_end() -> None:
    assert schedule_factor(150, 100, OptimizerConfig(warmup_steps=0)) == pytest.approx(0.0)


def test_constant_stays_at_one_after_the_warmup() -> None:
    config = OptimizerConfig(warmup_steps=4, schedule="constant")
    assert [schedule_factor(step, 10, config) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("clip_norm", "expected"), [(0.0, 50.0), (1.0, 1.0), (100.0, 50.0)])
def test_the_gradient_is_scaled_down_to_the_norm_and_never_up(clip_norm: float, expected: float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    optimizer = ClippedAdamW(parameters, clip_norm=clip_norm, lr=1.0)
    parameters[0].grad, parameters[1].grad = torch.tensor([0.0, 30.0]), torch.tensor([40.0])
    optimizer.step()
    norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
    assert norm.item() == pytest.approx(expected, rel=1e-5)
    assert all((parameter < 0).any() for parameter in parameters), "the step was not taken"
