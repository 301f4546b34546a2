from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sequences import (
    SampledPrefixes,
    TimeStream,
    Windows,
    covering_windows,
    make_plan,
    request_windows,
    training_windows,
)
from data.split import HeldOut, LeakageError, Split
from tests.data.helpers import split_by_lengths

LENGTHS = st.lists(st.integers(1, 20), max_size=10)


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


@given(LENGTHS, st.integers(1, 7), st.sampled_from(["newest", "tiled"]))
def test_training_windows_are_those_of_the_reference(lengths: list[int], max_history: int, plan: str) -> None:
    windows = training_windows(np.cumsum([0, *lengths]), split_by_lengths(lengths), max_history, plan)
    assert rows(windows) == reference(lengths, max_history, plan)
    assert not windows.are_requests
    assert windows.user.dtype == windows.start.dtype == windows.stop.dtype == np.int64
    np.testing.assert_array_equal(windows.learn_from, windows.start)


@given(LENGTHS, st.integers(1, 7))
def test_tiled_windows_have_every_training_transition_once(lengths: list[int], max_history: int) -> None:
    split = split_by_lengths(lengths)
    windows = training_windows(np.cumsum([0, *lengths]), split, max_history, "tiled")
    targets = [(user, target) for user, start, stop in rows(windows) for target in range(start + 1, stop + 1)]
    expected = [(user, target) for user, end in enumerate(split.train_end_U) for target in range(1, end)]
    assert targets == expected


def test_requests_see_what_they_may_and_ask_for_the_first_held_out_event() -> None:
    held = HeldOut(
        history_stop_U=np.array([3, 1, 4, 9]),
        start_U=np.array([3, 1, 6, 9]),
        stop_U=np.array([3, 2, 8, 10]),
        request_time_U=np.array([10, 20, 30, 40]),
    )
    windows = request_windows(held, max_history=5)
    assert rows(windows) == [(1, 0, 1), (2, 0, 4), (3, 4, 9)]
    assert windows.are_requests
    assert windows.asked is not None
    assert windows.request_time is not None
    assert windows.asked.tolist() == [1, 6, 9]
    assert windows.request_time.tolist() == [20, 30, 40]
    assert windows.learn_from.tolist() == [0, 3, 8]


def test_windows_over_a_leaking_split_are_refused() -> None:
    split = split_by_lengths([6])
    leaking = Split(np.array([6]), split.validation, split.test)
    with pytest.raises(
        LeakageError, match=r"user 0 is asked for validation events \[4, 5\).*training may see \[0, 6\)"
    ):
        training_windows(np.array([0, 6]), leaking, 10)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=6), st.integers(1, 12))
def test_covering_windows_have_every_event_once_and_a_past_for_it(
    users: list[tuple[int, int]], max_history: int
) -> None:
    first_U, stop_U = (
        np.array(column, dtype=np.int64) for column in ([f for f, _ in users], [f + n for f, n in users])
    )
    windows = covering_windows(first_U, stop_U, max_history)
    found = list(zip(*(part.tolist() for part in (windows.user, windows.learn_from, windows.stop)), strict=True))
    targets = [(user, target) for user, learn_from, stop in found for target in range(learn_from + 1, stop + 1)]
    assert targets == [(user, at) for user, (first, new) in enumerate(users) for at in range(first, first + new)]
    share = max(max_history // 2, 1)
    past = np.minimum(windows.learn_from, max_history - share)  # beside the first of its targets
    assert (windows.learn_from - windows.start >= past).all()
    assert (windows.start >= 0).all()
    assert (windows.lengths <= max_history).all()
    assert len(windows) == sum(-(-new // share) for _, new in users)
    assert not windows.are_requests


# ── generative sampling ──────────────────────────────────────────────────────────────────────────────────


def test_prefixes_are_sampled_at_one_in_n_and_end_anywhere() -> None:
    lengths = [12, 2, 1, 1002]
    plan = SampledPrefixes(split_by_lengths(lengths), max_history=8, seed=5)
    inputs = [9, 1, 0, 999]
    drawn = [plan.windows(epoch) for epoch in range(4000)]
    for user, count in enumerate(inputs):
        counts = np.array([(windows.user == user).sum() for windows in drawn])
        if not count:
            assert not counts.any()
            continue
        # Binomial(n, 1/n): mean 1, variance 1 − 1/n; 4,000 epochs give the mean within 0.08 at five standard errors.
        assert counts.mean() == pytest.approx(1.0, abs=0.08)
        assert counts.var() == pytest.approx(1 - 1 / count, abs=0.15)
    stops = np.concatenate([windows.stop[windows.user == 0] for windows in drawn])
    assert set(stops) == set(range(1, 10))
    np.testing.assert_allclose(np.bincount(stops)[1:] / len(stops), np.full(9, 1 / 9), atol=0.03)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 7), st.integers(0, 3))
def test_sampled_prefixes_differ_from_one_another_and_repeat_by_epoch(
    lengths: list[int], max_history: int, epoch: int
) -> None:
    plan = SampledPrefixes(split_by_lengths(lengths), max_history, seed=1)
    windows = plan.windows(epoch)
    assert len(set(rows(windows))) == len(windows)
    assert rows(plan.windows(epoch)) == rows(windows)
    assert (windows.lengths <= max_history).all()
    assert (windows.stop - windows.start == np.minimum(windows.stop, max_history)).all()


# ── one pass in time order ───────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=15), min_size=1, max_size=6),
    st.integers(1, 7),
    st.integers(1, 80),
)
def test_the_stream_predicts_every_training_event_once_and_in_its_period(
    times: list[list[int]], max_history: int, period: int
) -> None:
    lengths = [len(of_user) for of_user in times]
    flat = np.concatenate([sorted(of_user) for of_user in times])
    offsets, split = np.cumsum([0, *lengths]), split_by_lengths(lengths)
    stream = make_plan("stream", offsets, flat, split, max_history, seed=0, period_seconds=period)
    assert isinstance(stream, TimeStream)
    assert stream.in_time_order
    origin = min(flat[offsets[user]] for user, end in enumerate(split.train_end_U) if end > 0)
    predicted = []
    for epoch in range(stream.num_epochs):
        windows = stream.windows(epoch)
        last_times = flat[offsets[windows.user] + windows.stop]
        assert (np.diff(last_times.astype(int)) >= 0).all()
        for (user, start, stop), learn_from in zip(rows(windows), windows.learn_from.tolist(), strict=True):
            assert start == max(stop - max_history, 0) <= learn_from < stop
            for target in range(learn_from + 1, stop + 1):
                assert (flat[offsets[user] + target] - origin) // period == epoch
                predicted.append((user, target))
    expected = [(user, target) for user, end in enumerate(split.train_end_U) for target in range(1, end)]
    assert sorted(predicted) == expected
