"""Starting again by `resume=auto`: torchrun's restarts after SIGKILL, other numbers of ranks, and where nothing is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.model import run_storage
from sharding.world import name_of_this_start
from tests.conftest import Prepared
from tests.trainer.test_train import (
    NO_DROPOUT,
    ROOT,
    SMALL,
    losses,
    parameters,
    records,
    train_here,
    train_on,
)
from trainer.checkpoint.checkpointer import Checkpointer

LONG = ["epochs=16", "validate_every=8", "checkpoint.every=5"]
"""64 steps on two ranks."""


# ── torchrun --max-restarts ──────────────────────────────────────────────────────────────────────────────


def workers(launcher: int) -> dict[int, int]:
    """Processes that torchrun has started, by rank."""
    found = {}
    for thread in Path(f"/proc/{launcher}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            try:
                environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            except OSError:  # gone already
                continue
            found |= {int(entry.removeprefix(b"RANK=")): child for entry in environment if entry.startswith(b"RANK=")}
    return found


def kill_after(launcher: int, rank: int, run: Path, steps: int) -> str:
    """SIGKILL one rank once `steps` steps are recorded; returns the record of the first step."""
    file, until = run / "metrics.jsonl", time.monotonic() + 120
    while not file.exists() or sum('"train"' in line for line in file.read_text().splitlines()) < steps:
        assert time.monotonic() < until, f"{steps} steps were not done"
        time.sleep(0.005)
    os.kill(workers(launcher)[rank], signal.SIGKILL)
    return file.read_text().splitlines()[0]


def test_torchrun_restarts_killed_ranks_and_the_run_ends_as_if_nobody_had_been(
    prepared: Prepared, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "-m", "trainer.train", f"store={prepared.store}", f"codes={prepared.codes}"]
    command += [f"run={run}", *SMALL, *LONG, "resume=auto"]
    job = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        first_record = kill_after(job.pid, 0, run, steps=17)
        message = job.communicate(timeout=120)[1]
    finally:
        job.terminate()  # its workers with it, where it has not ended
    assert job.returncode == 0, message[-4000:]

    assert first_record == (run / "metrics.jsonl").read_text().splitlines()[0], (
        "a restarted run went on and did not begin anew: the times of its first step are still there"
    )
    assert len(list((run / "tensorboard").glob("events.*"))) == 2, "two processes wrote them one after another"
    train_on(2, prepared, whole, *LONG)
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 64
    assert records(run, "validation") == records(whole, "validation")
    found, expected = parameters(run), parameters(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_start_of_the_same_ranks_has_a_part_of_the_store_to_itself() -> None:
    """torchrun's store outlives the processes: a restarted rank must not find the addresses of dead ones."""
    kept = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))

    def start(rank: int) -> dist.Store:
        client = dist.TCPStore("127.0.0.1", kept.port, is_master=False, timeout=timedelta(seconds=20))
        return dist.PrefixStore(name_of_this_start(client, rank, 3), client)

    kept.set("start/call/2", "a process that was killed as it called")
    for attempt in ("first", "second", "third"):
        with ThreadPoolExecutor(3) as pool:
            parts = list(pool.map(start, (2, 0, 1)))
        assert not parts[0].check(["address"]), "of an earlier start"
        parts[1].set("address", attempt)
        assert [part.get("address").decode() for part in parts] == [attempt] * 3


# ── other numbers of ranks ───────────────────────────────────────────────────────────────────────────────


def test_two_ranks_then_one_then_three_then_two_train_the_model_of_two(prepared: Prepared, tmp_path: Path) -> None:
    """Equal but for rounding: gradients are added up over other numbers of ranks, so in another order."""
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    keys = [*NO_DROPOUT, "checkpoint.every=3"]
    train_on(2, prepared, moved, *keys, "max_steps=7")
    assert train_here(prepared, moved, *keys, "max_steps=13", "resume=true") == 0
    train_on(3, prepared, moved, *keys, "max_steps=18", "resume=auto")
    train_on(2, prepared, moved, *keys, "resume=auto")
    sizes = {link.manifest.world_size for link in Checkpoints(run_storage(moved)).links()}
    assert 2 in sizes
    train_on(2, prepared, whole, *keys)
    assert [record["step"] for record in records(moved, "train")] == list(range(1, 25))
    assert losses(moved)[:7] == losses(whole)[:7], "so far nothing was different"
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-5)
    expected, found = parameters(whole), parameters(moved)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


