"""What a step costs each rank itself, and which rank the others wait for.

In synchronous training all ranks take a step in the same time, whoever is slow. So each measures how long it was
blocked in collectives (`sharding.ranks.collectives`); the rest of a step is its own: its wait for data, and all else it
does.

R ranks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from sharding.ranks.collectives import Blocked
from sharding.world import World

JUDGED_S = 10.0
"""What is judged is at least that long: single steps differ for reasons that pass."""

ROW_OF_SPANS = 3
"""Spans in which the same rank must be the slowest before it is named, and none be slow before that is taken back."""


class Pipeline(TrainPipelineSparseDist):
    """TorchRec's pipeline, which says how long it was blocked at the end of the backward."""

    def __init__(self, *arguments: Any, blocked: Blocked, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._blocked = blocked

    def _backward(self, losses: Tensor) -> None:
        with torch.profiler.record_function("## backward ##"):
            self._blocked.backward(torch.sum(losses, dim=0))


@dataclass(frozen=True)
class RankTimes:
    """Seconds a step of each rank.

    Attributes:
        own_R: not blocked in collectives.
        data_wait_R: of these, waiting for the loader.
        blocked_R: the rest of a step.
    """

    own_R: list[float]
    data_wait_R: list[float]
    blocked_R: list[float]

    @property
    def slowest(self) -> int:
        """The rank with the longest own time."""
        return max(range(len(self.own_R)), key=self.own_R.__getitem__)

    @property
    def of_the_others(self) -> float:
        """Median of the own times of all but the slowest."""
        return statistics.median(own for rank, own in enumerate(self.own_R) if rank != self.slowest)

    def as_record(self) -> dict[str, Any]:
        """For `metrics.jsonl`: lists by rank, and the slowest."""
        compute_R = [own - wait for own, wait in zip(self.own_R, self.data_wait_R, strict=True)]
        lists = {
            "own_s": self.own_R,
            "data_wait_s": self.data_wait_R,
            "compute_s": compute_R,
            "blocked_s": self.blocked_R,
        }
        return {name: [float(f"{value:.4g}") for value in values] for name, values in lists.items()} | {
            "slowest": self.slowest
        }


def exchange(world: World, steps: int, wall_s: float, data_wait_s: float, blocked_s: float) -> RankTimes:
    """What an interval of steps cost each rank. Collective.

    Args:
        wall_s, data_wait_s, blocked_s: of this rank, in the whole interval.
    """
    own = torch.tensor([wall_s - blocked_s, data_wait_s, blocked_s], dtype=torch.float64) / steps
    told_R = torch.zeros(world.size, 3, dtype=torch.float64)
    told_R[world.rank] = own
    dist.all_reduce(told_R)
    return RankTimes(*told_R.T.tolist())


class Stragglers:
    """Names the rank that holds the others up, once it does so for a while, and takes it back when it no longer does.

    Args:
        share: how much longer than the others' median its own time must be.
        judged_s: seconds to judge by.
    """

    def __init__(self, share: float, judged_s: float | None = None) -> None:
        self.share, self.judged_s = share, JUDGED_S if judged_s is None else judged_s
        self._since, self._steps = time.monotonic(), 0
        self._sums: list[list[float]] = []
        self._suspects: list[int | None] = []
        self.named: int | None = None

    def judge(self, times: RankTimes, steps: int, hosts: Sequence[str]) -> str:
        """Take note of an interval; returns what is to be said, mostly nothing."""
        rows = (times.own_R, times.data_wait_R, times.blocked_R)
        before = self._sums or [[0.0] * len(row) for row in rows]
        self._sums = [
            [so_far + value * steps for so_far, value in zip(sums, row, strict=True)]
            for sums, row in zip(before, rows, strict=True)
        ]
        self._steps += steps
        if time.monotonic() - self._since < self.judged_s:
            return ""
        span = RankTimes(*([value / self._steps for value in sums] for sums in self._sums))
        self._since, self._steps, self._sums = time.monotonic(), 0, []
        slow = span.own_R[span.slowest] > (1 + self.share) * span.of_the_others
        self._suspects = [*self._suspects, span.slowest if slow else None][-ROW_OF_SPANS:]
        if len(self._suspects) < ROW_OF_SPANS or len(set(self._suspects)) > 1 or self._suspects[0] == self.named:
            return ""
        before_named, self.named = self.named, self._suspects[0]
        if self.named is None:
            return f"rank {before_named} on {hosts[before_named or 0]} no longer holds the others up"
        own, wait = span.own_R[self.named], span.data_wait_R[self.named]
        return (
            f"rank {self.named} on {hosts[self.named]} holds the others up: {own:.3g} s a step of its own, the others "
            f"{span.of_the_others:.3g}; of which data wait {wait / own:.0%}, compute {1 - wait / own:.0%}"
        )
