from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data.split import (
    CutOffs,
    LeakageError,
    Split,
    SplitConfig,
    check_no_leakage,
    cut_offs,
    events_before,
    leave_last_out,
    make_split,
    training_mask,
)
from tests.data.helpers import split_by_lengths


def test_leave_last_out_holds_out_the_last_two_of_three_or_more() -> None:
    lengths = np.array([1, 2, 3, 4, 10])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    split = leave_last_out(offsets, np.arange(20) * 7)
    np.testing.assert_array_equal(split.train_end_U, [1, 2, 1, 2, 8])
    for held, at in ((split.validation, [1, 2, 8]), (split.test, [2, 3, 9])):
        np.testing.assert_array_equal(held.asked_U, [False, False, True, True, True])
        np.testing.assert_array_equal(held.start_U[2:], at)
        np.testing.assert_array_equal(held.stop_U[2:], np.array(at) + 1)
        np.testing.assert_array_equal(held.history_stop_U[2:], at)
        np.testing.assert_array_equal(held.request_time_U[2:], 7 * (offsets[2:-1] + at))


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20), share=st.floats(0.01, 0.49))
def test_leave_last_share_holds_out_the_end_of_every_history(lengths: list[int], share: float) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times_E = np.arange(offsets[-1]) * 5
    split = make_split(SplitConfig(kind="leave-last-share", test_share=share), offsets, times_E)
    for user, length in enumerate(lengths):
        most = max((held for held in range(length) if 2 * held < length), default=0)  # one event stays for training
        held = min(max(round(length * share), 1), most)
        assert held > 0 or length < 3
        cuts = [length - 2 * held, length - held, length]
        assert split.train_end_U[user] == cuts[0] > 0
        for part, start, stop in ((split.validation, *cuts[:2]), (split.test, *cuts[1:])):
            assert [part.history_stop_U[user], part.start_U[user], part.stop_U[user]] == [start, start, stop]
            assert not held or part.request_time_U[user] == 5 * (offsets[user] + start)
    check_no_leakage(split, np.array([], int), np.array([], int), np.array([], int))
    with pytest.raises(InputError, match=r"`split.test_share` is 0.5, must be below 0.5 with split.kind=leave-last"):
        SplitConfig(kind="leave-last-share", test_share=0.5)


def test_the_constants_of_yambda_are_the_published_ones() -> None:
    config = SplitConfig(kind="yambda")
    assert cut_offs(config, (0, 25_999_995)) == CutOffs(
        train_stop=25_823_600,
        validation=(25_825_400, 25_911_800),
        test_history_stop=25_911_800,
        test_start=25_913_600,
    )
    with pytest.raises(InputError, match=r"`split.gap_seconds` is 5, but split.kind=yambda fixes it at 1800"):
        SplitConfig(kind="yambda", gap_seconds=5)


def temporal_reference(times: list[list[int]], cuts: CutOffs) -> list[tuple[list[int], ...]]:
    """Per user, positions: trained on, shown and asked in validation, shown and asked in the test."""
    result = []
    for of_user in times:
        trained = [at for at, time in enumerate(of_user) if time < cuts.train_stop]
        start, stop = cuts.validation
        validation = [at for at, time in enumerate(of_user) if start <= time < stop] if trained else []
        test = [at for at, time in enumerate(of_user) if time >= cuts.test_start] if trained else []
        shown = [at for at, time in enumerate(of_user) if time < cuts.test_history_stop]
        result.append((trained, trained, validation, shown, test))
    return result


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=12).map(sorted), min_size=1, max_size=8),
    st.integers(1, 20),
    st.integers(0, 20),
    st.integers(0, 10),
)
def test_a_temporal_split_is_that_of_the_definition(
    times: list[list[int]], test: int, validation: int, gap: int
) -> None:
    times = [*times, [0, 100]]  # the log spans the whole range
    config = SplitConfig(kind="temporal", test_seconds=test, validation_seconds=validation, gap_seconds=gap)
    offsets, flat = np.cumsum([0, *map(len, times)]), np.concatenate(times)
    split = make_split(config, offsets, flat.astype(np.uint32))
    cuts = cut_offs(config, (0, 100))
    found = []
    for user in range(len(times)):
        held = [
            list(range(part.start_U[user], part.stop_U[user])) if part.asked_U[user] else []
            for part in (split.validation, split.test)
        ]
        trained, shown = list(range(split.train_end_U[user])), list(range(split.test.history_stop_U[user]))
        found.append((trained, list(range(split.validation.history_stop_U[user])), held[0], shown, held[1]))
    assert found == temporal_reference(times, cuts)
    assert (split.test.request_time_U == cuts.test_start).all()


