from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sequences import Windows, request_windows, training_windows
from data.split import LeakageError, Split, leave_last_out


def reference(lengths: list[int], max_history: int, plan: str) -> list[tuple[int, int, int]]:
    """The windows of each user, cut one by one from the newest."""
    windows = []
    for user, length in enumerate(lengths):
        train_end = length - 2 if length >= 3 else length
        stop, of_user = train_end - 1, []
        while stop > 0:
            of_user.append((user, max(stop - max_history, 0), stop))
            stop -= max_history
            if plan == "newest":
                break
        windows += reversed(of_user)
    return windows


def rows(windows: Windows) -> list[tuple[int, int, int]]:
    return list(zip(windows.user.tolist(), windows.start.tolist(), windows.stop.tolist(), strict=True))


@given(st.lists(st.integers(0, 20), max_size=10), st.integers(1, 7), st.sampled_from(["newest", "tiled"]))
def test_training_windows_are_those_of_the_reference(lengths: list[int], max_history: int, plan: str) -> None:
    array = np.array(lengths, dtype=np.int64)
    windows = training_windows(np.cumsum([0, *lengths]), leave_last_out(array), max_history, plan)
    assert rows(windows) == reference(lengths, max_history, plan)
    assert not windows.last_target_only
    assert windows.user.dtype == windows.start.dtype == windows.stop.dtype == np.int64


@given(st.lists(st.integers(0, 20), max_size=10), st.integers(1, 7))
def test_tiled_windows_have_every_training_transition_once(lengths: list[int], max_history: int) -> None:
    split = leave_last_out(np.array(lengths, dtype=np.int64))
    windows = training_windows(np.cumsum([0, *lengths]), split, max_history, "tiled")
    targets = [(user, target) for user, start, stop in rows(windows) for target in range(start + 1, stop + 1)]
    expected = [(user, target) for user, end in enumerate(split.train_end_U) for target in range(1, end)]
    assert targets == expected


def test_request_windows_end_before_the_held_out_event() -> None:
    windows = request_windows(np.array([-1, 1, 4, -1, 9]), max_history=5)
    assert rows(windows) == [(1, 0, 1), (2, 0, 4), (4, 4, 9)]
    assert windows.last_target_only


def test_windows_over_a_leaking_split_are_refused() -> None:
    split = Split(train_end_U=np.array([6]), validation_U=np.array([4]), test_U=np.array([5]))
    with pytest.raises(LeakageError):
        training_windows(np.array([0, 6]), split, 10)
