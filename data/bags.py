"""Rows of a batch → bags of ids in one KeyedJaggedTensor.

A row is what some tokens are made of: an item or none, and an event type, or any other number of what was done, or
none. Every feature has a bag an item, or an event type, that rows have, and an empty one, and each row names its bags.

P rows · F features · d items · k event types · C code levels · V codes per level · A artists · R remainders · p ≤ P.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from data.item_records import ARTIST, ARTISTS, CODES, ItemFeatures, ItemRecords, artist_table_rows

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
    """

    items_d: np.ndarray
    event_types_k: np.ndarray
    item_rows_P: torch.Tensor
    event_type_of_p: np.ndarray


class BagMaker:
    """Writes the bags of rows.

    Args:
        features: codes and artists of the store's items.
        distinct: one bag for each of `Rows.items_d` and of `event_types_k`, and an empty one, which rows share; False:
            a bag a row, for which `items_d` and `event_types_k` must hold one of each row that has one, in their order.
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
        artists = self._items.artists(rows.items_d, records_d)
        counts_d, nobody_d = records_d[ARTISTS], records_d[ARTIST] == self._unknown_artist
        quotients, remainders = artists // self._remainders, artists[artists != self._unknown_artist] % self._remainders
        strides = [items + 1] * 3 + [event_types + 1] if self.distinct else [len(rows.item_rows_P)] * len(FEATURE_KEYS)
        # Where items and event types have their bags among all of a feature.
        item_bags: slice | np.ndarray = slice(items)
        event_type_bags: slice | np.ndarray = slice(event_types)
        if not self.distinct:
            item_bags = np.flatnonzero(rows.item_rows_P.numpy() < items)
            event_type_bags = np.flatnonzero(rows.event_type_of_p < event_types)
        lengths = np.zeros(sum(strides), dtype=np.int64)
        of_items = lengths[: 3 * strides[0]].reshape(3, -1)
        for of_feature, lengths_d in zip(of_items, (self.levels, counts_d, counts_d - nobody_d), strict=True):
            of_feature[item_bags] = lengths_d
        lengths[3 * strides[0] :][event_type_bags] = 1
        # Written in place: fresh memory, which the system must first find and clear, is what a large batch waits for.
        ends = np.cumsum([self.levels * items, len(quotients), len(remainders), event_types]).tolist()
        values = torch.empty(ends[-1], dtype=torch.int64)
        np.add(codes_dC, self._level_ids_C, out=values.numpy()[: ends[0]].reshape(items, self.levels))
        for begin, end, ids in zip(ends, ends[1:], (quotients, remainders, rows.event_types_k), strict=False):
            values.numpy()[begin:end] = ids
        keys, lengths_of_bags = list(FEATURE_KEYS), torch.from_numpy(lengths)
        if not self.distinct:
            return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths_of_bags, stride=strides[0])
        event_type_rows_P = padded(rows.event_type_of_p, len(rows.item_rows_P), event_types)
        return KeyedJaggedTensor(
            keys=keys,
            values=values,
            lengths=lengths_of_bags,
            stride_per_key_per_rank=[[stride] for stride in strides],
            inverse_indices=(keys, torch.stack([rows.item_rows_P] * 3 + [event_type_rows_P])),
        )


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
