from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import InputError
from evaluation.metrics import comparison
from evaluation.metrics.comparison import COMPARED, compare, compare_evaluations, holm, permutation_p, regressions
from evaluation.metrics.intervals import Metrics, Ratio, UserSums, mean_of
from evaluation.metrics.ranking import per_request_metrics
from evaluation.results import EngineResult, Evaluation
from tests.evaluation.metrics.helpers import random_evaluation


def sums_of(before: Metrics, after: Metrics, users: np.ndarray) -> UserSums:
    return UserSums.of({("b", k): v for k, v in before.items()} | {("a", k): v for k, v in after.items()}, users)


def slow_p(before: list[Ratio], after: list[Ratio], users: np.ndarray) -> list[float]:
    """Over all 2^U exchanges, the share that is as large as what was seen."""
    distinct = np.unique(users)
    found = []
    for one, other in zip(before, after, strict=True):
        seen, as_large = abs(mean_of(other) - mean_of(one)), 0
        for exchanged in product([False, True], repeat=len(distinct)):
            swap = np.array(exchanged)[np.searchsorted(distinct, users)]
            first = Ratio(np.where(swap, other.top_R, one.top_R), np.where(swap, other.bottom_R, one.bottom_R))
            second = Ratio(np.where(swap, one.top_R, other.top_R), np.where(swap, one.bottom_R, other.bottom_R))
            as_large += abs(mean_of(second) - mean_of(first)) >= seen - 1e-12
        found.append(as_large / 2 ** len(distinct))
    return found


def test_p_of_all_exchanges() -> None:
    """10,000 draws against all 256, for a mean, a ratio with the same below, and one whose both sums differ."""
    random = np.random.default_rng(1)
    users = np.array([0, 0, 1, 2, 3, 4, 5, 5, 6, 7])
    top, ones, below = random.random((2, 10)), np.ones(10), random.random((2, 10)) + 0.5
    before = {"mean": top[0], "same below": Ratio(top[0], below[0]), "ratio": Ratio(top[0], below[0])}
    after = {"mean": top[1], "same below": Ratio(top[1], below[0]), "ratio": Ratio(top[1], below[1])}
    expected = slow_p(
        [Ratio(top[0], ones), *(before[name] for name in ("same below", "ratio"))],
        [Ratio(top[1], ones), *(after[name] for name in ("same below", "ratio"))],
        users,
    )
    assert permutation_p(sums_of(before, after, users), 10_000, seed=0) == pytest.approx(expected, abs=0.02)


def test_p_is_that_of_scipy() -> None:
    """Paired samples of one request a user, whose difference is neither certain nor nothing."""
    random = np.random.default_rng(2)
    before = random.random(40)
    after = before + random.normal(0.06, 0.2, 40)
    theirs = stats.permutation_test(
        (after, before), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=0
    ).pvalue
    (row,) = compare({"x": before}, {"x": after}, np.arange(40))
    assert 0.01 < row.p < 0.5
    assert row.p == pytest.approx(theirs, abs=0.015)


