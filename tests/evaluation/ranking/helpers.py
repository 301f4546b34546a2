"""Predictions and labels made up."""

from __future__ import annotations

import numpy as np

from data.ranking.tasks import BINARY, REGRESSION, Task
from evaluation.ranking.metrics import Asked, asked_of, sums_of, values_of

LIKE, PLAYED = Task("like", BINARY, "event_type is like"), Task("played", REGRESSION, "played_ratio / 100")
BOTH = (LIKE, PLAYED)


def made_up(
    seed: int, requests: int, users: int, *, levels: int = 0, missing: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions [R, 2] and labels [R, 2] of `BOTH`, and users [R]; with `levels`, that many different predictions."""
    random = np.random.default_rng(seed)
    predictions = random.random((requests, 2))
    if levels:
        predictions = np.floor(predictions * levels) / levels
    labels = np.stack(
        [random.random(requests) < predictions[:, 0], predictions[:, 1] + random.normal(size=requests)], 1
    )
    labels[random.random(labels.shape) < missing] = np.nan
    return predictions, labels, 7 * random.integers(0, users, requests)


def figures(
    task: Task, predictions: np.ndarray, labels: np.ndarray, users: np.ndarray | None = None
) -> dict[str, float]:
    """Of one task, given columns."""
    asked = only_asked(task, predictions, labels, users)
    return values_of(sums_of(asked), asked.num_users)


def only_asked(task: Task, predictions: np.ndarray, labels: np.ndarray, users: np.ndarray | None = None) -> Asked:
    if users is None:
        users = np.arange(len(labels))
    (asked,) = asked_of([task], np.asarray(predictions)[:, None], np.asarray(labels, float)[:, None], np.asarray(users))
    return asked
