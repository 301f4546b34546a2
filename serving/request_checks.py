"""What a server refuses, with every fault of a batch of users at once.

Shapes: B users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from data.schema import MISSING_DURATION, MISSING_ORGANIC, MISSING_PLAYED_RATIO
from serving.kv_cache import UserCache
from serving.user_events import Ints, UserEvents, seconds_faults, whole_numbers

_MARKS = {"durations": MISSING_DURATION, "organic": MISSING_ORGANIC, "played": MISSING_PLAYED_RATIO}
"""What stands for a value that is not known, of each optional column: no value is larger."""


def same_number(users: Sized, others: Sized, what: str) -> None:
    """See that something is given of each user.

    Raises:
        InputError: of more or fewer.
    """
    if len(users) != len(others):
        raise InputError(f"{len(users)} users and {what} of {len(others)}: give those of each user, in the same order")


def check_model(caches: Sequence[UserCache], fingerprint: str) -> None:
    """See that caches were made by the model of this fingerprint.

    Raises:
        InputError: one is another's.
    """
    faults = [
        f"the cache of user {row} of the batch was made by the model {cache.fingerprint}, and this is the model "
        f"{fingerprint}: keys and values of one mean nothing to the other; prepare the history anew"
        for row, cache in enumerate(caches)
        if cache.fingerprint != fingerprint
    ]
    if faults:
        raise InputError(*faults)


def request_times(times: npt.ArrayLike, caches: Sequence[UserCache]) -> Ints:
    """Seconds of the requests of some users, [B]; a number, not a list of one, is that of all.

    Raises:
        InputError: these are no seconds, or of more or fewer users, or before a user's newest event.
    """
    times_B = whole_numbers(times, "times of requests")
    if np.ndim(times) == 0:
        times_B = np.repeat(times_B, len(caches))
    same_number(caches, times_B, "times")
    faults = seconds_faults(times_B, "times of requests")
    if faults:
        raise InputError(*faults)
    check_follows(caches, [times_B[row : row + 1] for row in range(len(caches))], "its request")
    return times_B


def check_catalogue(users: Sequence[UserEvents], what: str, num_items: int, event_types: int) -> None:
    """See that the model knows the items and event types of events or candidates, and a store their other values.

    Raises:
        InputError: one is outside; `what` names a row.
    """
    faults = []
    for row, own in enumerate(users):
        for name, values, limit in (("item", own.items, num_items), ("event type", own.event_types, event_types)):
            outside = np.flatnonzero((values < 0) | (values >= limit))
            if len(outside):
                at = int(outside[0])
                faults.append(
                    f"{what} {at} of user {row} of the batch: {name} {values[at]} is none of the {limit} that the "
                    f"model knows, 0 … {limit - 1}; leave it out, or load the model of a newer store"
                )
        faults += [f"{what} {fault}" for fault in _value_faults(own, row)]
    if faults:
        raise InputError(*faults)


def _value_faults(own: UserEvents, row: int) -> Iterator[str]:
    for name, mark in _MARKS.items():
        values: Ints | None = getattr(own, name)
        if values is None:
            continue
        for at in np.flatnonzero((values < 0) | (values > mark))[:1]:
            yield (
                f"{at} of user {row} of the batch: {values[at]} in `{name}` is none of 0 … {mark - 1}, nor {mark}, "
                f"which stands for a value that is not known: give that, or leave the column out"
            )


def check_follows(caches: Sequence[UserCache], times: Sequence[Ints], what: str) -> None:
    """See that what is new comes after what was read.

    Args:
        times: of each user the first of the new seconds, [1], or none, [0].

    Raises:
        InputError: one is earlier than the newest event; `what` names it.
    """
    faults = [
        f"user {row} of the batch: {what} is at {own[0]} s, before the newest event of its history at "
        f"{cache.events.timestamps[-1]} s: give events in the order of time, and requests after them"
        for row, (cache, own) in enumerate(zip(caches, times, strict=True))
        if len(own) and len(cache.events) and own[0] < cache.events.timestamps[-1]
    ]
    if faults:
        raise InputError(*faults)
