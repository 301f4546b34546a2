"""Leaving well: SIGTERM and SIGINT, one rank's and all ranks', whatever training was at, and going on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.model import run_storage
from sharding.world import World
from tests.conftest import Prepared
from tests.ranks import run_on_ranks, start_module
from tests.trainer.test_train import ROOT, SMALL, losses, parameters, records, train_here, train_on
from trainer import loop, stopping
from trainer.checkpoint.writing import Writing
from trainer.stopping import SIGNALS, Agreement, StopRequest

LONG = ["epochs=16", "validate_every=8", "checkpoint.every=5"]
"""64 steps, two validations: time enough for a signal from outside."""
ALONE = World(0, 1, 1, torch.device("cpu"))


# ── the request ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_kept_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest() as request:
        assert request.signal_number == 0
        os.kill(os.getpid(), number)
        assert request.signal_number == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_the_first_signal_says_why_and_its_repetition_by_torchrun_changes_nothing() -> None:
    with StopRequest() as request:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert request.signal_number == signal.SIGINT


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_a_little_later_interrupts(first: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "IMPATIENT_S", 0.05)
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest() as request:
        os.kill(os.getpid(), first)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)  # no impatience: a queue repeats it
        assert request.signal_number == first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before


# ── the agreement ────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 1)), max_size=8))
def test_a_single_process_hears_itself_one_step_later(said: list[tuple[int, int]]) -> None:
    agreement = Agreement(ALONE, 2)
    heard = [tuple(agreement.exchange(*values)) for values in said]
    agreement.close()
    agreement.close()
    assert heard == [(0, 0), *said][: len(said)]


def stop_by_one_rank(world: World) -> dict[str, list[object]]:
    """Thirty steps in which rank 1 alone is signalled, after a step that rank 0 may long have left behind."""
    found: dict[str, list[object]] = {"heard": [], "stopped": []}
    for signalled_at in (0, 7, 29):
        agreement = Agreement(world, 2)
        with StopRequest() as request:
            for step in range(31):
                stop, busy = agreement.exchange(request.signal_number, int(world.rank == 0 and step % 2))
                found["heard"].append(busy)
                if stop:
                    break
                time.sleep(0.002 * ((step + world.rank) % 3))  # now one is ahead, now the other
                if world.rank == 1 and step == signalled_at:
                    os.kill(os.getpid(), signal.SIGTERM)
            agreement.close()
        found["stopped"].append((step, stop))
    return found


def test_ranks_stop_after_the_same_step_when_one_of_them_is_signalled() -> None:
    found = run_on_ranks(2, stop_by_one_rank)
    assert found[0] == found[1]
    # What is caught during step n is said before step n + 1 and known before step n + 2.
    assert found[0]["stopped"] == [(2, signal.SIGTERM), (9, signal.SIGTERM), (30, 0)]
    assert found[0]["heard"][:3] == [0, 0, 1], "the largest of what was said one step before"


# ── a process that trains ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def whole(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one process: 24 steps, validations after 8, 16 and 24."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_here(prepared, run, "checkpoint.every=5") == 0
    assert [record["step"] for record in records(run, "validation")] == [8, 16, 24]
    return run


def newest(run: Path) -> str:
    return Checkpoints(run_storage(run)).names()[-1]


def assert_alike(run: Path, expected: Path) -> None:
    """Losses, validations and parameters, bit for bit."""
    assert losses(run) == losses(expected)
    assert records(run, "validation") == records(expected, "validation")
    found, wanted = parameters(run), parameters(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def signal_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> Callable[[], None]:
    """Have the process signal itself while it does a step (counted from 1); returns what takes that back."""
    once = loop.Trainer._step

    def signalled(self: loop.Trainer, stream: object, progress: loop.Progress) -> bool:
        if progress.step == step - 1:
            os.kill(os.getpid(), number)
        return once(self, stream, progress)

    monkeypatch.setattr(loop.Trainer, "_step", signalled)
    return lambda: monkeypatch.setattr(loop.Trainer, "_step", once)


@pytest.mark.parametrize(
    ("step", "stopped", "number", "every"),
    [
        (1, 2, signal.SIGTERM, 5),  # before the first checkpoint of the run
        (1, 2, signal.SIGTERM, 0),  # with none asked for but at validations
        (10, 11, signal.SIGTERM, 5),  # a step in which a checkpoint is on its way
        (14, 15, signal.SIGINT, 5),  # in the middle of an epoch
        (7, 8, signal.SIGTERM, 5),  # known at the end of an epoch that is validated
        (15, 16, signal.SIGINT, 1),
        (11, 12, signal.SIGTERM, 5),  # known at the end of an epoch that is not
        (16, 16, signal.SIGTERM, 5),  # in the last step before a validation: known when that is over
    ],
)
def test_a_signal_stops_after_a_saved_step_from_which_the_run_goes_on_as_if_nothing_had_been(
    whole: Path,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    step: int,
    stopped: int,
    number: signal.Signals,
    every: int,
) -> None:
    run, keys = tmp_path / "run", [f"checkpoint.every={every}"]
    take_back = signal_in_step(monkeypatch, step, number)
    assert train_here(prepared, run, *keys) == 128 + number
    message = capfd.readouterr().err
    assert f"stopped by {number.name} after step {stopped}, which is saved; go on with resume=true" in message
    assert "Traceback" not in message
    assert newest(run) == f"step-{stopped:08d}"
    assert len(losses(run)) == stopped
    assert Checkpoints(run_storage(run)).newest_whole_chain()[1] == []
    take_back()
    assert train_here(prepared, run, *keys, "resume=true") == 0
    assert_alike(run, whole)


def test_a_signal_after_the_last_step_lets_the_run_end(
    whole: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    take_back = signal_in_step(monkeypatch, 25, signal.SIGTERM)  # asked for when there is no such step any more
    assert train_here(prepared, run, "checkpoint.every=5") == 0
    take_back()
    assert_alike(run, whole)


def test_a_stop_whose_checkpoint_was_on_its_way_and_failed_saves_the_step_again(
    whole: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, write, failed = tmp_path / "run", Writing._write_tables, []

    def fail_once(self: Writing, part: object) -> None:
        if self.manifest.step == 8 and not failed:
            failed.append(time.sleep(0.2))  # the loop is already on its way out
            raise OSError(28, "No space left on device")
        write(self, part)

    monkeypatch.setattr(Writing, "_write_tables", fail_once)
    take_back = signal_in_step(monkeypatch, 7, signal.SIGTERM)
    assert train_here(prepared, run, "checkpoint.every=5") == 128 + signal.SIGTERM
    message = capfd.readouterr().err
    assert "No space left on device" in message
    assert "after step 8, which is saved" in message
    assert newest(run) == "step-00000008"
    take_back()
    assert train_here(prepared, run, "checkpoint.every=5", "resume=true") == 0
    assert_alike(run, whole)


def test_an_impatient_second_ctrl_c_leaves_at_once_and_earlier_checkpoints_hold(
    whole: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, once = tmp_path / "run", loop.Trainer._step

    def interrupted(self: loop.Trainer, stream: object, progress: loop.Progress) -> bool:
        while self.checkpointer.busy:  # or the next one would be put off: by how many steps, depends on the machine
            time.sleep(0.01)
        if progress.step == 13:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
        return once(self, stream, progress)

    monkeypatch.setattr(stopping, "IMPATIENT_S", 0.05)
    monkeypatch.setattr(loop.Trainer, "_step", interrupted)
    assert train_here(prepared, run, "checkpoint.every=5") == 130
    message = capfd.readouterr().err
    assert "trainer.train: interrupted" in message
    assert "is saved" not in message
    assert newest(run) == "step-00000010"
    monkeypatch.setattr(loop.Trainer, "_step", once)
    assert train_here(prepared, run, "checkpoint.every=5", "resume=true") == 0
    assert_alike(run, whole)


# ── signals from outside ─────────────────────────────────────────────────────────────────────────────────


def keys_of(prepared: Prepared, run: Path) -> list[str]:
    """Of a training in the background, LONG."""
    return [f"store={prepared.store}", f"codes={prepared.codes}", f"run={run}", *SMALL, *LONG]


def wait_for_steps(run: Path, steps: int) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= steps:
            return
        time.sleep(0.005)
    raise AssertionError(f"{run}: {steps} steps were not done")


def test_a_process_stops_and_goes_on_by_sigterm_and_ctrl_c(prepared: Prepared, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reached = []
    for number, keys, lines in ((signal.SIGTERM, [], 12), (signal.SIGINT, ["resume=true"], 36)):
        process = start_module("trainer.train", *keys_of(prepared, run), *keys, said=tmp_path / "said")
        try:
            wait_for_steps(run, lines)
            assert process.pid is not None
            os.kill(process.pid, number)
            process.join(60)
        finally:
            process.kill()  # where it has not ended
        message = (tmp_path / "said.errors").read_text()
        assert process.exitcode == 128 + number, message
        reached.append(len(losses(run)))
        assert f"after step {reached[-1]}, which is saved" in message
        assert newest(run) == f"step-{reached[-1]:08d}"
        assert "Traceback" not in message
    assert 0 < reached[0] < reached[1] < 64
    assert train_here(prepared, run, *LONG, "resume=true") == 0
    assert train_here(prepared, tmp_path / "whole", *LONG) == 0
    assert_alike(run, tmp_path / "whole")


def test_torchrun_told_to_stop_leaves_a_saved_step_from_which_it_goes_on(prepared: Prepared, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, "-m", "trainer.train", *keys_of(prepared, run)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(run, 14)
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=60)[1]
    reached = len(losses(run))
    assert 0 < reached < 64
    assert f"stopped by SIGTERM after step {reached}, which is saved" in message
    assert newest(run) == f"step-{reached:08d}"
    assert process.returncode != 0
    train_on(2, prepared, run, *LONG, "resume=true")
    train_on(2, prepared, tmp_path / "whole", *LONG)
    assert_alike(run, tmp_path / "whole")
