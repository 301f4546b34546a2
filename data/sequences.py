"""From histories to windows: which runs of inputs the model sees, and what it is to predict.

A window is one user's contiguous run of input positions [start, stop). After input p the model predicts
event p + 1. In training every input has a target; in a request only the last one has: the held-out event.

Shapes: U users · W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.split import Split, check_no_leakage

WINDOW_PLANS = ("newest", "tiled")


@dataclass(frozen=True)
class Windows:
    """Runs of inputs, by user and then by time.

    Attributes:
        user: int64 [W], user index.
        start, stop: int64 [W], input positions [start, stop) within the user's history, oldest event 0; never empty.
        last_target_only: False in training: the targets are start + 1 … stop. True for requests: position `stop`
            is the only target.
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    last_target_only: bool

    def __len__(self) -> int:
        """W."""
        return len(self.user)

    @property
    def lengths(self) -> np.ndarray:
        """Inputs per window, int64 [W], each at least 1."""
        lengths: np.ndarray = self.stop - self.start
        return lengths


def training_windows(offsets: np.ndarray, split: Split, max_history: int, windows: str = "newest") -> Windows:
    """Windows over the training part of every history, checked against the leakage rule.

    Args:
        offsets: int64 [U + 1], the store's.
        max_history: the most inputs a window may have, at least 1.
        windows: "newest", each user's newest `max_history` inputs; or "tiled", the whole training history cut into
            windows of at most `max_history` inputs, cut from the newest backwards: the oldest is the short one.

    A user with fewer than two training events has no window: nothing could be a target.
    """
    assert max_history >= 1
    assert windows in WINDOW_PLANS, windows
    assert len(split.train_end_U) == len(offsets) - 1
    inputs_U = np.maximum(split.train_end_U - 1, 0)  # the last training event is a target only
    tiles_U = -(-inputs_U // max_history) if windows == "tiled" else (inputs_U > 0).astype(np.int64)
    user_W = np.repeat(np.arange(len(inputs_U)), tiles_U)
    first_W = np.repeat(np.cumsum(tiles_U) - tiles_U, tiles_U)
    newer_W = np.repeat(tiles_U, tiles_U) - 1 - (np.arange(len(user_W)) - first_W)  # windows of the user after this one
    stop_W = inputs_U[user_W] - newer_W * max_history
    start_W = np.maximum(stop_W - max_history, 0)
    check_no_leakage(split, user_W, start_W, stop_W)
    return Windows(user_W, start_W, stop_W, last_target_only=False)


def request_windows(split_positions: np.ndarray, max_history: int) -> Windows:
    """One window for each user with a held-out event: the at most `max_history` events before it.

    Args:
        split_positions: int64 [U], `split.validation_U` or `split.test_U`; -1 where there is none.
    """
    assert max_history >= 1
    assert (split_positions != 0).all(), "an event without a past cannot be predicted from it"
    user_W = np.flatnonzero(split_positions > 0)
    stop_W = split_positions[user_W]
    return Windows(user_W, np.maximum(stop_W - max_history, 0), stop_W, last_target_only=True)
