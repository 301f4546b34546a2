"""Protocols: when a user asks, what the model may see by then, and what it is held against.

    next       each user asks once, at the time of the first held-out event: what is that event's item?
    period     each user asks once, when the held-out period begins: which items follow in all of it?
    daily      each user asks at the beginning of every day of the held-out period, with everything before that day in
               the history, and is held against that day: a service whose model stays and whose histories grow
    yambda     as period; with the metrics of Yambda's own code (`evaluation.metrics.yambda`)

R requests · U users · E events · T targets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from data.event_store import EventStore
from data.ranges import positions_of
from data.schema import ITEM, TIMESTAMP
from data.sequences import Windows, request_windows
from data.split import DAY, HeldOut, events_before
from evaluation.results import Ints, Targets

NEXT, PERIOD, DAILY, YAMBDA = "next", "period", "daily", "yambda"
PROTOCOLS = (NEXT, PERIOD, DAILY, YAMBDA)

_AT_ONCE = 1024
"""Requests whose whole histories are held at once."""


@dataclass(frozen=True)
class Requests:
    """What is asked, and what each request may see.

    Args:
        windows: the newest `max_history` events that a request may see, with the first held-out event as target.
        history_stop_R: a request may see its user's events [0, history_stop).
        targets: all that was held out, in the same order.
    """

    windows: Windows
    history_stop_R: Ints
    targets: Targets

    def __len__(self) -> int:
        """R."""
        return len(self.targets)


def protocol_of(split_kind: str) -> str:
    """The protocol that goes with a split where none is asked for."""
    return {"yambda": YAMBDA, "temporal": PERIOD}.get(split_kind, NEXT)


def filters_history(protocol: str) -> bool:
    """Whether lists go without what the user has had, where nothing else is asked for: Yambda's do not."""
    return protocol != YAMBDA


def make_requests(store: EventStore, events: str, max_history: int, protocol: str) -> Requests:
    """The requests of a protocol on a store's held-out events.

    Args:
        events: validation or test.
        max_history: the most events that the model sees of a history, at least 1.

    Raises:
        InputError: nothing is held out, or the protocol does not go with the store's split.
    """
    held = getattr(store.split(), events)
    if not held.asked_U.any():
        raise InputError(
            f"{store.path}: its split, {store.split_config.kind}, holds out no {events} event of any of its "
            f"{store.num_users} users; there is nothing to evaluate"
        )
    if protocol in (DAILY, YAMBDA) and not store.split_config.by_the_clock:
        raise InputError(
            f"{store.path}: its split is {store.split_config.kind}, which holds out single events; "
            f"protocol={protocol} needs a period: prepare the store with split.kind=temporal or yambda, or give "
            f"protocol={NEXT}"
        )
    parts = _days(store, held) if protocol == DAILY else [held]
    pieces = [_requests_of(store, part, max_history, all_events=protocol != NEXT) for part in parts]
    return _joined([piece for piece in pieces if len(piece)])


def without_time(requests: Requests, store: EventStore) -> Requests:
    """The same requests, made when each user's newest event happened: the model is not told when the next one does."""
    users_R = requests.targets.users_R
    newest_R = store.column(TIMESTAMP)[store.offsets[users_R] + requests.history_stop_R - 1].astype(np.int64)
    windows = dataclasses.replace(requests.windows, request_time=newest_R)
    return dataclasses.replace(requests, windows=windows)


def _days(store: EventStore, held: HeldOut) -> list[HeldOut]:
    """The held-out period cut into days, counted from its beginning; each day's requests see all days before."""
    timestamps_E, offsets = store.column(TIMESTAMP), store.offsets
    users = np.flatnonzero(held.asked_U)
    begin = int(held.request_time_U[users].min())
    last = int(timestamps_E[offsets[users] + held.stop_U[users] - 1].max())
    days = []
    for start in range(begin, last + 1, DAY):
        before_U, until_U = (
            np.clip(events_before(timestamps_E, offsets, time), held.start_U, held.stop_U)
            for time in (start, start + DAY)
        )
        # The first day sees what the split lets it see: the gap before the period holds for it too.
        history_U = held.history_stop_U if start == begin else before_U
        days.append(HeldOut(history_U, before_U, until_U, np.full_like(history_U, start)))
    return days


