"""Sums over blocks give what whole arrays give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.vectors.moments import Moments, Spread


def parts(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((count, 3)) * [1, 5, 0.2] + [7, 0, -1]
    right = left @ generator.standard_normal((3, 2)) + 0.1 * generator.standard_normal((count, 2)) + 3
    return left.astype(np.float32), right.astype(np.float32)


@given(seed=st.integers(0, 999), count=st.integers(1, 30), block=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_spread_of_blocks_is_that_of_the_whole(seed, count, block):
    vectors, _ = parts(seed, count)
    spread = Spread(3)
    for begin in range(0, count, block):
        spread.add(vectors[begin : begin + block])
    np.testing.assert_allclose(spread.mean_P, vectors.mean(axis=0, dtype=np.float64), rtol=1e-9)
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    assert spread.square == pytest.approx(np.square(centred).sum(axis=1).mean(), abs=1e-6)
    if count > 1:
        assert np.square(centred * spread.unit).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)


def ridge_by_least_squares(given: np.ndarray, wanted: np.ndarray, ridge: float) -> np.ndarray:
    """Predictions for `given` itself, the penalty as rows of their own beneath the data."""
    x, y = given - given.mean(axis=0), wanted - wanted.mean(axis=0)
    penalty = ridge * np.square(x).sum() / x.shape[1]
    beneath = np.concatenate([x, np.sqrt(penalty) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(beneath, np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]
    return wanted.mean(axis=0) + x @ weights


@given(seed=st.integers(0, 999), count=st.integers(2, 40), block=st.integers(1, 9), ridge=st.sampled_from([1e-3, 0.3]))
@settings(max_examples=50, deadline=None)
def test_regression_equals_least_squares(seed, count, block, ridge):
    left, right = parts(seed, count)
    moments = Moments(3, 2)
    for begin in range(0, count, block):
        moments.add(left[begin : begin + block], right[begin : begin + block])
    assert moments.count == count
    exact_left, exact_right = left.astype(np.float64), right.astype(np.float64)
    np.testing.assert_allclose(
        moments.right_from_left(ridge).predict(left),
        ridge_by_least_squares(exact_left, exact_right, ridge),
        atol=2e-3,
    )
    np.testing.assert_allclose(
        moments.left_from_right(ridge).predict(right),
        ridge_by_least_squares(exact_right, exact_left, ridge),
        atol=2e-3,
    )


def test_vectors_that_are_all_the_same_predict_the_mean():
    moments = Moments(3, 2)
    right = np.array([[1, 2], [3, 4]], np.float32)
    moments.add(np.ones((2, 3), np.float32), right)
    predicted = moments.right_from_left(0.01).predict(np.array([[9, 9, 9]], np.float32))
    np.testing.assert_allclose(predicted, [[2, 3]])
