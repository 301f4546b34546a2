"""What the tasks' labels are like on the whole: where predictions begin.

E events · T tasks · n events of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from data.event_store import EventStore
from data.ranking.tasks import Labels, parse_tasks
from data.schema import PLAYED_RATIO
from data.split import Split, training_events
from data.store_columns import event_columns

_AT_ONCE = 2**20


def label_moments(store: EventStore, tasks: Sequence[str], split: Split) -> torch.Tensor:
    """Mean and standard deviation of each task's labels over the events that training may see.

    Returns:
        float32 [2, T]; 0 and 0 of a task that asks nothing of any of them.
    """
    labels = Labels(parse_tasks(tasks), store.event_types, has_played=store.has_column(PLAYED_RATIO))
    columns, at_E = event_columns(store), np.flatnonzero(training_events(store.offsets, split))
    sums_3T = np.zeros((3, len(tasks)))
    for first in range(0, len(at_E), _AT_ONCE):
        labels_nT = labels.of(columns, at_E[first : first + _AT_ONCE]).astype(np.float64)
        asked_nT = ~np.isnan(labels_nT)
        known_nT = np.where(asked_nT, labels_nT, 0.0)
        sums_3T += np.stack([asked_nT.sum(axis=0), known_nT.sum(axis=0), (known_nT**2).sum(axis=0)])
    count_T, sum_T, squares_T = np.maximum(sums_3T[0], 1), sums_3T[1], sums_3T[2]
    mean_T = sum_T / count_T
    deviation_T = np.sqrt(np.maximum(squares_T / count_T - mean_T**2, 0.0))
    return torch.from_numpy(np.stack([mean_T, deviation_T])).float()
