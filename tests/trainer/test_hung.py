"""What becomes of a job one of whose ranks stops, dies, fails or waits for ever: the others end, and say which one."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch.distributed as dist

from common.errors import Lost
from evaluation import evaluate, evaluator
from tests.conftest import Prepared
from tests.ranks import become
from tests.trainer.test_train import SMALL, records, train_here, train_on
from trainer import loop
from trainer.train import main

LONG = ["epochs=4000", "validate_every=4000", "checkpoint.every=0", "watch.heartbeat_s=0.5"]
"""Hours of steps."""
FORK = multiprocessing.get_context("forkserver")


def fail_at(step: int, how: str) -> None:
    """Have this process fail in a step: by an error, or by never coming back."""
    once = loop.Trainer._step

    def failing(self: loop.Trainer, stream: Any, progress: loop.Progress) -> bool:
        if progress.step == step:
            if how == "sleep":
                time.sleep(3600)
            raise ZeroDivisionError("a planted bug")
        return once(self, stream, progress)

    loop.Trainer._step = failing  # type: ignore[method-assign]


def die_at_a_bin() -> None:
    """Have this process be killed in an evaluation, before it has found anything."""
    evaluator._Work.of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]


def work_aside(
    rank: int, size: int, environment: dict[str, str], port: int, said: str, keys: list[str], fails: str
) -> NoReturn:
    """One rank as torchrun has it: its store outlives it; what the rank says goes to a file."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    become(rank, size, environment)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    if fails == "evaluate":
        if rank == 1:
            die_at_a_bin()
        os._exit(evaluate.main(keys))
    if fails and rank == 1:
        fail_at(12, fails)
    os._exit(main(keys))


class Job:
    """Ranks at work, as processes of their own."""

    def __init__(self, size: int, run: Path, folder: Path, *keys: str, fails: str = "") -> None:
        self.run, self.said = run, [folder / f"said-{rank}" for rank in range(size)]
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))
        given = (size, dict(os.environ), self.store.port)
        self.ranks = [
            FORK.Process(target=work_aside, args=(rank, *given, str(self.said[rank]), [f"run={run}", *keys], fails))
            for rank in range(size)
        ]
        for process in self.ranks:
            process.start()

    def wait_for_step(self, step: int) -> None:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            lines = (self.run / "metrics.jsonl").read_text() if (self.run / "metrics.jsonl").exists() else ""
            if f'"step": {step},' in lines:
                return
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not done: {[path.read_text() for path in self.said]}")

    def signal(self, rank: int, number: signal.Signals) -> None:
        pid = self.ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def ended(self, rank: int, within_s: float) -> int:
        self.ranks[rank].join(within_s)
        status = self.ranks[rank].exitcode
        assert status is not None, f"rank {rank} has not ended: {self.said[rank].read_text()}"
        return status

    def log(self, rank: int) -> str:
        return (self.run / "logs" / f"rank-{rank:05d}.log").read_text()

    def message(self, rank: int) -> str:
        return self.said[rank].read_text()

    @property
    def heartbeat(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run / "heartbeat.json").read_text())
        return content


@contextmanager
def job(*arguments: Any, **named: Any) -> Iterator[Job]:
    """A job that leaves nobody behind."""
    started = Job(*arguments, **named)
    try:
        yield started
    finally:
        for process in started.ranks:
            process.kill()
            process.join()


def training(size: int, prepared: Prepared, folder: Path, *keys: str, fails: str = "") -> Any:
    """A training that goes on for ever."""
    stores = [f"store={prepared.store}", f"codes={prepared.codes}"]
    return job(size, folder / "run", folder, *stores, *SMALL, *LONG, *keys, fails=fails)


def blamed(message: str) -> list[str]:
    """Names of the ranks that a message says hold the others up."""
    return [line.split(" on ")[0].strip() for line in message.splitlines() if line.endswith("← this one")]


