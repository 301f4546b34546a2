"""Watches over the ranks of a job from beside the work, and ends a job that has fallen apart with status 4.

Two threads a rank, as neither may wait for what the other waits for. One carries beats to the store of the job and
back, by a connection of its own, and on rank 0 writes `heartbeat.json`; it may hang, with a network or a disk. The
other looks at the clock. What it finds it says, and ends the process itself: a thread that waits in a collective
cannot be woken.
"""

from __future__ import annotations

import math
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from common.errors import InputError, Lost, Regression, Stopped
from common.faults import report_lost
from common.files import write_json_atomically
from sharding.ranks.collectives import Blocked, is_loss
from sharding.ranks.config import BEATS_TO_SILENCE, HEARTBEAT, LOGS, WatchConfig
from sharding.ranks.heartbeat import TRAINING, Beat, Pulse, Seen, Table, describe_loss, to_plain
from sharding.ranks.rank_log import LOGGER, RankLog
from sharding.world import Meeting, World

ANSWER_S = 3.0
"""How long a rank that has lost a peer waits for the others to say that they are there."""

_POLL_S = 0.5
_BEATS_TO_A_LOOK = 6
_LAST_WORDS_S = 10.0
_PATIENCE_AT_THE_END_S = 1.0
_OF_GLOO = re.compile(r"^\[/\S*\] |\. This is typically caused by .*")
"""Where in its source it stood, and what it wishes the reader."""

_PATIENCE = timedelta(seconds=20)
"""Of a conversation with the store."""


