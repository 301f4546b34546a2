"""The series of an event store opened for reading, and the rules that they are held to.

Shapes: U users · S entries · V values · G series · A artists.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from data import schema
from data.column_files import open_column, read_block
from data.leakage import user_blocks
from data.manifest import Manifest
from data.parquet_io import damage_told, open_parquet
from data.series.values import NO_ARTIST

_BLOCK_ENTRIES = 2**21


@dataclass(frozen=True)
class SeriesColumns:
    """A jagged table, one row a user; entries and offsets are mapped from their files.

    Attributes:
        offsets: int64 [U + 1], where each user's entries begin and end.
        timestamps: uint32 [S], the second from which on the value holds; a user's entries strictly ascend by time,
            those of one instant by series.
        values: uint32 [S], below V.
        names: of the series [G].
        series_V: int64 [V], the series that each value is of.
        artists_V: int64 [V], the dense artist that a value is, NO_ARTIST where it is none.
        texts: string [V].
    """

    offsets: np.ndarray
    timestamps: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    series_V: np.ndarray
    artists_V: np.ndarray
    texts: pa.Array

    @property
    def num_values(self) -> int:
        """V, over all series."""
        return len(self.series_V)

    @property
    def num_series(self) -> int:
        """G."""
        return len(self.names)

    def told(self, value: int) -> str:
        """A value in words, for messages: `gender: F`."""
        return f"{self.names[int(self.series_V[value])]}: {self.texts[value].as_py()}"


def num_values(manifest: Manifest) -> int:
    """V, as the manifest says."""
    return sum(series["values"] for series in manifest.series.values())


def open_series(folder: Path, manifest: Manifest) -> SeriesColumns:
    """Map the entries and read the values.

    Raises:
        InputError: a file is absent or damaged, or of another dtype or size than the manifest says.
    """
    path = folder / schema.SERIES_FILE
    with damage_told(path):
        table = open_parquet(path).read()
    entries = manifest.counts[schema.SERIES_ENTRIES]
    counts = [series["values"] for series in manifest.series.values()]
    times, values = (
        open_column(folder / schema.series_file(name), dtype, entries) for name, dtype in schema.SERIES_COLUMNS.items()
    )
    return SeriesColumns(
        offsets=open_column(
            folder / schema.series_file(schema.OFFSETS), np.dtype(np.int64), manifest.counts["users"] + 1
        ),
        timestamps=times,
        values=values,
        names=tuple(manifest.series),
        series_V=np.repeat(np.arange(len(counts)), counts),
        artists_V=table.column(schema.ARTIST).cast(pa.int64()).fill_null(NO_ARTIST).to_numpy(),
        texts=pa.concat_arrays([pa.array([], type=pa.string()), *table.column(schema.VALUE).chunks]),
    )


def series_faults(folder: Path, manifest: Manifest) -> list[str]:
    """Hold values and entries to the rules of data/schema.py, a block of users at a time; the first of each kind."""
    try:
        series = open_series(folder, manifest)
        faults = _value_faults(folder / schema.SERIES_FILE, series, manifest.counts["artists"])
    except InputError as error:
        return list(error.faults)
    offsets, entries = series.offsets, len(series.timestamps)
    if offsets[0] != 0 or offsets[-1] != entries or (np.diff(offsets) < 0).any():
        path = folder / schema.series_file(schema.OFFSETS)
        return [*faults, f"{path}: must rise from 0 to the {entries} entries of the store; prepare the store again"]
    for first, last in user_blocks(offsets, _BLOCK_ENTRIES):
        found = _entry_faults(folder, series, first, last)
        if found:
            return faults + found
    return faults


def _value_faults(path: Path, series: SeriesColumns, num_artists: int) -> list[str]:
    faults = []
    with damage_told(path):
        names = open_parquet(path).read(columns=[schema.SERIES]).column(schema.SERIES)
    expected = pa.array(series.names, type=pa.string()).take(pa.array(series.series_V))
    other = ~pc.equal(names, expected).to_numpy(zero_copy_only=False).astype(bool)
    if other.any():
        row = int(np.argmax(other))
        faults.append(
            f"{path}: row {row}: `series` is {names[row]}, but by the manifest's counts it must be {expected[row]}; "
            "prepare the store again"
        )
    beyond = series.artists_V >= num_artists
    if beyond.any():
        row = int(np.argmax(beyond))
        faults.append(
            f"{path}: row {row}: `artist` is {series.artists_V[row]}; artists are numbered below {num_artists}; "
            "prepare the store again"
        )
    return faults


def _entry_faults(folder: Path, series: SeriesColumns, first: int, last: int) -> list[str]:
    """The first entry of users [first, last) that breaks each rule."""
    begin, end = int(series.offsets[first]), int(series.offsets[last])
    # Read, not mapped: the pages of a mapped file count as this process's memory.
    times, values = (
        read_block(folder / schema.series_file(name), dtype, begin, end - begin)
        for name, dtype in schema.SERIES_COLUMNS.items()
    )
    beyond = values >= series.num_values
    series_s = series.series_V[np.where(beyond, 0, values)] if series.num_values else np.zeros(len(values), np.int64)
    follows = np.ones(len(times), dtype=bool)
    starts = series.offsets[first:last] - begin
    follows[starts[starts < len(follows)]] = False  # a user's first entry
    falls = np.zeros(len(times), dtype=bool)
    falls[1:] = (times[1:] < times[:-1]) | ((times[1:] == times[:-1]) & (series_s[1:] <= series_s[:-1]))
    rules = [
        (schema.VALUE, beyond, values, f"values are numbered below {series.num_values}"),
        (
            schema.TIMESTAMP,
            falls & follows,
            times,
            "a user's entries must ascend by time, those of one second by series",
        ),
    ]
    faults = []
    for name, broken, column, rule in rules:
        if broken.any():
            entry = int(np.argmax(broken))
            user = int(np.searchsorted(series.offsets, begin + entry, side="right")) - 1
            faults.append(
                f"{folder / schema.series_file(name)}: user {user}, entry {begin + entry - int(series.offsets[user])}: "
                f"`{name}` is {column[entry]}; {rule}; prepare the store again"
            )
    return faults
