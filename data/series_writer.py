"""The series of an event store written, a block of users at a time, when its events are there already.

Shapes: U users of a block · V values that a source gives · G series · s entries.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import InputError
from common.progress import Progress
from data import schema
from data.column_files import ColumnWriter, open_column, read_block
from data.leakage import user_blocks
from data.parquet_io import open_parquet, parquet_writer
from data.series import preferred_artist
from data.series.change_points import Entries, change_points
from data.series.values import NOTHING, Numbering, SeriesValues
from data.sources.base import Catalogue, UserSeries

_BLOCK_EVENTS = 2**21
DAY = 86_400
_WRONG_UNIT = 500
"""Times whose unit is taken for another are off by a factor of 1,000 or more; half of that leaves room."""


@dataclass(frozen=True)
class SeriesRequest:
    """Which series a store shall have.

    Attributes:
        given: those that the source tells; None where none of them is asked for.
        preferred_artist_days: length of the periods of the preferred artist; None where it is not asked for.
    """

    given: UserSeries | None = None
    preferred_artist_days: int | None = None

    def __bool__(self) -> bool:
        """Whether there shall be any."""
        return self.given is not None or self.preferred_artist_days is not None


class SeriesWriter:
    """Writes `series/` and `series.parquet`.

    Args:
        request: which series.
        catalogue: of the source, whose items the events are of.
    """

    def __init__(self, request: SeriesRequest, catalogue: Catalogue) -> None:
        """Read what the source gives; made before the events are written, so that its faults are told early.

        Raises:
            InputError: a fault in the source's series, too many of them, or no artist that could be preferred.
        """
        self._given, self._days = request.given, request.preferred_artist_days
        self._catalogue = catalogue
        faults: list[str] = []
        values: SeriesValues = NOTHING
        try:
            values = self._given.values() if self._given is not None else NOTHING
        except InputError as error:
            faults += error.faults
        if self._days is not None and not len(catalogue.artists.values):
            faults.append(
                f"`series` names {preferred_artist.NAME}, but no item of this source has an artist; leave it out, or "
                "tell the items' artists"
            )
        if self._days is not None and preferred_artist.NAME in values.names:
            faults.append(
                f"the source tells of a series {preferred_artist.NAME}, and `series` asks for the one made of the "
                "events; give the source's another name, or ask for one of them"
            )
        name = preferred_artist.NAME if self._days is not None else None
        all_names = {*values.names, *([name] if name is not None else [])}
        if len(all_names) > schema.MAX_SERIES:
            faults.append(
                f"the source tells of {len(values.names)} series, {len(all_names)} with {preferred_artist.NAME}, but a "
                f"store has at most {schema.MAX_SERIES}; give fewer, or leave {preferred_artist.NAME} out of `series`"
            )
        if faults:
            raise InputError(*faults)
        self._numbering = Numbering(values, name, len(catalogue.artists.ids))
        # Seconds of the first and the last entry of each series.
        self._first_G = np.full(len(self._numbering.names), np.iinfo(np.int64).max)
        self._last_G = np.full(len(self._numbering.names), -1)

    def write(
        self, folder: Path, users: int, time_range: tuple[int, int]
    ) -> tuple[list[str], int, dict[str, dict[str, int]]]:
        """Write the series of a store whose events stand in `folder`.

        Args:
            users: of the store.
            time_range: the log's first and last second.

        Returns:
            Names of the files, number of entries, and what the manifest says of each series.

        Raises:
            InputError: the log ends before the first period of the preferred artist does, or times of a series are of
                another unit than was said.
        """
        self._check_period(time_range)
        (folder / schema.SERIES_FOLDER).mkdir()
        written = self._write_entries(folder, users, time_range[0])
        self._check_units(time_range)
        self._renumber(folder / schema.series_file(schema.VALUE), written)
        table = self._numbering.table(self._catalogue.artists.ids)
        with parquet_writer(folder / schema.SERIES_FILE, table.schema) as writer:
            writer.write_table(table)
        files = [schema.SERIES_FILE, *map(schema.series_file, (schema.OFFSETS, *schema.SERIES_COLUMNS))]
        described = {name: {"values": count} for name, count in self._numbering.counts().items()}
        for name, first, last in self._time_ranges():
            described[name] |= {"first": first, "last": last}
        if self._days is not None:
            described[preferred_artist.NAME]["days"] = self._days
        return files, written, described

    def _time_ranges(self) -> list[tuple[str, int, int]]:
        """Each series that has entries, with the seconds of its first and its last."""
        ranges = zip(self._numbering.names, self._first_G.tolist(), self._last_G.tolist(), strict=True)
        return [(name, first, last) for name, first, last in ranges if last >= 0]

    def _check_period(self, time_range: tuple[int, int]) -> None:
        """An artist that is known only when the log is over would enter no history."""
        if self._days is not None and time_range[1] - time_range[0] < self._days * DAY:
            raise InputError(
                f"`preferred_artist_days` is {self._days}, but the log is over in "
                f"{(time_range[1] - time_range[0]) / DAY:.3g} days, before any period is; give fewer, or leave "
                f"{preferred_artist.NAME} out of `series`"
            )

    def _check_units(self, time_range: tuple[int, int]) -> None:
        """States that ended in 1970 beside a log of today; those at second 0 alone are of no time, and always held."""
        faults = [
            f"series {name} runs from {day_of(first)} to {day_of(last)}, but the log from {day_of(time_range[0])} to "
            f"{day_of(time_range[1])}; is the unit of its times right? Say it by `series_file.timestamp_unit`"
            for name, first, last in self._time_ranges()
            if name != preferred_artist.NAME and last > 0 and last * _WRONG_UNIT < time_range[0]
        ]
        if faults:
            raise InputError(*faults)

    def _write_entries(self, folder: Path, users: int, origin: int) -> int:
        """Entries with candidates for values; returns how many there are."""
        offsets = open_column(folder / schema.column_file(schema.OFFSETS), np.dtype(np.int64), users + 1)
        artist_N = preferred_artist.first_artists(self._catalogue.artists.offsets, self._catalogue.artists.values)
        user_ids = self._user_ids(folder)
        with ExitStack() as files:
            dtypes: dict[str, np.dtype[Any]] = {schema.OFFSETS: np.dtype(np.int64), **schema.SERIES_COLUMNS}
            writers = {
                name: files.enter_context(ColumnWriter(folder / schema.series_file(name), dtype))
                for name, dtype in dtypes.items()
            }
            progress = files.enter_context(Progress("series", users, "users"))
            writers[schema.OFFSETS].append(np.zeros(1, dtype=np.int64))
            for first, last in user_blocks(offsets, _BLOCK_EVENTS):
                block = _Events(folder, offsets, first, last)
                entries = change_points(
                    self._entries(block, artist_N, origin, user_ids[first:last] if user_ids is not None else None),
                    self._numbering.series_P,
                )
                self._numbering.note(entries.value_s)
                self._note_times(entries)
                ends = writers[schema.VALUE].rows + np.cumsum(np.bincount(entries.user_s, minlength=last - first))
                writers[schema.OFFSETS].append(ends.astype(np.int64))
                writers[schema.TIMESTAMP].append(entries.time_s.astype(np.uint32))
                writers[schema.VALUE].append(entries.value_s.astype(np.uint32))
                progress.advance(last - first)
            return writers[schema.VALUE].rows

    def _note_times(self, entries: Entries) -> None:
        series_s = self._numbering.series_P[entries.value_s]
        np.minimum.at(self._first_G, series_s, entries.time_s)
        np.maximum.at(self._last_G, series_s, entries.time_s)

    def _user_ids(self, folder: Path) -> pa.Array | None:
        if self._given is None:
            return None
        return open_parquet(folder / schema.USERS_FILE).read().column(schema.USER).combine_chunks()

    def _entries(self, block: _Events, artist_N: np.ndarray, origin: int, user_ids: pa.Array | None) -> Entries:
        """All that is known of a block's users, in any order."""
        parts: list[Entries] = []
        if self._given is not None and user_ids is not None:
            given = self._given.entries(user_ids, block.first_times)
            parts.append(Entries(given.user_s, given.time_s, self._numbering.of_given(given.value_s)))
        if self._days is not None:
            made = preferred_artist.preferred_artists(
                block.offsets, block.items, block.times, artist_N, origin=origin, period=self._days * DAY
            )
            parts.append(Entries(made.user_s, made.time_s, self._numbering.of_artists(made.value_s)))
        return Entries.joined(parts)

    def _renumber(self, path: Path, entries: int) -> None:
        """Candidates → numbers, in place: which of them occur is known only when all users were seen."""
        numbers, dtype = self._numbering.final(), schema.SERIES_COLUMNS[schema.VALUE]
        with path.open("r+b") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            for first in range(0, entries, _BLOCK_EVENTS):
                candidates = read_block(path, dtype, first, min(_BLOCK_EVENTS, entries - first))
                file.write(numbers[candidates].data)


def day_of(second: int) -> str:
    """A second since 1970 as a date."""
    return datetime.fromtimestamp(second, tz=UTC).date().isoformat()


class _Events:
    """The events of users [first, last), read into memory."""

    def __init__(self, folder: Path, offsets: np.ndarray, first: int, last: int) -> None:
        begin, end = int(offsets[first]), int(offsets[last])

        def read(name: str) -> np.ndarray[Any, Any]:
            # Read, not mapped: the pages of a mapped file count as this process's memory.
            path, dtype = folder / schema.column_file(name), schema.EVENT_COLUMNS[name].dtype
            return read_block(path, dtype, begin, end - begin)

        self.offsets = offsets[first : last + 1] - begin
        self.items, self.times = read(schema.ITEM), read(schema.TIMESTAMP)

    @property
    def first_times(self) -> np.ndarray:
        """The second of each user's first event, int64 [U]."""
        seconds: np.ndarray = self.times[self.offsets[:-1]].astype(np.int64)
        return seconds
