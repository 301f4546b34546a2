"""What all lists together show: how much of the catalogue, how rare, how evenly.

    coverage@k    share of the catalogue's N items that stand in at least one request's first k
    novelty@k     mean of −log2 p(i) over all filled places of the first k, in bits, where p(i) = (plays of i in
                  training + 1) / (all plays + N): how surprising it is that a random play is of that item. The mean
                  self-information of Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma", over plays
                  instead of users; the popularity-based novelty of Vargas & Castells 2011 without rank discount.
                  The 1 keeps an item finite that was never played.
    gini@k        Gini coefficient of how often each of the N items stands in a first k; items never shown count.
                  0: all alike; (N − 1) / N: all places show one item.

Coverage and Gini are no means over requests and grow with the number of lists, so they have no bootstrap interval:
a resample of users holds fewer distinct lists than there are.

R requests · K places kept of a list · N items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.statistics import gini
from evaluation.metrics.intervals import Ratio
from evaluation.metrics.ranking import within
from evaluation.results import Floats, Ints

LIST_DEPTHS = (10, 100)

_BLOCK_REQUESTS = 1 << 14

Items = npt.NDArray[np.int32]


def exposure(items_RK: Items, k: int, num_items: int) -> Ints:
    """In how many requests' first k each of the N items stands; −1 marks an empty place."""
    counts_N1 = np.zeros(num_items + 1, np.int64)
    for rows in row_blocks(len(items_RK)):
        counts_N1 += np.bincount(items_RK[rows, :k].ravel() + 1, minlength=num_items + 1)
    return counts_N1[1:]


def row_blocks(num_requests: int) -> list[slice]:
    """Requests to be worked on at once."""
    return [slice(first, first + _BLOCK_REQUESTS) for first in range(0, num_requests, _BLOCK_REQUESTS)]


def coverage_and_gini(items_RK: Items, num_items: int) -> dict[str, float]:
    """`coverage@k` and `gini@k` by name, for the depths that the kept places reach; 0 where nothing is shown."""
    depths = within(LIST_DEPTHS, items_RK.shape[1])
    counts = {k: exposure(items_RK, k, num_items) for k in depths}
    shares = {f"coverage@{k}": float((counts_N > 0).sum() / num_items) for k, counts_N in counts.items()}
    return shares | {f"gini@{k}": gini(counts_N) if counts_N.any() else 0.0 for k, counts_N in counts.items()}


def novelty(items_RK: Items, training_plays_N: Ints) -> dict[str, Ratio]:
    """`novelty@k` by name, in bits: over requests, the sum of what is shown by the number of places that show it.

    Args:
        training_plays_N: plays of each item in training.
    """
    depths = within(LIST_DEPTHS, items_RK.shape[1])
    bits_N1 = np.append(self_information(training_plays_N), 0.0)  # an empty place, −1, is the last
    bits_kR, filled_kR = np.empty((2, len(depths), len(items_RK)))
    for rows in row_blocks(len(items_RK)):
        bits_rK, filled_rK = bits_N1[items_RK[rows]], items_RK[rows] >= 0
        for i, k in enumerate(depths):
            bits_kR[i, rows], filled_kR[i, rows] = bits_rK[:, :k].sum(axis=1), filled_rK[:, :k].sum(axis=1)
    return {f"novelty@{k}": Ratio(bits_kR[i], filled_kR[i]) for i, k in enumerate(depths)}


def self_information(training_plays_N: Ints) -> Floats:
    """−log2 of each item's share of the plays in training, each item played once more than it was; in bits."""
    played_N = training_plays_N.astype(np.float64) + 1
    bits_N: Floats = np.log2(played_N.sum()) - np.log2(played_N)
    return bits_N
