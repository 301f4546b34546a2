from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.split import LeakageError, Split, check_no_leakage, leave_last_out, training_events


def test_leave_last_out_holds_out_the_last_two_of_three_or_more() -> None:
    split = leave_last_out(np.array([0, 1, 2, 3, 4, 10]))
    np.testing.assert_array_equal(split.train_end_U, [0, 1, 2, 1, 2, 8])
    np.testing.assert_array_equal(split.validation_U, [-1, -1, -1, 1, 2, 8])
    np.testing.assert_array_equal(split.test_U, [-1, -1, -1, 2, 3, 9])


@given(st.lists(st.integers(0, 6), max_size=8))
def test_training_events_are_those_before_the_end_of_each_user(lengths: list[int]) -> None:
    split = leave_last_out(np.array(lengths, dtype=np.int64))
    offsets = np.cumsum([0, *lengths])
    expected = [position < split.train_end_U[user] for user, length in enumerate(lengths) for position in range(length)]
    np.testing.assert_array_equal(training_events(offsets, split), np.array(expected, dtype=bool))


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
    split = leave_last_out(np.array([3, 10]))
    windows = np.array([1]), np.array([start]), np.array([stop])
    if leaks:
        with pytest.raises(LeakageError, match=r"window 0 of user 1 .* training may see \[0, 8\)"):
            check_no_leakage(split, *windows)
    else:
        check_no_leakage(split, *windows)


def test_the_check_finds_one_planted_leak_among_many_windows() -> None:
    lengths = np.full(1000, 20)
    split = leave_last_out(lengths)
    user, start, stop = np.arange(1000), np.zeros(1000, dtype=np.int64), np.full(1000, 17)
    check_no_leakage(split, user, start, stop)
    stop[613] = 18
    with pytest.raises(LeakageError, match="window 613 of user 613"):
        check_no_leakage(split, user, start, stop)


def test_a_split_that_holds_out_a_training_event_is_a_leak() -> None:
    split = Split(train_end_U=np.array([5]), validation_U=np.array([4]), test_U=np.array([5]))
    with pytest.raises(LeakageError, match="validation at 4"):
        check_no_leakage(split, np.array([0]), np.array([0]), np.array([2]))
