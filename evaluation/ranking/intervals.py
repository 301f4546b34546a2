"""Figures of each task with their intervals: users are drawn with replacement, as in `evaluation.metrics.intervals`.

One set of resamples serves all tasks and figures. The interval of an ECE is that of a sum of absolute values, which
chance makes larger and never smaller: it lies higher than the figure where calibration is good.

R requests · T tasks · U users · S resamples · M figures of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.ranking.tasks import BINARY, Task
from evaluation.metrics.calibration import Calibration, calibration
from evaluation.metrics.intervals import RESAMPLES, Figure, drawn, percentiles
from evaluation.ranking.metrics import Table, TaskSums, asked_of, sums_of, values_of
from evaluation.results import Floats, Ints


@dataclass(frozen=True)
class TaskSummary:
    """What is said of one task.

    Args:
        name, kind: of the task.
        requests, users: that it asks something of.
        mean_label, mean_prediction: over these requests; None where there are none.
        figures: by the names of `evaluation.ranking.metrics`, those that have something beneath.
        reliability: a binary task's curve, with bins of equal mass.
    """

    name: str
    kind: str
    requests: int
    users: int
    mean_label: float | None
    mean_prediction: float | None
    figures: dict[str, Figure]
    reliability: Calibration | None

    @property
    def values(self) -> dict[str, float]:
        """The figures without their intervals."""
        return {name: figure.value for name, figure in self.figures.items()}


def summarise(
    tasks: Sequence[Task],
    predictions_RT: Table,
    labels_RT: Table,
    users_R: Ints,
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[TaskSummary, ...]:
    """Everything that is said of a model's predictions, task by task.

    Args:
        predictions_RT: probabilities of binary tasks, values of regressions.
        labels_RT: NaN where nothing is asked.
        users_R: the user of each request.
        samples: S.
    """
    asked_T = list(asked_of(tasks, predictions_RT, labels_RT, users_R))
    sums = {asked.task.name: sums_of(asked) for asked in asked_T}
    values = {asked.task.name: values_of(sums[asked.task.name], asked.num_users) for asked in asked_T}
    resamples = resampled(sums, asked_T[0].num_users, samples, seed) if asked_T and len(users_R) else {}
    found = []
    for asked in asked_T:
        name, labels_X, predictions_X = asked.task.name, asked.labels_X, asked.predictions_X
        binary = asked.task.kind == BINARY
        found.append(
            TaskSummary(
                name,
                asked.task.kind,
                len(labels_X),
                len(np.unique(asked.users_X)),
                float(labels_X.mean()) if len(labels_X) else None,
                float(predictions_X.mean()) if len(labels_X) else None,
                with_intervals(values[name], resamples.get(name, {})),
                calibration(predictions_X, labels_X > 0) if binary else None,
            )
        )
    return tuple(found)


def with_intervals(values: Mapping[str, float], samples: Mapping[str, Floats]) -> dict[str, Figure]:
    """Each value with the percentile interval of its resamples [S]."""
    if not values:
        return {}
    bounds = percentiles(np.stack([samples[name] for name in values], axis=1))
    return {name: Figure(value, *bound) for (name, value), bound in zip(values.items(), bounds, strict=True)}


def resampled(sums: Mapping[str, TaskSums], num_users: int, samples: int, seed: int) -> dict[str, dict[str, Floats]]:
    """Figures [S] of resampled audiences, the same ones for all the sums, under their keys and figures' names."""
    blocks: dict[str, list[dict[str, Floats]]] = {key: [] for key in sums}
    for _, counts_sU in drawn(num_users, samples, seed):
        for key, one in sums.items():
            blocks[key].append(one.figures(counts_sU))
    return {key: {name: np.concatenate([block[name] for block in of]) for name in of[0]} for key, of in blocks.items()}
