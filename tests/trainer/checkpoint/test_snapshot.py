"""A snapshot read while its memory changes is the memory of the moment it was made, bit for bit."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharding.tables import TableShard
from trainer.checkpoint import snapshot as snapshot_module
from trainer.checkpoint.snapshot import Rows, TableSnapshot

WIDTH = 4


def make_shard(rows: int, seed: int = 0) -> TableShard:
    generator = torch.Generator().manual_seed(seed)
    return TableShard(
        "t",
        rows,
        WIDTH,
        0,
        0,
        torch.randn(rows, WIDTH, generator=generator),
        {"momentum1": torch.rand(rows, generator=generator), "full": torch.rand(rows, WIDTH, generator=generator)},
    )


def change(shard: TableShard, rows_n: torch.Tensor) -> None:
    """What a backward does to rows it has seen."""
    shard.weight_RD[rows_n] += 1
    for state in shard.states.values():
        state[rows_n] *= 3


def joined(blocks: list[Rows]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    assert blocks
    names = blocks[0].states
    return (
        np.concatenate([block.rows_n for block in blocks]),
        np.concatenate([block.values_nD for block in blocks]),
        {name: np.concatenate([block.states[name] for block in blocks]) for name in names},
    )


def check(blocks: list[Rows], before: TableShard, wanted: np.ndarray) -> None:
    if not len(wanted):
        assert blocks == []
        return
    rows, values, states = joined(blocks)
    assert np.array_equal(rows, wanted)
    assert np.array_equal(values, before.weight_RD.numpy()[wanted])
    for name, state in before.states.items():
        assert np.array_equal(states[name], state.numpy()[wanted]), name


@given(data=st.data())
def test_whatever_is_changed_between_two_blocks(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 40), label="rows")
    is_base = data.draw(st.booleans(), label="base")
    at_once = data.draw(st.booleans(), label="at once")
    block_rows = data.draw(st.integers(1, 10), label="rows a block")
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows), label="mask"))
    some_rows = st.lists(st.integers(0, rows - 1), max_size=12).map(
        lambda drawn: torch.tensor(drawn, dtype=torch.int64)
    )
    shard, before = make_shard(rows), make_shard(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_module, "BLOCK_BYTES", 4 * WIDTH * block_rows)
        snapshot = TableSnapshot(shard, None if is_base else mask.to(torch.uint8), at_once=at_once)
        blocks, reading = [], snapshot.blocks()
        wanted = np.arange(rows) if is_base else np.flatnonzero(mask.numpy())
        assert snapshot.count() == len(wanted)
        while True:
            for changed in data.draw(st.lists(some_rows, max_size=2), label="changed"):
                snapshot.before_update(changed)
                change(shard, changed)
            block = next(reading, None)
            if block is None:
                break
            blocks.append(block)
    check(blocks, before, wanted)


def _and_let_others_run(read: Callable[..., Rows]) -> Callable[..., Rows]:
    """Blocks of a test are read in microseconds; of a real table they are not."""

    def reading(self: TableSnapshot, rows_n: np.ndarray) -> Rows:
        time.sleep(1e-4)
        return read(self, rows_n)

    return reading


@pytest.mark.parametrize("is_base", [True, False])
def test_training_and_the_thread_at_once(is_base: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "BLOCK_BYTES", 4 * WIDTH * 64)
    monkeypatch.setattr(snapshot_module.TableSnapshot, "_read", _and_let_others_run(TableSnapshot._read))
    rows, generator = 20_000, torch.Generator().manual_seed(1)
    set_aside = 0
    for attempt in itertools.count():
        shard, before = make_shard(rows, attempt), make_shard(rows, attempt)
        mask = torch.rand(rows, generator=generator) < 0.5
        snapshot = TableSnapshot(shard, None if is_base else mask.to(torch.uint8))
        blocks: list[Rows] = []
        thread = threading.Thread(target=lambda kept=blocks, made=snapshot: kept.extend(made.blocks()))
        thread.start()
        while thread.is_alive():
            changed = torch.randint(rows, (500,), generator=generator)
            snapshot.before_update(changed)
            change(shard, changed)
        thread.join()
        set_aside += int((snapshot._marks_R == 2).sum())
        check(blocks, before, np.arange(rows) if is_base else np.flatnonzero(mask.numpy()))
        if attempt and set_aside:
            return
        assert attempt < 50, "training never met a row before the thread, so nothing was shown"


def test_nothing_is_kept_when_all_has_been_read() -> None:
    shard = make_shard(10)
    snapshot = TableSnapshot(shard, None)
    snapshot.before_update(torch.tensor([3, 3, 9]))
    snapshot.before_update(torch.tensor([9, 4]))
    assert [len(old.rows_n) for old in snapshot._aside] == [2, 1], "a row is set aside once"
    list(snapshot.blocks())
    snapshot.before_update(torch.tensor([1]))
    assert snapshot._aside == []


def test_training_waits_while_a_block_with_its_rows_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    shard, before = make_shard(8), make_shard(8)
    snapshot = TableSnapshot(shard, None)
    reading, may_read = threading.Event(), threading.Event()
    read = TableSnapshot._read

    def slowly(self: TableSnapshot, rows_n: np.ndarray) -> Rows:
        reading.set()
        assert may_read.wait(10)
        return read(self, rows_n)

    def train() -> None:
        snapshot.before_update(torch.tensor([2, 5]))
        change(shard, torch.tensor([2, 5]))

    monkeypatch.setattr(TableSnapshot, "_read", slowly)
    blocks: list[Rows] = []
    writer = threading.Thread(target=lambda: blocks.extend(snapshot.blocks()))
    trainer = threading.Thread(target=train)
    writer.start()
    assert reading.wait(10)
    trainer.start()
    trainer.join(0.2)
    assert trainer.is_alive(), "rows changed under the hands of the thread that reads them"
    may_read.set()
    writer.join(10)
    trainer.join(10)
    check(blocks, before, np.arange(8))
