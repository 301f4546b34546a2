"""Which events may be learnt from, and which are held out.

The leakage rule: **training sees, as an input or as a target, only events at positions below the user's
`train_end`**. Held-out events lie at or after it. `check_no_leakage` checks a plan of training windows
against the rule; nothing trains on a plan that it has not passed.

Evaluation is bound by time alone: the inputs of a request are the events before the held-out one, so a
test request may see the validation event, as a service would have.

Shapes: U users · W windows · E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class LeakageError(AssertionError):
    """A training plan touches held-out events: a bug, never the user's fault."""


@dataclass(frozen=True)
class Split:
    """Positions are counted within a user's history, oldest event 0.

    Attributes:
        train_end_U: int64; events [0, train_end) of a user may be seen in training.
        validation_U: int64; position of the validation event, -1 where there is none.
        test_U: int64; position of the test event, -1 where there is none.
    """

    train_end_U: np.ndarray
    validation_U: np.ndarray
    test_U: np.ndarray


def leave_last_out(lengths_U: np.ndarray) -> Split:
    """Hold out each user's last event for the test and the one before it for validation.

    Histories of fewer than 3 events are all training: nothing would be left to predict from.

    Args:
        lengths_U: events per user (`np.diff(store.offsets)`).
    """
    lengths_U = np.asarray(lengths_U, dtype=np.int64)
    enough_U = lengths_U >= 3
    return Split(
        train_end_U=np.where(enough_U, lengths_U - 2, lengths_U),
        validation_U=np.where(enough_U, lengths_U - 2, -1),
        test_U=np.where(enough_U, lengths_U - 1, -1),
    )


def training_events(offsets: np.ndarray, split: Split) -> np.ndarray:
    """Bool [E]: which flat events training may see. For whatever is derived from data: counts, item embeddings."""
    lengths_U = np.diff(offsets)
    position_E = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths_U)
    allowed_E: np.ndarray = position_E < np.repeat(split.train_end_U, lengths_U)
    return allowed_E


def check_no_leakage(split: Split, user_W: np.ndarray, start_W: np.ndarray, stop_W: np.ndarray) -> None:
    """Hold training windows to the rule: inputs are [start, stop) and targets start + 1 … stop, all below `train_end`.

    Raises:
        LeakageError: naming the first window that breaks it.
    """
    end_W = split.train_end_U[user_W]
    broken_W = (start_W < 0) | (start_W >= stop_W) | (stop_W >= end_W)
    # Held-out events must themselves lie beyond the end, or the end would guard nothing.
    for held_out_U in (split.validation_U, split.test_U):
        held_out_W = held_out_U[user_W]
        broken_W |= (held_out_W >= 0) & (held_out_W < end_W)
    if broken_W.any():
        window = int(np.argmax(broken_W))
        user = int(user_W[window])
        raise LeakageError(
            f"training window {window} of user {user} has inputs [{start_W[window]}, {stop_W[window]}) and targets up "
            f"to {stop_W[window]}, but training may see [0, {end_W[window]}) only "
            f"(validation at {split.validation_U[user]}, test at {split.test_U[user]})"
        )
