"""What the tasks' labels are like on the whole: where predictions begin.

E events · T tasks · n events of a block · W windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from data.event_store import EventStore
from data.leakage import user_blocks
from data.ranges import positions_of
from data.ranking.tasks import Labels, parse_tasks
from data.schema import PLAYED_RATIO
from data.sequences import Windows
from data.store_columns import event_columns
from data.training_events import training_events

_AT_ONCE = 2**20


def label_moments(store: EventStore, tasks: Sequence[str], blocks: Iterable[np.ndarray]) -> torch.Tensor:
    """Mean and standard deviation of each task's labels over some events.

    Args:
        tasks: as they are written in a configuration.
        blocks: flat positions of the events, int64 [n], a block at a time.

    Returns:
        float32 [2, T]; 0 and 0 of a task that asks nothing of any of them.
    """
    labels = Labels(parse_tasks(tasks), store.event_types, has_played=store.has_column(PLAYED_RATIO))
    columns = event_columns(store)
    sums_3T = np.zeros((3, len(tasks)))
    for at_n in blocks:
        labels_nT = labels.of(columns, at_n).astype(np.float64)
        asked_nT = ~np.isnan(labels_nT)
        known_nT = np.where(asked_nT, labels_nT, 0.0)
        sums_3T += np.stack([asked_nT.sum(axis=0), known_nT.sum(axis=0), (known_nT**2).sum(axis=0)])
    count_T, sum_T, squares_T = np.maximum(sums_3T[0], 1), sums_3T[1], sums_3T[2]
    mean_T = sum_T / count_T
    deviation_T = np.sqrt(np.maximum(squares_T / count_T - mean_T**2, 0.0))
    return torch.from_numpy(np.stack([mean_T, deviation_T])).float()


def training_blocks(store: EventStore) -> Iterator[np.ndarray]:
    """Flat positions of all events that training may see, a block of users at a time."""
    return (block.at_E for block in training_events(store).blocks(_AT_ONCE))


def target_blocks(store: EventStore, windows: Windows) -> Iterator[np.ndarray]:
    """Flat positions of the targets of training windows, a block of windows at a time."""
    assert not windows.are_requests
    first_W, lengths_W = store.offsets[windows.user] + windows.learn_from + 1, windows.stop - windows.learn_from
    for first, last in user_blocks(np.append(0, np.cumsum(lengths_W)), _AT_ONCE):
        yield positions_of(first_W[first:last], lengths_W[first:last])
