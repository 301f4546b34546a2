"""The files of Yambda's flat layout: where they lie, which columns they have, and which values are faults.

Every check says the first row that breaks a rule, by row group and row (both from 0), the value and the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import InputError
from data import schema
from data.parquet_io import damage_told, open_parquet

MULTI_EVENT_TYPES = ("listen", "dislike", "like", "undislike", "unlike")

FILES: dict[str, tuple[str, ...]] = {
    "listens": ("listen",),
    "likes": ("like",),
    "dislikes": ("dislike",),
    "unlikes": ("unlike",),
    "undislikes": ("undislike",),
    "multi_event": MULTI_EVENT_TYPES,
}
"""KIND → the event types in its file."""

PLAYED = ("played_ratio_pct", "track_length_seconds")
_TYPES: dict[str, pa.DataType] = {
    "uid": pa.uint32(),
    "timestamp": pa.uint32(),
    "item_id": pa.uint32(),
    "is_organic": pa.uint8(),
    "played_ratio_pct": pa.uint16(),
    "track_length_seconds": pa.uint32(),
    "artist_id": pa.uint32(),
}


@dataclass(frozen=True)
class Paths:
    """The files of one run over Yambda; None where an optional one is absent."""

    events: Path
    artists: Path | None
    embeddings: Path | None
    size: str


def find_files(root: Path, kind: str, size: str | None) -> Paths:
    """Locate the files under `root`; `size` may be left out where only one is there.

    Raises:
        InputError: nothing there, or several sizes to choose from.
    """
    sizes = sorted(folder.name for folder in (root / "flat").glob("*") if folder.is_dir())
    if not sizes:
        raise InputError(
            f"{root}: has no folder flat/SIZE; `path` must be the root of Yambda, which holds flat/50m, flat/500m or "
            "flat/5b"
        )
    if size is None and len(sizes) > 1:
        raise InputError(f"{root / 'flat'}: holds {', '.join(sizes)}; say which with size=…")
    chosen = size if size is not None else sizes[0]
    if chosen not in sizes:
        raise InputError(f"{root / 'flat'}: has no {chosen}; it holds {', '.join(sizes)}")
    events = root / "flat" / chosen / f"{kind}.parquet"
    if not events.exists():
        raise InputError(f"{events}: no such file; kind={kind} is read from it")
    artists, embeddings = root / "artist_item_mapping.parquet", root / "embeddings.parquet"
    return Paths(events, artists if artists.exists() else None, embeddings if embeddings.exists() else None, chosen)


@dataclass(frozen=True)
class Place:
    """Where a block of rows lies; rows are counted from 0 within the row group."""

    path: Path
    group: int
    first_row: int

    def row(self, row: int) -> str:
        """The place of one row of the block."""
        return f"{self.path}: row group {self.group}, row {self.first_row + row}"


def blocks(path: Path, columns: Sequence[str], block_rows: int) -> Iterator[tuple[Place, pa.RecordBatch]]:
    """All rows, in blocks of at most `block_rows` that lie within a row group."""
    file: pq.ParquetFile = open_parquet(path)
    for group in range(file.num_row_groups):
        batches = file.iter_batches(batch_size=block_rows, row_groups=[group], columns=list(columns))
        first = 0
        while True:
            with damage_told(path, f"row group {group}"):
                batch = next(batches, None)
            if batch is None:
                break
            if len(batch):
                yield Place(path, group, first), batch
            first += len(batch)


def values(batch: pa.RecordBatch, column: str) -> np.ndarray[Any, Any]:
    """A column without nulls as an array."""
    array: np.ndarray[Any, Any] = batch.column(column).to_numpy(zero_copy_only=False)
    return array


def raise_if(faults: list[str]) -> None:
    """Raise InputError with the faults, if there are any."""
    if faults:
        raise InputError(*faults)


def schema_faults(path: Path, found: pa.Schema, columns: Sequence[str]) -> list[str]:
    """Columns that are missing or of another dtype. Others may stand beside them."""
    faults = []
    for name in columns:
        index = found.get_field_index(name)
        if index < 0:
            faults.append(f"{path}: column `{name}` is missing; the file has {', '.join(found.names)}")
        elif not _fits(name, found.field(index).type):
            wanted = {"event_type": "a string or an enum of strings", "embed": "a list of float32 or float64"}
            rule = wanted[name] if name in wanted else str(_TYPES[name])
            faults.append(
                f"{path}: column `{name}` is {found.field(index).type}, must be {rule}; cast it before preparing"
            )
    return faults


def _fits(name: str, dtype: pa.DataType) -> bool:
    if name == "event_type":
        return _is_text(dtype.value_type if pa.types.is_dictionary(dtype) else dtype)
    if name == "embed":
        lists = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
        return bool(lists and dtype.value_type in (pa.float32(), pa.float64()))
    return bool(dtype == _TYPES[name])


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))


def null_faults(place: Place, batch: pa.RecordBatch) -> list[str]:
    """Nulls outside the two play columns, which are null where the event is not a listen."""
    faults = []
    for name in batch.schema.names:
        column = batch.column(name)
        if column.null_count and name not in PLAYED:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            more = f" ({column.null_count} nulls in this block)" if column.null_count > 1 else ""
            faults.append(f"{place.row(row)}: column `{name}` is null{more}; it must have a value in every row")
    return faults


def type_index(batch: pa.RecordBatch, event_types: Sequence[str]) -> pa.Array:
    """Index of each row's event type; null where the name is unknown."""
    column = batch.column("event_type")
    text = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return pc.index_in(text.cast(pa.string()), value_set=pa.array(event_types, type=pa.string()))


