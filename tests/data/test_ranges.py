from __future__ import annotations

import bisect

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.ranges import partition_points, positions_of, run_starts


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=8))
def test_positions_are_the_ranges_end_to_end(ranges: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([pair[i] for pair in ranges], dtype=np.int64) for i in range(2))
    expected = [start + i for start, length in ranges for i in range(length)]
    assert positions_of(starts, lengths).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=12))
def test_runs_begin_where_a_key_changes(pairs: list[tuple[int, int]]) -> None:
    keys = [np.array([pair[i] for pair in pairs], dtype=np.int64) for i in range(2)]
    for count in (1, 2):
        seen = [pair[:count] for pair in pairs]
        expected = [place for place in range(len(seen)) if place == 0 or seen[place] != seen[place - 1]]
        assert run_starts(*keys[:count]).tolist() == expected


@given(st.lists(st.lists(st.integers(0, 9), max_size=8).map(sorted), min_size=1, max_size=6), st.integers(0, 9))
def test_partition_points_are_those_of_bisect(rows: list[list[int]], value: int) -> None:
    flat, offsets = np.array([x for row in rows for x in row], dtype=np.int64), np.cumsum([0, *map(len, rows)])
    found = partition_points(offsets[:-1], offsets[1:], lambda places, _: flat[places] < value)
    assert (found - offsets[:-1]).tolist() == [bisect.bisect_left(row, value) for row in rows]
