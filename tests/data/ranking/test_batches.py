"""Tokens of items and actions: what they hold, and what they must not."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import examples as data_examples
from data import schema
from data.batches import FEATURE_KEYS, Batch, BatchMaker
from data.event_store import EventStore
from data.examples import Examples, Tokens
from data.loader import event_columns
from data.ranking import rows
from data.ranking.config import FORMS, MERGED
from data.ranking.rows import NONE, distinct_rows
from data.sequences import Windows, covering_windows, request_windows, training_windows
from data.series.columns import SeriesColumns
from data.stochastic_length import SELECTIONS, StochasticLength
from model.mask import Mask
from tests.data.helpers import MemorySource, bags, examples_of, features_of, make_store, sources
from tests.data.ranking.reference import (
    Token,
    World,
    check_batch,
    found_bags,
    reference_tokens,
    world_of,
)

SERIES_V = [0, 0, 1, 1, 2, 2]


@dataclasses.dataclass
class Case:
    """Some windows of a store, and their batch as the reference has it."""

    world: World
    examples: Examples
    chosen: np.ndarray
    tokens: list[Token]
    offsets: list[int]

    def batch(self, distinct: bool = True, budget: int | None = None, world: World | None = None) -> Batch:
        maker = (world or self.world).maker(distinct)
        return maker.make(self.examples.tokens(self.chosen), self.chosen, budget or max(len(self.tokens), 1), 0.25)


def case_of(world: World, examples: Examples, chosen: list[int]) -> Case:
    by_window = [reference_tokens(world, examples, window) for window in chosen]
    offsets = np.cumsum([0, *(len(tokens) for tokens in by_window)]).tolist()
    return Case(
        world, examples, np.array(chosen, dtype=np.int64), list(itertools.chain.from_iterable(by_window)), offsets
    )


@st.composite
def cases(draw: st.DrawFn, store_of: Any) -> Case:
    """Windows of every sort: newest, tiled, requests, context alone in front, thinned, ties in any order."""
    source = draw(sources())
    store: EventStore = store_of(source)
    split = store.split()
    max_history = draw(st.integers(1, 6))
    plan = draw(st.sampled_from(["newest", "tiled", "test", "validation"]))
    changes: dict[str, Any] = {"seed": draw(st.integers(0, 9))}
    if plan in ("test", "validation"):
        windows = request_windows(getattr(split, plan), max_history)
        # Asked at the period's beginning for something later: what a temporal split does.
        assert windows.asked is not None
        later = draw(st.integers(0, 1)) if plan == "validation" else 0
        windows = dataclasses.replace(windows, asked=windows.asked + later, request_time=np.zeros_like(windows.asked))
    else:
        windows = training_windows(store.offsets, split, max_history, plan)
        learn_from = windows.start + draw(st.integers(0, 2)) * (windows.lengths > 2)
        windows = dataclasses.replace(windows, learn_from=learn_from)
        changes["tie_limit_U"] = draw(st.sampled_from([None, split.train_end_U]))
        if draw(st.booleans()):
            changes["thinning"] = StochasticLength(alpha=1.5, selection=draw(st.sampled_from(SELECTIONS)))
            changes["kept_W"] = np.minimum(windows.lengths, draw(st.integers(1, 3)))
    features = dataclasses.replace(features_of(store, source.seed), qr_remainders=draw(st.integers(1, 3)))
    form = draw(st.sampled_from(FORMS))
    series = draw(drawn_series(len(source.lengths_U), store.num_artists)) if draw(st.booleans()) else None
    limit = 0 if series is None else draw(st.integers(1, 4) | st.just(100))
    world = world_of(store, features, form, draw(st.sampled_from([0, 1, 3, 10])), source.seed, series, limit)
    order = draw(st.permutations(range(len(windows))))
    return case_of(world, examples_of(store, windows, **changes), order[: draw(st.integers(0, len(order)))])


@st.composite
def drawn_series(draw: st.DrawFn, users: int, num_artists: int) -> SeriesColumns:
    """Three series; values of the second, and some of the third, are artists, where there are any."""
    artists = st.integers(0, num_artists - 1) if num_artists else st.just(-1)
    artists_V = [-1, -1, *(draw(artists) for _ in range(3)), -1]
    entry = st.tuples(st.integers(0, 55), st.integers(0, 5))
    entries = []
    for _ in range(users):
        by_place = {(time, SERIES_V[value]): (time, value) for time, value in draw(st.lists(entry, max_size=8))}
        entries.append([by_place[place] for place in sorted(by_place)])
    return series_columns(entries, artists_V)


def series_columns(users: list[list[tuple[int, int]]], artists_V: list[int]) -> SeriesColumns:
    flat = np.array([entry for user in users for entry in user], dtype=np.uint32).reshape(-1, 2)
    return SeriesColumns(
        offsets=np.cumsum([0, *map(len, users)]),
        timestamps=flat[:, 0],
        values=flat[:, 1],
        names=("a", "b", "c"),
        series_V=np.array(SERIES_V),
        artists_V=np.array(artists_V),
        texts=pa.array([str(value) for value in range(len(SERIES_V))]),
    )


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(0, 3))
def test_batches_are_those_of_the_reference(data: st.DataObject, padding: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case = data.draw(cases(lambda source: make_store(Path(folder), source)))
        world, budget = case.world, max(len(case.tokens) + padding, 1)
        lengths_W = world.maker().token_lengths(case.examples)
        assert np.diff(case.offsets).tolist() == lengths_W[case.chosen].tolist()
        asked_B = case.examples.actions(case.chosen)
        assert asked_B.sum() == sum(token.target >= 0 for token in case.tokens)
        for distinct in (True, False):
            batch = case.batch(distinct, budget)
            check_batch(world, batch, case.tokens, budget)
            assert (batch.offsets.dtype, batch.offsets.tolist()) == (torch.int64, case.offsets)
            assert batch.window_index_B.tolist() == case.chosen.tolist()
            assert (batch.loss_weight.dtype, batch.loss_weight.tolist()) == (torch.float32, 0.25)
            if distinct:
                check_nothing_is_there_twice(world, batch, case.tokens)
            else:
                assert batch.features.stride() == (2 * budget + 1 if world.cfg.form == "interactions" else budget)
                assert batch.features.inverse_indices_or_none() is None


def check_nothing_is_there_twice(world: World, batch: Batch, tokens: list[Token]) -> None:
    """One bag an item, an artist that stands alone, an action or value; one row a pair; padding has the last."""
    candidates = [Token(item=token.candidate) for token in tokens if token.candidate is not None]
    values = {token.value for token in tokens} - {None}
    pairs: set[Any] = {(token.item, token.action) for token in tokens + candidates if token.value is None}
    items = {item for item, _ in pairs} - {None}
    actions = {action for _, action in pairs} - {None}
    artists: set[int] = set() if world.series is None else set(world.series.artists_V[list(values)].tolist()) - {-1}  # type: ignore[index]
    pairs |= values
    assert sorted(batch.item_ids.values().tolist()) == sorted(items)
    sets, done = len(items) + len(artists), len(actions) + len(values)
    assert [len(bags(batch.features, key)) for key in FEATURE_KEYS] == [len(items) + 1, sets + 1, sets + 1, done + 1]
    _, inverse_FP = batch.features.inverse_indices()
    assert inverse_FP.shape[1] == len(batch.item_rows_P) == len(pairs) + 1
    assert inverse_FP[:, -1].tolist() == [len(items), sets, sets, done]
    assert len(set(map(tuple, inverse_FP.T.tolist()))) == len(pairs) + 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    source = MemorySource([9, 4, 2, 12, 7], [[], [0], [1, 2], [3], [0, 3]], optional_columns=schema.OPTIONAL_COLUMNS)
    return make_store(tmp_path_factory.mktemp("ranking"), source)


def all_windows(store: EventStore, form: str, kind: str) -> Case:
    split = store.split()
    windows: Windows = (
        request_windows(split.test, 6) if kind == "test" else training_windows(store.offsets, split, 6, "tiled")
    )
    world = world_of(store, features_of(store), form, 3, seed=1)
    return case_of(world, examples_of(store, windows), list(range(len(windows))))


@pytest.mark.parametrize("kind", ["tiled", "test"])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_an_action_reaches_what_its_prediction_sees(store: EventStore, form: str, kind: str) -> None:
    case = all_windows(store, form, kind)
    before = case.batch()
    asking = [place for place, token in enumerate(case.tokens) if token.asked_event is not None]
    assert len(asking) >= 4
    for place in asking:
        event = case.tokens[place].asked_event
        columns = case.world.columns
        assert columns.played is not None
        event_types, played = columns.event_types.copy(), columns.played.copy()
        event_types[event] = (event_types[event] + 1) % 3
        played[event] = 7 if played[event] != 7 else 150
        changed = dataclasses.replace(columns, event_types=event_types, played=played)
        after = case.batch(world=dataclasses.replace(case.world, columns=changed))
        assert not torch.equal(after.labels_LT[place], before.labels_LT[place])  # type: ignore[index]
        # All tokens up to the one that asks, those that it sees among them.
        assert found_bags(after)[: place + 1] == found_bags(before)[: place + 1]
        for name in ("timestamps_L", "request_times_L", "durations_L", "organic_L", "target_items_L", "offsets"):
            assert torch.equal(getattr(after, name), getattr(before, name)), name
        if form == "interactions":
            rows = [dataclasses.replace(batch, rows_L=batch.candidate_rows_L) for batch in (before, after)]
            assert found_bags(rows[0]) == found_bags(rows[1])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_no_clock_that_a_prediction_sees_is_later_than_its_event(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case = data.draw(cases(lambda source: make_store(Path(folder), source)))
        batch = case.batch()
        mask, places = Mask(batch.offsets, batch.alone_L), torch.arange(len(batch.timestamps_L))
        for begin, end in itertools.pairwise(case.offsets):
            assert (batch.timestamps_L[begin:end].diff() >= 0).all()  # the fast path of attention relies on it
        for place, token in enumerate(case.tokens):
            if token.asked_event is None:
                continue
            seen_L = mask.visible(torch.full_like(places, place), places)
            own = int(case.world.columns.timestamps[token.asked_event])
            assert int(batch.timestamps_L[seen_L].max()) <= own
            assert int(batch.request_times_L[seen_L].max()) <= own
            assert int(batch.request_times_L[place]) == own


def test_a_candidate_stands_where_it_would_stand_alone(store: EventStore) -> None:
    case = all_windows(store, "merged", "tiled")
    batch = case.batch()
    positions = Mask(batch.offsets, batch.alone_L).positions(len(case.tokens)).tolist()
    for begin, end in itertools.pairwise(case.offsets):
        events = 0
        for token, position in zip(case.tokens[begin:end], positions[begin:end], strict=True):
            assert position == events
            events += not token.alone


def test_the_three_forms_by_hand(tmp_path: Path) -> None:
    """One user, items 2 0 2 1, event types 0 1 2 0: e3 is the last target."""
    own = make_store(tmp_path, MemorySource([4], [[], [0], [1]], seed=3))
    columns = dataclasses.replace(
        event_columns(own),
        items=np.array([2, 0, 2, 1], dtype=np.uint32),
        event_types=np.array([0, 1, 2, 0], dtype=np.uint8),
        timestamps=np.array([10, 20, 30, 40], dtype=np.uint32),
    )
    windows = Windows(np.array([0]), np.array([0]), np.array([3]), np.array([0]))
    expected = {
        #                 items (None: an action), actions (None: hidden), clocks, targets
        "interleaved": (
            [2, None, 0, None, 2, None, 1],
            [None, 0, None, 1, None, 2, None],
            [10, 20, 20, 30, 30, 40, 40],
            [-1, -1, 0, -1, 2, -1, 1],
        ),
        "merged": ([2, 0, 0, 2, 2, 1], [0, None, 1, None, 2, None], [20, 20, 30, 30, 40, 40], [-1, 0, -1, 2, -1, 1]),
        "interactions": ([2, 0, 2], [0, 1, 2], [20, 30, 40], [0, 2, 1]),
    }
    for form, (items, actions, clocks, targets) in expected.items():
        world = dataclasses.replace(world_of(own, features_of(own), form, 0, 0), columns=columns)
        batch = world.maker().make(examples_of(own, windows).tokens(np.array([0])), np.array([0]), len(items), 1.0)
        rows = [*batch.item_ids.values().tolist(), None]
        assert [rows[place] for place in batch.item_rows_P[batch.rows_L].tolist()] == items
        assert [found[3] for found in found_bags(batch)] == [[] if action is None else [action] for action in actions]
        assert batch.request_times_L.tolist() == clocks
        assert batch.target_items_L.tolist() == targets
        asked = batch.labels_LT[batch.target_items_L >= 0]  # type: ignore[index]
        assert asked.tolist() == [[1.0], [1.0], [0.0]]


def test_items_and_actions_may_be_more_than_can_be_hashed_in_pairs() -> None:
    """As where a batch has many items and many values of series: pairs are sorted, and come out as hashed ones."""
    generator, many = np.random.default_rng(0), 70_000
    apart = np.full(many, NONE), generator.permutation(many)
    cases = [(np.concatenate(apart), np.concatenate(apart[::-1]))]
    cases += [(generator.integers(-1, 7, 400), generator.integers(-1, 5, 400)) for _ in range(3)]
    for items_r, actions_r in cases:
        hashed = distinct_rows(items_r, actions_r) if len(items_r) < many else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "_HASHED_BELOW", 2**32 if hashed is None else 0)
            found = distinct_rows(items_r, actions_r)
        of_rows, place = found.rows, found.row_of_r
        for numbers_r, numbers, rows_p in (
            (items_r, of_rows.items_d, of_rows.item_rows_P.numpy()[:-1]),
            (actions_r, of_rows.event_types_k, of_rows.event_type_of_p),
        ):
            np.testing.assert_array_equal(np.append(numbers, NONE)[rows_p[place]], numbers_r)
        assert len(of_rows.event_type_of_p) == len(set(zip(items_r.tolist(), actions_r.tolist(), strict=True)))
        if hashed is not None:
            np.testing.assert_array_equal(found.row_of_r, hashed.row_of_r)
            np.testing.assert_array_equal(of_rows.item_rows_P, hashed.rows.item_rows_P)


@pytest.mark.parametrize("form", FORMS)
def test_lengths_are_known_without_going_through_all_inputs(
    store: EventStore, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many actions are asked for is counted for the one form whose lengths depend on it, some windows at a time."""
    world = world_of(store, features_of(store), form, 3, seed=1)
    windows = covering_windows(np.full(store.num_users, 2), np.diff(store.offsets), 6)
    kept_W = np.maximum(windows.lengths - 1, 1)
    examples = examples_of(store, windows, kept_W=kept_W, thinning=StochasticLength(1.5, "random"), seed=3)
    expected = [len(reference_tokens(world, examples, window)) for window in range(len(windows))]
    looked_at: list[int] = []

    def noted(self: Examples, index_B: np.ndarray) -> Tokens:
        looked_at.append(int(self.windows.lengths[index_B].sum()))
        return tokens(self, index_B)

    tokens = Examples.tokens
    monkeypatch.setattr(Examples, "tokens", noted)
    monkeypatch.setattr(data_examples, "_BLOCK_INPUTS", 12)
    assert world.maker().token_lengths(examples).tolist() == expected
    assert (len(looked_at) > 1) == (form == MERGED)
    assert all(inputs <= 12 for inputs in looked_at)


