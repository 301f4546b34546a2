"""Many ranges, and many binary searches, at once."""

from __future__ import annotations

from collections.abc import Callable

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numpy as np
import torch


def expand_ranges(
    starts: torch.Tensor | np.ndarray, lengths: torch.Tensor | np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the ranges [start, start + length), end to end, and the offsets of each range among them.

    `[10, 7]`, `[2, 3]` → `[10, 11, 7, 8, 9]`, `[0, 2, 5]`; all int64.
    """
    starts, lengths = torch.as_tensor(starts), torch.as_tensor(lengths)
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    if len(starts) == 0:
        return starts, offsets
    # The operator wants as many ends as there are offsets, and reads all but the last.
    ends = torch.cat([starts, starts[-1:]])
    positions = torch.ops.fbgemm.expand_into_jagged_permute(torch.arange(len(starts)), ends, offsets, int(offsets[-1]))
    return positions, offsets


def positions_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`expand_ranges` in NumPy, without the offsets."""
    positions: np.ndarray = expand_ranges(starts.astype(np.int64), lengths.astype(np.int64))[0].numpy()
    return positions


def partition_points(
    low: np.ndarray, high: np.ndarray, holds: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """For each range [low, high), the first place at which a condition no longer holds; `high` where it always does.

    Args:
        low, high: int64 [n].
        holds: of (places, indices of their ranges), bool; true up to some place of a range and false from there on.
    """
    low, high = low.copy(), high.copy()
    while True:
        open_ranges = np.flatnonzero(low < high)
        if not len(open_ranges):
            return low
        middle = (low[open_ranges] + high[open_ranges]) // 2
        true = holds(middle, open_ranges)
        low[open_ranges[true]] = middle[true] + 1
        high[open_ranges[~true]] = middle[~true]
