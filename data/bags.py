"""Rows of a batch → bags of ids in one KeyedJaggedTensor.

A row is what some tokens are made of: an item or none, and an event type, or any other number of what was done, or
none. Every feature has a bag an item, or an event type, that rows have, and an empty one, and each row names its bags.
A row without an item may be of one artist: the artist features have the artist sets of the items and, behind them, of
single artists.

P rows · F features · d items · a single artists · s = d + a artist sets · k event types · C code levels · V codes per
level · A artists · R remainders · p ≤ P.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from data.item_records import ARTIST, ARTISTS, CODES, ItemFeatures, ItemRecords, artist_table_rows
from data.ranges import positions_of

FEATURE_KEYS = ("rq", "artist_quotient", "artist_remainder", "event_type")
ITEM_KEY = "item"


@dataclass(frozen=True)
class Rows:
    """What the rows of a batch are made of.

    Attributes:
        items_d: dense indices.
        event_types_k: table rows of the feature `event_type`.
        item_rows_P: int64, place of a row's item in `items_d`; d where it has none.
        event_type_of_p: int64, place of its event type in `event_types_k`; k where it has none, as no row behind
            the p has.
        artists_a: dense indices of artists that rows have without an item; None where no row has.
        artist_rows_P: int64, place of a row's item, or, behind the d, of its artist in `artists_a`; d + a where it has
            neither. None where that is `item_rows_P`, as no row has an artist alone.
    """

    items_d: np.ndarray
    event_types_k: np.ndarray
    item_rows_P: torch.Tensor
    event_type_of_p: np.ndarray
    artists_a: np.ndarray | None = None
    artist_rows_P: torch.Tensor | None = None


class BagMaker:
    """Writes the bags of rows.

    Args:
        features: codes and artists of the store's items.
        distinct: one bag for each of `Rows.items_d`, `artists_a` and `event_types_k`, and an empty one, which rows
            share; False: a bag a row, for which each of these must hold one of each row that has one, in their order.
    """

    def __init__(self, features: ItemFeatures, *, distinct: bool) -> None:
        """Lay out the records of every item."""
        self.distinct = distinct
        self._level_ids_C = np.arange(features.codes_NC.shape[1]) * features.codes_per_level
        self._remainders = features.qr_remainders
        # An unknown artist is an id of its own among the quotients, the table's last row, and no remainder.
        self._unknown_artist = self._remainders * (artist_table_rows(features.num_artists, self._remainders)[0] - 1)
        self._items = ItemRecords(features, self._unknown_artist)
        self._keys_N = None if features.keys_N is None else features.keys_N.numpy()

    @property
    def levels(self) -> int:
        """C."""
        return len(self._level_ids_C)

    def records(self, items_n: np.ndarray) -> np.ndarray:
        """What is known of some items, [n] (`ItemRecords`)."""
        return self._items.of(items_n)

    def item_ids(self, items_d: np.ndarray) -> KeyedJaggedTensor:
        """Items as a table of plain items knows them, as one bag of stride 1."""
        ids_d = items_d if self._keys_N is None else self._keys_N[items_d]
        return KeyedJaggedTensor(
            keys=[ITEM_KEY],
            values=torch.from_numpy(ids_d.astype(np.int64)),
            lengths=torch.tensor([len(ids_d)]),
            stride=1,
        )

    def features(self, rows: Rows, records_d: np.ndarray, codes_dC: np.ndarray) -> KeyedJaggedTensor:
        """The bags of some rows, with FEATURE_KEYS; see `data.batches.Batch`.

        Args:
            rows: whose.
            records_d: of `rows.items_d`.
            codes_dC: int64, theirs.
        """
        items, event_types = len(rows.items_d), len(rows.event_types_k)
        artists, lengths_s, known_s = self._artist_sets(rows, records_d)
        quotients, remainders = artists // self._remainders, artists[artists != self._unknown_artist] % self._remainders
        strides = [items + 1] + [len(lengths_s) + 1] * 2 + [event_types + 1]
        # Where items, artist sets and event types have their bags among all of a feature.
        item_bags: slice | np.ndarray = slice(items)
        set_bags: slice | np.ndarray = slice(len(lengths_s))
        event_type_bags: slice | np.ndarray = slice(event_types)
        if not self.distinct:
            strides = [len(rows.item_rows_P)] * len(FEATURE_KEYS)
            item_bags, set_bags, event_type_bags = _own_bags(rows)
        lengths = np.zeros(sum(strides), dtype=np.int64)
        of_features = np.split(lengths, np.cumsum(strides)[:-1])
        of_features[0][item_bags] = self.levels
        of_features[1][set_bags], of_features[2][set_bags] = lengths_s, known_s
        of_features[3][event_type_bags] = 1
        # Written in place: fresh memory, which the system must first find and clear, is what a large batch waits for.
        ends = np.cumsum([self.levels * items, len(quotients), len(remainders), event_types]).tolist()
        values = torch.empty(ends[-1], dtype=torch.int64)
        np.add(codes_dC, self._level_ids_C, out=values.numpy()[: ends[0]].reshape(items, self.levels))
        for begin, end, ids in zip(ends, ends[1:], (quotients, remainders, rows.event_types_k), strict=False):
            values.numpy()[begin:end] = ids
        keys, lengths_of_all = list(FEATURE_KEYS), torch.from_numpy(lengths)
        if not self.distinct:
            return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths_of_all, stride=strides[0])
        event_type_rows_P = padded(rows.event_type_of_p, len(rows.item_rows_P), event_types)
        artist_rows_P = rows.item_rows_P if rows.artist_rows_P is None else rows.artist_rows_P
        return KeyedJaggedTensor(
            keys=keys,
            values=values,
            lengths=lengths_of_all,
            stride_per_key_per_rank=[[stride] for stride in strides],
            inverse_indices=(keys, torch.stack([rows.item_rows_P, artist_rows_P, artist_rows_P, event_type_rows_P])),
        )

    def _artist_sets(self, rows: Rows, records_d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Artists, set after set in the order of their bags; how many each set has, and how many are known, [s]."""
        artists = self._items.artists(rows.items_d, records_d)
        lengths_s = records_d[ARTISTS]
        known_s = lengths_s - (records_d[ARTIST] == self._unknown_artist)
        if rows.artists_a is None:
            return artists, lengths_s, known_s
        artists = np.concatenate([artists, rows.artists_a.astype(artists.dtype)])
        one_a = np.ones(len(rows.artists_a), dtype=lengths_s.dtype)
        lengths_s, known_s = np.concatenate([lengths_s, one_a]), np.concatenate([known_s, one_a])
        if self.distinct:
            return artists, lengths_s, known_s
        # By rows, among which items and single artists come as they like.
        order = np.argsort(_own_bags(rows)[1])
        starts_s = np.cumsum(lengths_s, dtype=np.int64) - lengths_s
        artists = artists[positions_of(starts_s[order], lengths_s[order])]
        return artists, lengths_s, known_s


def _own_bags(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a bag a row is that of an item, of an artist set and of an event type, in the order of these."""
    items, item_rows_P = len(rows.items_d), rows.item_rows_P.numpy()
    item_bags = set_bags = np.flatnonzero(item_rows_P < items)
    if rows.artists_a is not None and rows.artist_rows_P is not None:
        artist_rows_P = rows.artist_rows_P.numpy()
        single_P = (artist_rows_P >= items) & (artist_rows_P < items + len(rows.artists_a))
        set_bags = np.concatenate([item_bags, np.flatnonzero(single_P)])
    return item_bags, set_bags, np.flatnonzero(rows.event_type_of_p < len(rows.event_types_k))


def codes_of(records_d: np.ndarray) -> np.ndarray:
    """Codes of items, int64 [d, C]."""
    codes_dC: np.ndarray = records_d[CODES].astype(np.int64)
    return codes_dC


def padded(values_n: np.ndarray, tokens: int, padding: int) -> torch.Tensor:
    """A column of a batch, int64 [tokens], with `padding` behind the values."""
    padded_L = np.empty(tokens, dtype=np.int64)
    padded_L[: len(values_n)] = values_n
    padded_L[len(values_n) :] = padding
    return torch.from_numpy(padded_L)
