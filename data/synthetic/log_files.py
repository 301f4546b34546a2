"""Events of a block as tables in Yambda's two layouts, and files of equal row groups made from blocks.

Flat: one row an event, sorted by (uid, timestamp). Sequential: one row a user, the other columns lists.

U users of a block · E listens · Q events of one file.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.synthetic.catalogue import TICK_S
from data.synthetic.reactions import Heard, Reactions

EVENT_TYPES = ("listen", "dislike", "like", "undislike", "unlike")
"""The names in `multi_event.parquet`, in the order of their dictionary."""

ROW_GROUP_ROWS = 2**20
"""Rows of a flat file's row groups, wherever users begin and end; also about the listens generated at once."""

_PLAYED = {"played_ratio_pct": pa.uint16(), "track_length_seconds": pa.uint32()}
_FEW_VALUES = ["uid", "is_organic", *_PLAYED, "event_type"]
"""Columns that a dictionary makes smaller; for the others building one only takes time."""


def flat_schema(kind: str) -> pa.Schema:
    """Columns of one flat file."""
    columns = {"uid": pa.uint32(), "timestamp": pa.uint32(), "item_id": pa.uint32(), "is_organic": pa.uint8()}
    if kind in ("listens", "multi_event"):
        columns |= _PLAYED
    if kind == "multi_event":
        columns["event_type"] = pa.dictionary(pa.int8(), pa.string())
    return pa.schema(list(columns.items()))


def sequential_schema(kind: str, plural: bool) -> pa.Schema:
    """Columns of one sequential file."""
    renamed = {"timestamp": "timestamps", "item_id": "item_ids"} if plural else {}
    flat = flat_schema(kind)
    lists = [
        pa.field(renamed.get(field.name, field.name), pa.list_(field.type)) for field in flat if field.name != "uid"
    ]
    return pa.schema([flat.field("uid"), *lists])


def flat_table(heard: Heard, kind: str, uid_U: np.ndarray, raw_N: np.ndarray) -> pa.Table:
    """The events of a block that belong into one file."""
    if kind == "listens":
        columns = {**_shared(heard.user_E, heard.tick_E, heard.item_E, heard.organic_E, uid_U, raw_N), **_played(heard)}
    elif kind == "multi_event":
        columns = _all_events(heard, uid_U, raw_N)
    else:
        one = heard.reactions[kind.removesuffix("s")]
        columns = _shared(one.user, one.tick, one.item, one.organic, uid_U, raw_N)
    return pa.table(columns, schema=flat_schema(kind))


def sequential_table(flat: pa.Table, kind: str, plural: bool) -> pa.Table:
    """The same events, one row a user who has any."""
    uid = flat.column("uid").to_numpy()
    starts = np.flatnonzero(np.append(True, uid[1:] != uid[:-1])) if len(uid) else np.zeros(0, dtype=np.int64)
    offsets = pa.array(np.append(starts, len(uid)).astype(np.int32))
    schema = sequential_schema(kind, plural)
    lists = [
        pa.ListArray.from_arrays(offsets, flat.column(name).combine_chunks())
        for name in flat.column_names
        if name != "uid"
    ]
    return pa.table([pa.array(uid[starts]), *lists], schema=schema)


def _shared(
    user: np.ndarray, tick: np.ndarray, item: np.ndarray, organic: np.ndarray, uid_U: np.ndarray, raw_N: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "uid": uid_U[user],
        "timestamp": tick.astype(np.uint32) * np.uint32(TICK_S),
        "item_id": raw_N[item],
        "is_organic": organic,
    }


def _played(heard: Heard) -> dict[str, np.ndarray]:
    return {
        "played_ratio_pct": heard.ratio_E,
        "track_length_seconds": heard.length_E.astype(np.uint32) * np.uint32(TICK_S),
    }


def _all_events(heard: Heard, uid_U: np.ndarray, raw_N: np.ndarray) -> dict[str, pa.Array]:
    """Listens and reactions by (user, time); at one time listens come first, the rest as `EVENT_TYPES` has them."""
    listens = Reactions(heard.user_E, heard.item_E, heard.tick_E, heard.organic_E)
    parts = [listens, *(heard.reactions[name] for name in EVENT_TYPES[1:])]
    user, item, tick, organic = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("user", "item", "tick", "organic")
    )
    kind = np.repeat(np.arange(len(parts), dtype=np.int8), [len(part.tick) for part in parts])
    order = np.argsort((user << 32) + tick, kind="stable")
    no_listen = kind[order] != 0
    columns: dict[str, pa.Array] = dict(_shared(user[order], tick[order], item[order], organic[order], uid_U, raw_N))
    at = np.minimum(order, len(heard.user_E) - 1)
    for name, values in _played(heard).items():
        columns[name] = pa.array(values[at], mask=no_listen)
    columns["event_type"] = pa.DictionaryArray.from_arrays(kind[order], list(EVENT_TYPES))
    return columns


class RowGroupWriter:
    """A Parquet file of row groups of `rows` rows, whatever the sizes of the tables written; None keeps the tables'."""

    def __init__(self, path: Path, schema: pa.Schema, rows: int | None) -> None:
        """Open the file."""
        self.count = 0
        self._rows = rows
        self._pending: list[pa.Table] = []
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=[name for name in _FEW_VALUES if name in schema.names]
        )

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.count += len(table)
        if self._rows is None:
            if len(table):
                self._writer.write_table(table, row_group_size=len(table))
            return
        self._pending.append(table)
        if sum(map(len, self._pending)) < self._rows:
            return
        rows = pa.concat_tables(self._pending)
        whole = len(rows) // self._rows * self._rows
        self._writer.write_table(rows.slice(0, whole), row_group_size=self._rows)
        self._pending = [rows.slice(whole)]

    def __enter__(self) -> RowGroupWriter:
        """For `close`, whatever happens."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the rest, and the footer; after an error the file is of no use, and only closed."""
        if kind is None and any(map(len, self._pending)):
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=self._rows)
        self._writer.close()
