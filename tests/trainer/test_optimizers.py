"""The schedule's shape, who moves what, clipping and accumulation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizer

from trainer.config import OptimizerConfig
from trainer.optimizers import Optimizers, schedule_factor


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


class NoTables(KeyedOptimizer):
    """The fused optimizer of a model without tables."""

    def step(self, closure: Any = None) -> None:
        """Nothing to move."""


class Small(nn.Module):
    """A model with matrices inside blocks, others outside, vectors, and no tables."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Module()
        self.tower.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.tower.head = nn.Linear(4, 3)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.tower.blocks:
            x = torch.tanh(block(x))
        return self.tower.head(x).square().mean()

    @property
    def fused_optimizer(self) -> Any:
        return NoTables({}, {}, [])


def train(batches: torch.Tensor, **changes: Any) -> tuple[Small, Optimizers]:
    """As the pipeline does: rates, zero_grad, backward, step."""
    model = Small()
    settings: dict[str, Any] = {"warmup_steps": 0, "schedule": "constant", "learning_rate": 0.01, **changes}
    optimizers = Optimizers(model, OptimizerConfig(**settings), 100)  # type: ignore[arg-type]
    for step, batch in enumerate(batches):
        optimizers.set_rates(step)
        optimizers.combined.zero_grad()
        model.loss(batch).backward()
        optimizers.combined.step()
    return model, optimizers


BATCHES = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1))


def test_muon_moves_the_matrices_inside_the_blocks_and_adamw_the_rest() -> None:
    _, optimizers = train(BATCHES[:1], dense="muon")
    moved = {name: set(optimizer.params) for name, optimizer in optimizers.dense.items()}
    assert moved["matrices"] == {"tower.blocks.0.weight", "tower.blocks.1.weight"}
    assert moved["dense"] == {
        "tower.blocks.0.bias",
        "tower.blocks.1.bias",
        "tower.head.weight",
        "tower.head.bias",
    }
    before, (after, _) = Small(), train(BATCHES[:1], dense="muon", muon_learning_rate=0.1)
    change = after.tower.blocks[0].weight - before.tower.blocks[0].weight
    # Muon's step is nearly orthogonal: all singular values alike, which AdamW's is not.
    values = torch.linalg.svdvals(change)
    assert values.min() > 0.4 * values.max()


@pytest.mark.parametrize("dense", ["adamw", "muon"])
def test_accumulated_batches_step_as_one_of_their_mean_gradient(dense: str) -> None:
    one_by_one, _ = train(BATCHES, dense=dense, accumulate=3)
    joined, _ = train(BATCHES.view(2, 24, 4), dense=dense)  # the mean over 24 rows is the mean over three means
    for (name, value), expected in zip(one_by_one.named_parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_that_wait_are_part_of_the_state() -> None:
    model, optimizers = train(BATCHES[:4], accumulate=3)
    state = optimizers.dense_state()
    expected = Small()
    expected.load_state_dict(model.state_dict())
    expected.loss(BATCHES[3]).backward()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(state[f"pending_gradients.{name}"], parameter.grad)
    assert not [name for name in train(BATCHES[:1])[1].dense_state() if name.startswith("pending_gradients")]


@pytest.mark.parametrize(("clip_norm", "scaled"), [(0.0, False), (1e-3, True), (1e3, False)])
def test_the_gradient_is_scaled_down_to_the_norm_and_never_up(clip_norm: float, scaled: bool) -> None:
    plain = Small()
    plain.loss(BATCHES[0]).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in plain.parameters()]).norm().item()
    model, _ = train(BATCHES[:1], clip_norm=clip_norm, dense="muon")
    found = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm().item()
    assert found == pytest.approx(clip_norm if scaled else norm, rel=1e-4)
