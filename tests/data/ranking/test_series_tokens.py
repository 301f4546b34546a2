"""Slow series between the tokens of events: where they stand, when they are, and what they must not know.

That whole batches are those of a loop is in test_batches.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InputError
from data import schema, series_writer
from data.batches import Batch
from data.event_store import EventStore
from data.examples import Examples
from data.loader import Loader, event_columns
from data.ranking import series_tokens
from data.ranking.config import FORMS, ActionsConfig
from data.sequences import Windows, training_windows
from data.series_writer import SeriesRequest
from data.sources.base import Histories
from data.stochastic_length import StochasticLength
from data.store_columns import event_type_rows
from data.store_writer import write_event_store
from tests.data.helpers import MemorySource, features_of, make_store
from tests.data.ranking.reference import World, found_bags, world_of
from tests.data.ranking.test_batches import series_columns

ARTISTS_N = [[], [0], [1, 2], [3], [0, 3]]
TASKS = ["liked: event_type is like"]


@pytest.fixture
def by_hand(tmp_path: Path) -> World:
    """One user, items 2 0 2 1 at 10 20 30 40; of 3 event types, so that value v has row 3 + v."""
    store = make_store(tmp_path, MemorySource([4], [[], [0], [1]], seed=3))
    columns = dataclasses.replace(
        event_columns(store),
        items=np.array([2, 0, 2, 1], dtype=np.uint32),
        event_types=np.array([0, 1, 2, 0], dtype=np.uint8),
        timestamps=np.array([10, 20, 30, 40], dtype=np.uint32),
    )
    series = series_columns([[(2, 0), (5, 2), (20, 3), (31, 1)]], [-1, -1, 2, 1, -1, -1])
    return dataclasses.replace(world_of(store, features_of(store), "merged", 0, 0, series, 9), columns=columns)


def batch_of(world: World, windows: Windows, form: str, kept: int | None = None) -> Batch:
    maker = dataclasses.replace(world, cfg=dataclasses.replace(world.cfg, form=form)).maker()
    columns = world.columns
    kept_W = windows.lengths if kept is None else np.full(len(windows), kept)
    examples = Examples(columns.offsets, columns.timestamps, windows, kept_W, StochasticLength(), None, 0)
    index = np.arange(len(windows))
    return maker.make(examples.tokens(index), index, int(maker.token_lengths(examples).sum()), 1.0)


def rows_of(batch: Batch) -> list[int | None]:
    return [None if not bags[3] else bags[3][0] for bags in found_bags(batch)]


def test_the_three_forms_by_hand(by_hand: World) -> None:
    windows = Windows(np.array([0]), np.array([0]), np.array([3]), np.array([0]))
    expected = {
        #               rows of event_type (3 and above: values), key times, query times
        "interleaved": (
            [3, 5, None, 0, 6, None, 1, None, 2, 4, None],
            [2, 5, 10, 10, 20, 20, 20, 30, 30, 31, 40],
            [10, 10, 10, 20, 20, 20, 30, 30, 40, 40, 40],
        ),
        "merged": (
            [3, 5, 0, 6, None, 1, None, 2, 4, None],
            [2, 5, 10, 20, 20, 20, 30, 30, 31, 40],
            [10, 10, 20, 20, 20, 30, 30, 40, 40, 40],
        ),
        # What is known from 31 s on would be seen by nothing.
        "interactions": ([3, 5, 0, 6, 1, 2], [2, 5, 10, 20, 20, 30], [10, 10, 20, 20, 30, 40]),
    }
    for form, (rows, key_times, query_times) in expected.items():
        batch = batch_of(by_hand, windows, form)
        assert rows_of(batch) == rows
        assert batch.timestamps_L.tolist() == key_times
        assert batch.request_times_L.tolist() == query_times
        of_value = [place for place, row in enumerate(rows) if row is not None and row >= 3]
        assert (batch.target_items_L[of_value] == -1).all()
        assert (batch.durations_L[of_value] == -1).all()
        assert (batch.organic_L[of_value] == schema.MISSING_ORGANIC).all()
        assert batch.alone_L is None or not batch.alone_L[of_value].any()
    # Values 2 and 3 are artists 2 and 1, which mean what they mean of a track.
    bags = found_bags(batch_of(by_hand, windows, "merged"))
    whole = by_hand.features.qr_remainders
    assert [bags[place][:3] for place in (0, 1, 3, 8)] == [
        [[], [artist // whole] if artist >= 0 else [], [artist % whole] if artist >= 0 else []]
        for artist in (-1, 2, 1, -1)
    ]


def test_thinning_leaves_what_is_known_of_the_events_left_out(by_hand: World) -> None:
    """Left is event 2 alone, of the window that begins with event 0: in front of it stand all changes since then."""
    windows = Windows(np.array([0]), np.array([0]), np.array([3]), np.array([0]))
    batch = batch_of(by_hand, windows, "merged", kept=1)
    assert rows_of(batch) == [3, 5, 6, 2, 4, None]
    assert batch.timestamps_L.tolist() == [2, 5, 20, 30, 31, 40]
    assert rows_of(batch_of(by_hand, windows, "interactions", kept=1)) == [3, 5, 6, 2]


def test_a_request_sees_nothing_from_behind_its_history(by_hand: World) -> None:
    """Asked for is event 3, after a gap that hides event 2 or after none: what changed since event 1 stays outside."""
    for stop, rows in ((2, [3, 5, 0, 6, 1, None]), (3, [3, 5, 0, 6, 1, 2, None])):
        asked, made = np.array([3]), np.array([35])
        windows = Windows(np.array([0]), np.array([0]), np.array([stop]), np.array([stop - 1]), asked, made)
        assert rows_of(batch_of(by_hand, windows, "merged")) == rows


def test_times_ascend_and_age_has_an_end(by_hand: World, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows(np.array([0]), np.array([1]), np.array([3]), np.array([1]))
    assert batch_of(by_hand, windows, "merged").timestamps_L.tolist() == [2, 20, 20, 30, 30, 31, 40]
    monkeypatch.setattr(series_tokens, "OLDEST", 7)
    assert batch_of(by_hand, windows, "merged").timestamps_L.tolist() == [13, 20, 20, 30, 30, 31, 40]


# ── leakage, from the log on ─────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Changed(MemorySource):
    """The log with another item in one event."""

    event: int | None = None
    item: int = 0

    def histories(self) -> Iterator[Histories]:
        begin = 0
        for part in super().histories():
            end = begin + len(part.columns[schema.ITEM])
            if self.event is not None and begin <= self.event < end:
                part.columns[schema.ITEM][self.event - begin] = self.item
            begin = end
            yield part


def prepared(folder: Path, **changes: Any) -> EventStore:
    source = Changed([9, 4, 12, 7], ARTISTS_N, optional_columns=schema.OPTIONAL_COLUMNS, seed=4, **changes)
    write_event_store(source, folder, series=SeriesRequest(preferred_artist_days=1))
    return EventStore.open(folder)


def told_windows(store: EventStore, form: str, series: int) -> list[tuple[list[Any], list[int]]]:
    """Of each window its tokens in words, since values have other numbers in other stores, and places that ask."""
    actions = ActionsConfig(form=form, tasks=TASKS, played_buckets=3, series=series)
    windows = training_windows(store.offsets, store.split(), 8, "tiled")
    loader = make_loader(store, windows, actions, tokens=200)
    assert loader.steps_per_epoch(0) == 1
    batch, first = loader.batch(0, 0), event_type_rows(store, actions) - store.series.num_values
    assert batch.window_index_B.tolist() == list(range(len(windows)))

    def told(row: int) -> str | int:
        return row if row < first else store.series.told(row - first)

    names = ("timestamps_L", "request_times_L", "durations_L", "organic_L")
    columns = [getattr(batch, name).tolist() for name in names]
    bags = [[*own[:3], [told(row) for row in own[3]]] for own in found_bags(batch)]
    tokens = list(zip(bags, *columns, strict=True))
    return [
        (tokens[low:high], np.flatnonzero(batch.target_items_L[low:high].numpy() >= 0).tolist())
        for low, high in itertools.pairwise(batch.offsets.tolist())
    ]


def make_loader(store: EventStore, windows: Windows, actions: ActionsConfig, tokens: int) -> Loader:
    share = {"bins": 1, "rank": 0, "world_size": 1, "seed": 0, "shuffle": False}
    return Loader(store, features_of(store), windows, tokens=tokens, ranking=actions, **share)  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "series"), [*((form, 20) for form in FORMS), ("interleaved", 2)])
def test_nothing_in_front_of_a_candidate_knows_an_event_from_it_on(
    tmp_path: Path, form: str, series: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for all entries, and without: which of them are left out must not tell either."""
    monkeypatch.setattr(series_writer, "DAY", 5)
    store = prepared(tmp_path / "store")
    before = told_windows(store, form, series)
    windows = training_windows(store.offsets, store.split(), 8, "tiled")
    items, moved = store.column(schema.ITEM), 0
    for event in range(store.num_events):
        other = prepared(tmp_path / f"{event}", event=event, item=(int(items[event]) + 2) % len(ARTISTS_N))
        after = told_windows(other, form, series)
        for window, ((tokens, asking), (others, asking_too)) in enumerate(zip(before, after, strict=True)):
            moved += values_of(tokens) != values_of(others)
            begin, end = store.offsets[windows.user[window] : windows.user[window] + 2]
            first = int(begin + windows.learn_from[window]) + 1
            assert len(asking) == len(asking_too) == windows.stop[window] - windows.learn_from[window]
            for candidate, (place, place_too) in enumerate(zip(asking, asking_too, strict=True), first):
                if not begin <= event < end or candidate <= event:
                    assert tokens[:place] == others[:place_too]
                if not begin <= event < end or candidate < event:
                    assert tokens[place] == others[place_too]
    assert moved >= (5 if series == 20 else 1)  # there is something to leak


