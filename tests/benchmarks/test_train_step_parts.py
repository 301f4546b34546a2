"""Whose time an operator is, forward and backward, by made-up and by real events."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.train_step_parts import BACKWARD, STEPS, parts_of
from common.spans import ATTENTION, HEADS, PROJECTIONS, span

NODE = "autograd::engine::evaluate_function: "


@dataclass
class Made:
    """An event from one microsecond to another."""

    name: str
    start: float
    end: float
    sequence_nr: int = -1
    thread: int = 1
    time_range: Any = field(init=False)

    def __post_init__(self) -> None:
        self.time_range = SimpleNamespace(start=self.start, end=self.end)


def test_self_times_go_to_the_span_around_and_nodes_to_where_their_forward_ran() -> None:
    events = [
        Made(STEPS, 0, 1000),
        Made(PROJECTIONS, 100, 400),
        Made("aten::linear", 110, 200, sequence_nr=5),
        Made("aten::addmm", 120, 190, sequence_nr=5),
        Made(ATTENTION, 250, 350),
        Made("_Jagged", 260, 340, sequence_nr=6),
        Made("aten::bmm", 270, 300),
        Made("## backward ##", 500, 900),
        Made(f"{NODE}_JaggedBackward", 510, 600, sequence_nr=6),
        Made("aten::bmm", 520, 560),
        Made(f"{NODE}AddmmBackward0", 600, 700, sequence_nr=5),
        Made("AddmmBackward0", 605, 695, sequence_nr=5),
        Made(f"{NODE}torch::autograd::AccumulateGrad", 700, 720),
        Made("## optimizer 3 ##", 920, 950),
        Made("aten::mm", 120, 190, thread=2),
    ]
    found = parts_of(events)
    micro = {part: round(seconds * 1e6) for part, seconds in found.seconds.items() if seconds}
    assert micro == {
        "projections": 200,
        "attention": 100,
        "attention" + BACKWARD: 90,
        "projections" + BACKWARD: 100,
        "dense all-reduce": 20 + 180,  # nothing comes after the last node but the wait
        "optimizers": 30,
        "rest": 1000 - 200 - 100 - 90 - 100 - 200 - 30,
    }
    assert sum(found.seconds.values()) == pytest.approx(found.whole) == pytest.approx(1e-3)
    assert round(sum(found.products.values()) * 1e6) == 70 + 30 + 40, "the other thread's product is not the step's"


def test_torch_tells_of_real_steps_what_is_asked_for() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, span(STEPS):
        with span(PROJECTIONS):
            x = torch.randn(256, 64) @ weight
        with span(HEADS):
            loss = x.exp().sum()
        loss.backward()
    found = parts_of(profiler.events())
    assert sum(found.seconds.values()) == pytest.approx(found.whole)
    for part in ("projections", "projections" + BACKWARD, "heads and loss", "heads and loss" + BACKWARD):
        assert found.seconds[part] > 0, part
    for part in ("projections", "projections" + BACKWARD):
        assert found.products[part] > 0, part
    assert found.products["heads and loss"] == found.products["heads and loss" + BACKWARD] == 0
