"""What a batch looks up of an item, side by side: one place in memory a token, where separate tables would be four.

The catalogue is far larger than the processor's cache, so a random look-up costs a wait for memory; a record of 24
bytes (8 code levels) mostly costs one.

n tokens · N items of the catalogue · C code levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data.ranges import positions_of

if TYPE_CHECKING:
    from data.batches import ItemFeatures

CODES, ARTIST, ARTISTS, KNOWN = "codes", "artist", "artists", "known"


class ItemRecords:
    """Codes and first artist of every item.

    Fields of a record: `codes` [C]; `artist`, the first artist or `unknown_artist`; `artists`, how many, at least 1, as
    an item without artists is given the unknown one; `known`, whether the item has codes.

    Args:
        features: what is known of the items.
        unknown_artist: an artist index that no item has.
    """

    def __init__(self, features: ItemFeatures, unknown_artist: int) -> None:
        """Lay the records out."""
        codes_NC = features.codes_NC.numpy()
        self._values, self._starts_N = features.artist_values.numpy(), features.artist_offsets.numpy()
        lengths_N = np.diff(self._starts_N)
        assert unknown_artist < 2**31
        assert lengths_N.max(initial=0) < 2**16, "an item has more artists than 16 bits can count"
        fields = [(CODES, codes_NC.dtype, codes_NC.shape[1:]), (ARTIST, "i4"), (ARTISTS, "u2"), (KNOWN, "?")]
        self.dtype = np.dtype(fields, align=True)
        records_N = np.zeros(len(codes_NC), dtype=self.dtype)
        records_N[CODES], records_N[KNOWN] = codes_NC, codes_NC.any(axis=1)
        records_N[ARTISTS] = np.maximum(lengths_N, 1)
        records_N[ARTIST] = unknown_artist
        has_artist = np.flatnonzero(lengths_N)
        records_N[ARTIST][has_artist] = self._values[self._starts_N[:-1][has_artist]]
        self._bytes = records_N.view(np.uint8).reshape(len(codes_NC), self.dtype.itemsize)

    def of(self, items_n: np.ndarray) -> np.ndarray:
        """The records [n] of some items."""
        taken: np.ndarray = np.take(self._bytes, items_n, axis=0)  # by bytes: NumPy would copy structures by fields
        return taken.view(self.dtype).reshape(-1)

    def artists(self, items_n: np.ndarray, records_n: np.ndarray) -> np.ndarray:
        """Every artist of every item, end to end: as many as the records' `artists` say."""
        counts_n = records_n[ARTISTS]
        several = np.flatnonzero(counts_n > 1)
        if not len(several):
            return np.ascontiguousarray(records_n[ARTIST])
        artists = np.repeat(records_n[ARTIST], counts_n)
        counts = counts_n[several].astype(np.int64)
        places = positions_of(several + np.cumsum(counts - 1) - (counts - 1), counts)
        artists[places] = self._values[positions_of(self._starts_N[items_n[several]], counts)]
        return artists
