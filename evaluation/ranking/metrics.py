"""What is measured of a task's predictions: figures that follow from sums by user, so that users can be resampled.

Of a binary task:

    ne            normalised entropy: mean log loss over the entropy of the mean label (He et al. 2014), that is, over
                  the log loss of predicting the mean label always; below 1 is better than that
    auc           of all pairs of a positive and a negative, whosever they are
    gauc          of each user's own pairs, a mean over the users who have both labels, weighted by their predictions
    gauc-users    the same, each of these users weighing alike
    calibration   mean prediction / mean label
    ece           Σ over bins of equal mass (share of predictions) × |mean prediction − mean label|

Of a regression:

    mse, mae      mean squared, mean absolute error
    r2            1 − MSE / variance of the labels: 0 is predicting the mean label always

A figure that has nothing beneath is not said at all, neither as 0 nor as 1: NE and AUC where all labels are equal,
R² likewise, GAUC where no user has both labels, calibration without a positive. Resamples lacking it are left out.

R requests, each of one user and candidate · T tasks · X requests that a task asks something of · U users · S audiences
· b bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import entr, xlogy

from data.ranking.tasks import BINARY, Task
from evaluation.metrics.calibration import BINS, equal_mass
from evaluation.ranking.auc import Counts, PairCounts, user_auc
from evaluation.results import Floats, Ints

Table = npt.NDArray[np.floating]

NEAREST = 1e-7
"""How near to 0 and 1 a probability is taken to be: float32, which predictions are made in, tells no nearer from 1."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What one task asked, and what was said.

    Args:
        task: the task.
        predictions_X, labels_X: float64; probabilities and 0 or 1 of a binary task.
        users_X: 0 … num_users − 1.
        num_users: U, those included of whom this task asks nothing.
    """

    task: Task
    predictions_X: Floats
    labels_X: Floats
    users_X: Ints
    num_users: int

    def by_user(self, *values: Floats) -> list[Floats]:
        """Sums [U] of each."""
        return [np.bincount(self.users_X, value_X, self.num_users).astype(np.float64) for value_X in values]


def asked_of(tasks: Sequence[Task], predictions_RT: Table, labels_RT: Table, users_R: Ints) -> Iterator[Asked]:
    """What each task asks, in their order.

    Args:
        predictions_RT: finite wherever something is asked.
        labels_RT: NaN where nothing is asked.
        users_R: any numbers.
    """
    assert predictions_RT.shape == labels_RT.shape == (len(users_R), len(tasks)), "other tasks, or other requests"
    users, inverse_R = np.unique(users_R, return_inverse=True)
    for task, column_R, label_R in zip(tasks, predictions_RT.T, labels_RT.T, strict=True):
        asked = np.flatnonzero(~np.isnan(label_R))
        predictions_X, labels_X = column_R[asked].astype(np.float64), label_R[asked].astype(np.float64)
        assert np.isfinite(predictions_X).all(), f"{task.name}: asked, and no number said"
        if task.kind == BINARY:
            assert np.isin(labels_X, (0, 1)).all(), f"{task.name}: labels of a binary task are 0 and 1"
        yield Asked(task, predictions_X, labels_X, inverse_R[asked].astype(np.int64), len(users))


class BinarySums:
    """What each user adds to the figures of a binary task."""

    def __init__(self, asked: Asked) -> None:
        predictions_X, labels_X = asked.predictions_X, asked.labels_X
        ones_X = np.ones(len(labels_X))
        said_X = predictions_X.clip(NEAREST, 1 - NEAREST)
        loss_X = -xlogy(labels_X, said_X) - xlogy(1 - labels_X, 1 - said_X)
        self.main_U4 = np.stack(asked.by_user(ones_X, labels_X, predictions_X, loss_X), axis=1)
        self.gaps_Ub = _gaps(asked)
        self.pairs = PairCounts(predictions_X, labels_X, asked.users_X)
        auc_U = user_auc(predictions_X, labels_X, asked.users_X, asked.num_users)
        both_U = ~np.isnan(auc_U)
        asked_U = self.main_U4[:, 0] * both_U
        auc_U[~both_U] = 0.0
        self.own_U4 = np.stack([auc_U * asked_U, asked_U, auc_U, both_U.astype(np.float64)], axis=1)

    def figures(self, counts_SU: Counts) -> dict[str, Floats]:
        """Each [S], of audiences in which each user stands so often; NaN where there is nothing beneath."""
        asked_S, positive_S, predicted_S, loss_S = (counts_SU @ self.main_U4).T
        weighted_S, weights_S, auc_S, users_S = (counts_SU @ self.own_U4).T
        rate_S = _over(positive_S, asked_S)
        entropy_S = entr(rate_S) + entr(1 - rate_S)
        return {
            "ne": _over(_over(loss_S, asked_S), entropy_S),
            "auc": self.pairs.auc(counts_SU),
            "gauc": _over(weighted_S, weights_S),
            "gauc-users": _over(auc_S, users_S),
            "calibration": _over(predicted_S, positive_S),
            "ece": _over(np.abs(counts_SU @ self.gaps_Ub).sum(axis=1), asked_S),
        }


class RegressionSums:
    """What each user adds to the figures of a regression."""

    def __init__(self, asked: Asked) -> None:
        error_X = asked.predictions_X - asked.labels_X
        # Around their mean, since the variance of an audience is a difference of sums.
        centred_X = asked.labels_X - (asked.labels_X.mean() if len(asked.labels_X) else 0.0)
        sums = asked.by_user(np.ones(len(error_X)), error_X**2, np.abs(error_X), centred_X, centred_X**2)
        self.main_U5 = np.stack(sums, axis=1)
        self._noise = np.finfo(np.float64).eps * float((asked.labels_X**2).sum())

    def figures(self, counts_SU: Counts) -> dict[str, Floats]:
        """As in `BinarySums`."""
        asked_S, squared_S, absolute_S, label_S, label_squared_S = (counts_SU @ self.main_U5).T
        deviation_S = label_squared_S - _over(label_S**2, asked_S)
        # Equal labels may differ from their mean by its rounding.
        deviation_S = np.where(deviation_S > self._noise, deviation_S, 0.0)
        return {
            "mse": _over(squared_S, asked_S),
            "mae": _over(absolute_S, asked_S),
            "r2": 1 - _over(squared_S, deviation_S),
        }


TaskSums = BinarySums | RegressionSums


def sums_of(asked: Asked) -> TaskSums:
    """By the kind of the task."""
    return BinarySums(asked) if asked.task.kind == BINARY else RegressionSums(asked)


def values_of(sums: TaskSums, num_users: int) -> dict[str, float]:
    """The figures of the users as they are, those that have something beneath."""
    figures = {name: float(one_S[0]) for name, one_S in sums.figures(np.ones((1, num_users))).items()}
    return {name: value for name, value in figures.items() if not np.isnan(value)}


def gain_of(values: Sequence[Mapping[str, float]], weights: Sequence[float]) -> float:
    """How much better than the mean label the predictions are, by which checkpoints are chosen: larger is better.

    The weighted mean over tasks of 1 − NE (binary) or R² (regression): 0 is predicting the mean label always, 1 is
    perfect. A task whose labels are all equal has neither and is left out; where that is all of them, the gain is 0.

    Args:
        values: figures of each task, as from `values_of`.
        weights: of the tasks, as in the loss.
    """
    gained, weight_of_all = 0.0, 0.0
    for figures, weight in zip(values, weights, strict=True):
        if "ne" in figures or "r2" in figures:
            gained += weight * (1 - figures["ne"] if "ne" in figures else figures["r2"])
            weight_of_all += weight
    return gained / weight_of_all if weight_of_all else 0.0


def _gaps(asked: Asked) -> npt.NDArray[np.float64]:
    """Σ prediction − label by user and bin [U, b]; bins are those of all users, whoever is resampled."""
    bin_X = equal_mass(asked.predictions_X, BINS) if len(asked.predictions_X) else np.zeros(0, np.int64)
    num_bins = int(bin_X.max(initial=0)) + 1
    shelves_X, gap_X = asked.users_X * num_bins + bin_X, asked.predictions_X - asked.labels_X
    gaps = np.bincount(shelves_X, gap_X, asked.num_users * num_bins).astype(np.float64)
    return gaps.reshape(asked.num_users, num_bins)


def _over(top_S: Floats, bottom_S: Floats) -> Floats:
    """NaN where nothing is beneath."""
    quotient_S: Floats = np.divide(top_S, bottom_S, out=np.full(len(top_S), np.nan), where=bottom_S != 0)
    return quotient_S
