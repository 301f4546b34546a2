from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.comparison import compare
from evaluation.ranking.comparison import compare_predictions
from tests.evaluation.ranking.helpers import BOTH, figures, made_up


def test_differences_are_those_of_the_figures() -> None:
    before, labels, users = made_up(0, 500, 40)
    after = np.clip(before + np.random.default_rng(1).normal(size=before.shape) * 0.2, 0.01, 0.99)
    found = compare_predictions(BOTH, before, after, labels, users, samples=100)
    assert [(one.task, one.name) for one in found] == [
        *(("like", name) for name in ("ne", "auc", "gauc")),
        *(("played", name) for name in ("mse", "r2")),
    ]
    for one in found:
        column = [task.name for task in BOTH].index(one.task)
        old, new = (
            figures(BOTH[column], said[:, column], labels[:, column], users)[one.name] for said in (before, after)
        )
        assert (one.before, one.after, one.difference) == pytest.approx((old, new, new - old))
        assert one.low < one.difference < one.high
    assert compare_predictions(BOTH, before[:0], after[:0], labels[:0], users[:0]) == ()


def test_nothing_moves_where_nothing_differs() -> None:
    said, labels, users = made_up(0, 200, 20)
    for one in compare_predictions(BOTH, said, said, labels, users, samples=20):
        assert (one.difference, one.low, one.high, one.verdict) == (0, 0, 0, "unclear")


def test_intervals_are_paired() -> None:
    """Of a mean they are those of the comparison of lists, far narrower than either model's own."""
    before, labels, users = made_up(0, 400, 40, missing=0.0)
    after = before + 0.05
    squared = [{"mse": (said[:, 1] - labels[:, 1]) ** 2} for said in (before, after)]
    (wanted,) = compare(*squared, users, samples=200, draws=10)
    found, _ = compare_predictions(BOTH[1:], before[:, 1:], after[:, 1:], labels[:, 1:], users, samples=200)
    assert found.name == "mse"
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_what_truth_and_noise_are_told_apart_by() -> None:
    truth, labels, users = made_up(0, 4000, 300)
    noise = np.random.default_rng(5).random(truth.shape)
    assert {one.verdict for one in compare_predictions(BOTH, noise, truth, labels, users, samples=100)} == {"better"}
    assert {one.verdict for one in compare_predictions(BOTH, truth, noise, labels, users, samples=100)} == {"worse"}


def test_of_equal_models_a_twentieth_is_told_apart() -> None:
    """Whether any of five figures is called better or worse, over pairs of models that differ by noise alone."""
    rng, told = np.random.default_rng(0), 0
    for trial in range(100):
        truth, labels, users = made_up(trial, 600, 60)
        said = [np.clip(truth + rng.normal(size=truth.shape) * 0.1, 0.01, 0.99) for _ in range(2)]
        found = compare_predictions(BOTH, *said, labels, users, samples=100)
        told += any(one.verdict != "unclear" for one in found)
    assert told <= 10, f"{told} of 100; by the intervals alone some 15 would be"


def test_p_is_that_of_a_mean() -> None:
    before, labels, users = made_up(3, 3000, 3000, missing=0.0)
    after = before + np.random.default_rng(2).normal(size=before.shape) * 0.02
    squared_2 = [(said[:, 1] - labels[:, 1]) ** 2 for said in (before, after)]
    (wanted,) = compare({"mse": squared_2[0]}, {"mse": squared_2[1]}, users, samples=10, draws=4000)
    found = next(
        one for one in compare_predictions(BOTH, before, after, labels, users, samples=1000) if one.name == "mse"
    )
    assert found.p == pytest.approx(wanted.p, abs=0.05)
    assert found.p <= found.p_holm <= 1
