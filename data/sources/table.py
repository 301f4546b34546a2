"""Any event log in Parquet or CSV, whose columns are named in the configuration.

Rows may come in any order. The log is read twice: first its users, items and event types, then its events, which are
shared out to files on the disk by ranges of users and sorted file by file, by time; events of one time stay in the
order of the log. With `sorted: true` each user's rows stand together in order of time, and nothing needs to be sorted.

Memory holds the vocabularies (table_ids tells what they take), a block of rows and what is sorted at once (about
100 MB); it does not grow with the log. While the work lasts, the disk beside `out` must hold 17 to 24 bytes an event
besides the store.

Order: items and users ascend by raw id, as numbers where all are whole numbers, else as strings; with `sorted: true`
users come as they stand in the log. Event types ascend likewise. The store depends on nothing else, not on how rows are
spread over files and only for events of one time on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.errors import InputError
from common.progress import Progress
from data import schema
from data.sources import partitions
from data.sources.base import Catalogue, Embeddings, Groups, Histories, column_bytes
from data.sources.item_vectors import ItemVectors, is_vector
from data.sources.partitions import Partitions
from data.sources.prefetch import prefetched
from data.sources.table_catalogue import CatalogueReader
from data.sources.table_config import TableConfig
from data.sources.table_files import Blocks, RowPlace, TableFiles
from data.sources.table_ids import NameIds, id_column, ids_of, is_id, plain_ids
from data.sources.table_series import SeriesReader
from data.sources.table_values import Shares, Times, is_number, whole_numbers
from data.sources.whole_users import Runs, runs_of_rows, whole_users

NAME = "table"
BLOCK_EVENTS = 2**20
SINGLE_TYPE = "event"
"""The event type of a log that has no column for it."""


class Table:
    """An event log of named columns; implements `data.sources.base.Source`.

    Attributes:
        series: what the series file says of the users; None where none is named.
    """

    description: Mapping[str, str] = {"name": NAME}

    def __init__(self, config: TableConfig, scratch: Path) -> None:
        """Check all files' columns.

        Args:
            scratch: where a folder may be made for the rows that wait to be sorted; the caller removes it.

        Raises:
            InputError: missing files and columns, wrong dtypes, all at once.
        """
        self._config, self._scratch = config, scratch
        self._columns = config.columns.named()
        self._files = TableFiles.find(config.path, config.separator)
        faults: list[str] = []
        types = self._check_columns(faults)
        self._catalogue = CatalogueReader(config.catalogue, config.separator, faults) if config.catalogue.path else None
        self._vectors = self._open_vectors(faults)
        self._users = ids_of(types.get(schema.USER, pa.string()))
        self.series = self._open_series(faults)
        if not faults and self._files.num_rows == 0:
            faults.append(f"{config.path}: has no rows, expected at least one")
        self._check_separator(faults)
        if faults:
            raise InputError(*faults)
        self._items = ids_of(types[schema.ITEM])
        self._types = NameIds()
        self._times = Times(types[schema.TIMESTAMP], config.timestamp_unit)
        self._user_ids = pa.array([], type=pa.string())
        self._num_items = 0
        self._num_events = self._files.num_rows or 0
        self.event_types: tuple[str, ...] = (SINGLE_TYPE,)
        self.optional_columns = tuple(role for role in schema.OPTIONAL_COLUMNS if role in self._columns)
        self.left_out: dict[str, int] = {}

    def _check_columns(self, faults: list[str]) -> dict[str, pa.DataType]:
        """Type of each role's column."""
        found = self._files.checked_types(list(self._columns.values()), faults)
        types = {role: found[name] for role, name in self._columns.items() if name in found}
        for role, dtype in types.items():
            rule = None
            if role in (schema.USER, schema.ITEM, schema.EVENT_TYPE):
                rule = None if is_id(dtype) else "whole numbers or strings"
            elif role == schema.TIMESTAMP:
                rule = Times.rule(dtype, self._config.timestamp_unit)
            elif not is_number(dtype):
                rule = "numbers"
            if rule:
                faults.append(
                    f"{self._files.paths[0]}: column `{self._columns[role]}` ({role}) is {dtype}, must be {rule}"
                )
        return types

    def _open_vectors(self, faults: list[str]) -> ItemVectors | None:
        config = self._config.embeddings
        if config.path is None or config.item is None or config.vector is None:
            return None
        path = Path(config.path).expanduser()
        types = TableFiles((path,), None).checked_types([config.item, config.vector], faults)
        if config.item in types and not is_id(types[config.item]):
            faults.append(f"{path}: column `{config.item}` is {types[config.item]}, must be whole numbers or strings")
        if config.vector in types and not is_vector(types[config.vector]):
            faults.append(
                f"{path}: column `{config.vector}` is {types[config.vector]}, must be a list of float32 or float64"
            )
        return ItemVectors(path, config.item, config.vector)

    def _open_series(self, faults: list[str]) -> SeriesReader | None:
        config = self._config
        if config.series.path is None:
            return None
        return SeriesReader(config.series, config.timestamp_unit, config.separator, self._users, self._scratch, faults)

    def _check_separator(self, faults: list[str]) -> None:
        readers = [reader for reader in (self._catalogue, self.series) if reader is not None]
        if faults or self._config.separator is None:
            return
        if all(files.separator is None for files in (self._files, *(reader.files for reader in readers))):
            path = self._files.paths[0]
            faults.append(f"{path}: is Parquet, as all files here, for which `separator` means nothing; leave it out")

    @property
    def num_events(self) -> int:
        """Rows of the log; of CSV not known, and 0, before `catalogue` has read it."""
        return self._num_events

    @property
    def least_bytes(self) -> int:
        """The store's events and the rows that wait to be sorted; of CSV, where it is not known, a low guess."""
        if self._files.num_rows is None:
            return self._files.num_bytes // 2
        waiting = 0 if self._config.sorted else self._num_events * self._row_dtype.itemsize
        return column_bytes(self._num_events, self.optional_columns) + waiting

    # ── first pass ───────────────────────────────────────────────────────────────────────────────────────

    def catalogue(self) -> Catalogue:
        """The items that occur, with what the catalogue file says of them."""
        self.left_out = {}
        self._collect()
        self._user_ids = self._users.seal()
        if self.series is not None:
            self.series.seal(self._user_ids)
        items = self._items.seal()
        self._num_items = len(items)
        if schema.EVENT_TYPE in self._columns:
            self.event_types = tuple(self._types.seal().to_pylist())
        artists = Groups(np.zeros(len(items) + 1, dtype=np.int64), np.zeros(0, np.uint32), pa.array([], pa.string()))
        titles = None
        if self._catalogue is not None:
            artists, titles = self._catalogue.read(self._items, len(items))
            self.left_out["rows of the catalogue about other items"] = self._catalogue.ignored
        return Catalogue(items, artists, titles)

    def _collect(self) -> None:
        roles = [role for role in (schema.USER, schema.ITEM, schema.EVENT_TYPE) if role in self._columns]
        rows = 0
        with Progress("vocabulary", self._num_events or None, "events") as progress:
            for place, batch in self._blocks(roles):
                faults: list[str] = []
                self._users.add(self._ids(place, batch, schema.USER, faults))
                self._items.add(self._ids(place, batch, schema.ITEM, faults))
                if schema.EVENT_TYPE in roles:
                    self._add_types(place, batch, faults)
                if faults:
                    raise InputError(*faults)
                rows += len(batch)
                progress.advance(len(batch))
        if not rows:
            raise InputError(f"{self._config.path}: has no rows, expected at least one")
        self._num_events = rows

    def _blocks(self, roles: list[str]) -> Blocks:
        return prefetched(self._files.blocks([self._columns[role] for role in roles]))

    def _ids(self, place: RowPlace, batch: pa.RecordBatch, role: str, faults: list[str]) -> pa.Array:
        return id_column(place, self._columns[role], batch.column(self._columns[role]), faults)

    def _add_types(self, place: RowPlace, batch: pa.RecordBatch, faults: list[str]) -> None:
        types = self._ids(place, batch, schema.EVENT_TYPE, faults)
        self._types.add(types)
        if len(self._types) > schema.MAX_EVENT_TYPES:
            name = self._columns[schema.EVENT_TYPE]
            raise InputError(
                f"{place.row(0)} and on: column `{name}` has {len(self._types)} different values by the end of this "
                f"block, must have at most {schema.MAX_EVENT_TYPES}; is it the event type?"
            )

    # ── second pass ──────────────────────────────────────────────────────────────────────────────────────

    def histories(self) -> Iterator[Histories]:
        """Blocks of whole users, each of up to BLOCK_EVENTS events or one long user."""
        if self.series is not None:
            self.left_out["rows of the series about other users"] = self.series.ignored
        for block in whole_users(self._sorted_log() if self._config.sorted else self._sort(), BLOCK_EVENTS):
            yield Histories(self._user_ids.take(pa.array(block.users)), block.offsets, block.columns)

    @property
    def _row_dtype(self) -> np.dtype[np.void]:
        columns = [(name, schema.EVENT_COLUMNS[name].dtype) for name in self._stored_names()]
        return np.dtype([(partitions.USER, np.dtype(np.uint32)), (partitions.TIME, np.dtype(np.int64)), *columns])

    def _stored_names(self) -> list[str]:
        """Columns that are stored as they are read; timestamps are made of ticks when all is sorted."""
        return [name for name in schema.column_names(self.optional_columns) if name != schema.TIMESTAMP]

    def _rows(self) -> Iterator[tuple[RowPlace, np.ndarray]]:
        """Checked rows, in the order of the log."""
        shares = Shares()
        for place, batch in self._blocks(list(self._columns)):
            faults: list[str] = []
            rows = np.zeros(len(batch), dtype=self._row_dtype)
            time = self._columns[schema.TIMESTAMP]
            rows[partitions.TIME] = self._times.read(place, time, batch.column(time), faults)
            for role in self.optional_columns:
                name, noted = self._columns[role], shares if role == schema.PLAYED_RATIO else None
                rows[role] = whole_numbers(place, name, batch.column(name), role, faults, noted)
            if faults:
                raise InputError(*faults)
            rows[partitions.USER] = self._users.find(plain_ids(batch.column(self._columns[schema.USER])))
            rows[schema.ITEM] = self._items.find(plain_ids(batch.column(self._columns[schema.ITEM])))
            if schema.EVENT_TYPE in self._columns:
                rows[schema.EVENT_TYPE] = self._types.find(plain_ids(batch.column(self._columns[schema.EVENT_TYPE])))
            self._check_known(rows)
            yield place, rows
        if shares.likely:
            raise InputError(
                f"{self._config.path}: column `{self._columns[schema.PLAYED_RATIO]}` ({schema.PLAYED_RATIO}) has no "
                "value above 1 and some between 0 and 1, so that it looks like a share; it must be percent: multiply "
                "it by 100"
            )

    def _check_known(self, rows: np.ndarray) -> None:
        limits = {partitions.USER: len(self._user_ids), schema.ITEM: self._num_items}
        if any(int(rows[name].max()) >= limit for name, limit in limits.items()):
            raise InputError(f"{self._config.path}: changed while it was read; let nobody write to it and begin again")

    def _runs(self, rows: np.ndarray) -> Runs:
        columns = {name: np.ascontiguousarray(rows[name]) for name in self._stored_names()}
        seconds = rows[partitions.TIME] // self._times.per_second
        columns[schema.TIMESTAMP] = seconds.astype(schema.EVENT_COLUMNS[schema.TIMESTAMP].dtype)
        return runs_of_rows(rows[partitions.USER], columns)

    def _sort(self) -> Iterator[Runs]:
        self._scratch.mkdir(exist_ok=True)  # the series may have made it
        waiting = Partitions(self._scratch, self._row_dtype, len(self._user_ids), self._num_events)
        with Progress("sharing out to users", self._num_events, "events") as progress:
            for _, rows in self._rows():
                waiting.add(rows)
                progress.advance(len(rows))
        yield from map(self._runs, waiting.sorted())

    def _sorted_log(self) -> Iterator[Runs]:
        """Rows as they stand, held to what `sorted: true` promises."""
        seen = np.zeros(len(self._user_ids), dtype=bool)
        last: np.void | None = None
        for place, rows in self._rows():
            runs = self._runs(rows)
            starts = runs.offsets[:-1]
            goes_on = last is not None and int(runs.users[0]) == last[partitions.USER]
            again = seen[runs.users]
            again[0] &= not goes_on
            # A user may also come back within the block.
            first = np.zeros(len(runs.users), dtype=bool)
            first[np.unique(runs.users, return_index=True)[1]] = True
            again |= ~first
            down = np.zeros(len(rows), dtype=bool)
            time = rows[partitions.TIME]
            down[1:] = time[1:] < time[:-1]
            down[starts] = False
            if goes_on and last is not None:
                down[0] = time[0] < last[partitions.TIME]
            self._raise_unsorted(place, starts[again], np.flatnonzero(down), rows)
            seen[runs.users] = True
            last = rows[-1]
            yield runs

    def _raise_unsorted(self, place: RowPlace, again: np.ndarray, down: np.ndarray, rows: np.ndarray) -> None:
        faults = []
        if len(again):
            user = self._user_ids[int(rows[partitions.USER][again[0]])]
            faults.append(
                f"{place.row(int(again[0]))}: user {user} comes back after rows of others; with sorted=true each "
                "user's rows must stand together; leave `sorted` out to have them sorted"
            )
        if len(down):
            user = self._user_ids[int(rows[partitions.USER][down[0]])]
            faults.append(
                f"{place.row(int(down[0]))}: a time of user {user} is before the one in the row above; with "
                "sorted=true a user's times must not go down; leave `sorted` out to have them sorted"
            )
        if faults:
            raise InputError(*faults)

    # ── embeddings ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def embedding_width(self) -> int | None:
        """Width of the first embedding in the file; `embeddings` holds the others to it."""
        return self._vectors.width if self._vectors is not None else None

    def embeddings(self) -> Iterator[Embeddings]:
        """Embeddings of the items that occur, in file order; a null one means that the item has none."""
        if self._vectors is None:
            return
        yield from self._vectors.blocks(lambda ids: self._items.find(plain_ids(ids)), self._num_items)
        self.left_out["rows of the embeddings about other items"] = self._vectors.ignored
