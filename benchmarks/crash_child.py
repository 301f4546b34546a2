"""Training processes of `benchmarks.crash`: forked, watched through shared memory, ended from outside.

The driver has imported everything and computed nothing, so a fork of it starts to train at once and inherits no
thread. What runs in it is `trainer.train.main`; around a few of its methods stand notes of where it is.
"""

from __future__ import annotations

import functools
import mmap
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.storage import LocalStorage
from evaluation import validation
from sharding.tables import TableShard, table_shards
from trainer import loop, train
from trainer.checkpoint import writing
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.resume import training_state

SETUP, TRAINING, VALIDATION, END, LEFT = range(5)
"""Where a process is; `LEFT` when its training has returned."""
IDLE, FILES, MANIFEST, TIDYING = range(4)
"""What its checkpoint's thread does: writes its files, has them written but no manifest yet, or has that too."""

MAX_RANKS = 2
STEP, PLACE, WRITE, WRITES, RESUMED, HELD_WRITES, HELD_MOMENT = range(7)
_FIELDS = 7
_HOLD_S = 0.5
"""How long a rank stops at the moment that it is to be killed in; ranks that are not killed go on then."""


class Board:
    """What the processes say of themselves, in memory that outlives them: a row a rank, a column a fact."""

    def __init__(self) -> None:
        memory = mmap.mmap(-1, 8 * MAX_RANKS * _FIELDS)
        self.facts = np.frombuffer(memory, np.int64).reshape(MAX_RANKS, _FIELDS)

    def clear(self) -> None:
        """Before processes start; nobody has resumed from anything."""
        self.facts[:] = 0
        self.facts[:, RESUMED] = -1

    def place(self, rank: int) -> int:
        """Where a rank is, or was when it ended."""
        return int(self.facts[rank, PLACE])

    def write(self, rank: int) -> int:
        """What its checkpoint's thread does."""
        return int(self.facts[rank, WRITE])

    def writes(self, rank: int) -> int:
        """How many checkpoints it has begun to write."""
        return int(self.facts[rank, WRITES])

    def step(self, rank: int) -> int:
        """Steps done."""
        return int(self.facts[rank, STEP])

    def resumed(self, rank: int) -> int:
        """The step that it went on from; −1 if it began."""
        return int(self.facts[rank, RESUMED])


@dataclass
class Attempt:
    """The processes of one start of a training.

    Attributes:
        processes: ids by rank.
        statuses: exit status by rank of those that have ended, negative for a signal.
        begun: when, by `time.perf_counter`.
    """

    processes: list[int]
    begun: float = field(default_factory=time.perf_counter)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def running(self) -> list[int]:
        """Ranks that have not ended."""
        for rank, process in enumerate(self.processes):
            if rank not in self.statuses:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(len(self.processes)) if rank not in self.statuses]

    def kill(self, ranks: Sequence[int], number: signal.Signals) -> None:
        """Send a signal to those of `ranks` that run."""
        for rank in set(ranks) & set(self.running):
            os.kill(self.processes[rank], number)

    def wait(self, seconds: float) -> bool:
        """Whether all ended within that time."""
        until = time.perf_counter() + seconds
        while self.running:
            if time.perf_counter() > until:
                return False
            time.sleep(0.002)
        return True


