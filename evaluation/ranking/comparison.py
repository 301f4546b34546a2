"""Does one model predict better than another? The same requests, users drawn once for both.

Beside each difference's paired interval stands a two-sided p: how far it lies from 0 in standard deviations of its
resamples, by the normal distribution; corrected for the number of figures by Holm's step-down, so that of two equally
good models one is called worse in a twentieth of the comparisons, not of the figures.

R requests in both · T tasks · S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from data.ranking.tasks import Task
from evaluation.metrics.comparison import SIGNIFICANT, holm
from evaluation.metrics.intervals import RESAMPLES, percentiles
from evaluation.ranking.intervals import resampled
from evaluation.ranking.metrics import Table, asked_of, sums_of, values_of
from evaluation.results import Floats, Ints

COMPARED = ("ne", "auc", "gauc", "mse", "r2")
"""Of a task, those that its kind has."""

LOWER_IS_BETTER = ("ne", "mse")


@dataclass(frozen=True)
class TaskDifference:
    """One figure of one task; `difference` is after − before, with its paired interval; `p_holm` is corrected."""

    task: str
    name: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval is on one side of 0 and the corrected p small, else `unclear`."""
        if self.p_holm >= SIGNIFICANT or self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.high < 0) == (self.name in LOWER_IS_BETTER) else "worse"


def compare_predictions(
    tasks: Sequence[Task],
    before_RT: Table,
    after_RT: Table,
    labels_RT: Table,
    users_R: Ints,
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[TaskDifference, ...]:
    """Differences of two models' figures, task by task; a figure that has nothing beneath has none.

    Args:
        before_RT, after_RT: predictions of the same requests, in the same order.
        labels_RT: NaN where nothing is asked.
        users_R: the user of each request.
        samples: S.
    """
    both = [list(asked_of(tasks, said_RT, labels_RT, users_R)) for said_RT in (before_RT, after_RT)]
    if not both[0] or not len(users_R):
        return ()
    num_users = both[0][0].num_users
    sums = {
        f"{side} {asked.task.name}": sums_of(asked)
        for side, asked_T in zip(("before", "after"), both, strict=True)
        for asked in asked_T
    }
    samples_of = resampled(sums, num_users, samples, seed)
    found = []
    for task in tasks:
        keys = f"before {task.name}", f"after {task.name}"
        before, after = (values_of(sums[key], num_users) for key in keys)
        for name in (name for name in COMPARED if name in before):
            moved_S = samples_of[keys[1]][name] - samples_of[keys[0]][name]
            ((low, high),) = percentiles(moved_S[:, None])
            moved = after[name] - before[name]
            found.append((task.name, name, before[name], after[name], moved, low, high, _p(moved, moved_S)))
    corrected = holm(np.array([one[-1] for one in found]))
    return tuple(TaskDifference(*one, float(p)) for one, p in zip(found, corrected, strict=True))


def _p(moved: float, moved_S: Floats) -> float:
    """Two-sided, of no difference; 1 where nothing moves in any resample."""
    deviation = float(np.nanstd(moved_S))
    return 1.0 if moved == 0 else float(2 * norm.sf(abs(moved) / deviation)) if deviation else 0.0
