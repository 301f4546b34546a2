"""What tokens of items and actions share: each item, each action and each pair of the two once.

As in `data.distinct`, but a token may lack either: an item whose action is hidden, an action that stands alone, or a
value of a slow series, which is numbered behind the actions and may be an artist.

r tokens, and candidates that are none · d distinct items · k distinct actions · p distinct pairs · a single artists ·
P rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from data.bags import Rows, padded
from data.distinct import in_order_of_appearance

NONE = -1
_HASHED_BELOW = 2**32
"""What `in_order_of_appearance` can tell apart; many values of series beside many items make more pairs."""


@dataclass(frozen=True)
class PlacedRows:
    """Rows, and which of them each token is.

    Attributes:
        rows: the last of them is empty, but where all rows of the plain way are used up.
        row_of_r: int64.
    """

    rows: Rows
    row_of_r: np.ndarray


def distinct_rows(items_r: np.ndarray, actions_r: np.ndarray) -> PlacedRows:
    """One row for each pair that there is, in order of first appearance, and the empty one.

    Args:
        items_r: int64, NONE where a token has no item.
        actions_r: int64, NONE where it has no action.
    """
    items_d, item_of_r = _places(items_r)
    actions_k, action_of_r = _places(actions_r)
    sizes = len(items_d) + 1, len(actions_k) + 1
    numbered = in_order_of_appearance if sizes[0] * sizes[1] <= _HASHED_BELOW else _by_sorting
    pairs_p, row_of_r = numbered(item_of_r * sizes[1] + action_of_r)
    item_of_p = pairs_p // sizes[1]
    action_of_p = pairs_p - sizes[1] * item_of_p
    count = len(pairs_p) + 1
    rows = Rows(items_d, actions_k, padded(item_of_p, count, len(items_d)), action_of_p)
    return PlacedRows(rows, row_of_r)


def _by_sorting(numbers_r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `in_order_of_appearance` gives, of numbers of any size; three times as slow."""
    found, first, place_r = np.unique(numbers_r, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return found[order], rank[place_r]


def plain_rows(items_r: np.ndarray, actions_r: np.ndarray, row_of_r: np.ndarray, count: int) -> PlacedRows:
    """A row of its own for each token: the oracle of `distinct_rows`.

    Args:
        items_r, actions_r: as above.
        row_of_r: where the tokens' rows are to lie, ascending.
        count: P; the rows between are empty.
    """

    def own(numbers_r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = np.flatnonzero(numbers_r != NONE)
        places_P = np.full(count, len(given), dtype=np.int64)
        places_P[row_of_r[given]] = np.arange(len(given))
        return numbers_r[given], places_P

    (items_d, item_rows_P), (actions_k, action_rows_P) = own(items_r), own(actions_r)
    rows = Rows(items_d, actions_k, torch.from_numpy(item_rows_P), action_rows_P)
    return PlacedRows(rows, row_of_r)


def with_artists(placed: PlacedRows, artist_k: np.ndarray, *, distinct: bool) -> PlacedRows:
    """The same rows, of which those are also of an artist whose action says so.

    Args:
        artist_k: int64, the dense artist that each of the rows' `event_types_k` is; NONE where it is none.
        distinct: whether each artist is there once, or once a row that has it.
    """
    rows = placed.rows
    artist_p = np.append(artist_k, NONE)[rows.event_type_of_p]
    given = np.flatnonzero(artist_p != NONE)
    if not len(given):
        return placed
    artists_a, place = artist_p[given], np.arange(len(given))
    if distinct:
        artists_a, place = np.unique(artists_a, return_inverse=True)
    items, artist_rows_P = len(rows.items_d), rows.item_rows_P.numpy().copy()
    assert (artist_rows_P[given] == items).all(), "a value of a series has no item"
    artist_rows_P[artist_rows_P == items] = items + len(artists_a)
    artist_rows_P[given] = items + place
    rows = dataclasses.replace(rows, artists_a=artists_a, artist_rows_P=torch.from_numpy(artist_rows_P))
    return PlacedRows(rows, placed.row_of_r)


def _places(numbers_r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct numbers that are given, and the place of each among them; one past the end where none is."""
    given = np.flatnonzero(numbers_r != NONE)
    distinct_d, place = in_order_of_appearance(numbers_r[given])
    places_r = np.full(len(numbers_r), len(distinct_d), dtype=np.int64)
    places_r[given] = place
    return distinct_d, places_r