def fork(work: Callable[[], int], log: Path) -> int:
    """Run `work` in a process of its own, its output appended to `log`; returns the process's id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = work()
    except BaseException:  # the driver's own cleaning up must not run here too
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(
    keys: Sequence[str],
    ranks: int,
    board: Board,
    state: Path,
    log: Path,
    *,
    hold: tuple[int, int] | None = None,
    alter: bool = False,
) -> Attempt:
    """Begin or go on with a training.

    Args:
        keys: of `trainer.train`.
        state: folder where each rank that reaches the end leaves all that it holds in memory, `RANK.safetensors`.
        hold: which checkpoint's writing stops for a while, and at which of its moments.
        alter: move one number of one table by the least amount after resuming, which must not go unnoticed.
    """
    board.clear()
    board.facts[:, [HELD_WRITES, HELD_MOMENT]] = hold or (0, IDLE)
    port = _free_port()

    def enter(rank: int) -> int:
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        _shuffle_generators()
        _take_notes(board.facts[rank], state / f"{rank}.safetensors", alter=alter and rank == 0)
        return train.main(keys)

    return Attempt([fork(functools.partial(enter, rank), log) for rank in range(ranks)])


def _shuffle_generators() -> None:
    """Forks begin with equal random states, as processes do not: nothing may come to rest upon that."""
    seed = int.from_bytes(os.urandom(4))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _free_port() -> int:
    """Below those that the system hands out, which a connection of an attempt before may still hold."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _take_notes(facts: Any, state: Path, *, alter: bool) -> None:
    """Put notes around the trainer's methods, in this process alone."""

    def note(owner: Any, name: str, column: int, inside: int, after: int | None = None) -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        def noted(*given: Any, **named: Any) -> Any:
            facts[column] = inside
            _hold(facts, column)
            result = method(*given, **named)
            if after is not None:
                facts[column] = after
                _hold(facts, column)
            return result

        setattr(owner, name, noted)

    note(loop.Trainer, "_train", PLACE, TRAINING)
    note(validation.Validation, "__call__", PLACE, VALIDATION, TRAINING)
    note(Checkpointer, "finish", PLACE, END)
    note(writing.Writing, "_write_own", WRITE, FILES, MANIFEST)
    note(LocalStorage, "replace", WRITE, MANIFEST, TIDYING)
    note(writing.Writing, "run", WRITE, FILES, IDLE)
    _count(facts)
    _keep_state(facts, state)
    if alter:
        _alter_after_resuming()


def _hold(facts: Any, column: int) -> None:
    """Stop here if this is the moment that a kill is aimed at, the once."""
    if column == WRITE and facts[HELD_MOMENT] == facts[WRITE] and facts[HELD_WRITES] == facts[WRITES]:
        facts[HELD_MOMENT] = -1
        time.sleep(_HOLD_S)


def _count(facts: Any) -> None:
    step, write, resume = loop.Trainer._step, writing.Writing.run, vars(train)["resume"]

    def counted_step(self: loop.Trainer, stream: Any, progress: loop.Progress) -> bool:
        more = step(self, stream, progress)
        facts[STEP] = progress.step
        return more

    def counted_write(self: writing.Writing) -> writing.Outcome:
        facts[WRITES] += 1
        return write(self)

    def noted_resume(*given: Any) -> loop.Progress:
        progress: loop.Progress = resume(*given)
        facts[STEP] = facts[RESUMED] = progress.step
        return progress

    vars(train)["resume"] = noted_resume
    setattr(loop.Trainer, "_step", counted_step)  # noqa: B010 — mypy lets no method be assigned
    setattr(writing.Writing, "run", counted_write)  # noqa: B010


def _keep_state(facts: Any, state: Path) -> None:
    run = loop.Trainer.train

    def kept(self: loop.Trainer, progress: loop.Progress) -> loop.Progress:
        ended = run(self, progress)
        facts[PLACE] = LEFT
        save_file(live_state(self), str(state))
        return ended

    setattr(loop.Trainer, "train", kept)  # noqa: B010


def live_state(trainer: loop.Trainer) -> dict[str, Tensor]:
    """Copies of all parameters and optimizer states that a rank holds, by name and place."""
    found = {name: value.clone() for name, value in training_state(trainer.model, trainer.optimizers).items()}
    for shard in table_shards(trainer.model):
        place = f"{shard.table}.{shard.first_row}.{shard.first_column}"
        found[place] = shard.weight_RD.clone()
        found |= {f"{place}.{name}": value.clone() for name, value in shard.states.items()}
    return found


def _alter_after_resuming() -> None:
    resume = vars(train)["resume"]

    def altered(storage: Any, chain: Any, model: Any, *rest: Any) -> loop.Progress:
        progress: loop.Progress = resume(storage, chain, model, *rest)
        _move_one_number(table_shards(model)[-1])
        return progress

    vars(train)["resume"] = altered


def _move_one_number(shard: TableShard) -> None:
    """The largest of a row that training has moved least: a larger step would round so small a difference away."""
    moved_R = next(iter(shard.states.values())).view(shard.rows, -1).sum(dim=1)
    row_D = shard.weight_RD[int(moved_R.argmin())]
    number = row_D[int(row_D.abs().argmax())]
    number.copy_(torch.nextafter(number, torch.tensor(torch.inf)))
