"""The area under the ROC curve: how often what happened is predicted higher than what did not; a tie counts half.

X predictions of a task · U users · S audiences · p positives, n negatives among the predictions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaluation.results import Floats, Ints

Counts = npt.NDArray[np.float64]


class PairCounts:
    """AUC over all pairs of a positive and a negative, whosever they are, for audiences in which users weigh otherwise.

    Predictions are sorted once; an audience then costs a running sum over its negatives, which positives look up.
    """

    def __init__(self, predictions_X: Floats, labels_X: Floats, users_X: Ints) -> None:
        """Args as in `user_auc`."""
        positive_X = labels_X > 0
        negatives, positives = (_ascending(predictions_X, chosen_X) for chosen_X in (~positive_X, positive_X))
        self._negative_users_n, self._positive_users_p = users_X[negatives], users_X[positives]
        self._lower_p, self._not_higher_p = (
            np.searchsorted(predictions_X[negatives], predictions_X[positives], side) for side in ("left", "right")
        )

    def auc(self, counts_SU: Counts) -> Floats:
        """[S], one an audience in which each user stands so often; NaN where it lacks one of the labels."""
        found_S = np.full(len(counts_SU), np.nan)
        running = np.zeros(len(self._negative_users_n) + 1)
        for audience, counts_U in enumerate(counts_SU):
            weights_p = counts_U[self._positive_users_p]
            np.cumsum(counts_U[self._negative_users_n], out=running[1:])
            pairs = weights_p.sum() * running[-1]
            if pairs:
                won = weights_p @ (running[self._lower_p] + running[self._not_higher_p]) / 2
                found_S[audience] = won / pairs
        return found_S


def user_auc(predictions_X: Floats, labels_X: Floats, users_X: Ints, num_users: int) -> Floats:
    """AUC of each user's own predictions [U]; NaN for users who lack one of the labels.

    Args:
        labels_X: 0 or 1.
        users_X: 0 … num_users − 1.
    """
    order = np.lexsort((predictions_X, users_X))
    sorted_X, of_X, labels_X = predictions_X[order], users_X[order], labels_X[order]
    begins = np.flatnonzero(np.r_[True, (np.diff(sorted_X) != 0) | (np.diff(of_X) != 0)][: len(order)])
    ends = np.r_[begins[1:], len(order)]
    # Places from 0 on among all; those that tie share the middle of theirs.
    place_X = np.repeat((begins + ends - 1) / 2, ends - begins)
    sizes_U, positives_U, places_U = (
        np.bincount(of_X, weights, num_users) for weights in (None, labels_X, labels_X * place_X)
    )
    first_U = np.cumsum(sizes_U) - sizes_U
    # Places of positives among the user's own, less those below them that are positives too: negatives below.
    won_U = places_U - positives_U * first_U - positives_U * (positives_U - 1) / 2
    pairs_U = positives_U * (sizes_U - positives_U)
    auc_U: Floats = np.divide(won_U, pairs_U, out=np.full(num_users, np.nan), where=pairs_U > 0)
    return auc_U


def _ascending(predictions_X: Floats, chosen_X: npt.NDArray[np.bool_]) -> Ints:
    """Those chosen, least prediction first."""
    chosen = np.flatnonzero(chosen_X)
    return chosen[np.argsort(predictions_X[chosen], kind="stable")]
