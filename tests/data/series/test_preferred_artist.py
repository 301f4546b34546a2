"""The preferred artist against counting by hand, and the proof that what is known at t is made of events before t."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data import prepare, series_writer
from data.event_store import EventStore
from data.schema import ITEM, TIMESTAMP
from data.series.preferred_artist import first_artists, preferred_artists
from data.series_writer import SeriesRequest
from data.store_writer import write_event_store
from tests.data.written_log import Event, WrittenLog
from tests.yambda_example import write_yambda_example

DAY = 86_400
ARTISTS_N = [[0, 2], [1], [], [2], [1, 3], [0]]
Users = list[list[Event]]
Told = list[list[tuple[int, str]]]


def by_loop(users: Users, days: int) -> Told:
    """(time, artist) entries of each user, by going through its events."""
    origin = min(event.timestamp for user in users for event in user)
    told: Told = []
    for user in users:
        counts: dict[int, Counter[int]] = {}
        for event in user:
            for artist in ARTISTS_N[event.item][:1]:
                counts.setdefault((event.timestamp - origin) // (days * DAY), Counter())[artist] += 1
        entries: list[tuple[int, str]] = []
        for period, of_period in sorted(counts.items()):
            most = max(of_period.values())
            best = min(artist for artist, count in of_period.items() if count == most)
            if not entries or entries[-1][1] != f"group-{best}":
                entries.append((origin + (period + 1) * days * DAY, f"group-{best}"))
        told.append(entries)
    return told


def entries_of(store: EventStore) -> Told:
    series = store.series
    texts = series.texts.to_pylist()
    return [
        [
            (int(time), texts[value])
            for time, value in zip(series.timestamps[begin:end], series.values[begin:end], strict=True)
        ]
        for begin, end in zip(series.offsets, series.offsets[1:], strict=False)
    ]


def store_of(folder: Path, users: Users, days: int) -> EventStore:
    log = WrittenLog(users, artists_N=ARTISTS_N, optional_columns=())
    write_event_store(log, folder, series=SeriesRequest(preferred_artist_days=days))
    return EventStore.open(folder)


ITEMS = st.integers(0, len(ARTISTS_N) - 1)
HISTORY = st.lists(
    st.tuples(ITEMS, st.sampled_from([0, 1, DAY - 1, DAY, 2 * DAY, 7 * DAY, 9 * DAY])), min_size=1, max_size=12
).map(lambda events: [Event(item, time) for item, time in sorted(events, key=lambda event: event[1])])
USERS = st.lists(HISTORY, min_size=1, max_size=4)


@settings(max_examples=40)
@given(USERS, st.integers(1, 3), st.sampled_from([3, 2**21]))
def test_the_artist_of_most_events_is_known_when_the_period_is_over(
    tmp_path_factory: pytest.TempPathFactory, users: Users, days: int, block: int
) -> None:
    if span(users) < days * DAY:
        return  # such a log is refused
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_writer, "_BLOCK_EVENTS", block)
        store = store_of(tmp_path_factory.mktemp("store") / "s", users, days)
    assert entries_of(store) == by_loop(users, days)
    occur = sorted({text for entries in entries_of(store) for _, text in entries})
    assert store.series.texts.to_pylist() == occur
    assert store.series.artists_V.tolist() == [int(text.removeprefix("group-")) for text in occur]
    times = [time for entries in entries_of(store) for time, _ in entries]
    begins_and_ends = {"first": min(times), "last": max(times)} if times else {}
    assert store.manifest.series == {"preferred_artist": {"values": len(occur), **begins_and_ends, "days": days}}


@settings(max_examples=40)
@given(USERS, st.integers(1, 3), st.data())
def test_events_from_a_time_on_change_nothing_that_is_known_up_to_it(
    tmp_path_factory: pytest.TempPathFactory, users: Users, days: int, data: st.DataObject
) -> None:
    """Both for `t` that an entry has and for others; the log's first event, which begins the periods, stays."""
    if span(users) < days * DAY:
        return
    folder = tmp_path_factory.mktemp("stores")
    before = entries_of(store_of(folder / "before", users, days))
    times = sorted({time for entries in before for time, _ in entries} | {DAY, 5 * DAY})
    instant = data.draw(st.sampled_from(times))
    changed = []
    for user in users:
        past = [event for event in user if event.timestamp < instant]
        drawn = data.draw(st.lists(st.tuples(ITEMS, st.integers(instant, instant + 9 * DAY)), max_size=9))
        future = [Event(item, time) for item, time in drawn]
        if not past and not future:
            future = [Event(3, instant)]
        changed.append(past + sorted(future, key=lambda event: event.timestamp))
    if origin(users) >= instant or span(changed) < days * DAY:
        return  # nothing is known before the log begins
    after = entries_of(store_of(folder / "after", changed, days))
    for one, other in zip(before, after, strict=True):
        assert [entry for entry in one if entry[0] <= instant] == [entry for entry in other if entry[0] <= instant]


