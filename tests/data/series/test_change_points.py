from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data.series.change_points import Entries, change_points
from data.series.values import Numbering, SeriesValues, ValueNumbers

SERIES_V = np.array([0, 0, 0, 1, 1, 2])
Row = tuple[int, int, int]
"""User, time, value."""


def entries_of(rows: list[Row]) -> Entries:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Entries(*columns)


def rows_of(entries: Entries) -> list[Row]:
    return list(zip(entries.user_s.tolist(), entries.time_s.tolist(), entries.value_s.tolist(), strict=True))


def by_loop(rows: list[Row]) -> list[Row]:
    """What a user's series is at the end of each second; an entry wherever that is not what it was."""
    at_end: dict[tuple[int, int, int], int] = {}
    for user, time, value in rows:
        at_end[user, int(SERIES_V[value]), time] = value
    kept, now = [], dict[tuple[int, int], int]()
    for (user, series, time), value in sorted(at_end.items()):
        if now.get((user, series)) != value:
            now[user, series] = value
            kept.append((user, time, value))
    return sorted(kept, key=lambda row: (row[0], row[1], SERIES_V[row[2]]))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 5)), max_size=30))
def test_of_each_run_the_first_entry_is_kept(rows: list[Row]) -> None:
    assert rows_of(change_points(entries_of(rows), SERIES_V)) == by_loop(rows)


def test_no_entries() -> None:
    assert rows_of(change_points(entries_of([]), np.zeros(0, dtype=np.int64))) == []
    assert rows_of(Entries.joined([])) == []


PAIRS = st.tuples(st.sampled_from(["b", "a", "plan"]), st.sampled_from(["x", "10", "9", ""]))


@given(st.lists(st.lists(PAIRS, max_size=8), max_size=4))
def test_values_are_numbered_by_series_and_text(blocks: list[list[tuple[str, str]]]) -> None:
    numbers = ValueNumbers()
    given_numbers = [
        numbers.add(*(pa.array([pair[place] for pair in block], type=pa.string()) for place in (0, 1)))
        for block in blocks
    ]
    values, final = numbers.seal()
    pairs = sorted({pair for block in blocks for pair in block})
    assert values.names == tuple(sorted({name for name, _ in pairs}))
    assert (
        list(zip([values.names[series] for series in values.series_V], values.texts.to_pylist(), strict=True)) == pairs
    )
    for block, provisional in zip(blocks, given_numbers, strict=True):
        assert [pairs[number] for number in final[provisional]] == block


@given(st.data())
def test_what_occurs_is_numbered_densely_with_the_artists_in_their_place(data: st.DataObject) -> None:
    pairs = sorted(data.draw(st.sets(st.tuples(st.sampled_from(["age", "plan", "zone"]), st.sampled_from("xyz")))))
    names = tuple(sorted({name for name, _ in pairs}))
    series_V = np.array([names.index(name) for name, _ in pairs], dtype=np.int64)
    given_values = SeriesValues(names, series_V, pa.array([text for _, text in pairs], type=pa.string()))
    artists = data.draw(st.none() | st.integers(1, 4))
    ids = pa.array([f"artist {index}" for index in range(artists or 0)], type=pa.string())
    numbering = Numbering(given_values, "best" if artists is not None else None, len(ids))
    seen_given = data.draw(st.sets(st.integers(0, len(pairs) - 1)) if pairs else st.just(set()))
    seen_artists = data.draw(st.sets(st.integers(0, len(ids) - 1)) if len(ids) else st.just(set()))
    of_given = numbering.of_given(np.array(sorted(seen_given), dtype=np.int64))
    of_artists = numbering.of_artists(np.array(sorted(seen_artists), dtype=np.int64))
    numbering.note(of_given)
    numbering.note(of_artists)
    rows = [(*pairs[number], None) for number in seen_given]
    rows += [("best", f"artist {artist}", artist) for artist in seen_artists]
    rows.sort()
    table = numbering.table(ids).to_pylist()
    assert [tuple(row.values()) for row in table] == rows
    final = numbering.final()
    assert [rows[number][:2] for number in final[of_given]] == [pairs[number] for number in sorted(seen_given)]
    assert [rows[number][2] for number in final[of_artists]] == sorted(seen_artists)
    expected = {name: sum(row[0] == name for row in rows) for name in numbering.names}
    assert numbering.counts() == expected