class Watch:
    """What watches over this rank, and knows of the others.

    A peer's loss, whichever way this rank's work hears of it, leaves the block as `Lost`.

    Args:
        name: of the entry point, in messages.
        again: how to go on after a loss.

    Attributes:
        pulse: to be told what this rank is at.
        blocked: time in collectives.
    """

    def __init__(self, world: World, config: WatchConfig, name: str, again: str) -> None:
        self.world, self.config, self._name, self._again = world, config, name, again
        self.pulse, self.blocked = Pulse(), Blocked(world.device)
        self._silence_s = BEATS_TO_SILENCE * config.heartbeat_s + 2 * _POLL_S
        self._table = Table(world.size, self._silence_s)
        self._count, self._host, self._pid = 0, platform.node(), os.getpid()
        self._lost, self._called, self._end = False, False, ""
        self._talked = -math.inf
        self._state: tuple[str, int | None] = ("running", None)
        self._steps: deque[tuple[float, int]] = deque(maxlen=7)
        self._next_beat = self._last_word = 0.0
        self._file: Path | None = None
        self._log: RankLog | None = None
        self._wake, self._over, self._told = threading.Event(), threading.Event(), threading.Event()
        self._leaving = threading.Lock()

    def __enter__(self) -> Watch:
        """Begin to watch."""
        self.blocked.install()
        for name, work in (("heartbeat", self._carry), ("watch", self._look)):
            threading.Thread(target=work, name=name, daemon=True).start()
        return self

    def attach(self, run: Path, *, role: str = "") -> None:
        """Write to the run's folder from here on: the log of this rank, and, for a training, the heartbeat."""
        try:
            self._log = RankLog(run / LOGS, self.world, role)
        except OSError as error:
            print(f"warning: {run / LOGS}: no log of rank {self.world.rank}: {error}", file=sys.stderr)
        if self.world.is_main and not role:
            self._file = run / HEARTBEAT
        self._next_beat = 0.0  # at once: what an earlier start has left there tells of that
        self._wake.set()

    def seen(self) -> list[Seen]:
        """All ranks, this one as it is now."""
        ranks = self._table.seen()
        ranks[self.world.rank] = Seen(self._beat())
        return ranks

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how it ended; what was the loss of a peer is raised as that."""
        with self._leaving:  # from here on the other thread ends nothing any more
            self._over.set()
        heard = error is not None and is_loss(error) and not isinstance(error, Lost)
        lost = self._call_roll(error) if error is not None and heard else None
        if error is not None:
            usual = isinstance(error, InputError | Stopped | Regression | KeyboardInterrupt)
            LOGGER.error("ended: %s", _first_line(error), exc_info=None if usual else error)
        if lost is not None:
            LOGGER.error("%s", lost)
        self._say_end(*_ending(lost or error), _first_line(lost or error))
        self.blocked.remove()
        if self._log is not None:
            self._log.close()
        if lost is not None:
            raise lost from error

    def _say_end(self, state: str, status: int, why: str) -> None:
        """Let the others know, and the reader of the file, as far as that takes no more than a moment."""
        self._last_word = time.monotonic() + _PATIENCE_AT_THE_END_S
        self._state, self._end = (state, status), why or "done"
        self._told.clear()
        self._wake.set()
        self._told.wait(2 * _PATIENCE_AT_THE_END_S)

    def _beat(self) -> Beat:
        phase, epoch, step, _ = self.pulse.now
        return Beat(
            self.world.rank,
            self._host,
            self._pid,
            self._count,
            phase,
            epoch,
            step,
            round(self.pulse.age_s, 1),
            waiting=self.blocked.waiting,
            lost=self._lost,
            answers=self._called,
            ended=self._end,
            status=self._state[1],
        )

    # ── beats ────────────────────────────────────────────────────────────────────────────────────────────

    def _carry(self) -> None:
        """Beats to the store and back, until the end is told."""
        store = self._connect()
        while not self._told.is_set() or not self._end:
            self._wake.wait(_POLL_S / 10 if self._end else min(_POLL_S, self.config.heartbeat_s))
            self._wake.clear()
            ending = bool(self._end)
            if store is not None:
                try:
                    due = self._talk(store, time.monotonic() >= self._next_beat)
                    self._talked = time.monotonic()
                except RuntimeError as error:  # of c10d; without a store everything else goes on
                    LOGGER.warning("the store of the job cannot be reached any more: %s", _first_line(error))
                    store = None
            if store is None:
                due = time.monotonic() >= self._next_beat
            last = ending and (store is None or self._has_heard_ends())
            if last or (due and not ending):
                self._next_beat = time.monotonic() + self.config.heartbeat_s
                self._write()
            if last:
                self._told.set()

    def _has_heard_ends(self) -> bool:
        """Whether what rank 0 writes last is the end of every rank, where all end well; nobody waits for that long."""
        well = self.world.is_main and self._state == ("ended", 0)
        return not well or time.monotonic() > self._last_word or not self._others()

    def _connect(self) -> dist.Store | None:
        meeting = self.world.meeting
        if meeting is None:
            return None
        try:
            store = _client(meeting)
            if self.world.is_main:  # so that nobody waits for one that has not spoken yet
                for rank in range(self.world.size):
                    store.compare_set(_key(rank), "", "-")
        except RuntimeError as error:
            LOGGER.warning("no heartbeats: the store of the job cannot be reached: %s", _first_line(error))
            return None
        return store

    def _talk(self, store: dist.Store, due: bool) -> bool:
        """Say and hear what there is to; returns whether this was a beat."""
        if self._lost and not self._called:
            store.set("call", "")
        self._called = self._called or store.check(["call"])
        if not (due or self._called or self._end):
            return False
        self._count += 1
        store.set(_key(self.world.rank), self._beat().to_json())
        now_and_then = self._count % _BEATS_TO_A_LOOK == 2  # enough to know who the others are
        if self.world.is_main or self._lost or now_and_then or self.pulse.age_s > self._curious_s:
            keys = [_key(rank) for rank in range(self.world.size)]
            told = store.multi_get(keys) if store.check(keys) else []  # of what is not there it would wait for
            self._table.hear(Beat.of_json(text.decode()) for text in told if text != b"-")
        return True

    @property
    def _curious_s(self) -> float:
        """Seconds without a step from which on a rank listens to all others, and not rank 0 alone."""
        return min(self.config.timeout_s / 2, self.config.timeout_s - self._silence_s)

    def _write(self) -> None:
        if self._file is None:
            return
        (state, status), (_, _, step, _) = self._state, self.pulse.now
        self._steps.append((time.monotonic(), step))
        (first, from_step), (last, to_step) = self._steps[0], self._steps[-1]
        content = {
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "state": state,
            "status": status,
            "step": step,
            "expected_steps": self.pulse.expected_steps,
            "steps_per_s": round((to_step - from_step) / (last - first), 4) if last > first else None,
            "heartbeat_s": self.config.heartbeat_s,
            "ranks": to_plain(self.seen()),
        }
        try:
            write_json_atomically(self._file, content)
        except OSError as error:
            LOGGER.warning("%s: cannot be written: %s", self._file, error)

    # ── losses ───────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """End the process when nothing has moved for too long."""
        limit = self.config.timeout_s
        while not self._over.wait(min(_POLL_S, limit / 10)):
            phase, age = self.pulse.now[0], self.pulse.age_s
            # A validation, a checkpoint, a set-up may take longer than any step: there only a silent peer counts, and
            # only while the store that its beats come through is there.
            silent = self._is_in_touch and any(seen.silent_s > limit for seen in self._others())
            if age > limit and (phase == TRAINING or silent):
                with self._leaving:
                    if not self._over.is_set():
                        self._leave(f"{'no step' if phase == TRAINING else f'{phase} has stood still'} for {age:.0f} s")

    @property
    def _is_in_touch(self) -> bool:
        """Whether the store of the job has answered just now."""
        return time.monotonic() - self._talked < ANSWER_S - _POLL_S

    def _others(self) -> list[Seen]:
        return [seen for seen in self.seen() if seen.beat.rank != self.world.rank and not seen.beat.ended]

    def _leave(self, what: str) -> None:
        threading.Timer(_LAST_WORDS_S, os._exit, (Lost.status,)).start()  # a log on a disk that hangs, too
        ranks = self.seen()
        text = self._tell(what, ranks)
        report_lost(self._name, text, aloud=self._speaks(seen for seen in ranks if seen.is_at_work))
        LOGGER.critical("%s", text)
        if self._log is not None:
            self._log.dump_stacks()
        self._say_end("lost", Lost.status, what)
        os._exit(Lost.status)

    def _call_roll(self, error: BaseException) -> Lost:
        """Who is still there? A rank that was killed or is cut off does not answer."""
        if threading.current_thread() is threading.main_thread():
            # Launchers end the others as soon as one rank has failed, and give them half a minute. This one is about to
            # end anyway, and is to say first what it knows.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._lost = True
        self._wake.set()
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until and not all(_has_answered(seen) for seen in self._others()):
            time.sleep(0.05)
        ranks = [
            seen if seen.beat.rank == self.world.rank or _has_answered(seen) else Seen(seen.beat, seen.silent_s, True)
            for seen in self.seen()
        ]
        text = self._tell(f"lost a peer ({_first_line(error)})", ranks)
        return Lost(text, aloud=self._speaks(seen for seen in ranks if seen.beat.lost), status=_status_of_cause(ranks))

    def _tell(self, what: str, ranks: Sequence[Seen]) -> str:
        lines = [describe_loss(what, ranks), self._again]
        meeting = self.world.meeting
        if meeting is not None and not self._is_in_touch:
            lines.insert(
                1,
                f"  the store of the job at {meeting.host}:{meeting.port} is out of reach: what is told of other ranks "
                "is of before that",
            )
        return "\n".join(lines)

    def _speaks(self, ranks: Any) -> bool:
        """Whether this rank says for all what happened: the first of those that can."""
        return self.world.rank == min((seen.beat.rank for seen in ranks), default=self.world.rank)


def _has_answered(seen: Seen) -> bool:
    return seen.beat.answers or bool(seen.beat.ended)


def _status_of_cause(ranks: Sequence[Seen]) -> int:
    """That of a rank that ended by itself, rather than by a loss: the whole job ends as it did."""
    ends = {seen.beat.status for seen in ranks if seen.beat.ended and not seen.beat.lost}
    return next((status for status in (2, 3, 1) if status in ends), Lost.status)


def _client(meeting: Meeting) -> dist.Store:
    store = dist.TCPStore(meeting.host, meeting.port, is_master=False, timeout=_PATIENCE, wait_for_workers=False)
    return dist.PrefixStore(f"{meeting.prefix}/watch", store)


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _first_line(error: BaseException | None) -> str:
    if error is None:
        return ""
    lines: Sequence[str] = str(error).strip().splitlines() or [""]
    text = _OF_GLOO.sub("", lines[0])[:300]
    return text if isinstance(error, InputError | Stopped | Lost | Regression) else f"{type(error).__name__}: {text}"


def _ending(error: BaseException | None) -> tuple[str, int]:
    """State and exit status of a run that left its block with that error."""
    if error is None:
        return "ended", 0
    if isinstance(error, Lost):
        return "lost", error.status
    if isinstance(error, Stopped):
        return "stopped", error.status
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    if isinstance(error, Regression):
        return "ended", error.status
    return "failed", 2 if isinstance(error, InputError | OSError) else 1
