"""What a watch writes, and what it lives through: ends of all kinds, full disks, a store that is gone."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from common.errors import InputError, Lost, Regression, Stopped
from sharding.ranks.config import WatchConfig
from sharding.ranks.heartbeat import TRAINING, VALIDATION
from sharding.ranks.watch import Watch
from sharding.world import Meeting, World

ALONE = World(0, 1, 1, torch.device("cpu"))
FAST = WatchConfig(heartbeat_s=0.1, timeout_s=30)
FORK = multiprocessing.get_context("forkserver")


def beats(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "heartbeat.json").read_text())
    return content


def wait_until(condition: Any, within_s: float = 10) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_file_follows_the_work_and_keeps_its_rate(tmp_path: Path) -> None:
    with Watch(ALONE, FAST, "test", "again") as watch:
        watch.pulse.expected_steps = 100
        watch.attach(tmp_path)
        wait_until((tmp_path / "heartbeat.json").exists)
        assert beats(tmp_path)["state"] == "running"
        watch.pulse.enter(TRAINING)
        for step in range(1, 31):
            watch.pulse.step_done(0, step)
            time.sleep(0.02)
        wait_until(lambda: beats(tmp_path)["step"] == 30)
        told = beats(tmp_path)
    assert 10 < told["steps_per_s"] < 60
    assert told["expected_steps"] == 100
    rank = told["ranks"][0]
    assert (rank["rank"], rank["pid"], rank["phase"]) == (0, os.getpid(), TRAINING)
    assert not [thread for thread in threading.enumerate() if thread.name in ("heartbeat", "watch")]


@pytest.mark.parametrize(
    ("error", "state", "status"),
    [
        (None, "ended", 0),
        (InputError("a fault"), "failed", 2),
        (OSError(28, "No space left on device"), "failed", 2),
        (ZeroDivisionError("a bug"), "failed", 1),
        (Stopped(signal.SIGTERM, "stopped"), "stopped", 143),
        (KeyboardInterrupt(), "stopped", 130),
        (Regression("worse", {}), "ended", 3),
    ],
)
def test_the_file_says_how_a_run_ended_and_the_log_why(
    tmp_path: Path, error: BaseException | None, state: str, status: int
) -> None:
    with contextlib.suppress(type(error) if error else ()), Watch(ALONE, FAST, "test", "again") as watch:
        watch.attach(tmp_path)
        if error:
            raise error
    assert (beats(tmp_path)["state"], beats(tmp_path)["status"]) == (state, status)
    log = (tmp_path / "logs" / "rank-00000.log").read_text()
    assert (str(error) in log) if error else ("ended" not in log)
    assert ("Traceback" in log) == isinstance(error, OSError | ZeroDivisionError)


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Its handler comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def lose_a_peer(run: Path) -> None:
    with Watch(ALONE, FAST, "test", "try again") as watch:
        watch.attach(run)
        raise RuntimeError("[/src/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1. This is typi")


@pytest.mark.usefixtures("sigterm")
def test_what_sounds_like_the_loss_of_a_peer_leaves_as_one(tmp_path: Path) -> None:
    with pytest.raises(Lost, match=r"lost a peer \(RuntimeError: Connection closed by peer") as caught:
        lose_a_peer(tmp_path)
    assert str(caught.value).endswith("try again")
    assert beats(tmp_path)["state"] == "lost"
    assert "Traceback" in (tmp_path / "logs" / "rank-00000.log").read_text()


def test_what_an_earlier_start_has_left_is_replaced_at_once(tmp_path: Path) -> None:
    (tmp_path / "heartbeat.json").write_text('{"state": "lost"}')
    with Watch(ALONE, WatchConfig(), "test", "again") as watch:
        time.sleep(0.3)
        watch.attach(tmp_path)
        wait_until(lambda: beats(tmp_path)["state"] == "running", 3)


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "heartbeat.json").mkdir()
    (tmp_path / "heartbeat.json" / "x").touch()
    with Watch(ALONE, FAST, "test", "again") as watch:
        watch.attach(tmp_path)
        time.sleep(0.3)
    assert "heartbeat.json: cannot be written" in (tmp_path / "logs" / "rank-00000.log").read_text()


def test_a_folder_for_logs_that_cannot_be_made_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").touch()
    with Watch(ALONE, FAST, "test", "again") as watch:
        watch.attach(tmp_path)
    assert beats(tmp_path)["state"] == "ended"
    assert "no log of rank 0" in capfd.readouterr().err


# ── the store of the job ─────────────────────────────────────────────────────────────────────────────────


def host_store(reply: Connection) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))
    reply.send(store.port)
    time.sleep(600)


@contextmanager
def store_of_a_job() -> Iterator[tuple[Any, Meeting]]:
    """A store in a process of its own, as torchrun's is."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=host_store, args=(there,))
    process.start()
    try:
        yield process, Meeting("127.0.0.1", here.recv(), "start")
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_store_that_is_gone_or_does_not_answer_ends_nothing_and_delays_little(
    tmp_path: Path, number: signal.Signals
) -> None:
    with store_of_a_job() as (process, meeting):
        world = World(0, 2, 2, torch.device("cpu"), meeting=meeting)
        with Watch(world, FAST, "test", "again") as watch:
            watch.attach(tmp_path)
            wait_until(lambda: watch.seen()[0].beat.count > 3)
            os.kill(process.pid, number)
            time.sleep(0.6)
            start = time.monotonic()
        assert time.monotonic() - start < 3
    if number == signal.SIGKILL:
        assert beats(tmp_path)["state"] == "ended"
        assert "the store of the job cannot be reached any more" in (tmp_path / "logs" / "rank-00000.log").read_text()


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_loses_the_store_too_says_that_it_knows_little(number: signal.Signals) -> None:
    def lose(process: Any, meeting: Meeting) -> None:
        with Watch(World(1, 2, 2, torch.device("cpu"), meeting=meeting), FAST, "test", "again") as watch:
            wait_until(lambda: watch.seen()[1].beat.count > 3)
            os.kill(process.pid, number)
            time.sleep(0.6)
            raise RuntimeError("[/src/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1")

    with store_of_a_job() as (process, meeting), pytest.raises(Lost) as caught:
        lose(process, meeting)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(": rank 0 does not answer")
    assert lines[1] == "  rank 0: nothing was ever heard of it  ← this one"
    assert f"  the store of the job at 127.0.0.1:{meeting.port} is out of reach" in lines[3]
    assert caught.value.aloud


