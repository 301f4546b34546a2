"""What a run writes about itself: `metrics.jsonl`, TensorBoard, and one line a step or so for the person watching."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from common.files import write_text_atomically
from common.progress import PLAIN_INTERVAL_S, format_count, format_seconds
from common.spans import DATA_WAIT, span
from model.recommender import Output
from sharding.ranks.rank_log import LOG_INTERVAL_S, LOGGER
from sharding.world import World

T = TypeVar("T")

STREAM = "stream"
"""Kind of the records of what was predicted of a period, before its first step."""


class Stopwatch:
    """Adds up the time spent waiting for an iterator: the data wait of a training step.

    Attributes:
        seconds: since somebody set it to zero.
        in_all: since it was made.
    """

    def __init__(self) -> None:
        self.seconds = self.in_all = 0.0

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time to get each is added."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                with span(DATA_WAIT):
                    item = next(iterator)
            except StopIteration:
                return
            finally:
                took = time.perf_counter() - start
                self.seconds += took
                self.in_all += took
            yield item


class IntervalSums:
    """Losses and hits of the steps since the last line, on the device until they are asked for."""

    def __init__(self, levels: int, device: torch.device) -> None:
        # Row 0: loss per level; row 1: correct codes per level; row 2: number of targets, repeated.
        self.sums = torch.zeros(3, levels, dtype=torch.float64, device=device)

    def add(self, output: Output) -> None:
        """Count one step of this rank."""
        self.sums[0] += output.level_loss_sum_C
        self.sums[1] += output.level_correct_C
        self.sums[2] += output.num_targets

    def take(self) -> tuple[float, list[float], list[float], int]:
        """(loss per target, the same by level, accuracy by level, targets) over all ranks, and start anew."""
        total: Tensor = self.sums.cpu().clone()  # on the CPU, `cpu` alone is the same tensor
        dist.all_reduce(total)
        self.sums.zero_()
        targets = total[2, 0].item()
        level_loss = (total[0] / max(targets, 1)).tolist()
        return sum(level_loss), level_loss, (total[1] / max(targets, 1)).tolist(), int(targets)


class Telemetry:
    """Writes the records of a run on rank 0; does nothing elsewhere."""

    def __init__(self, run: Path, world: World, *, resume_step: int | None) -> None:
        self.quiet = not world.is_main
        self.start = time.monotonic()
        self._last_said, self._last_logged = -PLAIN_INTERVAL_S, -LOG_INTERVAL_S
        if self.quiet:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / "metrics.jsonl"
        if resume_step is not None:
            _keep_records_until(path, resume_step)
        self._file = path.open("w" if resume_step is None else "a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=resume_step)
        self._terminal = sys.stderr.isatty()

    def record(self, kind: str, step: int, values: dict[str, Any], *, board: bool = True) -> None:
        """One line of `metrics.jsonl`, and every number (or list of numbers, by index) to TensorBoard if `board`."""
        if kind == "checkpoint":
            LOGGER.info("checkpoint of step %d: %s", step, json.dumps(values))
        if self.quiet:
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items() if board else ():
            series = value if isinstance(value, list) else [value]
            for index, number in enumerate(series):
                if isinstance(number, int | float):
                    tag = f"{kind}/{name}/{index}" if isinstance(value, list) else f"{kind}/{name}"
                    self._tensorboard.add_scalar(tag, number, step)

    def say_step(
        self, step: int, total: int, loss: float, events_per_s: float, data_wait: float, done_here: int
    ) -> None:
        """Loss, rate and time left: rewritten on a terminal, a line now and then elsewhere, and in each rank's log.

        Args:
            data_wait: share of this rank's time.
        """
        now = time.monotonic()
        to_log = now - self._last_logged >= LOG_INTERVAL_S
        to_person = not self.quiet and (self._terminal or now - self._last_said >= PLAIN_INTERVAL_S)
        if not (to_log or to_person):
            return
        left = (now - self.start) / max(done_here, 1) * max(total - step, 0)
        line = (
            f"step {step}/{total}  loss {loss:.4f}  {format_count(events_per_s)} events/s  "
            f"data wait {data_wait:.1%}  {format_seconds(left)} left"
        )
        if to_log:
            self._last_logged = now
            LOGGER.info("%s", line)
        if not to_person:
            return
        self._last_said = now
        sys.stderr.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def say(self, line: str) -> None:
        """A line that stays, in rank 0's log too."""
        if self.quiet:
            return
        LOGGER.info("%s", line)
        sys.stderr.write(f"\r\x1b[2K{line}\n" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self.quiet:
            return
        self._file.close()
        self._tensorboard.close()


def _keep_records_until(path: Path, step: int) -> None:
    """Drop what an interrupted run recorded after the checkpoint it resumes from: that is done again.

    A period is predicted after the checkpoint of the step that its training begins at.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _place_of(line) <= (step, False)]
    write_text_atomically(path, "".join(f"{line}\n" for line in kept))


def _place_of(line: str) -> tuple[float, bool]:
    """The step of a record, and whether it was made behind the step's checkpoint."""
    try:
        record = json.loads(line)
        return float(record["step"]), record["kind"] == STREAM
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf, False  # the torn last line of a killed run
