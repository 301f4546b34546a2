"""What a table's series file says of users: states that change seldom, in rows of user, time, series and value.

Rows may come in any order, and are sorted as those of the log: shared out to files on the disk by ranges of users, and
written to flat columns there, from which each block of users takes its own. Memory holds the values' texts, eight bytes
a user and what is sorted at once. Rows about users of whom the log has no event are counted and left out. A null or
empty value ends what was known: it becomes the value "unknown".

Shapes: U users of the log · n rows of a block · s entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from common.progress import Progress
from data import schema
from data.column_files import ColumnWriter, open_column
from data.ranges import positions_of
from data.series.change_points import Entries, change_points
from data.series.values import SeriesValues, ValueNumbers
from data.sources import partitions
from data.sources.partitions import Partitions
from data.sources.raw_ids import ABSENT
from data.sources.table_config import TableSeries
from data.sources.table_files import RowPlace, TableFiles
from data.sources.table_ids import Ids, id_column, is_id, plain_ids, text_faults
from data.sources.table_values import Times

_ROW = np.dtype([(partitions.USER, np.uint32), (partitions.TIME, np.int64), (schema.VALUE, np.uint32)])
_TIME_AND_VALUE: dict[str, np.dtype[Any]] = {schema.TIMESTAMP: np.dtype(np.int64), schema.VALUE: np.dtype(np.uint32)}


class SeriesReader:
    """Reads the file; implements `data.sources.base.UserSeries` once the log's users are known.

    Attributes:
        files: what is read, where there are no faults.
        ignored: rows about users of whom the log has no event.
    """

    def __init__(
        self,
        config: TableSeries,
        timestamp_unit: str,
        separator: str | None,
        users: Ids,
        scratch: Path,
        faults: list[str],
    ) -> None:
        """Check the file's columns; what is wrong is added to `faults`.

        Args:
            timestamp_unit: of plain numbers in the log's column of times, and in this one where it says nothing else.
            separator: between values of CSV, by the suffix where None.
            users: the log's vocabulary of users, sealed before `values` is called.
            scratch: where a folder may be made for the rows that wait; the caller removes it.
        """
        assert config.path is not None
        self._given, self._columns, self._folder = config.path, config.named(), scratch / "series"
        self._users, self.ignored = users, 0
        self._user_ids = pa.array([], type=pa.string())
        self._offsets = np.zeros(1, dtype=np.int64)
        timestamp_unit = config.timestamp_unit or timestamp_unit
        try:
            self.files = TableFiles.find(config.path, separator)
        except InputError as error:
            faults += error.faults
            return
        types = self.files.checked_types(list(self._columns.values()), faults)
        for role, name in self._columns.items():
            if name not in types:
                continue
            rule = None if is_id(types[name]) else "whole numbers or strings"
            if role == schema.TIMESTAMP:
                rule = Times.rule(types[name], timestamp_unit)
            elif role == schema.VALUE and pa.types.is_boolean(types[name]):
                rule = None
            if rule:
                faults.append(f"{self.files.paths[0]}: column `{name}` ({role}) is {types[name]}, must be {rule}")
        if not faults:
            self._times = Times(types[self._columns[schema.TIMESTAMP]], timestamp_unit)

    def seal(self, user_ids: pa.Array) -> None:
        """Tell the log's users, string [U] in the order of their indices, when all are known."""
        self._user_ids = user_ids

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────

    def values(self) -> SeriesValues:
        """Read the file: all its values, by name of the series and text."""
        self.ignored = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        numbers = ValueNumbers()
        waiting = Partitions(self._folder, _ROW, len(self._user_ids), self.files.num_rows or self._guessed_rows())
        with Progress("series", self.files.num_rows, "rows") as progress:
            kept = 0
            for place, batch in self.files.blocks(list(self._columns.values())):
                rows = self._rows(place, batch, numbers)
                known = rows[partitions.USER] != ABSENT
                self.ignored += int(len(known) - known.sum())
                if known.any():
                    waiting.add(rows[known])
                    kept += int(known.sum())
                progress.advance(len(batch))
        if not kept:
            raise InputError(
                f"{self._given}: none of its {self.ignored:,} rows is about a user of the log; is "
                f"`series_file.user` the right column?"
            )
        values, final = numbers.seal()
        self._write_sorted(waiting.sorted(), final, values)
        return values

    def _guessed_rows(self) -> int:
        """Of CSV, which does not say: a row has ten bytes or more."""
        return max(self.files.num_bytes // 10, 1)

    def _rows(self, place: RowPlace, batch: pa.RecordBatch, numbers: ValueNumbers) -> np.ndarray:
        """Checked rows [n]; ABSENT stands for an unknown user."""
        faults: list[str] = []
        columns = {role: batch.column(name) for role, name in self._columns.items()}
        users = id_column(place, self._columns[schema.USER], columns[schema.USER], faults)
        series = id_column(place, self._columns[schema.SERIES], columns[schema.SERIES], faults)
        ticks = self._times.read(place, self._columns[schema.TIMESTAMP], columns[schema.TIMESTAMP], faults)
        texts = columns[schema.VALUE]
        texts = texts.cast(pa.string()) if pa.types.is_boolean(texts.type) else plain_ids(texts)
        faults += text_faults(place, self._columns[schema.VALUE], texts)
        if faults:
            raise InputError(*faults)
        rows = np.zeros(len(batch), dtype=_ROW)
        rows[partitions.USER], rows[partitions.TIME] = self._users.find(users), ticks
        rows[schema.VALUE] = numbers.add(
            series.cast(pa.string()), pc.fill_null(texts.cast(pa.string()), schema.UNKNOWN_VALUE)
        )
        if len(numbers.series) > schema.MAX_SERIES:
            raise InputError(
                f"{place.row(0)} and on: column `{self._columns[schema.SERIES]}` has {len(numbers.series)} different "
                f"values by the end of this block, must have at most {schema.MAX_SERIES}; is it the name of the series?"
            )
        if len(numbers) > schema.MAX_SERIES_VALUES:
            name, count = numbers.largest
            raise InputError(
                f"{place.row(0)} and on: the series have {len(numbers):,} different values by the end of this block, "
                f"{count:,} of them {name!r}; must have at most {schema.MAX_SERIES_VALUES:,}, each of which becomes a "
                "row of a table; is it a number rather than a category? Put numbers into ranges first"
            )
        return rows

    # ── sorting ──────────────────────────────────────────────────────────────────────────────────────────

    def _write_sorted(self, blocks: Iterator[np.ndarray], final: np.ndarray, values: SeriesValues) -> None:
        counts_U = np.zeros(len(self._user_ids), dtype=np.int64)
        with ExitStack() as files:
            writers = {
                name: files.enter_context(ColumnWriter(self._path(name), dtype))
                for name, dtype in _TIME_AND_VALUE.items()
            }
            for rows in blocks:
                users = rows[partitions.USER].astype(np.int64)
                entries = Entries(users, rows[partitions.TIME], final[rows[schema.VALUE]].astype(np.int64))
                self._check_agreement(entries, values)
                seconds = Entries(entries.user_s, entries.time_s // self._times.per_second, entries.value_s)
                kept = change_points(seconds, values.series_V)
                counts_U += np.bincount(kept.user_s, minlength=len(self._user_ids))
                writers[schema.TIMESTAMP].append(kept.time_s)
                writers[schema.VALUE].append(kept.value_s.astype(np.uint32))
        self._offsets = np.concatenate([[0], np.cumsum(counts_U)])

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _check_agreement(self, entries: Entries, values: SeriesValues) -> None:
        """Rows have no order of their own, so that two values of one instant cannot both hold."""
        series_s = values.series_V[entries.value_s]
        order = np.lexsort((entries.time_s, series_s, entries.user_s))
        one, other = order[:-1], order[1:]
        clash = (entries.value_s[one] != entries.value_s[other]) & (series_s[one] == series_s[other])
        clash &= (entries.user_s[one] == entries.user_s[other]) & (entries.time_s[one] == entries.time_s[other])
        if clash.any():
            at = int(np.argmax(clash))
            user, time = int(entries.user_s[one[at]]), int(entries.time_s[one[at]]) / self._times.per_second
            texts = [repr(values.texts[int(entries.value_s[place])].as_py()) for place in (one[at], other[at])]
            more = f" (and {int(clash.sum()) - 1} more such pairs of rows)" if clash.sum() > 1 else ""
            raise InputError(
                f"{self._given}: series {values.names[int(series_s[one[at]])]} of user {self._user_ids[user]} is "
                f"{' and '.join(texts)} at second {time:.10g} at once{more}; a series must have one value at a time"
            )

    # ── taking ───────────────────────────────────────────────────────────────────────────────────────────

    def entries(self, user_ids: pa.Array, first_times: np.ndarray) -> Entries:  # noqa: ARG002
        """The change points of some users."""
        rows = int(self._offsets[-1])
        times, values = (open_column(self._path(name), dtype, rows) for name, dtype in _TIME_AND_VALUE.items())
        dense = self._users.find(user_ids).astype(np.int64)
        lengths = self._offsets[dense + 1] - self._offsets[dense]
        places = positions_of(self._offsets[dense], lengths)
        return Entries(np.repeat(np.arange(len(dense)), lengths), times[places], values[places].astype(np.int64))
