from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluation.metrics import intervals
from evaluation.metrics.intervals import Figure, Ratio, UserSums, bootstrap_intervals, figures_of, mean_of, resampled


def test_a_function_of_the_seed_and_not_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    metrics = {"x": random.random(300), "y": Ratio(random.random(300), random.random(300))}
    users = random.integers(0, 80, 300)
    first = bootstrap_intervals(metrics, users, 200, seed=1)
    assert first == bootstrap_intervals(metrics, users, 200, seed=1)
    assert first != bootstrap_intervals(metrics, users, 200, seed=2)
    monkeypatch.setattr(intervals, "_MAX_COUNTS", 80 * 7)
    blocked = bootstrap_intervals(metrics, users, 200, seed=1)
    for name, interval in first.items():
        assert blocked[name] == pytest.approx(interval, abs=1e-12)


def test_agrees_with_the_normal_interval() -> None:
    """Around the mean, ± 1.96 standard errors wide; so a quarter as wide for sixteen times the users."""
    widths = []
    for users in (200, 3200):
        values = np.random.default_rng(3).random(users)
        ((low, high),) = bootstrap_intervals({"x": values}, np.arange(users), 1500, seed=0).values()
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(users), rel=0.1)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)


def test_agrees_with_scipy_over_users_of_one_request() -> None:
    values = np.random.default_rng(5).exponential(size=150)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    ((low, high),) = bootstrap_intervals({"x": values}, np.arange(150), 4000, seed=0).values()
    assert (low, high) == pytest.approx((theirs.low, theirs.high), rel=0.02)


def test_requests_of_a_user_come_together() -> None:
    """100 users with 9 equal requests each are 100 draws, not 900: the interval is three times as wide."""
    of_user = np.random.default_rng(0).random(100)
    values, users = np.repeat(of_user, 9), np.repeat(np.arange(100), 9)
    together = bootstrap_intervals({"x": values}, users, 1500, seed=0)["x"]
    apart = bootstrap_intervals({"x": values}, np.arange(900), 1500, seed=0)["x"]
    alone = bootstrap_intervals({"x": of_user}, np.arange(100), 1500, seed=0)["x"]
    assert together == pytest.approx(alone, abs=1e-12)
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(3, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 8))
def test_resampled_figures_are_those_of_the_drawn_requests(seed: int, requests: int, users: int) -> None:
    """Each resample again, as the requests of the users drawn, one by one."""
    random = np.random.default_rng(seed)
    user_of, top, bottom = random.integers(0, users, requests) * 7, random.random(requests), random.random(requests)
    metrics = {"mean": top, "ratio": Ratio(top, bottom)}
    sums = UserSums.of(metrics, user_of)
    distinct = np.unique(user_of)
    assert sums.num_users == len(distinct)
    figures = resampled(sums, 5, seed=seed)
    for (_, counts), row in zip(intervals.drawn(len(distinct), 5, seed), [figures], strict=True):
        assert (counts.sum(axis=1) == len(distinct)).all()
        for drawn, found in zip(counts, row, strict=True):
            times = drawn[np.searchsorted(distinct, user_of)].astype(int)
            who = np.repeat(np.arange(requests), times)
            assert found[0] == pytest.approx(top[who].mean())
            assert found[1] == pytest.approx(top[who].sum() / bottom[who].sum())


def test_users_are_drawn_evenly() -> None:
    ((_, counts),) = intervals.drawn(50, 4000, seed=0)
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.08)  # five standard errors
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.05)


def test_a_ratio_moves_less_than_its_halves() -> None:
    """Top and bottom are resampled together: where they are proportional, the ratio has no width."""
    bottom = np.random.default_rng(0).random(60)
    ((low, high),) = bootstrap_intervals({"x": Ratio(3 * bottom, bottom)}, np.arange(60), 200, seed=0).values()
    assert (low, high) == pytest.approx((3, 3), abs=1e-12)


def test_what_is_equal_for_all_has_no_width() -> None:
    (interval,) = bootstrap_intervals({"x": np.full(50, 0.25)}, np.arange(50), 100, seed=0).values()
    assert interval == (0.25, 0.25)
    (interval,) = bootstrap_intervals({"x": np.ones(1)}, np.zeros(1, int), 10, seed=0).values()
    assert interval == (1.0, 1.0)


def test_nothing_beneath() -> None:
    """A resample without a single bottom is left out; where there is none at all, the figure is 0."""
    users = np.arange(4)
    rare = Ratio(np.array([0.5, 0, 0, 0]), np.array([1.0, 0, 0, 0]))
    never = Ratio(np.zeros(4), np.zeros(4))
    figures = figures_of({"rare": rare, "never": never, "mean": np.ones(4)}, users, 100, seed=0)
    assert figures == {"rare": Figure(0.5, 0.5, 0.5), "never": Figure(0, 0, 0), "mean": Figure(1, 1, 1)}
    assert np.isnan(resampled(UserSums.of({"rare": rare}, users), 100, seed=0)).any()
    assert mean_of(rare.of(np.array([1, 2]))) == 0
    assert bootstrap_intervals({}, users) == {}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """250 audiences of 80 users with 1 to 5 like requests each; the share of 95% is met within four standard errors."""
    random = np.random.default_rng(7)
    held = np.zeros(2)
    for seed in range(250):
        users = np.repeat(np.arange(80), random.integers(1, 6, 80))
        taste = random.random(80)[users]
        found = (random.random(len(users)) < taste).astype(np.float64)
        weight = random.random(len(users)) + 0.5
        figures = figures_of({"mean": found, "ratio": Ratio(found * weight, weight)}, users, 300, seed)
        held += [figure.low <= 0.5 <= figure.high for figure in figures.values()]
    assert held / 250 == pytest.approx(0.95, abs=0.055)
