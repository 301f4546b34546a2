"""When a base is written and when a delta, what is saved while training goes on, and what becomes of failures."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from common.errors import InputError
from common.storage import LocalStorage, Sink, open_storage
from serving.checkpoints.chain import Checkpoints, Link
from serving.checkpoints.manifest import BASE, DELTA, MANIFEST, SELECTION_METRICS, step_folder
from sharding.world import World, open_world
from tests.checkpoint_example import restore, save, train_rows, two_tables, watch, whole_state
from trainer.checkpoint import snapshot as snapshot_module
from trainer.checkpoint.checkpointer import ChainSoFar, Checkpointer
from trainer.checkpoint.config import CheckpointConfig


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def newest(path: Path) -> list[Link]:
    return Checkpoints(open_storage(path)).newest_whole_chain()[0]


def steps_left(path: Path) -> list[int]:
    return [int(name.removeprefix("step-")) for name in Checkpoints(open_storage(path)).names()]


def kinds(world: World, path: Path, steps: range, **keys: Any) -> list[Any]:
    model = two_tables(world)
    checkpointer = watch(model, world, path, **keys)
    outcomes = []
    for step in steps:
        train_rows(model, world, step)
        outcomes.append(save(checkpointer, step))
    return outcomes


@contextmanager
def held(room: int = 0) -> Iterator[threading.Event]:
    """Writers wait for the event when they have written `room` bytes, or fail if it is set to `broken` by then."""
    go, left, write = threading.Event(), [room], Sink.write

    def waiting(sink: Sink, data: Any) -> None:
        left[0] -= memoryview(data).nbytes
        if left[0] < 0:
            assert go.wait(60)
        if getattr(go, "broken", False):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(sink, data)

    with mock.patch.object(Sink, "write", waiting):
        try:
            yield go
        finally:
            go.set()


def test_a_base_follows_after_so_many_steps(world: World, tmp_path: Path) -> None:
    outcomes = kinds(world, tmp_path, range(10, 80, 10), base_every=25, chain_share=1e9)
    assert [outcome.kind for outcome in outcomes] == [BASE, DELTA, DELTA, BASE, DELTA, DELTA, BASE]


@pytest.mark.parametrize("share", [0.0, 0.8, 1.5, 2.5])
def test_a_base_follows_when_the_deltas_have_outgrown_their_share(world: World, tmp_path: Path, share: float) -> None:
    outcomes = kinds(world, tmp_path, range(1, 9), chain_share=share)
    base = deltas = 0
    for index, outcome in enumerate(outcomes):
        expected = BASE if index == 0 or deltas > share * base else DELTA
        assert outcome.kind == expected
        folder = tmp_path / outcome.name
        size = sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(("tables", "states")))
        assert outcome.table_bytes == size
        base, deltas = (size, 0) if expected == BASE else (base, deltas + size)
    found = [outcome.kind for outcome in outcomes]
    assert BASE in found[1:]
    assert DELTA in found


def test_a_resumed_run_knows_of_its_chain_what_the_uninterrupted_one_did(world: World, tmp_path: Path) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1.5)
    for step in range(1, 8):
        train_rows(model, world, step)
        save(checkpointer, step)
        assert ChainSoFar.of(newest(tmp_path)) == checkpointer.chain
        assert watch(model, world, tmp_path, newest(tmp_path)).is_saved(step)
        checkpointer = watch(model, world, tmp_path, newest(tmp_path), chain_share=1.5)


def test_the_same_step_saved_again_is_a_base_and_not_made_from_itself(world: World, tmp_path: Path) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    for step, kind in ((10, BASE), (20, DELTA), (20, BASE), (30, DELTA)):
        train_rows(model, world, step)
        assert save(checkpointer, step).kind == kind
        same(whole_state(restore(world, tmp_path)), whole_state(model))
    assert ChainSoFar().next_kind(0, CheckpointConfig()) == BASE


@pytest.mark.parametrize("block_bytes", [64, 2 * 2**20])
@pytest.mark.parametrize("room", [0, 2000, 6500])
def test_training_goes_on_and_what_is_saved_is_the_state_of_the_boundary(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, block_bytes: int
) -> None:
    monkeypatch.setattr(snapshot_module, "BLOCK_BYTES", block_bytes)
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    saved = {}
    for step, kind in ((10, BASE), (20, DELTA), (30, DELTA)):
        train_rows(model, world, step)
        saved[step] = whole_state(model)
        with held(room) as go:
            checkpointer.begin(step, 0, {}, {})
            assert checkpointer.busy
            assert checkpointer.is_saved(step)
            checkpointer.poll()
            assert checkpointer.busy, "a poll does not wait"
            for later in range(1, 5):
                train_rows(model, world, 1000 * step + later)
            go.set()
            outcome = checkpointer.settle()
        assert not outcome.error
        assert outcome.kind == kind
        assert checkpointer.settle() is None
    for step, state in saved.items():
        same(whole_state(restore(world, tmp_path, step_folder(step))), state)


def test_what_changes_while_a_writing_fails_is_in_the_next_too(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    save(checkpointer, 10)
    train_rows(model, world, 20)
    with held(2000) as go:
        checkpointer.begin(20, 0, {}, {})
        train_rows(model, world, 21)
        go.broken = True  # type: ignore[attr-defined]
        go.set()
        assert "No space left" in checkpointer.settle().error
    assert "the newest checkpoint is step-00000010, and the next one holds these changes too" in capsys.readouterr().out
    assert not checkpointer.is_saved(20)
    train_rows(model, world, 22)
    outcome = save(checkpointer, 30)
    assert outcome.kind == DELTA
    same(whole_state(restore(world, tmp_path)), whole_state(model))


def test_a_failed_base_is_tried_again_as_a_base(world: World, tmp_path: Path) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, base_every=20, chain_share=1e9)
    save(checkpointer, 10)
    train_rows(model, world, 30)
    with held() as go:
        go.broken = True  # type: ignore[attr-defined]
        go.set()
        outcome = save(checkpointer, 30)
        assert (outcome.kind, bool(outcome.error)) == (BASE, True)
    assert save(checkpointer, 31).kind == BASE
    same(whole_state(restore(world, tmp_path)), whole_state(model))


def test_beginning_waits_for_the_writing_before(world: World, tmp_path: Path) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path)
    with held() as go:
        checkpointer.begin(10, 0, {}, {})
        threading.Timer(0.2, go.set).start()
        train_rows(model, world, 20)
        checkpointer.begin(20, 0, {}, {})
    checkpointer.finish()
    assert steps_left(tmp_path) == [10, 20]
    same(whole_state(restore(world, tmp_path)), whole_state(model))


def test_waiting_for_each_checkpoint_can_be_asked_for(world: World, tmp_path: Path) -> None:
    checkpointer = watch(two_tables(world), world, tmp_path, wait=True)
    checkpointer.begin(10, 0, {}, {})
    assert not checkpointer.busy
    assert steps_left(tmp_path) == [10]


def test_a_last_checkpoint_that_cannot_be_written_ends_the_run_with_a_fault(world: World, tmp_path: Path) -> None:
    checkpointer = watch(two_tables(world), world, tmp_path)
    with held() as go:
        go.broken = True  # type: ignore[attr-defined]
        go.set()
        checkpointer.begin(10, 0, {}, {})
        with pytest.raises(InputError, match=f"{tmp_path}/{step_folder(10)}: cannot be written .*from the start"):
            checkpointer.finish()
    checkpointer.finish()  # nothing is on its way any more


def test_figures_and_progress_are_kept(world: World, tmp_path: Path) -> None:
    model, recorded = two_tables(world), []
    checkpointer = watch(model, world, tmp_path)
    checkpointer._record = lambda step, values: recorded.append((step, values))
    checkpointer.begin(10, 3, {"at": [1, 2]}, {SELECTION_METRICS[0]: 0.5})
    outcome = checkpointer.settle()
    manifest = newest(tmp_path)[-1].manifest
    assert (manifest.step, manifest.epoch, manifest.progress, manifest.metrics) == (
        10,
        3,
        {"at": [1, 2]},
        {SELECTION_METRICS[0]: 0.5},
    )
    assert manifest.size == outcome.size
    assert manifest.state == outcome.state
    step, values = recorded[0]
    assert (step, values["saved"], values["bytes"]) == (10, BASE, outcome.size)
    assert values["stall_seconds"] > 0
    assert checkpointer.stall_seconds == 0


def test_old_checkpoints_go_but_for_the_best_and_what_is_needed(world: World, tmp_path: Path) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, keep=1, base_every=30, chain_share=1e9)
    states, left = {}, {}
    for step in range(10, 90, 10):
        train_rows(model, world, step)
        save(checkpointer, step, {SELECTION_METRICS[0]: 1.0 - abs(step - 20)} if step % 20 == 0 else None)
        states[step], left[step] = whole_state(model), steps_left(tmp_path)
    assert left == {
        10: [10],
        20: [10, 20],
        30: [10, 20, 30],
        40: [10, 20, 40],  # a base: 30 goes, 20 is the best
        50: [10, 20, 40, 50],
        60: [10, 20, 40, 50, 60],
        70: [10, 20, 70],
        80: [10, 20, 70, 80],
    }
    for step in left[80]:
        same(whole_state(restore(world, tmp_path, step_folder(step))), states[step])


def test_what_cannot_be_removed_is_a_warning(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, keep=1, chain_share=0.0)
    with mock.patch.object(LocalStorage, "remove_folder", side_effect=PermissionError("not allowed")):
        for step in (10, 20, 30):
            train_rows(model, world, step)
            assert not save(checkpointer, step).error
    assert f"warning: {tmp_path}: old checkpoints cannot be removed: not allowed" in capsys.readouterr().out
    same(whole_state(restore(world, tmp_path)), whole_state(model))


def test_a_run_that_went_on_from_before_some_damage_keeps_what_it_writes(world: World, tmp_path: Path) -> None:
    """Step 30 is damaged and 40 was made from it: the run goes on from 20, and its steps are others than before."""
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    for step in (10, 20, 30, 40):
        train_rows(model, world, step)
        save(checkpointer, step)
    damaged = next((tmp_path / step_folder(30)).glob("tables*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])

    def go_on(*steps: int, **keys: Any) -> Checkpointer:
        resumed = restore(world, tmp_path)
        again = watch(resumed, world, tmp_path, newest(tmp_path), keep=1, chain_share=1e9, **keys)
        for step in steps:
            train_rows(resumed, world, 100 + step)
            assert not save(again, step).error
            same(whole_state(restore(world, tmp_path)), whole_state(resumed))
        return again

    go_on(25, 28)
    assert [link.manifest.step for link in newest(tmp_path)] == [10, 20, 25, 28]
    go_on(35, base_every=1)  # a base: nothing of before it is needed
    assert newest(tmp_path)[0].manifest.step == 35
    go_on(41, 42)
    assert steps_left(tmp_path) == [35, 41, 42], "training has passed what was left from before"


def test_manifests_are_plain_json_for_people(world: World, tmp_path: Path) -> None:
    save(watch(two_tables(world), world, tmp_path), 10)
    content = json.loads((tmp_path / step_folder(10) / MANIFEST).read_text())
    assert (content["format"], content["kind"], content["world_size"]) == ("segue-checkpoint", BASE, 1)
