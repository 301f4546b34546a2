"""Where entries enter windows, against going through every window by hand.

W windows · V values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.series import merge
from data.series.columns import SeriesColumns
from data.series.merge import SeriesMerger

SERIES_V = [0, 0, 1, 1, 1, 2]
Entry = tuple[int, int]
"""Time and value."""
Placed = list[tuple[int, int, int]]
"""Of a window: the event before which an entry stands, its time, its value."""


def columns(users: list[list[Entry]]) -> SeriesColumns:
    flat = [entry for user in users for entry in user]
    return SeriesColumns(
        offsets=np.cumsum([0, *map(len, users)]),
        timestamps=np.array([time for time, _ in flat], dtype=np.uint32),
        values=np.array([value for _, value in flat], dtype=np.uint32),
        names=("a", "b", "c"),
        series_V=np.array(SERIES_V),
        artists_V=np.full(len(SERIES_V), -1),
        texts=pa.array([str(value) for value in range(len(SERIES_V))]),
    )


def by_loop(entries: list[Entry], times: list[int], limit: int, until: int | None) -> Placed:
    last = times[-1] if until is None else min(times[-1], until)
    first = min(times[0], last)
    carried = {SERIES_V[value]: (time, value) for time, value in entries if time <= first}
    entering = sorted(carried.values(), key=entries.index)
    entering += [entry for entry in entries if first < entry[0] <= last]
    entering = entering[:limit]
    return [(next(at for at, seen in enumerate(times) if seen >= time), time, value) for time, value in entering]


@dataclass
class Case:
    users: list[list[Entry]]
    windows: list[tuple[int, list[int], int | None]]
    limit: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    one = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=12)
    users = []
    for drawn in draw(st.lists(one, min_size=1, max_size=4)):
        by_place = {(time, SERIES_V[value]): (time, value) for time, value in drawn}
        users.append([by_place[place] for place in sorted(by_place)])
    window = st.tuples(
        st.integers(0, len(users) - 1),
        st.lists(st.integers(0, 13), min_size=1, max_size=8).map(sorted),
        st.integers(0, 13) if draw(st.booleans()) else st.none(),
    )
    return Case(users, draw(st.lists(window, max_size=6)), draw(st.integers(1, 5) | st.just(100)))


def placed(case: Case) -> list[Placed]:
    merger = SeriesMerger(columns(case.users), case.limit)
    user_W = np.array([user for user, _, _ in case.windows], dtype=np.int64)
    times = [time for _, window, _ in case.windows for time in window]
    offsets = np.cumsum([0, *(len(window) for _, window, _ in case.windows)])
    until = [until for _, _, until in case.windows]
    until_W = None if None in until else np.array(until, dtype=np.int64)
    found = merger.merge(user_W, np.array(times, dtype=np.uint32), offsets, until_W)
    result: list[Placed] = [[] for _ in case.windows]
    for window, *entry in zip(
        *(column.tolist() for column in (found.window, found.before, found.time, found.value)), strict=True
    ):
        result[window].append(tuple(entry))
    first_W, last_W = (np.array([window[place] for _, window, _ in case.windows], dtype=np.uint32) for place in (0, -1))
    assert merger.counts(user_W, first_W, last_W, until_W).tolist() == [len(window) for window in result]
    assert len(found) == sum(map(len, result))
    return result


@given(cases(), st.sampled_from([1, 2**21]))
def test_entries_enter_where_they_are_known(case: Case, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "_BLOCK_ENTRIES", block)
        found = placed(case)
    for (user, times, until), window in zip(case.windows, found, strict=True):
        assert window == by_loop(case.users[user], times, case.limit, until)
        for before, time, _ in window:
            assert times[before] >= time  # never in front of an event that is earlier
            assert time <= times[-1]


def test_an_example_by_hand() -> None:
    user = [(1, 0), (2, 2), (4, 3), (5, 1), (5, 5), (9, 4)]
    case = Case([[], user], [(1, [4, 4, 5, 8], None), (0, [7], None), (1, [6], None), (1, [0, 20], None)], 100)
    assert placed(case) == [
        [(0, 1, 0), (0, 4, 3), (2, 5, 1), (2, 5, 5)],  # 2 is replaced by 3 when the window begins
        [],
        [(0, 4, 3), (0, 5, 1), (0, 5, 5)],
        [(1, time, value) for time, value in user],
    ]


def test_of_more_entries_than_there_is_room_for_the_first_stay() -> None:
    busy = [(0, 5), *((time, time % 2) for time in range(1, 9)), (9, 2)]
    window = (0, [0, 9], None)
    assert placed(Case([busy], [window], 3)) == [[(0, 0, 5), (1, 1, 1), (1, 2, 0)]]
    assert placed(Case([busy], [window], 1)) == [[(0, 0, 5)]]
    assert len(placed(Case([busy], [window], 10))[0]) == len(busy)


def test_what_a_request_must_not_see_does_not_enter() -> None:
    user = [(1, 0), (5, 1), (7, 2)]
    assert placed(Case([user], [(0, [2, 3, 9], 4)], 9)) == [[(0, 1, 0)]]
    assert placed(Case([user], [(0, [2, 3, 9], 5)], 9)) == [[(0, 1, 0), (2, 5, 1)]]
    assert placed(Case([user], [(0, [9], 6)], 9)) == [[(0, 5, 1)]]
