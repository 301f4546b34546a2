"""What each rank is at, as it says itself, and what is known of the others."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SET_UP, TRAINING, VALIDATION, SAVING, EVALUATION, END = (
    "set-up",
    "training",
    "validation",
    "saving",
    "evaluation",
    "end",
)

_RANKS_TOLD = 16
"""Ranks that a message lists one by one."""


class Pulse:
    """What this rank is at. Written by the thread that works, a few stores to memory a step; read by others.

    Attributes:
        now: (phase, epoch, step, time.monotonic() of the last change), replaced as a whole.
        expected_steps: about how many steps there will be, 0 where nobody counts.
    """

    def __init__(self) -> None:
        self.now = (SET_UP, 0, 0, time.monotonic())
        self.expected_steps = 0

    def step_done(self, epoch: int, step: int) -> None:
        """A step has ended, the `step`-th of the run."""
        self.now = (self.now[0], epoch, step, time.monotonic())

    def enter(self, phase: str) -> None:
        """Something else begins."""
        self.now = (phase, *self.now[1:3], time.monotonic())

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Something else for a while."""
        before = self.now[0]
        self.enter(phase)
        yield
        self.enter(before)

    @property
    def age_s(self) -> float:
        """Seconds since the last change."""
        return time.monotonic() - self.now[3]


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself.

    Attributes:
        count: how often it has spoken; that a rank is alive is told by this alone, never by clocks of other machines.
        age_s: seconds since its last step or change of phase, when it said this.
        waiting: whether it waits for the others in a collective.
        lost: whether it has lost a peer.
        answers: whether it says this because somebody has called the roll.
        ended: how it ended, empty while it is at work.
        status: with which exit status, then.
    """

    rank: int
    host: str
    pid: int
    count: int = 0
    phase: str = SET_UP
    epoch: int = 0
    step: int = 0
    age_s: float = 0.0
    waiting: bool = False
    lost: bool = False
    answers: bool = False
    ended: str = ""
    status: int | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Beat:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Seen:
    """A rank as another one sees it.

    Attributes:
        silent_s: seconds since its last beat was heard.
        is_silent: whether that is too long.
    """

    beat: Beat
    silent_s: float = 0.0
    is_silent: bool = False

    @property
    def name(self) -> str:
        """Rank, host and process, as far as they are known."""
        if not self.beat.pid:
            return f"rank {self.beat.rank}"
        return f"rank {self.beat.rank} on {self.beat.host} (pid {self.beat.pid})"

    @property
    def is_at_work(self) -> bool:
        """Whether it is there and has not ended."""
        return not self.is_silent and not self.beat.ended

    def describe(self) -> str:
        """What it is at and since when."""
        beat = self.beat
        if not beat.pid:
            return f"{self.name}: nothing was ever heard of it"
        text = f"{self.name}: {beat.phase}, step {beat.step}, {beat.age_s + self.silent_s:.0f} s ago"
        if beat.ended:
            return f"{text}; ended: {beat.ended}"
        if self.is_silent:
            return f"{text}; last heard of {self.silent_s:.0f} s ago"
        if beat.lost:
            return f"{text}; has lost its peer"
        return f"{text}; {'waits for the others' if beat.waiting else 'waits for nobody'}"


class Table:
    """The beats of all ranks, as this one hears them.

    Args:
        silence_s: seconds without a beat after which a rank counts as silent.
    """

    def __init__(self, size: int, silence_s: float) -> None:
        self.silence_s = silence_s
        self._heard: list[tuple[Beat, float]] = [(Beat(rank, "?", 0), time.monotonic()) for rank in range(size)]

    def hear(self, beats: Iterable[Beat]) -> None:
        """Take note of beats; one that was heard before proves nothing."""
        now = time.monotonic()
        for beat in beats:
            if beat.count != self._heard[beat.rank][0].count:
                self._heard[beat.rank] = (beat, now)

    def seen(self) -> list[Seen]:
        """All ranks, as known now."""
        now = time.monotonic()
        return [Seen(beat, now - heard, not beat.ended and now - heard > self.silence_s) for beat, heard in self._heard]


def culprits(ranks: Sequence[Seen]) -> tuple[list[Seen], str]:
    """Those that the others wait for, and why they are thought to be these.

    They ended, else fell silent, else are behind, else wait for nobody; nobody where that is true of all.
    """
    newest = max(seen.beat.step for seen in ranks)
    at_work = [seen for seen in ranks if seen.is_at_work and not seen.beat.lost]
    reasons = {
        "has ended": [seen for seen in ranks if seen.beat.ended and not seen.beat.lost],
        "does not answer": [seen for seen in ranks if seen.is_silent],
        "is behind": [seen for seen in at_work if seen.beat.step < newest],
        "waits for nobody": [seen for seen in at_work if not seen.beat.waiting],
    }
    for reason, chosen in reasons.items():
        if chosen and (len(chosen) < len(ranks) or len(ranks) == 1):
            return chosen, reason
    return [], "no rank stands out"


def describe_loss(what: str, ranks: Sequence[Seen]) -> str:
    """A message: what happened, which rank the others wait for, and what each was at."""
    to_blame, reason = culprits(ranks)
    names = ", ".join(seen.name for seen in to_blame[:_RANKS_TOLD])
    told = sorted(ranks, key=lambda seen: (seen not in to_blame, seen.beat.rank))
    lines = [f"  {seen.describe()}{'  ← this one' if seen in to_blame else ''}" for seen in told[:_RANKS_TOLD]]
    if len(told) > _RANKS_TOLD:
        lines.append(f"  … and {len(told) - _RANKS_TOLD} more ranks")
    return "\n".join([f"{what}: {' '.join([names, reason]).strip()}", *lines])


def to_plain(ranks: Sequence[Seen]) -> list[dict[str, Any]]:
    """For `heartbeat.json`."""
    return [
        {
            "rank": seen.beat.rank,
            "host": seen.beat.host,
            "pid": seen.beat.pid,
            "phase": seen.beat.phase,
            "epoch": seen.beat.epoch,
            "step": seen.beat.step,
            "since_step_s": round(seen.beat.age_s + seen.silent_s, 1),
            "since_beat_s": round(seen.silent_s, 1),
            "waiting": seen.beat.waiting,
            "ended": seen.beat.ended,
        }
        for seen in ranks
    ]