def test_a_temporal_split_that_leaves_nothing_says_why() -> None:
    offsets, times = np.array([0, 3]), np.array([10, 20, 30])
    with pytest.raises(InputError, match=r"the log runs from 10 to 30: nothing is left to learn from"):
        make_split(SplitConfig(kind="temporal", test_seconds=40), offsets, times)
    with pytest.raises(InputError, match=r"nothing is left to test on; change `split.end`"):
        make_split(SplitConfig(kind="temporal", end=100_000_000), offsets, times)
    with pytest.raises(InputError, match=r"tests on those from 25913600 on, but the log runs from 10 to 30"):
        make_split(SplitConfig(kind="yambda"), offsets, times)


def test_users_whose_history_ends_last_are_held_out_whole() -> None:
    lengths = [3, 4, 1, 2]
    offsets = np.cumsum([0, *lengths])
    times = np.array([5, 6, 90, 1, 2, 3, 4, 80, 7, 8])
    split = make_split(SplitConfig(kind="held-out-users", test_share=0.5), offsets, times)
    np.testing.assert_array_equal(split.train_end_U, [0, 4, 0, 2])  # users 0 and 2 end last
    np.testing.assert_array_equal(split.test.asked_U, [True, False, False, False])  # a single event has no past
    assert (split.test.history_stop_U[0], split.test.start_U[0], split.test.stop_U[0]) == (2, 2, 3)
    assert not split.validation.asked_U.any()
    with pytest.raises(InputError, match="holds out all 1 users"):
        make_split(SplitConfig(kind="held-out-users"), np.array([0, 3]), np.array([1, 2, 3]))


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9).map(sorted), min_size=1), st.integers(-1, 11))
def test_events_before_counts_what_a_scan_counts(times: list[list[int]], instant: int) -> None:
    counts = events_before(np.concatenate(times), np.cumsum([0, *map(len, times)]), instant)
    assert counts.tolist() == [sum(time < instant for time in of_user) for of_user in times]


@given(st.lists(st.integers(1, 6), max_size=8))
def test_training_events_are_those_before_the_end_of_each_user(lengths: list[int]) -> None:
    split = split_by_lengths(lengths)
    offsets = np.cumsum([0, *lengths])
    expected = [position < split.train_end_U[user] for user, length in enumerate(lengths) for position in range(length)]
    np.testing.assert_array_equal(training_mask(offsets, split), np.array(expected, dtype=bool))


@pytest.mark.parametrize(
    ("start", "stop", "leaks"),
    [
        (0, 7, False),  # the last target is event 7, the last of training
        (0, 8, True),  # its target is the validation event
        (0, 9, True),  # it sees the validation event as an input
        (6, 7, False),
        (-1, 3, True),
        (3, 3, True),
    ],
)
def test_the_check_knows_a_leak_from_a_window(start: int, stop: int, leaks: bool) -> None:
    split = split_by_lengths([3, 10])
    windows = np.array([1]), np.array([start]), np.array([stop])
    if leaks:
        with pytest.raises(LeakageError, match=r"window 0 of user 1 .* training may see \[0, 8\)"):
            check_no_leakage(split, *windows)
    else:
        check_no_leakage(split, *windows)


def test_the_check_finds_one_planted_leak_among_many_windows() -> None:
    split = split_by_lengths([20] * 1000)
    user, start, stop = np.arange(1000), np.zeros(1000, dtype=np.int64), np.full(1000, 17)
    check_no_leakage(split, user, start, stop)
    stop[613] = 18
    with pytest.raises(LeakageError, match="window 613 of user 613"):
        check_no_leakage(split, user, start, stop)


def test_a_split_that_holds_out_a_training_event_is_a_leak() -> None:
    split = split_by_lengths([7])
    leaking = Split(np.array([6]), split.validation, split.test)
    with pytest.raises(LeakageError, match=r"asked for validation events \[5, 6\)"):
        check_no_leakage(leaking, np.array([0]), np.array([0]), np.array([2]))
