"""A baseline that reads no sequence: logistic (or linear) regression on running averages.

Of each event it knows what came before it: how the user's earlier events ended, how everyone's events with this item
did, and with this item's first artist, each as a mean drawn towards the mean of all, and as a count. So what it is
fitted on is made in the same way as what it is asked, and nothing needs to be left out of itself. As for a model, what
others do counts only as far as it may be learnt from; what the user did counts always.

E events · n events of a task · T tasks · K features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from data import schema
from data.event_store import EventStore
from data.ranking.tasks import BINARY, REGRESSION, Labels, Task, parse_tasks
from data.store_columns import event_columns

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PRIOR = 5.0
"""Events of the mean label that every average begins with."""

RECENT = 10
"""The user's newest events that have an average of their own."""

RIDGE = 1e-4
"""Penalty on squared weights of features whose standard deviation is 1."""


NOTHING_KNOWN = {BINARY: 0.5, REGRESSION: 0.0}
"""What is predicted where no label has been seen."""


@dataclass(frozen=True)
class Columns:
    """What it reads of the log, in the store's order: user after user, oldest event first.

    Attributes:
        labels_ET: NaN where a task asks nothing.
    """

    users_E: Ints
    items_E: Ints
    artists_E: Ints
    times_E: Ints
    labels_ET: npt.NDArray[np.float32]


def columns_of(store: EventStore, tasks: Sequence[str]) -> Columns:
    """Of a store; an item without artists has an artist of its own, that of all such items.

    Raises:
        InputError: the store lacks what a task asks about.
    """
    labels = Labels(parse_tasks(tasks), store.event_types, has_played=store.has_column(schema.PLAYED_RATIO))
    labels_ET = labels.of(event_columns(store), np.arange(store.num_events))
    items_E = store.column(schema.ITEM).astype(np.int64)
    starts_N, values = store.artist_offsets, store.artist_values
    first_N = np.full(store.num_items, store.num_artists, dtype=np.int64)
    known = np.flatnonzero(np.diff(starts_N))
    first_N[known] = values[starts_N[:-1][known]]
    users_E = np.repeat(np.arange(store.num_users), np.diff(store.offsets))
    return Columns(users_E, items_E, first_N[items_E], store.column(schema.TIMESTAMP).astype(np.int64), labels_ET)


def logistic_predictions(
    tasks: tuple[Task, ...], columns: Columns, fit_E: npt.NDArray[np.bool_], asked_n: Ints
) -> npt.NDArray[np.float32]:
    """Predictions [n, T] of the events `asked_n`, each known by what came before it; `NOTHING_KNOWN` without a label.

    Args:
        fit_E: the events that may be learnt from.
    """
    predicted_nT = np.zeros((len(asked_n), len(tasks)), dtype=np.float32)
    for place, task in enumerate(tasks):
        labels_E = columns.labels_ET[:, place].astype(np.float64)
        has_E = ~np.isnan(labels_E)
        fitted = np.flatnonzero(fit_E & has_E)
        if not len(fitted):
            predicted_nT[:, place] = NOTHING_KNOWN[task.kind]
            continue
        features_EK = running_features(columns, labels_E, fit_E, float(labels_E[fitted].mean()))
        predicted_nT[:, place] = _fit(features_EK[fitted], labels_E[fitted], features_EK[asked_n], task.kind)
    return predicted_nT


def running_features(columns: Columns, labels_E: Floats, fit_E: npt.NDArray[np.bool_], mean: float) -> Floats:
    """What is known of each event before it, float64 [E, K]."""
    in_time = np.argsort(columns.times_E, kind="stable")
    has_E = ~np.isnan(labels_E)
    features = []
    for keys_E, order, counted_E in (
        (columns.users_E, np.arange(len(labels_E)), has_E),  # a user's events stand in their order already
        (columns.items_E, in_time, has_E & fit_E),
        (columns.artists_E, in_time, has_E & fit_E),
    ):
        sums_E = before(keys_E, order, np.where(counted_E, labels_E, 0.0))
        counts_E = before(keys_E, order, counted_E.astype(np.float64))
        features += [(sums_E + PRIOR * mean) / (counts_E + PRIOR), np.log1p(counts_E)]
    features.append(_recent(columns.users_E, np.where(has_E, labels_E, 0.0), has_E, mean))
    return np.stack(features, axis=1)


def before(keys_E: Ints, order: Ints, values_E: Floats) -> Floats:
    """Σ of the values of earlier events with the same key, [E]; `order` says which events are earlier."""
    by_key = order[np.argsort(keys_E[order], kind="stable")]
    sorted_keys, running = keys_E[by_key], np.cumsum(values_E[by_key])
    exclusive = running - values_E[by_key]
    starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]][: len(by_key)])
    sums_E = np.empty(len(values_E))
    sums_E[by_key] = exclusive - np.repeat(exclusive[starts], np.diff(np.r_[starts, len(by_key)]))
    return sums_E


def _recent(users_E: Ints, labels_E: Floats, has_E: npt.NDArray[np.bool_], mean: float) -> Floats:
    """The mean label of the user's newest `RECENT` events, drawn towards the mean of all."""
    own_E = np.arange(len(users_E))
    sums_E, counts_E = before(users_E, own_E, labels_E), before(users_E, own_E, has_E.astype(np.float64))
    starts = np.flatnonzero(np.r_[True, users_E[1:] != users_E[:-1]][: len(users_E)])
    first_E = np.repeat(starts, np.diff(np.r_[starts, len(users_E)]))
    back_E = np.maximum(own_E - RECENT, first_E)
    return (sums_E - sums_E[back_E] + PRIOR * mean) / (counts_E - counts_E[back_E] + PRIOR)


def _fit(known_nK: Floats, labels_n: Floats, asked_mK: Floats, kind: str) -> Floats:
    """Weights by L-BFGS, on features brought to mean 0 and deviation 1.

    What is asked is moved to the nearest value that a feature had in the fit: beyond it a weight says nothing, and of a
    feature that was constant there the deviation is a rounding.
    """
    asked_mK = np.clip(asked_mK, known_nK.min(axis=0), known_nK.max(axis=0))
    centre_K, scale_K = known_nK.mean(axis=0), known_nK.std(axis=0) + 1e-9
    x_nK = torch.from_numpy((known_nK - centre_K) / scale_K)
    y_n = torch.from_numpy(labels_n)
    weights_K = torch.zeros(x_nK.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_K, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        said_n = x_nK @ weights_K + bias
        error = F.binary_cross_entropy_with_logits(said_n, y_n) if kind == BINARY else F.mse_loss(said_n, y_n)
        total: torch.Tensor = error + RIDGE * weights_K.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        said_m = torch.from_numpy((asked_mK - centre_K) / scale_K) @ weights_K + bias
    return (torch.sigmoid(said_m) if kind == BINARY else said_m).numpy()
