"""Protocols against histories written out by hand, and against loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from data.event_store import EventStore
from data.split import DAY, SplitConfig
from evaluation.requests import DAILY, NEXT, PERIOD, YAMBDA, distinct_targets, make_requests, protocol_of
from tests.evaluation.helpers import make_store

NUM_ITEMS = 12
GAP = 1800


def day(number: int, second: int = 0) -> int:
    return number * DAY + second


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    """Two held-out days, 10 and 11. User 3 is new in them, user 4 does nothing in them."""
    histories = {
        0: [
            (0, day(1)),
            (1, day(2)),
            (5, day(10, 5)),
            (6, day(10, 9)),
            (5, day(10, 20)),
            (7, day(11, 3)),
            (1, day(11, 8)),
        ],
        1: [(2, day(3)), (3, day(4)), (8, day(11, 1))],
        2: [(4, day(1)), (9, day(10) - 5), (10, day(10, 50))],
        3: [(11, day(10, 1)), (0, day(11, 1))],
        4: [(1, day(0)), (2, day(12) - 1 - 2 * DAY - GAP - 10)],
        5: [(3, day(0)), (4, day(12) - 1)],
    }
    items = [[item for item, _ in events] for events in histories.values()]
    times = [[time for _, time in events] for events in histories.values()]
    split = SplitConfig("temporal", test_seconds=2 * DAY, validation_seconds=DAY, gap_seconds=GAP, end=day(12))
    return make_store(tmp_path_factory.mktemp("requests") / "store", items, NUM_ITEMS, times, split)


def asked(store: EventStore, protocol: str, max_history: int = 5) -> list[tuple[int, int, int, dict[int, int]]]:
    """User, seconds, events seen and items asked for with their counts, of each request."""
    requests = make_requests(store, "test", max_history, protocol)
    targets = requests.targets
    found = []
    for row in range(len(requests)):
        part = slice(targets.offsets_R1[row], targets.offsets_R1[row + 1])
        items = dict(zip(targets.items_T[part].tolist(), targets.counts_T[part].tolist(), strict=True))
        found.append((int(targets.users_R[row]), int(targets.times_R[row]), int(requests.history_stop_R[row]), items))
        assert requests.windows.user[row] == targets.users_R[row]
        assert requests.windows.stop[row] == requests.history_stop_R[row]
        assert requests.windows.start[row] == max(0, requests.history_stop_R[row] - max_history)
    return found


def test_a_period_is_asked_for_at_once(store: EventStore) -> None:
    expected = [
        (0, day(10), 2, {5: 2, 6: 1, 7: 1, 1: 1}),
        (1, day(10), 2, {8: 1}),
        (2, day(10), 1, {10: 1}),  # what happened in the gap is not seen
        (5, day(10), 1, {4: 1}),
    ]
    assert asked(store, PERIOD) == asked(store, YAMBDA) == expected


def test_each_day_sees_the_days_before(store: EventStore) -> None:
    assert asked(store, DAILY) == [
        (0, day(10), 2, {5: 2, 6: 1}),
        (0, day(11), 5, {7: 1, 1: 1}),
        (1, day(11), 2, {8: 1}),
        (2, day(10), 1, {10: 1}),
        (5, day(11), 1, {4: 1}),
    ]


def test_the_next_event_alone(store: EventStore) -> None:
    assert [(user, items) for user, _, _, items in asked(store, NEXT)] == [
        (0, {5: 1}),
        (1, {8: 1}),
        (2, {10: 1}),
        (5, {4: 1}),
    ]


def test_days_together_ask_for_every_held_out_event_of_a_period_once(store: EventStore) -> None:
    of_period, of_days = ({}, {})
    for counts, protocol in ((of_period, PERIOD), (of_days, DAILY)):
        for user, _, _, items in asked(store, protocol):
            for item, count in items.items():
                counts[user, item] = counts.get((user, item), 0) + count
    assert of_period == of_days


def test_no_request_sees_what_it_is_asked_for(store: EventStore) -> None:
    for protocol in (PERIOD, DAILY):
        requests = make_requests(store, "test", 3, protocol)
        users_R, times_R = requests.targets.users_R, requests.targets.times_R
        newest_R = store.column("timestamp")[store.offsets[users_R] + requests.history_stop_R - 1]
        assert (newest_R < times_R).all()
        assert (requests.windows.asked >= requests.history_stop_R).all()


def test_single_events_have_no_period(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3], [4, 5, 6]], NUM_ITEMS)
    for protocol in (DAILY, YAMBDA):
        with pytest.raises(InputError, match=r"prepare the store with split\.kind=temporal"):
            make_requests(store, "test", 3, protocol)
    assert asked(store, PERIOD) == asked(store, NEXT)
    assert (protocol_of("leave-last-out"), protocol_of("temporal"), protocol_of("yambda")) == (NEXT, PERIOD, YAMBDA)


def test_nothing_held_out_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1], [4, 5]], NUM_ITEMS)
    with pytest.raises(InputError, match="holds out no test event of any of its 2 users"):
        make_requests(store, "test", 3, NEXT)


def test_targets_are_counted_in_order_of_their_first_event() -> None:
    random = np.random.default_rng(0)
    requests_E = np.sort(random.integers(0, 7, 200))
    items_E = random.integers(0, 9, 200)
    users_R, times_R = np.arange(7) + 3, np.arange(7) * 10
    targets = distinct_targets(users_R, times_R, requests_E, items_E)
    expected: list[dict[int, int]] = [{} for _ in range(7)]
    for request, item in zip(requests_E.tolist(), items_E.tolist(), strict=True):
        expected[request][item] = expected[request].get(item, 0) + 1
    assert targets.items_T.tolist() == [item for counts in expected for item in counts]
    assert targets.counts_T.tolist() == [count for counts in expected for count in counts.values()]
    assert targets.sizes_R.tolist() == [len(counts) for counts in expected]
    assert targets.requests_T.tolist() == [row for row, counts in enumerate(expected) for _ in counts]