def test_a_rank_that_is_stopped_is_named_and_the_others_end_when_their_patience_does(
    prepared: Prepared, tmp_path: Path
) -> None:
    with training(2, prepared, tmp_path, "watch.timeout_s=4") as ranks:
        ranks.wait_for_step(12)
        time.sleep(3)  # ranks tell the others where they are every second or so
        ranks.signal(1, signal.SIGSTOP)
        start = time.monotonic()
        assert ranks.ended(0, 30) == Lost.status
        assert 2 < time.monotonic() - start < 15
        message, beats = ranks.message(0), ranks.heartbeat
    assert "trainer.train: no step for 4 s: rank 1 on " in message
    assert " does not answer\n" in message
    assert blamed(message) == ["rank 1"]
    told = next(line for line in message.splitlines() if line.endswith("← this one"))
    assert re.search(r"training, step \d+, \d+ s ago; last heard of ", told)
    assert "Traceback" not in message
    assert "no step for 4 s" in ranks.log(0)
    assert "most recent call first" in ranks.log(0), "the stacks of all threads"
    assert (beats["state"], beats["status"]) == ("lost", Lost.status)


@pytest.mark.parametrize(("victim", "survivors"), [(1, [0, 2]), (0, [1, 2])])
def test_a_rank_that_is_killed_is_named_by_one_of_the_others(
    prepared: Prepared, tmp_path: Path, victim: int, survivors: list[int]
) -> None:
    with training(3, prepared, tmp_path, "watch.timeout_s=60") as ranks:
        ranks.wait_for_step(12)
        ranks.signal(victim, signal.SIGKILL)
        assert [ranks.ended(rank, 20) for rank in survivors] == [Lost.status] * 2
        messages = [ranks.message(rank) for rank in survivors]
    said = [message for message in messages if "lost a peer" in message]
    assert said
    assert all(blamed(message) == [f"rank {victim}"] for message in said), said
    assert all("Traceback" not in message for message in messages)
    for rank in survivors:
        assert "RuntimeError" in ranks.log(rank), "what gloo said is in the log"
        assert "Traceback" in ranks.log(rank)


def test_a_bug_on_one_rank_stays_a_bug_and_the_others_say_whose(prepared: Prepared, tmp_path: Path) -> None:
    with training(2, prepared, tmp_path, "watch.timeout_s=60", fails="raise") as ranks:
        assert ranks.ended(1, 60) == 1
        assert ranks.ended(0, 20) == 1, "the job ends as the rank that is the cause"
        assert "ZeroDivisionError: a planted bug" in ranks.message(1)
        assert "ZeroDivisionError: a planted bug" in ranks.log(1)
        assert blamed(ranks.message(0)) == ["rank 1"]
        assert "ended: ZeroDivisionError: a planted bug" in ranks.message(0)


def test_a_rank_that_never_comes_back_is_told_from_those_that_wait_for_it(prepared: Prepared, tmp_path: Path) -> None:
    with training(2, prepared, tmp_path, "watch.timeout_s=4", fails="sleep") as ranks:
        assert [ranks.ended(rank, 60) for rank in (0, 1)] == [Lost.status] * 2
        assert blamed(ranks.message(0) or ranks.message(1)) == ["rank 1"]
        assert "fail_at" in ranks.log(1) or "in failing" in ranks.log(1), "where it was"


def test_an_evaluation_that_loses_a_rank_says_so_and_goes_on_when_it_is_called_again(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_here(prepared, run, "max_steps=4") == 0
    with job(2, run, tmp_path, "bootstrap=20", "tokens=64", fails="evaluate") as ranks:
        assert ranks.ended(0, 60) == Lost.status
        message = ranks.message(0)
        assert "evaluation.evaluate: lost a peer (" in message
        assert blamed(message) == ["rank 1"]
        assert "evaluate again: lists go on where they were" in message
        assert "evaluation, step 0" in message
        assert "Traceback" in (run / "logs" / "evaluate-rank-00000.log").read_text()
    assert not (run / "metrics.json").exists()
    assert evaluate.main([f"run={run}", "bootstrap=20", "tokens=64", "timeout_s=99"]) == 0
    assert "evaluate: goes on after " in capfd.readouterr().err, "another time-out is no other evaluation"


def test_watching_changes_no_number(prepared: Prepared, tmp_path: Path) -> None:
    keys = ["max_steps=8", "epochs=2"]
    train_on(2, prepared, tmp_path / "slow", *keys)
    train_on(2, prepared, tmp_path / "fast", *keys, "watch.heartbeat_s=0.1", "watch.timeout_s=30")
    once, again = (records(tmp_path / name, "train") for name in ("slow", "fast"))
    assert [record["loss"] for record in once] == [record["loss"] for record in again]
