"""What a peer's process reads, and how what it recommends is scored: by our code, for both sides alike.

A peer gets the events that a test request may see, and which of them training and validation requests may see: the
leakage rule is kept by `data.split`, not by the peer. Its lists come back as files.

R requests · E events · K places of a list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.event_store import EventStore
from data.ranges import positions_of
from data.schema import ITEM, TIMESTAMP
from data.sequences import NEWEST, training_windows
from data.split import training_mask
from evaluation.metrics.ranking import metrics_of_places
from evaluation.requests import NEXT, Requests, make_requests
from evaluation.results import KEPT, Floats, Ints

HELD_OUT = ("validation", "test")
METRIC = "ndcg@10"


def requests_of(store: EventStore, events: str) -> Requests:
    """One request a user, for the first held-out event."""
    return make_requests(store, events, 1, NEXT)


def write_events(store: EventStore, path: Path) -> None:
    """Keep what training and the requests see, as NumPy arrays.

    `user_E`, `item_E`, `timestamp_E`: users one after another, each user's oldest event first. `train_E`,
    `validation_E`, `test_E`: whether training, or a request of that name, may see the event. `validation_users_R` and
    `validation_times_R`, and so for test: who asks, and when. `num_items`: the catalogue.
    """
    offsets = store.offsets
    columns: dict[str, np.ndarray] = {
        "user_E": np.repeat(np.arange(store.num_users), np.diff(offsets)),
        "item_E": store.column(ITEM).astype(np.int64),
        "timestamp_E": store.column(TIMESTAMP).astype(np.int64),
        "train_E": training_mask(offsets, store.split()),
        "num_items": np.array(store.num_items),
    }
    for name in HELD_OUT:
        requests = requests_of(store, name)
        users_R = requests.targets.users_R
        seen_E = np.zeros(store.num_events, bool)
        seen_E[positions_of(offsets[users_R], requests.history_stop_R)] = True
        columns |= {f"{name}_E": seen_E, f"{name}_users_R": users_R, f"{name}_times_R": requests.targets.times_R}
    seen_E = columns["train_E"] | columns["validation_E"] | columns["test_E"]
    kept: dict[str, Any] = {key: value[seen_E] if key.endswith("_E") else value for key, value in columns.items()}
    np.savez(path, **kept)


def targets_of_epoch(store: EventStore, max_history: int) -> int:
    """Predictions of an epoch with `batch.windows=newest`: what events/s counts, on both sides."""
    return int(training_windows(store.offsets, store.split(), max_history, NEWEST).lengths.sum())


def scores_of_lists(requests: Requests, users_R: Ints, items_RK: npt.NDArray[np.int64]) -> Floats:
    """NDCG@10 of each request, by a peer's lists.

    Args:
        users_R: whose lists these are, in any order; who asks and has none scores 0.
        items_RK: −1 in empty places.
    """
    targets = requests.targets
    row_U = np.full(max(int(users_R.max()), int(targets.users_R.max())) + 1, -1)
    row_U[users_R] = np.arange(len(users_R))
    row_T = row_U[targets.users_R][targets.requests_T]
    hit_TK = (items_RK[row_T] == targets.items_T[:, None]) & (row_T >= 0)[:, None]
    places_T = np.where(hit_TK.any(axis=1), hit_TK.argmax(axis=1) + 1, 0)
    return metrics_of_places(places_T, targets.offsets_R1, KEPT)[METRIC]


def read_lists(path: Path) -> tuple[Ints, npt.NDArray[np.int64]]:
    """Users and lists as a peer wrote them."""
    with np.load(path) as lists:
        return lists["users_R"], lists["items_RK"]
