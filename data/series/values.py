"""Which values the series have, numbered together: by the name of the series, then by value.

Shapes: G series · V values · n rows of a block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data import schema

NO_ARTIST = -1
"""In place of a dense artist index."""


@dataclass(frozen=True)
class SeriesValues:
    """The values of some series.

    Attributes:
        names: of the series [G], ascending.
        series_V: int64 [V], the series of each value, ascending.
        texts: string [V], each once within a series.
    """

    names: tuple[str, ...]
    series_V: np.ndarray
    texts: pa.Array

    def __post_init__(self) -> None:
        """Check what numbering relies on."""
        assert list(self.names) == sorted(set(self.names))
        assert len(self.series_V) == len(self.texts)
        assert (np.diff(self.series_V) >= 0).all()


class ValueNumbers:
    """Numbers pairs of series and value as they first come, and knows their final order when all have come.

    Takes about 200 bytes for each pair that occurs.

    Attributes:
        series: names of the series so far.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._codes: dict[tuple[str, str], int] = {}
        self.series: set[str] = set()

    def __len__(self) -> int:
        """V so far, over all series."""
        return len(self._codes)

    @property
    def largest(self) -> tuple[str, int]:
        """The series of most values so far, and how many."""
        return Counter(name for name, _ in self._codes).most_common(1)[0]

    def add(self, series: pa.Array, values: pa.Array) -> np.ndarray:
        """Provisional numbers, uint32 [n], of pairs of strings without nulls."""
        names, texts = series.dictionary_encode(), values.dictionary_encode()
        width = max(len(texts.dictionary), 1)
        pairs_n = names.indices.to_numpy().astype(np.int64) * width + texts.indices.to_numpy()
        distinct, place_n = np.unique(pairs_n, return_inverse=True)
        self.series.update(names.dictionary.to_pylist())
        name_list, text_list = names.dictionary.to_pylist(), texts.dictionary.to_pylist()
        found = [(name_list[pair // width], text_list[pair % width]) for pair in distinct.tolist()]
        codes = [self._codes.setdefault(pair, len(self._codes)) for pair in found]
        numbers: np.ndarray = np.array(codes, dtype=np.uint32)[place_n]
        return numbers

    def seal(self) -> tuple[SeriesValues, np.ndarray]:
        """All values by series and text, and the final number, uint32, of each provisional one."""
        ordered = sorted(self._codes)
        names = tuple(sorted(self.series))
        numbers = np.zeros(len(ordered), dtype=np.uint32)
        numbers[[self._codes[pair] for pair in ordered]] = np.arange(len(ordered), dtype=np.uint32)
        place = {name: index for index, name in enumerate(names)}
        series_V = np.array([place[name] for name, _ in ordered], dtype=np.int64)
        return SeriesValues(names, series_V, pa.array([text for _, text in ordered], type=pa.string())), numbers


class Numbering:
    """Given values and all artists, as candidates in their final order; those that occur are numbered at the end.

    Attributes:
        names: of all series, ascending.
        series_P: int64, the series of each candidate.
    """

    def __init__(self, given: SeriesValues, artists_as: str | None, num_artists: int) -> None:
        """Place the artists, if they are values of a series, where the name `artists_as` belongs."""
        assert artists_as not in given.names
        self._given, self._artists = given, num_artists if artists_as is not None else 0
        self.names = tuple(sorted({*given.names, *([artists_as] if artists_as is not None else [])}))
        own_V = np.array([self.names.index(name) for name in given.names], dtype=np.int64)[given.series_V]
        index = self.names.index(artists_as) if artists_as is not None else len(self.names)
        self._first = int(np.searchsorted(own_V, index))
        self.series_P = np.insert(own_V, self._first, np.full(self._artists, index))
        assert len(self.series_P) < 2**32
        self._seen_P = np.zeros(len(self.series_P), dtype=bool)

    def of_given(self, values: np.ndarray) -> np.ndarray:
        """Candidates, int64 [n], that given values are."""
        return values.astype(np.int64) + self._artists * (values >= self._first)

    def of_artists(self, artists: np.ndarray) -> np.ndarray:
        """Candidates, int64 [n], that dense artist indices are."""
        return artists.astype(np.int64) + self._first

    def note(self, candidates: np.ndarray) -> None:
        """These occur."""
        self._seen_P[candidates] = True

    def final(self) -> np.ndarray:
        """The number, uint32, of each candidate; meaningless where it does not occur."""
        numbers: np.ndarray = (np.cumsum(self._seen_P) - 1).astype(np.uint32)
        return numbers

    def counts(self) -> dict[str, int]:
        """How many values of each series occur."""
        counts = np.bincount(self.series_P[self._seen_P], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def table(self, artist_ids: pa.Array) -> pa.Table:
        """`series.parquet`: what occurs, by number."""
        seen = np.flatnonzero(self._seen_P)
        artist_n = seen - self._first
        is_artist_n = (artist_n >= 0) & (artist_n < self._artists)
        given_n = np.where(seen < self._first, seen, seen - self._artists)
        texts = pa.concat_arrays([self._given.texts, artist_ids])
        places_n = np.where(is_artist_n, len(self._given.texts) + artist_n, given_n)
        columns = [
            pa.array(self.names, type=pa.string()).take(pa.array(self.series_P[seen])),
            texts.take(pa.array(places_n)),
            pa.array(artist_n, type=pa.int64(), mask=~is_artist_n).cast(pa.uint32()),
        ]
        return pa.table(columns, schema=schema.series_schema())


NOTHING = SeriesValues((), np.zeros(0, dtype=np.int64), pa.array([], type=pa.string()))
"""Where a source gives no series."""