def event_faults(
    place: Place, batch: pa.RecordBatch, last: tuple[int, int] | None, event_types: Sequence[str]
) -> list[str]:
    """The first row of the block that breaks each rule. `last` is the (uid, timestamp) before the block."""
    uid, time = values(batch, "uid").astype(np.int64), values(batch, "timestamp").astype(np.int64)
    before_uid, before_time = np.roll(uid, 1), np.roll(time, 1)
    before_uid[0], before_time[0] = last if last is not None else (uid[0], time[0])
    rules: dict[str, tuple[np.ndarray, str]] = {
        "uid": (
            uid < before_uid,
            "a uid must not go down: rows must be sorted by (uid, timestamp), each user's in one run",
        ),
        "timestamp": (
            (uid == before_uid) & (time < before_time),
            "a user's timestamps must not go down: rows must be sorted by (uid, timestamp)",
        ),
        "is_organic": (values(batch, "is_organic") > 1, "must be 0 or 1"),
    }
    limits = {"played_ratio_pct": schema.MISSING_PLAYED_RATIO, "track_length_seconds": schema.MISSING_DURATION}
    for name, limit in limits.items():
        if name in batch.schema.names:
            broken = batch.column(name).fill_null(0).to_numpy(zero_copy_only=False) == limit
            rules[name] = broken, f"out of range: must be below {limit}, which stands for a missing value"
    if "event_type" in batch.schema.names:
        unknown = type_index(batch, event_types).is_null().to_numpy(zero_copy_only=False)
        rules["event_type"] = unknown, f"must be one of {', '.join(event_types)}"
    before = {"uid": before_uid, "timestamp": before_time}
    return [
        _fault(place, batch, name, broken, rule, before.get(name))
        for name, (broken, rule) in rules.items()
        if broken.any()
    ]


def _fault(
    place: Place, batch: pa.RecordBatch, name: str, broken: np.ndarray, rule: str, before: np.ndarray | None
) -> str:
    row = int(np.argmax(broken))
    after = f" after {before[row]}" if before is not None else ""
    of = f" of uid {batch.column('uid')[row]}" if name == "timestamp" else ""
    more = f" (and {int(broken.sum()) - 1} more rows of this block)" if broken.sum() > 1 else ""
    return f"{place.row(row)}: column `{name}`{of} is {batch.column(name)[row]}{after}{more}; {rule}"


def embedding_faults(place: Place, lists: pa.Array, rows: np.ndarray, width: int) -> list[str]:
    """An embedding of another width, or with a value that is no finite float32. `rows` says where each stands."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if (lengths != width).any():
        bad = int(np.argmax(lengths != width))
        rule = f"the first embedding has {width}; all must be equally wide"
        return [f"{place.row(int(rows[bad]))}: column `embed` has {lengths[bad]} values, {rule}"]
    broken = ~np.isfinite(embedding_vectors(lists, width)).all(axis=1)
    if broken.any():
        bad = int(np.argmax(broken))
        return [
            f"{place.row(int(rows[bad]))}: column `embed` has a value that is not a finite float32 number; all must be"
        ]
    return []


def embedding_vectors(lists: pa.Array, width: int) -> np.ndarray[Any, Any]:
    """Lists of equal width as float32 [n, width]; a null within is NaN, what float32 cannot hold is infinite."""
    flat: np.ndarray[Any, Any] = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        return flat.astype(np.float32).reshape(-1, width)


def repeat_faults(place: Place, raw: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> list[str]:
    """An item's second embedding: `seen` says which have one from an earlier block."""
    repeated = np.ones(len(raw), dtype=bool)
    repeated[np.unique(raw, return_index=True)[1]] = False
    repeated |= seen
    if not repeated.any():
        return []
    bad = int(np.argmax(repeated))
    rule = "which has an embedding already; an item has at most one"
    return [f"{place.row(int(rows[bad]))}: column `item_id` is {raw[bad]}, {rule}"]
