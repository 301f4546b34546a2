"""How much of one engine's lists another engine's hold.

R requests · K list length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DEPTHS = (10, 50, 100, 200, 500, 1000)
"""Where lists are compared, as far as they go."""

_BLOCK_PAIRS = 1 << 22
"""Items looked at at a time."""


def engine_overlap(
    items_RK: npt.NDArray[np.int64], reference_RK: npt.NDArray[np.int64], depths: Sequence[int] = DEPTHS
) -> dict[int, float]:
    """Recall of the first d items of a reference's lists among the first d of an engine's, by depth d.

    Args:
        items_RK: an engine's lists, each item once; −1 in empty places.
        reference_RK: the reference's, of the same requests; may be longer or shorter.
        depths: those that exceed either's lists are left out.

    Returns:
        The mean, over requests whose reference list is not empty, of the share of its items that the engine's list
        holds; NaN where all are empty.
    """
    assert len(items_RK) == len(reference_RK), (items_RK.shape, reference_RK.shape)
    longest = min(items_RK.shape[1], reference_RK.shape[1])
    return {depth: _recall(items_RK[:, :depth], reference_RK[:, :depth]) for depth in depths if depth <= longest}


def _recall(items_RK: npt.NDArray[np.int64], reference_RK: npt.NDArray[np.int64]) -> float:
    size_R = (reference_RK >= 0).sum(axis=1)
    held_R = np.zeros(len(size_R), np.int64)
    stride = int(max(items_RK.max(initial=-1), reference_RK.max(initial=-1))) + 1
    block = max(1, _BLOCK_PAIRS // max(1, items_RK.shape[1]))
    for first in range(0, len(size_R), block):
        rows = slice(first, first + block)
        base_x1 = np.arange(len(size_R[rows]))[:, None] * stride
        found, wanted = items_RK[rows], reference_RK[rows]
        held = np.isin(base_x1 + wanted, (base_x1 + found)[found >= 0]) & (wanted >= 0)
        held_R[rows] = held.sum(axis=1)
    asked_R = size_R > 0
    return float((held_R[asked_R] / size_R[asked_R]).mean()) if asked_R.any() else float("nan")