def origin(users: Users) -> int:
    return min(user[0].timestamp for user in users)


def span(users: Users) -> int:
    return max(user[-1].timestamp for user in users) - origin(users)


def test_a_log_that_ends_with_the_first_period_is_refused(tmp_path: Path) -> None:
    users = [[Event(0, 5), Event(0, 5 + 7 * DAY - 1)]]
    for days in (7, 10**15):
        with pytest.raises(
            InputError, match=f"`preferred_artist_days` is {days}, but the log is over in 7 days, before"
        ):
            store_of(tmp_path / "s", users, days)
    assert list(tmp_path.iterdir()) == []
    longer = [[*users[0], Event(0, 5 + 7 * DAY)]]
    assert entries_of(store_of(tmp_path / "s", longer, 7)) == [[(5 + 7 * DAY, "group-0")]]


def test_what_begins_after_the_end_of_time_is_left_out() -> None:
    late = 2**32 - 5
    entries = preferred_artists(
        np.array([0, 2]), np.array([0, 0]), np.array([0, late]), np.array([3]), origin=0, period=DAY
    )
    assert (entries.time_s.tolist(), entries.value_s.tolist()) == ([DAY], [3])


def test_the_first_artist_of_an_item_counts() -> None:
    assert first_artists(np.array([0, 2, 2, 3]), np.array([4, 5, 1])).tolist() == [4, -1, 1]


def test_a_log_without_artists_has_no_preferred_one(tmp_path: Path) -> None:
    log = WrittenLog([[Event(0, 5)]], artists_N=[[]], optional_columns=())
    with pytest.raises(InputError, match="`series` names preferred_artist, but no item of this source has an artist"):
        write_event_store(log, tmp_path / "store", series=SeriesRequest(preferred_artist_days=1))
    assert list(tmp_path.iterdir()) == []


def test_nobody_may_have_played_an_artist(tmp_path: Path) -> None:
    users = [[Event(1, 5)], [Event(1, 6), Event(1, 5 + DAY)]]
    log = WrittenLog(users, artists_N=[[0], []], optional_columns=())
    write_event_store(log, tmp_path / "store", series=SeriesRequest(preferred_artist_days=1))
    store = EventStore.open(tmp_path / "store")
    assert store.has_series
    assert (store.series.num_values, store.series.num_series, store.series.offsets.tolist()) == (0, 1, [0, 0, 0])
    again = replace(log, users=[[Event(0, 5), Event(0, 5 + DAY)]])
    write_event_store(again, tmp_path / "store", series=SeriesRequest(preferred_artist_days=1))
    assert EventStore.open(tmp_path / "store").series.told(0) == "preferred_artist: group-0"


def test_yambda_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day = 2000  # the example has less than one of the others
    monkeypatch.setattr(series_writer, "DAY", day)
    raw = write_yambda_example(tmp_path / "raw", users=20, items=40, seed=2)
    keys = ["source=yambda", f"path={raw}", "kind=multi_event", "series=[preferred_artist]", "preferred_artist_days=1"]
    assert prepare.main([*keys, f"out={tmp_path / 'store'}"]) == 0
    store = EventStore.open(tmp_path / "store")
    first = {
        item: int(store.artist_values[begin])
        for item, (begin, end) in enumerate(zip(store.artist_offsets, store.artist_offsets[1:], strict=False))
        if begin < end
    }
    names = store.artist_ids.to_pylist()
    times, items = store.column(TIMESTAMP).astype(int), store.column(ITEM)
    for user, entries in enumerate(entries_of(store)):
        history = range(store.offsets[user], store.offsets[user + 1])
        for time, text in entries:
            played = [first.get(int(items[event])) for event in history if time - day <= times[event] < time]
            counts = Counter(artist for artist in played if artist is not None)
            assert counts[names.index(text)] == max(counts.values())
    assert (np.diff(store.series.offsets) > 0).all()  # everybody had played something
