"""What the tokens of a batch share: each item, each event type and each pair of the two once.

Histories repeat, and users listen to the same items, so a batch of thousands of tokens has far fewer distinct items.
Everything that is looked up, sent or summed for an item is then looked up, sent and summed once.

n tokens · d distinct items · k distinct event types · p distinct pairs of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distinct:
    """Tokens as places in lists without repetition.

    Attributes:
        items_d: the items in order of first appearance, in the dtype of the store.
        event_types_k: the event types, ascending.
        item_of_n: place of a token's item in `items_d`.
        item_of_p, event_type_of_p: what a pair is, as places in the lists above; by item, then by event type.
        pair_of_n: which pair a token is.
    """

    items_d: np.ndarray
    event_types_k: np.ndarray
    item_of_n: np.ndarray
    item_of_p: np.ndarray
    event_type_of_p: np.ndarray
    pair_of_n: np.ndarray


def take_distinct(items_n: np.ndarray, event_types_n: np.ndarray) -> Distinct:
    """Each item, event type and pair once."""
    items_d, item_of_n = in_order_of_appearance(items_n)
    event_types_k, event_type_of_n = _ascending(event_types_n)
    kinds = max(len(event_types_k), 1)
    if kinds == 1:
        own_d = np.arange(len(items_d))
        return Distinct(items_d, event_types_k, item_of_n, own_d, np.zeros_like(own_d), item_of_n)
    pairs_p, pair_of_n = _ascending(item_of_n * kinds + event_type_of_n)
    item_of_p = pairs_p // kinds
    return Distinct(items_d, event_types_k, item_of_n, item_of_p, pairs_p - kinds * item_of_p, pair_of_n)


def keep_all(items_n: np.ndarray, event_types_n: np.ndarray) -> Distinct:
    """Every token for itself: the oracle of `take_distinct`."""
    own_n = np.arange(len(items_n))
    return Distinct(items_n, event_types_n, own_n, own_n, own_n, own_n)


def in_order_of_appearance(numbers_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct numbers below 2^32 as they first come, and the place of each number among them, int64.

    A hash table for all numbers at once: each writes its position into the slot that its hash names, from the last to
    the first, so that the first of a slot stays; a number that reads there the position of its like has found where
    that first came. Those whose slot another number took (a few in a hundred) go round again with another hash; each
    round settles at least one number of each slot. Sorting takes three times as long.
    """
    positions_n = np.arange(len(numbers_n), dtype=np.int32)
    first_n = np.empty_like(positions_n)
    bits = max(int(4 * len(numbers_n)).bit_length(), 1)
    table = np.empty(2**bits, dtype=np.int32)  # no slot is read that was not written in the same round
    left_m, numbers_m, factor = positions_n, numbers_n.astype(np.uint32, copy=False), 0x9E3779B1
    while len(left_m):
        slots_m = ((numbers_m * np.uint32(factor)) >> np.uint32(32 - bits)).astype(np.intp)
        table[slots_m[::-1]] = left_m[::-1]
        first_n[left_m] = found_m = table[slots_m]
        others = np.flatnonzero(numbers_n[found_m] != numbers_m)
        left_m, numbers_m = left_m[others], numbers_m[others]
        factor = (factor * 0x85EBCA6B + 2) % 2**32  # odd again
    heads = np.flatnonzero(first_n == positions_n)
    place_n = np.empty(len(numbers_n), dtype=np.int64)
    place_n[heads] = np.arange(len(heads))
    return numbers_n[heads], place_n[first_n]


def followed_by(items_d: np.ndarray, numbers_m: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct items, with those numbers behind them that are not among them, each once and as they first come.

    Args:
        items_d: distinct numbers below `limit`, in the order that they keep.
        numbers_m: more numbers below `limit`.

    Returns:
        The longer list, and the place in it of each of `numbers_m`, int64.
    """
    if limit > _TABLE_FACTOR * len(numbers_m):
        longer, places = in_order_of_appearance(np.concatenate([items_d, numbers_m]))
        return longer, places[len(items_d) :]
    # Few different numbers, as where negatives are drawn for each target: a table of all that there can be.
    place_N = np.full(limit, -1, dtype=np.int32)
    place_N[numbers_m[::-1]] = np.arange(len(numbers_m) - 1, -1, -1, dtype=np.int32)
    place_N[items_d] = -1
    others = np.flatnonzero(place_N >= 0)
    others = others[np.argsort(place_N[others])]
    place_N[items_d] = np.arange(len(items_d))
    place_N[others] = len(items_d) + np.arange(len(others))
    return np.concatenate([items_d, others.astype(items_d.dtype)]), place_N[numbers_m].astype(np.int64)


_TABLE_FACTOR = 4
"""A table of the catalogue is faster than hashing up to about so many items a number."""


def _ascending(numbers_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct numbers, ascending, and the place of each number among them; by a table as long as the largest."""
    table = np.bincount(numbers_n)
    found = np.flatnonzero(table)
    table[found] = np.arange(len(found))
    return found, table[numbers_n]