def test_a_window_too_many_is_an_error_not_a_cut(store: EventStore) -> None:
    case = all_windows(store, "interleaved", "test")
    with pytest.raises(AssertionError, match="tokens do not fit a budget of 5"):
        case.batch(budget=5)


@pytest.mark.parametrize("form", FORMS)
def test_all_parts_travel(store: EventStore, form: str) -> None:
    batch = all_windows(store, form, "test").batch()
    moved = batch.to(torch.device("meta"))
    for name in ("labels_LT", "alone_L", "candidate_rows_L"):
        part, there = getattr(batch, name), getattr(moved, name)
        assert (part is None) == (there is None)
        assert part is None or (part.shape, "meta") == (there.shape, there.device.type)


def test_retrieval_does_not_see_the_played_ratio(store: EventStore) -> None:
    windows = training_windows(store.offsets, store.split(), 6)
    columns, index = event_columns(store), np.arange(len(windows))
    tokens = examples_of(store, windows).tokens(index)
    makers = [BatchMaker(own, features_of(store)) for own in (columns, dataclasses.replace(columns, played=None))]
    one, other = (maker.make(tokens, index, 40, 1.0) for maker in makers)
    assert (one.labels_LT, one.alone_L, one.candidate_rows_L) == (None, None, None)
    assert torch.equal(one.features.values(), other.features.values())