def _requests_of(store: EventStore, held: HeldOut, max_history: int, *, all_events: bool) -> Requests:
    asked_U = held.asked_U & (held.history_stop_U > 0)  # without a past there is nothing to predict from
    held = HeldOut(held.history_stop_U, held.start_U, np.where(asked_U, held.stop_U, held.start_U), held.request_time_U)
    windows = request_windows(held, max_history)
    users_R = windows.user
    counts_R = (held.stop_U - held.start_U)[users_R] if all_events else np.ones(len(users_R), np.int64)
    at = positions_of(store.offsets[users_R] + held.start_U[users_R], counts_R)
    items = store.column(ITEM)[at].astype(np.int64)
    return Requests(
        windows,
        held.history_stop_U[users_R],
        distinct_targets(users_R, held.request_time_U[users_R], np.repeat(np.arange(len(users_R)), counts_R), items),
    )


def seen_targets(store: EventStore, users_R: Ints, stop_R: Ints, targets: Targets) -> np.ndarray:
    """Bool [T]: whether each target is among the first `stop` events of the user that stands beside its request."""
    items_E, sizes_R = store.column(ITEM), targets.sizes_R
    seen_T = np.zeros(len(targets.items_T), bool)
    for first in range(0, len(users_R), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        stops, sizes = stop_R[rows], sizes_R[rows]
        items_h = items_E[positions_of(store.offsets[users_R[rows]], stops)].astype(np.int64)
        keys_h = np.repeat(np.arange(len(stops)), stops) * store.num_items + items_h
        begin, end = targets.offsets_R1[first], targets.offsets_R1[first + len(stops)]
        wanted = np.repeat(np.arange(len(sizes)), sizes) * store.num_items + targets.items_T[begin:end]
        seen_T[begin:end] = np.isin(wanted, keys_h)
    return seen_T


def distinct_targets(users_R: Ints, times_R: Ints, requests_E: Ints, items_E: Ints) -> Targets:
    """Targets of held-out events: each item of a request once, where it first came, with how often it came.

    Args:
        requests_E: the request of each event, ascending.
        items_E: its item.
    """
    pairs_T, first_T, counts_T = np.unique(
        np.stack([requests_E, items_E]), axis=1, return_index=True, return_counts=True
    )
    order_T = np.argsort(first_T, kind="stable")
    offsets_R1 = np.zeros(len(users_R) + 1, np.int64)
    np.cumsum(np.bincount(pairs_T[0], minlength=len(users_R)), out=offsets_R1[1:])
    return Targets(users_R, times_R, offsets_R1, pairs_T[1][order_T], counts_T[order_T].astype(np.int64))


def _joined(pieces: list[Requests]) -> Requests:
    """Requests of several days, by user, then by time, so that a user's stand together."""
    windows = [piece.windows for piece in pieces]
    users_R = np.concatenate([one.user for one in windows])
    times_R = np.concatenate([piece.targets.times_R for piece in pieces])
    order_R = np.lexsort((times_R, users_R))

    def taken(name: str) -> np.ndarray:
        column: np.ndarray = np.concatenate([getattr(one, name) for one in windows])[order_R]
        return column

    columns = {name: taken(name) for name in ("user", "start", "stop", "learn_from", "asked", "request_time")}
    targets = [piece.targets for piece in pieces]
    sizes_R = np.concatenate([one.sizes_R for one in targets])
    first_R = np.concatenate([[0], np.cumsum(sizes_R)[:-1]])
    at_T = positions_of(first_R[order_R], sizes_R[order_R])
    return Requests(
        Windows(**columns),
        np.concatenate([piece.history_stop_R for piece in pieces])[order_R],
        Targets(
            users_R[order_R],
            times_R[order_R],
            np.concatenate([[0], np.cumsum(sizes_R[order_R])]),
            np.concatenate([one.items_T for one in targets])[at_T],
            np.concatenate([one.counts_T for one in targets])[at_T],
        ),
    )
