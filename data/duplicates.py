"""Events that say the same twice: same user, same second, same value in every column.

A log that was delivered "at least once" has them. What to do is the user's choice: refuse the log, drop all but the
first of each, or keep them where they are legitimate (Yambda rounds its times down to 5 s).

E events of a block of users.
"""

from __future__ import annotations

import numpy as np

from common.errors import InputError
from data import schema
from data.sources.base import Histories

REFUSE, DROP, KEEP = "refuse", "drop", "keep"
RULES = (REFUSE, DROP, KEEP)


def repeated_events(histories: Histories) -> np.ndarray:
    """Bool [E]: events that have an equal one before them."""
    times_E = histories.columns[schema.TIMESTAMP]
    tied_E = np.zeros(len(times_E), dtype=bool)  # events in the same second as the user's event before
    tied_E[1:] = times_E[1:] == times_E[:-1]
    tied_E[histories.offsets[:-1]] = False
    repeated_E = np.zeros(len(times_E), dtype=bool)
    if not tied_E.any():
        return repeated_E
    second_E = np.cumsum(~tied_E)  # numbers the seconds of all users
    in_tie_E = tied_E.copy()
    in_tie_E[:-1] |= tied_E[1:]
    at = np.flatnonzero(in_tie_E)
    keys = [values[at] for values in histories.columns.values()] + [second_E[at]]
    order = np.lexsort([at, *keys])  # the last key is the first to sort by; equal events stay in their order
    equal = np.ones(len(at) - 1, dtype=bool)
    for key in keys:
        equal &= key[order[1:]] == key[order[:-1]]
    repeated_E[at[order[1:][equal]]] = True
    return repeated_E


def without(histories: Histories, dropped_E: np.ndarray) -> Histories:
    """The histories without the marked events; every user keeps at least one."""
    kept_E = ~dropped_E
    counts = np.concatenate([[0], np.cumsum(kept_E)])
    columns = {name: values[kept_E] for name, values in histories.columns.items()}
    return Histories(histories.user_ids, counts[histories.offsets], columns)


def refuse(histories: Histories, repeated_E: np.ndarray) -> None:
    """Say which event is there twice.

    Raises:
        InputError: if one is.
    """
    if not repeated_E.any():
        return
    event = int(np.argmax(repeated_E))
    user = int(np.searchsorted(histories.offsets, event, side="right")) - 1
    place = event - int(histories.offsets[user])
    time = int(histories.columns[schema.TIMESTAMP][event])
    raise InputError(
        f"user {histories.user_ids[user].as_py()!r}: event {place} of the user, at {time} s, says the same as an "
        f"earlier one in every column (and {int(repeated_E.sum()) - 1} more in this block); repeated deliveries are "
        "dropped with duplicates=drop, legitimate repeats kept with duplicates=keep"
    )
