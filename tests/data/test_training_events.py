"""Training events come whole, in order, and without any that is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.training_events import TrainingEvents, training_events
from tests.evaluation.helpers import make_store


def test_training_events_are_those_before_train_end(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3], [1, 0], [2], [3, 3, 3]], 4)
    events = training_events(store)
    (block,) = events.blocks()
    assert block.users_E.tolist() == [0, 0, 1, 1, 2, 3]
    assert block.items_E.tolist() == [0, 1, 1, 0, 2, 3]
    assert events.plays_N.tolist() == [2, 2, 1, 1]
    assert (events.num_users, events.num_items, events.num_events) == (4, 4, 6)


@given(
    histories=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=8),
    held_out=st.lists(st.integers(0, 6), min_size=8, max_size=8),
    size=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_blocks_of_any_size_hold_the_same_events(histories, held_out, size):
    lengths = np.array([max(len(row) - out, 0) for row, out in zip(histories, held_out, strict=False)])
    starts = np.cumsum([0, *map(len, histories)])[:-1]
    flat = np.array([item for row in histories for item in row], np.uint32)
    events = TrainingEvents(flat, starts, lengths, 5)
    blocks = list(events.blocks(size))
    expected = [(u, item) for u, row in enumerate(histories) for item in row[: lengths[u]]]
    found = [pair for block in blocks for pair in zip(block.users_E.tolist(), block.items_E.tolist(), strict=True)]
    assert found == expected
    assert events.plays_N.tolist() == [sum(item == i for _, item in expected) for i in range(5)]
    users = [set(block.users_E.tolist()) for block in blocks]
    assert sum(map(len, users)) == len(set().union(*users)), "a user's events stand in one block"
    assert all(len(block.users_E) <= max(size, lengths.max()) for block in blocks)


def test_blocks_are_cut_by_training_events_alone():
    def cuts(held_out: int) -> list[int]:
        flat = np.zeros(6 * (3 + held_out), np.uint32)
        events = TrainingEvents(flat, np.arange(6) * (3 + held_out), np.full(6, 3), 1)
        return [len(block.users_E) for block in events.blocks(7)]

    assert cuts(0) == cuts(5) == [6, 6, 6]


def test_the_column_is_not_copied(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3]], 4)
    assert np.shares_memory(training_events(store).items_S, store.column("item"))
    with pytest.raises(AttributeError):
        training_events(store).num_items = 3  # type: ignore[misc]
