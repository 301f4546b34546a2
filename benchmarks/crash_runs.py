"""Runs of `benchmarks.crash`: when to kill, what a kill struck, and whether what it left is as it should be."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import crash_child
from benchmarks.crash_child import FILES, IDLE, MANIFEST, TIDYING, Attempt, Board
from common.storage import open_storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import Damage, step_folder

PATIENCE_S = 10.0
"""How long a rank that has lost its peer may take to end by itself, and then after SIGTERM."""
LIMIT_S = 120.0
"""No attempt takes that long."""

PLACES = ("set-up", "training", "validation", "end", "end")
WRITES = {FILES: "a checkpoint's files", MANIFEST: "between files and manifest", TIDYING: "after the manifest"}
PHASES = ("set-up", "training", *WRITES.values(), "validation", "end")
TIMES = {"events_per_s", "data_wait"}
"""What a record holds that is of the clock, not of the course of training."""
OF_THE_CLOCK = {"checkpoint", "ranks"}
"""Kinds of records that hold nothing else."""


@dataclass(frozen=True)
class Strike:
    """When to kill, and whom.

    Args:
        ranks: to be killed at once.
        seconds: after the start; None to wait for a writing.
        writes: of the checkpoints of the attempt, which one to wait for.
        moment: what its thread is to be doing.
        delay: seconds from then on.
        held: whether the ranks stop at that moment, so that the blow cannot come too late.
    """

    ranks: list[int]
    seconds: float | None = None
    writes: int = 0
    moment: int = IDLE
    delay: float = 0.0
    held: bool = False

    @classmethod
    def draw(cls, chance: random.Random, size: int, expected_seconds: float, expected_writes: int, turn: int) -> Strike:
        """By turns: at any time of an attempt, or aimed at one of its writings, which is held every other time."""
        ranks = chance.choice([[0], [1], [0, 1]]) if size == 2 else [0]
        if expected_writes < 1 or turn % 2 == 0:
            return cls(ranks, seconds=chance.uniform(0, expected_seconds))
        write, moment = chance.randint(1, expected_writes), chance.choice([FILES, MANIFEST, TIDYING])
        if turn % 4 == 1:
            return cls(ranks, None, write, moment, held=True)
        return cls(ranks, None, write, moment, chance.choice([0.0, chance.uniform(0, 4e-3)]))

    def wait(self, attempt: Attempt, board: Board) -> bool:
        """Sleep until the instant has come; False if a process ended first."""
        if self.seconds is None and not self._wait_for_write(attempt, board):
            return False
        until = time.perf_counter() + self.delay if self.seconds is None else attempt.begun + self.seconds
        while (left := until - time.perf_counter()) > 0:
            time.sleep(min(left, 0.01))
        return len(attempt.running) == len(attempt.processes)

    def _wait_for_write(self, attempt: Attempt, board: Board) -> bool:
        """A moment may be over between two looks; what is later will do."""
        turns, rank = 0, self.ranks[0]
        while board.writes(rank) < self.writes or board.write(rank) < self.moment:
            turns += 1
            if turns % 50 == 0 and len(attempt.running) < len(attempt.processes):
                return False
            if board.writes(rank) > self.writes:
                return True
            time.sleep(1e-4)
        return True


CONTROL = Strike([0], None, writes=2, moment=FILES)
"""The first checkpoint is whole by then, so that there is something to go on from, and to spoil."""


@dataclass(frozen=True)
class Kill:
    """What a kill struck.

    Attributes:
        size: ranks of the run.
        ranks: that were killed.
        aimed: whether at a writing.
        phase: of the first rank killed.
        step: steps done by it.
        unfinished: checkpoints without a manifest left behind.
        peer: how a rank that was not killed ended: `itself`, `SIGTERM`, `SIGKILL`, or empty.
    """

    size: int
    ranks: list[int]
    aimed: bool
    phase: str
    step: int
    unfinished: int
    peer: str

    def __str__(self) -> str:
        whom = "both ranks" if len(self.ranks) > 1 else f"rank {self.ranks[0]}"
        left = f", {self.unfinished} checkpoint(s) without manifest left" * bool(self.unfinished)
        return f"{whom} of {self.size} after step {self.step} in {self.phase}{left}" + f"; peer: {self.peer}" * bool(
            self.peer
        )


@dataclass
class Job:
    """A training of one number of ranks, as nobody interrupts it.

    Attributes:
        seconds: that it takes.
        setup: of these, before the first step.
        steps: that it has.
        turn: of its next kill, see `Strike.draw`.
    """

    keys: list[str]
    size: int
    folder: Path
    seconds: float = 0.0
    setup: float = 0.0
    steps: int = 0
    turn: int = 0

    @property
    def reference(self) -> Path:
        """Folder of the uninterrupted run."""
        return self.folder / f"whole-{self.size}"

    def start(self, run: Path, board: Board, hold: tuple[int, int] | None = None, *, alter: bool = False) -> Attempt:
        """Begin, or go on with, the training in a folder."""
        state = run.with_name(f"{run.name}-state")
        state.mkdir(parents=True, exist_ok=True)
        keys = [*self.keys, f"run={run}", "resume=auto"]
        log = run.with_name(f"{run.name}.log")
        return crash_child.start(keys, self.size, board, state, log, hold=hold, alter=alter)

    def run_whole(self, board: Board) -> None:
        """The run to compare with.

        Raises:
            RuntimeError: it failed.
        """
        attempt = self.start(self.reference, board)
        while attempt.running and board.step(0) < 1:
            time.sleep(0.005)
        self.setup = time.perf_counter() - attempt.begun
        if not attempt.wait(LIMIT_S) or any(attempt.statuses.values()):
            raise RuntimeError(f"the uninterrupted run failed: {tail(self.reference)}")
        self.seconds, self.steps = time.perf_counter() - attempt.begun, board.step(0)

    def ended(self, attempt: Attempt, first: int) -> None:
        """Note how long an attempt took from step `first` to the end, where that was faster than expected."""
        seconds = time.perf_counter() - attempt.begun
        if first < self.steps:
            whole = self.setup + (seconds - self.setup) * self.steps / (self.steps - first)
            self.seconds = max(self.setup, min(self.seconds, whole))

    def rest(self, done: int) -> tuple[float, int]:
        """Seconds of an attempt that goes on from a step, and checkpoints that it writes."""
        left = 1 - done / self.steps
        return self.setup + (self.seconds - self.setup) * left, int((self.steps - done) // 2)


@dataclass
class Killed:
    """A run that was killed and went on until its end.

    Attributes:
        faults: what was not as it should have been; empty for a run that ended identical.
    """

    job: Job
    folder: Path
    kills: list[Kill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def kill_and_resume(
    job: Job, folder: Path, board: Board, chance: random.Random, kills: int, *, alter: bool = False
) -> Killed:
    """One run, killed up to `kills` times, and compared at its end; with `alter`, spoilt at its last resumption."""
    run = Killed(job, folder)
    while not run.faults:
        expected = newest_step(folder)
        strike = None
        if len(run.kills) < kills:
            strike = Strike.draw(chance, job.size, *job.rest(max(expected, 0)), job.turn)
            strike = CONTROL if alter else strike
        hold = (strike.writes, strike.moment) if strike and strike.held else None
        attempt = job.start(folder, board, hold, alter=alter and strike is None)
        struck = strike is not None and strike.wait(attempt, board)
        if struck:
            assert strike is not None
            kill = _strike(strike, attempt, board, job.size, folder)
            if -signal.SIGKILL in [attempt.statuses.get(rank) for rank in strike.ranks]:  # else it ended just before
                run.kills.append(kill)
                job.turn += kill.aimed == job.turn % 2  # a run too near its end to be aimed at waits for the next
        elif not attempt.wait(LIMIT_S):
            attempt.kill(range(job.size), signal.SIGKILL)
            attempt.wait(PATIENCE_S)
            run.faults.append(f"hung for {LIMIT_S:.0f} s: {tail(folder)}")
        run.faults += faults_of(folder, board, expected)
        if struck:
            continue
        if any(attempt.statuses.values()):
            run.faults.append(f"ended with {attempt.statuses}: {tail(folder)}")
        else:
            job.ended(attempt, max(expected, 0))
            run.faults += differences(job.reference, folder)
        if run.kills or run.faults:
            break
        shutil.rmtree(folder)  # it was over before the blow: once more
    return run


def _strike(strike: Strike, attempt: Attempt, board: Board, size: int, folder: Path) -> Kill:
    attempt.kill(strike.ranks, signal.SIGKILL)
    others = [rank for rank in range(size) if rank not in strike.ranks]
    peer = ""
    if others:
        peer = "itself"
        for number in (signal.SIGTERM, signal.SIGKILL):
            if attempt.wait(PATIENCE_S):
                break
            attempt.kill(others, number)
            peer = number.name
    attempt.wait(PATIENCE_S)
    first = strike.ranks[0]
    write, place = board.write(first), PLACES[board.place(first)]
    return Kill(
        size,
        strike.ranks,
        strike.seconds is None,
        WRITES.get(write, place),
        board.step(first),
        unfinished(folder),
        peer,
    )


# ── what must hold ───────────────────────────────────────────────────────────────────────────────────────


def newest_step(run: Path) -> int:
    """Step of the newest checkpoint that has a manifest; −1 if there is none."""
    names = Checkpoints(open_storage(run / "checkpoints")).names()
    return int(names[-1].removeprefix("step-")) if names else -1


def unfinished(run: Path) -> int:
    """Checkpoints that a crash left without a manifest."""
    storage = open_storage(run / "checkpoints")
    return len(set(storage.folders()) - set(Checkpoints(storage).names()))


def faults_of(run: Path, board: Board, expected: int) -> list[str]:
    """What is wrong with the checkpoints that a kill left, or with where its attempt had gone on from."""
    checkpoints = Checkpoints(open_storage(run / "checkpoints"))
    faults: list[str] = []
    names = checkpoints.names()
    for name in names:
        try:
            faults += checkpoints.faults(checkpoints.link(name))
            if name == names[-1]:
                checkpoints.chain(name)
        except Damage as damage:
            faults.append(str(damage))
    reached = [rank for rank in range(crash_child.MAX_RANKS) if board.place(rank) >= crash_child.TRAINING]
    return faults + [
        f"rank {rank} went on from step {board.resumed(rank)}, the newest whole checkpoint was {step_folder(expected)}"
        for rank in reached
        if board.resumed(rank) != expected
    ]


def differences(expected: Path, found: Path) -> list[str]:
    """Where two runs that ended differ: in what the ranks held in memory, or in what they recorded."""
    ours, theirs = (_memory(run) for run in (found, expected))
    faults = [f"{name}: only one of the two runs has it" for name in sorted(ours.keys() ^ theirs.keys())]
    faults += [
        f"{name}: differs from the uninterrupted run"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    recorded, wanted = (_records(run) for run in (found, expected))
    if [record["step"] for record in recorded] != [record["step"] for record in wanted]:
        faults.append("metrics.jsonl: records of other steps than the uninterrupted run's")
    return faults + [
        f"metrics.jsonl, {one['kind']} after step {one['step']}: differs from the uninterrupted run's"
        for one, other in zip(recorded, wanted, strict=False)
        if one != other
    ]


def _memory(run: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Every number that the ranks held at the end, bit for bit."""
    return {
        f"rank {file.stem}, {name}": (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
        for file in sorted(run.with_name(f"{run.name}-state").iterdir())
        for name, value in load_file(file).items()
    }


def _records(run: Path) -> list[dict[str, Any]]:
    """What was recorded of training and validation, without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in lines
        if line["kind"] not in OF_THE_CLOCK
    ]


def tail(run: Path) -> str:
    """The end of what its processes printed."""
    log = run.with_name(f"{run.name}.log")
    return log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else "no log"