# ── where there is nothing to go on from ─────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def whole(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with `resume=auto` in a folder that was not there, on one rank."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_here(prepared, run, "resume=auto") == 0
    assert len(losses(run)) == 24
    return run


def files(run: Path) -> dict[str, bytes]:
    """All that a run has said and saved."""
    kept = [run / "config.yaml", run / "metrics.jsonl", *(run / "checkpoints").rglob("*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept if path.is_file()}


def test_a_run_that_has_ended_is_left_as_it_is(whole: Path, prepared: Prepared) -> None:
    before = files(whole)
    assert train_here(prepared, whole, "resume=auto") == 0
    assert files(whole) == before


def test_a_run_that_ran_out_of_patience_is_not_taken_up_again(prepared: Prepared, tmp_path: Path) -> None:
    keys = ["validate_every=1", "patience=1", "optimizer.learning_rate=0", "optimizer.sparse_learning_rate=0"]
    assert train_here(prepared, tmp_path / "run", *keys, "resume=auto") == 0
    assert [record["step"] for record in records(tmp_path / "run", "validation")] == [4, 8]
    before = files(tmp_path / "run")
    assert train_here(prepared, tmp_path / "run", *keys, "resume=auto") == 0
    assert files(tmp_path / "run") == before
    assert train_here(prepared, tmp_path / "run", *keys, "resume=auto", "patience=2") == 0
    assert [record["step"] for record in records(tmp_path / "run", "validation")] == [4, 8, 12]


@pytest.mark.parametrize(
    "left",
    [
        ["config.yaml"],
        ["config.yaml", "metrics.jsonl", "checkpoints/step-00000005/tables-00000-of-00001.0badcafe-1.safetensors"],
        [".config.yaml.writing-0x1y2z"],
        ["config.yaml", ".metrics.jsonl.writing-0x1y2z", "checkpoints/step-00000003/.manifest.json.writing"],
    ],
    ids=["configuration", "unfinished-checkpoint", "half-written-configuration", "half-written-records"],
)
def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    whole: Path, prepared: Prepared, tmp_path: Path, left: list[str]
) -> None:
    run = tmp_path / "run"
    for name in left:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("seed: 6\n")
    assert train_here(prepared, run, "resume=auto", "max_steps=3") == 0
    assert losses(run) == losses(whole)[:3]
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "plan.json",
        "plan.html",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "logs",
        "heartbeat.json",
    }
    found = {path.parent.name for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert found == set(Checkpoints(run_storage(run)).names())


def test_what_is_not_a_runs_is_not_replaced_by_a_start_either(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".notes.writing-1").write_text("somebody's")
    assert train_here(prepared, tmp_path, "resume=auto") == 2
    assert ".notes.writing-1, which is not a run's" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".notes.writing-1"]


def test_a_run_whose_every_checkpoint_is_damaged_is_told_and_not_begun_anew(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_here(prepared, run, "max_steps=3") == 0
    manifest = run / "checkpoints" / "step-00000003" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "epoch": 7}))
    before = files(run)
    capfd.readouterr()
    assert train_here(prepared, run, "resume=auto") == 2
    message = capfd.readouterr().err
    assert "changed since it was written" in message
    assert "Traceback" not in message
    assert files(run) == before


def test_a_validation_is_recorded_even_where_its_checkpoint_outlived_the_process(
    whole: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed the instant a validation's checkpoint is visible: the run that goes on from it does not validate again."""
    begin, run = Checkpointer.begin, tmp_path / "run"

    def die_after(self: Checkpointer, step: int, *rest: object) -> None:
        begin(self, step, *rest)
        if step == 8:
            self.settle()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpointer, "begin", die_after)
    assert train_here(prepared, run) == 130
    monkeypatch.setattr(Checkpointer, "begin", begin)
    assert Checkpoints(run_storage(run)).names() == ["step-00000008"]
    assert train_here(prepared, run, "resume=auto") == 0
    assert records(run, "validation") == records(whole, "validation")
    assert losses(run) == losses(whole)
