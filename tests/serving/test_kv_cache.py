from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import InputError
from data.schema import MISSING_DURATION
from model.past import Past
from serving.kv_cache import CachePool, UserCache
from serving.user_events import UserEvents, joined
from serving.user_series import UserSeries


def cache_of(num_events: int, dropped: int = 0) -> UserCache:
    events = UserEvents.of(range(num_events), range(num_events))
    return UserCache("model", events, dropped, Past.empty(2, torch.device("cpu")), num_events)


def test_events_are_cut_and_joined_with_marks_for_what_is_missing() -> None:
    first = UserEvents.of([1, 2, 3], [10, 10, 20], [0, 1, 0], durations=[5, 6, 7])
    second = UserEvents.of([4], [30])
    both = first + second
    assert both.items.tolist() == [1, 2, 3, 4]
    assert both.event_types.tolist() == [0, 1, 0, 0]
    assert both.durations is not None
    assert both.durations.tolist() == [5, 6, 7, MISSING_DURATION]
    assert both.organic is None
    assert both[1:].timestamps.tolist() == [10, 20, 30]
    assert len(joined([])) == len(UserEvents.none()) == 0
    assert both.nbytes == 4 * 4 * 8


def test_a_history_begins_with_its_first_events() -> None:
    history = UserEvents.of([1, 2, 3], [10, 10, 20], durations=[5, 6, MISSING_DURATION])
    assert history.begins_with(history)
    assert history.begins_with(history[:2])
    assert history.begins_with(UserEvents.none())
    assert not history[:2].begins_with(history)
    assert not history.begins_with(UserEvents.of([1, 2], [10, 10]))
    assert not history.begins_with(UserEvents.of([1, 2], [10, 11], durations=[5, 6]))
    assert history[2:].begins_with(UserEvents.of([3], [20])), "missing is missing"


def test_a_cache_that_has_lost_events_belongs_before_the_whole_history() -> None:
    whole = UserEvents.of([7, 8, 0, 1, 2, 9], [0, 0, 0, 1, 2, 3])
    assert cache_of(3, dropped=2).belongs_before(whole)
    assert not cache_of(3, dropped=1).belongs_before(whole)
    assert not cache_of(3, dropped=9).belongs_before(whole)


def test_faults_of_events_are_told() -> None:
    with pytest.raises(InputError, match="2 values in `timestamps` and 3 in `items`"):
        UserEvents.of([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="event 2 is at 4 s, before event 1 at 9 s"):
        UserEvents.of([1, 2, 3], [1, 9, 4])
    with pytest.raises(InputError, match="`items` is of type float64"):
        UserEvents.of([1.5], [1])
    with pytest.raises(InputError, match="`played` is of type float64: give whole numbers, percent") as error:
        UserEvents.of([1, 2], [1], played=0.5)
    assert "1 values in `timestamps` and 2 in `items`" in error.value.faults[0]
    with pytest.raises(InputError, match="max_bytes=-1"):
        CachePool(-1)


@pytest.mark.parametrize("time", [-1, 2**32, 1_700_000_000_000])
def test_a_timestamp_is_a_second(time: int) -> None:
    told = f"{time} is no second of a log.*0 … 4294967295; milliseconds"
    with pytest.raises(InputError, match=told):
        UserEvents.of([1], [time])
    with pytest.raises(InputError, match=told):
        UserSeries.of([1], [time])
    newest = 2**32 - 1
    assert UserEvents.of([1, 2], [0, newest]).timestamps.tolist() == [0, newest]
    assert len(UserSeries.of([1, 2], [0, newest])) == 2


def test_a_number_stands_for_one_an_item_and_a_list_of_one_does_not() -> None:
    assert UserEvents.of([1, 2, 3], 5, np.int64(1)).event_types.tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="1 values in `timestamps` and 3"):
        UserEvents.of([1, 2, 3], [5])


def test_a_pool_lets_go_of_what_was_asked_for_least_lately() -> None:
    one = cache_of(10)
    pool = CachePool(2 * one.nbytes)
    pool.put("a", one)
    pool.put("b", one)
    assert pool.get("a") is one
    pool.put("c", one)
    assert pool.get("b") is None
    assert pool.get("a") is one
    assert pool.get("c") is one
    assert (pool.hits, pool.misses, pool.evictions, len(pool)) == (3, 1, 1, 2)
    assert pool.nbytes == 2 * one.nbytes


def test_a_pool_never_holds_more_than_it_may() -> None:
    pool = CachePool(5_000)
    rng = np.random.default_rng(0)
    for _ in range(200):
        cache = cache_of(int(rng.integers(0, 300)))
        pool.put(int(rng.integers(0, 9)), cache)
        assert pool.nbytes <= 5_000
        assert pool.nbytes == sum(size for _, size in pool._held.values())
    pool.put("x", cache_of(1))
    pool.put("x", cache_of(9_999))
    assert pool.get("x") is None, "an older cache does not stand for a newer one that is too large"
    pool.drop("nobody")
