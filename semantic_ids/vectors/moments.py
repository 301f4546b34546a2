"""Means, scales and ridge regression of item vectors, from one pass over blocks of them.

m items of a block · P, Q widths of two parts of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]


class Spread:
    """Mean and mean square distance from it, of vectors that come in blocks."""

    def __init__(self, width: int) -> None:
        """Of no vectors yet."""
        self._count, self._sum_P, self._squares = 0, np.zeros(width), 0.0

    def add(self, vectors_mP: Vectors) -> None:
        """Count a block of vectors."""
        block = vectors_mP.astype(np.float64)
        self._count += len(block)
        self._sum_P += block.sum(axis=0)
        self._squares += float(np.square(block).sum())

    @property
    def mean_P(self) -> Floats:
        """Of the vectors so far, zeros where there are none."""
        return np.asarray(self._sum_P / max(self._count, 1))

    @property
    def square(self) -> float:
        """Mean squared distance of the vectors from their mean."""
        return max(self._squares / max(self._count, 1) - float(np.square(self.mean_P).sum()), 0.0)

    @property
    def unit(self) -> float:
        """What brings centred vectors to unit mean square norm; 1 where all are the same."""
        return 1 / np.sqrt(self.square) if self.square > 0 else 1.0


class Moments:
    """Sums of products of two parts of the items that have both: the normal equations of either from the other."""

    def __init__(self, left: int, right: int) -> None:
        """Parts of these widths, P and Q, of no items yet."""
        self.count = 0
        self._left = left
        self._sum = np.zeros(left + right)
        self._products = np.zeros((left + right, left + right))

    def add(self, left_mP: Vectors, right_mQ: Vectors) -> None:
        """Count a block of items."""
        block = np.concatenate([left_mP, right_mQ], axis=1, dtype=np.float64)
        self.count += len(block)
        self._sum += block.sum(axis=0)
        self._products += block.T @ block

    def right_from_left(self, ridge: float) -> Regression:
        """The second part predicted from the first."""
        return self._regression(slice(0, self._left), slice(self._left, None), ridge)

    def left_from_right(self, ridge: float) -> Regression:
        """The first part predicted from the second."""
        return self._regression(slice(self._left, None), slice(0, self._left), ridge)

    def _regression(self, given: slice, wanted: slice, ridge: float) -> Regression:
        mean = self._sum / self.count
        covariance = self._products / self.count - np.outer(mean, mean)
        own = covariance[given, given]
        # Relative to the mean variance of a column, so that the scale of the vectors does not matter. Where they do
        # not vary at all, nothing can be told from them, and the mean is predicted.
        penalty = ridge * np.trace(own) / len(own)
        weights = np.linalg.lstsq(own + penalty * np.eye(len(own)), covariance[given, wanted], rcond=None)[0]
        return Regression(mean[given], mean[wanted], weights)


@dataclass(frozen=True, eq=False)
class Regression:
    """Ridge regression of one part of a vector on another."""

    given_mean_P: Floats
    mean_Q: Floats
    weights_PQ: Floats

    def predict(self, vectors_mP: Vectors) -> Vectors:
        """The other part [m, Q]."""
        predicted = self.mean_Q + (vectors_mP - self.given_mean_P) @ self.weights_PQ
        return predicted.astype(np.float32)
