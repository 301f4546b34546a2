"""Leaving well: a signal asks for a stop, and all ranks stop after the same step."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from sharding.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT)

IMPATIENT_S = 2.0
"""A second Ctrl-C after this long leaves at once; torchrun passes the first one on, so workers may get it twice."""


class StopRequest:
    """Catches SIGTERM and SIGINT while the block runs; a second Ctrl-C a little later interrupts as usual."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._caught) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number and number == signal.SIGINT and time.monotonic() - self._since > IMPATIENT_S:
            raise KeyboardInterrupt
        if not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()


class Agreement:
    """The largest of what the ranks say at each step, known to all of them one step later.

    The exchange of one step runs while the next is computed: nobody waits for it.
    """

    def __init__(self, world: World, values: int) -> None:
        self._group = dist.new_group(backend="gloo", timeout=world.timeout) if world.size > 1 else None
        self._told = torch.zeros(values, dtype=torch.int64)
        self._work: Any = None

    def exchange(self, *own: int) -> list[int]:
        """Say something; returns the largest of what was said the last time."""
        if self._work is not None:
            self._work.wait()
        known: list[int] = self._told.tolist()
        self._told = torch.tensor(own, dtype=torch.int64)
        if self._group is not None:
            self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return known

    def close(self) -> None:
        """Wait for what is under way."""
        if self._work is not None:
            self._work.wait()
            self._work = None
