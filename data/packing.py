"""Whole windows into bins of a fixed number of tokens, and bins of one step made alike in attention work.

A bin is a rank's share of a step, or part of it. All ranks wait for the one with the most attention work, Σ n² over its
windows, so a step's windows are dealt to its bins with equal work in mind.

W windows · n length of a window.
"""

from __future__ import annotations

import heapq

import numpy as np

_SPARE = 200
"""One part in so many of a bin is left free."""

_FEW_BINS = 1.01
"""At most so many times the bins may be needed for it."""


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Bin of each length, best fit: the fullest bin that still has room (of several, the last used), else a new one.

    Which free capacities some bin has is kept as bits, 64 of them a word, and which words are not 0 as bits of one more
    integer: a window costs a few shifts, not a search through the bins.
    """
    bins_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # free capacity → bins
    words = [0] * (capacity // 64 + 1)  # bit c % 64 of word c // 64 is set where bins_with[c] is not empty
    used = 0  # bit w is set where words[w] is not 0
    result = []
    opened = 0
    for length in lengths.tolist():
        word, bit = divmod(length, 64)
        fitting = words[word] >> bit
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
        elif larger := used >> (word + 1):
            word += (larger & -larger).bit_length()
            room = 64 * word + (words[word] & -words[word]).bit_length() - 1
        else:
            room = capacity
        if bins := bins_with[room]:
            chosen = bins.pop()
            if not bins:
                words[word] &= ~(1 << room % 64)
                if not words[word]:
                    used &= ~(1 << word)
        else:
            chosen = opened
            opened += 1
        result.append(chosen)
        left = room - length
        if left:
            bins_with[left].append(chosen)
            words[left // 64] |= 1 << left % 64
            used |= 1 << left // 64
    return np.array(result, dtype=np.int64)


def pack_with_room(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """`pack`, with a little of each bin left free where that costs few bins.

    Bins filled to the last token can hardly be dealt anew: on the published lengths of Yambda, cut at 8,192, the most
    loaded of 8 bins of 32,768 tokens has 1.19 × the mean work when they are full, 1.009 × with 0.5% to spare.
    """
    full = pack(lengths, capacity)
    reduced = capacity - capacity // _SPARE
    if len(lengths) == 0 or int(lengths.max()) > reduced:
        return full
    roomy = pack(lengths, reduced)
    return roomy if int(roomy.max()) + 1 <= _FEW_BINS * (int(full.max()) + 1) else full


def pack_in_order(lengths: np.ndarray, capacity: int, bins: int) -> np.ndarray:
    """Bin of each length, where no window may be used in an earlier step than one before it.

    Steps of `bins` bins each are filled one after another; within a step, best fit. The first window that fits into no
    bin of the step begins the next.
    """
    result = np.empty(len(lengths), dtype=np.int64)
    step = -1
    room: list[int] = []
    for index, length in enumerate(lengths.tolist()):
        fitting = [place for place in range(len(room)) if room[place] >= length]
        if not fitting:
            step, room, fitting = step + 1, [capacity] * bins, [0]
        chosen = min(fitting, key=room.__getitem__)
        room[chosen] -= length
        result[index] = step * bins + chosen
    return result


def balance(lengths: np.ndarray, bin_of: np.ndarray, bins: int, capacity: int) -> np.ndarray:
    """Deal the windows of one step to its bins anew, so that Σ n² differs little between bins.

    Longest first, each to the bin with the least work that has room (Graham's rule, with a bound on tokens). Where the
    bins are too full for that, the given packing stands. Both are then improved by exchanges.

    Args:
        lengths: int64 [W].
        bin_of: int64 [W], a packing within `capacity`.

    Returns:
        int64 [W], a packing within `capacity`.
    """
    if bins == 1 or len(lengths) == 0:
        return bin_of
    dealt = _deal(lengths, bins, capacity)
    if dealt is None:
        dealt = bin_of.copy()
    return _exchange(lengths, dealt, bins, capacity)


def _deal(lengths: np.ndarray, bins: int, capacity: int) -> np.ndarray | None:
    """Longest first to the bin with the least work; None where one fits nowhere."""
    result = np.empty(len(lengths), dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    heap = [(0, place) for place in range(bins)]  # (work, bin)
    room = [capacity] * bins
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        passed = []
        while heap and room[heap[0][1]] < length:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        work, chosen = heapq.heappop(heap)
        room[chosen] -= length
        result[index] = chosen
        heapq.heappush(heap, (work + length * length, chosen))
        for entry in passed:
            heapq.heappush(heap, entry)
    return result


_EXCHANGES = 64
"""Tries to improve a step; each looks at all pairs of a window in the busiest bin and one elsewhere."""

_GOOD_ENOUGH = 1.02
"""Most work over mean work at which nothing more is tried."""


def _exchange(lengths: np.ndarray, bin_of: np.ndarray, bins: int, capacity: int) -> np.ndarray:
    """Swap windows of the bin with the most work for shorter ones of others, or move them, while the most falls."""
    squares = np.square(lengths.astype(np.float64))
    work = np.bincount(bin_of, weights=squares, minlength=bins)
    room = capacity - np.bincount(bin_of, weights=lengths, minlength=bins)
    everyone = np.arange(len(lengths))
    for _ in range(_EXCHANGES):
        high = int(work.argmax())
        if work[high] <= _GOOD_ENOUGH * work.mean():
            break
        mine = everyone[bin_of == high]
        # What may come back: a window of another bin, or nothing (a length of 0) from each of them.
        theirs = everyone[bin_of != high]
        places = np.concatenate([bin_of[theirs], np.delete(np.arange(bins), high)])
        come = np.concatenate([lengths[theirs], np.zeros(bins - 1, dtype=np.int64)])
        shift = lengths[mine][:, None] - come[None, :]  # tokens that leave the busiest bin
        gain = squares[mine][:, None] - np.square(come.astype(np.float64))[None, :]
        after = np.maximum(work[high] - gain, work[places][None, :] + gain)
        after[(shift > room[places][None, :]) | (-shift > room[high])] = np.inf
        row, column = divmod(int(after.argmin()), len(come))
        if after[row, column] >= work[high] * (1 - 1e-9):
            break
        other = places[column]
        bin_of[mine[row]] = other
        if column < len(theirs):
            bin_of[theirs[column]] = high
        work[[high, other]] += gain[row, column] * np.array([-1, 1])
        room[[high, other]] += shift[row, column] * np.array([1, -1])
    return bin_of
