"""What a batch looks up of an item, side by side: one place in memory a token, where separate tables would be four.

The catalogue is far larger than the processor's cache, so a random look-up costs a wait for memory; a record of 24
bytes (8 code levels) mostly costs one.

n tokens · N items of the catalogue · C code levels · V codes per level · A artists · R remainders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data.ranges import positions_of
from data.schema import QR_REMAINDERS

CODES, ARTIST, ARTISTS, KNOWN = "codes", "artist", "artists", "known"


@dataclass(frozen=True)
class ItemFeatures:
    """What a batch must know of the items.

    Attributes:
        codes_NC: int16 or int32, whichever holds V, semantic ids, each 0 … V - 1; a row of zeros is an unknown item.
        codes_per_level: V.
        artist_offsets: int64 [N + 1] into `artist_values`; an empty range is an unknown artist.
        artist_values: int32, dense artist indices below `num_artists`.
        num_artists: A.
        qr_remainders: R, the remainders of the quotient-remainder artist ids; the model's tables must have the same.
        keys_N: int64, what a hashed table knows the items by, the same in every store; None where there is no such
            table, and items are known by their dense indices.
    """

    codes_NC: torch.Tensor
    codes_per_level: int
    artist_offsets: torch.Tensor
    artist_values: torch.Tensor
    num_artists: int
    qr_remainders: int = QR_REMAINDERS
    keys_N: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes and ranges once, so that no embedding table is ever indexed outside."""
        assert self.codes_NC.dtype == code_dtype(self.codes_per_level)
        assert (self.artist_offsets.dtype, self.artist_values.dtype) == (torch.int64, torch.int32)
        assert self.codes_NC.ndim == 2
        assert self.artist_offsets.shape == (len(self.codes_NC) + 1,)
        assert self.keys_N is None or self.keys_N.shape == self.codes_NC.shape[:1]
        assert int(self.artist_offsets[-1]) == len(self.artist_values)
        for values, limit in ((self.codes_NC, self.codes_per_level), (self.artist_values, self.num_artists)):
            assert values.numel() == 0 or (int(values.min()) >= 0 and int(values.max()) < limit)


def code_dtype(codes_per_level: int) -> torch.dtype:
    """The smallest type for codes below V: every process that makes batches holds those of all items."""
    return torch.int16 if codes_per_level <= 2**15 else torch.int32


def artist_table_rows(num_artists: int, remainders: int) -> tuple[int, int]:
    """Rows of the quotient table, whose last is the unknown artist's, and of the remainder table."""
    return -(-num_artists // remainders) + 1, min(remainders, max(num_artists, 1))


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
