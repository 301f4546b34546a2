from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from data import duplicates, schema
from data.event_store import EventStore
from data.sources.base import Histories
from data.store_writer import write_event_store
from tests.data.helpers import MemorySource

EVENT = st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 1))  # time, item, type


def histories_of(users: list[list[tuple[int, int, int]]]) -> Histories:
    events = [event for user in users for event in user]
    columns = {
        name: np.array([event[place] for event in events], dtype=schema.EVENT_COLUMNS[name].dtype)
        for place, name in enumerate((schema.TIMESTAMP, schema.ITEM, schema.EVENT_TYPE))
    }
    names = pa.array([f"u{user}" for user in range(len(users))])
    return Histories(names, np.cumsum([0, *map(len, users)]), columns)


@given(
    st.lists(st.lists(EVENT, min_size=1, max_size=10).map(lambda user: sorted(user, key=lambda e: e[0])), min_size=1)
)
def test_repeats_are_those_that_a_set_finds(users: list[list[tuple[int, int, int]]]) -> None:
    histories = histories_of(users)
    expected, kept = [], []
    for user in users:
        seen: set[tuple[int, int, int]] = set()
        kept.append([event for event in user if event not in seen and not seen.add(event)])  # type: ignore[func-returns-value]
        seen = set()
        for event in user:
            expected.append(event in seen)
            seen.add(event)
    repeated = duplicates.repeated_events(histories)
    assert repeated.tolist() == expected
    rest, wanted = duplicates.without(histories, repeated), histories_of(kept)
    np.testing.assert_array_equal(rest.offsets, wanted.offsets)
    for name, values in wanted.columns.items():
        np.testing.assert_array_equal(rest.columns[name], values)


def test_the_fault_names_user_event_and_remedy() -> None:
    histories = histories_of([[(0, 1, 0)], [(3, 0, 0), (4, 1, 1), (4, 0, 1), (4, 1, 1)]])
    with pytest.raises(InputError, match=r"user 'u1': event 3 of the user, at 4 s, .* 0 more .* duplicates=drop"):
        duplicates.refuse(histories, duplicates.repeated_events(histories))


@pytest.mark.parametrize("rule", duplicates.RULES)
def test_a_store_is_made_by_the_rule(tmp_path: Path, rule: str) -> None:
    source = MemorySource(lengths_U=[200, 1, 90], artists_N=[[0]])  # 50 seconds, one item: repeats are certain
    blocks = list(source.histories())
    repeats = sum(int(duplicates.repeated_events(block).sum()) for block in blocks)
    assert repeats > 10
    if rule == duplicates.REFUSE:
        with pytest.raises(InputError, match="says the same as an earlier one"):
            write_event_store(source, tmp_path / "store", on_duplicates=rule)
        assert list(tmp_path.iterdir()) == []
        return
    manifest = write_event_store(source, tmp_path / "store", on_duplicates=rule)
    assert manifest.duplicates == {"rule": rule, "found": repeats}
    assert EventStore.open(tmp_path / "store").num_events == 291 - (repeats if rule == duplicates.DROP else 0)
