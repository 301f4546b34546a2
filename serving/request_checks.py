"""What a server refuses, with every fault of a batch of users at once.

Shapes: B users.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized

import numpy as np

from common.errors import InputError
from serving.kv_cache import UserCache
from serving.user_events import Ints, UserEvents


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


def check_catalogue(users: Sequence[UserEvents], what: str, num_items: int, event_types: int) -> None:
    """See that the model knows the items and event types of events or candidates.

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
    if faults:
        raise InputError(*faults)


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