def test_p_is_even_where_nothing_differs_but_by_chance() -> None:
    """Under exchange, p below α comes up with probability α: over 300 pairs of evaluations."""
    random = np.random.default_rng(3)
    p = [
        permutation_p(sums_of({"x": random.random(30)}, {"x": random.random(30)}, np.arange(30)), 200, seed=seed)[0]
        for seed in range(300)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    users = np.arange(200)
    zeros, ones = np.zeros(200), np.ones(200)
    assert permutation_p(sums_of({"x": zeros}, {"x": ones}, users), 999, seed=0).tolist() == [1 / 1000]
    assert permutation_p(sums_of({"x": ones}, {"x": ones}, users), 999, seed=0).tolist() == [1]
    balanced = np.where(users % 2, 1.0, -1.0)
    assert permutation_p(sums_of({"x": zeros}, {"x": balanced}, users), 999, seed=0).tolist() == [1]
    # What is not moved by any user changes nothing for what is.
    random = np.random.default_rng(0)
    pair = random.random((2, 200))
    p = permutation_p(sums_of({"x": pair[0]}, {"x": pair[1]}, users), 500, seed=0)
    more = sums_of(
        {"x": np.append(pair[0], ones), "y": np.ones(400)},
        {"x": np.append(pair[1], ones), "y": np.ones(400)},
        np.arange(400),
    )
    assert permutation_p(more, 500, seed=0).tolist() == [p[0], 1]
    monkeypatch.setattr(comparison, "_BLOCK_DRAWS", 7)
    monkeypatch.setattr(comparison, "_BLOCK_USERS", 64)
    assert permutation_p(more, 500, seed=0).tolist() == [p[0], 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p: list[float]) -> None:
    """As the smallest level at which the step-down rejects: p is corrected to the worst of those up to it."""
    expected = [
        min(1.0, max(other * sum(third >= other for third in p) for other in p if other <= value)) for value in p
    ]
    assert holm(np.array(p)).tolist() == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_the_interval_is_paired() -> None:
    """Two evaluations that differ by 0.1 for everybody, however much users differ: no width."""
    before = np.random.default_rng(0).random(100)
    (row,) = compare({"x": before}, {"x": before + 0.1}, np.arange(100), samples=200, draws=100)
    assert (row.difference, row.low, row.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (row.before, row.after) == pytest.approx((before.mean(), before.mean() + 0.1))


def test_the_interval_of_means_is_that_of_the_differences() -> None:
    random = np.random.default_rng(4)
    before, after = random.random((2, 400))
    (row,) = compare({"x": before}, {"x": after}, np.arange(400), samples=3000, draws=10)
    theirs = stats.bootstrap((after - before,), np.mean, n_resamples=3000, method="percentile", rng=0)
    expected = theirs.confidence_interval
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=0.004)


def worse(evaluation: Evaluation, share: float, engine: str = "made") -> Evaluation:
    """The same, with some targets no longer found."""
    result = evaluation.engines[engine]
    lost = np.random.default_rng(0).random(len(result.places_T)) < share
    return replace(evaluation, engines={engine: replace(result, places_T=np.where(lost, 0, result.places_T))})


def test_evaluations_of_which_one_is_worse() -> None:
    one = random_evaluation(0, 400, 60, 50, users=150)
    other = worse(one, 0.5)
    found = compare_evaluations(one, other, "made", "made", samples=300, draws=1000)
    assert (found.requests, found.note) == (400, "")
    assert found.users == len(np.unique(one.targets.users_R))
    assert [row.name for row in found.differences] == [name for name in COMPARED if "100" not in name]
    metrics = [per_request_metrics(of.engines["made"], of.targets, 50) for of in (one, other)]
    for row in found.differences:
        assert row.before == pytest.approx(metrics[0][row.name].mean())
        assert row.after == pytest.approx(metrics[1][row.name].mean())
        assert row.low < row.difference < row.high < 0
        assert row.p == pytest.approx(1 / 1001)
        assert row.p_holm == pytest.approx(3 / 1001)
    assert regressions(found) == found.differences
    assert regressions(compare_evaluations(other, one, "made", "made", samples=300, draws=1000)) == ()
    same = compare_evaluations(one, one, "made", "made", samples=300, draws=1000)
    assert {(row.difference, row.low, row.high, row.p) for row in same.differences} == {(0, 0, 0, 1)}
    assert regressions(same) == ()


def test_only_requests_in_both_count() -> None:
    """Lists cut at 20 places, of all requests but the first ten, are as good as the whole ones down to there."""
    one = random_evaluation(0, 40, 60, 50, users=15)
    cut = one.targets.offsets_R1[10]
    targets = replace(
        one.targets,
        users_R=one.targets.users_R[10:],
        times_R=one.targets.times_R[10:],
        offsets_R1=one.targets.offsets_R1[10:] - cut,
        items_T=one.targets.items_T[cut:],
        counts_T=one.targets.counts_T[cut:],
    )
    result, places_T = one.engines["made"], one.engines["made"].places_T[cut:]
    assert (places_T > 20).any()
    fewer = EngineResult(np.where(places_T <= 20, places_T, 0), result.items_RK[10:, :20], result.scores_RK[10:, :20])
    part = Evaluation(targets, {"made": fewer, "other": fewer}, 20, 60)
    found = compare_evaluations(one, part, "made", "other", names=["mrr", "yambda/ndcg@10"], samples=50, draws=50)
    assert found.requests == 30
    assert found.note.startswith("10 only in the first evaluation: user ")
    assert [row.name for row in found.differences] == ["mrr", "yambda/ndcg@10"]
    assert {row.difference for row in found.differences} == {0}
    assert {row.p for row in found.differences} == {1}


def test_faults() -> None:
    one = random_evaluation(0, 10, 20, 12)
    with pytest.raises(InputError) as told:
        compare_evaluations(one, one, "exact", "beam")
    assert told.value.faults == (
        "engine exact: the first evaluation has made; name one of those",
        "engine beam: the second evaluation has made; name one of those",
    )
    with pytest.raises(
        InputError, match=r"hr@50, x cannot be compared over lists of 12 places; there are hr@1, hr@10,"
    ):
        compare_evaluations(one, one, "made", "made", names=["hr@10", "hr@50", "x"])