def values_of(tokens: list[Any]) -> list[Any]:
    return [token for token in tokens if token[0][3] and isinstance(token[0][3][0], str)]


# ── what a store must have, and what a loader makes of it ────────────────────────────────────────────────


def test_a_store_without_series_is_refused_with_all_other_faults(tmp_path: Path) -> None:
    bare = make_store(tmp_path, MemorySource([5], [[0]]))
    windows = training_windows(bare.offsets, bare.split(), 5)
    asked = ActionsConfig(tasks=["half: played_ratio >= 50"], series=2)
    with pytest.raises(InputError, match="has no slow series") as error:
        make_loader(bare, windows, asked, 40)
    assert len(error.value.faults) == 2
    assert "prepare.series=[preferred_artist]" in error.value.faults[1]
    with pytest.raises(InputError, match="has no slow series"):
        event_type_rows(bare, asked)
    assert event_type_rows(bare, None) == 3
    assert event_type_rows(bare, ActionsConfig(tasks=TASKS)) == 3


def test_another_limit_is_another_plan_and_room_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_writer, "DAY", 5)
    store = prepared(tmp_path / "store")
    windows = training_windows(store.offsets, store.split(), 8)
    loaders = {
        limit: make_loader(store, windows, ActionsConfig(tasks=TASKS, series=limit), 40) for limit in (0, 1, 2, 30)
    }
    lengths = {limit: loader.lengths(0) for limit, loader in loaders.items()}
    assert (lengths[1] - lengths[0]).max() == 1
    assert (lengths[2] - lengths[0]).max() == 2
    assert (lengths[30] - lengths[0]).max() > 2
    for loader in loaders.values():
        used = sum(int(batch.offsets[-1]) for batch in loader.iterate(0))
        assert used == loader.real_tokens(0)
    names = {loader.state(0, 0).plan for loader in loaders.values()}
    assert len(names) == len(loaders)
    with pytest.raises(InputError, match="cannot be found"):
        loaders[2].check_state(loaders[1].state(0, 0))