def test_ranks_hear_of_one_another_and_how_each_ended() -> None:
    with store_of_a_job() as (_, meeting), contextlib.ExitStack() as stack:
        worlds = [World(rank, 2, 2, torch.device("cpu"), meeting=meeting) for rank in range(2)]
        first = stack.enter_context(Watch(worlds[0], FAST, "test", "again"))
        with contextlib.suppress(ZeroDivisionError), Watch(worlds[1], FAST, "test", "again") as second:
            second.pulse.step_done(1, 7)
            wait_until(lambda: first.seen()[1].beat.step == 7)
            raise ZeroDivisionError("a bug")
        wait_until(lambda: first.seen()[1].beat.ended == "ZeroDivisionError: a bug")


# ── patience ─────────────────────────────────────────────────────────────────────────────────────────────


def stand_still(size: int, phase: str, meeting: Meeting) -> None:
    watch = Watch(World(0, size, size, torch.device("cpu"), meeting=meeting), WatchConfig(0.2, 1.5), "test", "again")
    with watch:
        watch.pulse.enter(phase)
        time.sleep(5)


@pytest.mark.parametrize(
    ("size", "phase", "reachable", "status"),
    [
        pytest.param(1, TRAINING, True, Lost.status, id="a step"),
        pytest.param(1, VALIDATION, True, 0, id="a validation"),
        pytest.param(2, VALIDATION, True, Lost.status, id="a validation, and a rank that nobody hears of"),
        pytest.param(2, VALIDATION, False, 0, id="a validation, and nobody can be heard"),
    ],
)
def test_a_step_may_not_take_for_ever_other_work_may_unless_a_rank_is_silent(
    size: int, phase: str, reachable: bool, status: int
) -> None:
    with store_of_a_job() as (host, meeting):
        if not reachable:
            host.kill()
            host.join()
        process = FORK.Process(target=stand_still, args=(size, phase, meeting))
        start = time.monotonic()
        process.start()
        process.join(60)
        assert process.exitcode == status
    assert time.monotonic() - start > 1.5


def test_a_time_out_shorter_than_silence_is_refused() -> None:
    with pytest.raises(InputError, match=r"`timeout_s` is 20.*give at least 40"):
        WatchConfig(heartbeat_s=10, timeout_s=20)
