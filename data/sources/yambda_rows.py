"""Blocks of Yambda's events: both layouts as flat rows, and which values are faults.

Every check says the first row that breaks a rule, by row group and row (both from 0; in the sequential layout also by
the event within the row), the value and the rule.

Shapes: U rows of a sequential block · E events of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import InputError
from data import schema
from data.parquet_io import Place, parquet_blocks, shown
from data.sources.yambda_files import MULTI_EVENT_TYPES, PLAYED, PLAYED_RATIO, TRACK_LENGTH

UNKNOWN_TYPE = 255
_ROOM = 8
"""Rows of a sequential block may be this many times longer than the mean before the block exceeds its events."""

_LIMITS = {PLAYED_RATIO: schema.MISSING_PLAYED_RATIO, TRACK_LENGTH: schema.MISSING_DURATION}

Blocks = Iterator[tuple[Place, pa.RecordBatch]]


def flat_blocks(path: Path, columns: Sequence[str], block_events: int) -> Blocks:
    """Blocks of a flat file; columns that must not be null are not."""
    for place, batch in parquet_blocks(path, columns, block_events):
        raise_if(null_faults(place, batch))
        yield place, batch


def sequential_blocks(path: Path, names: Mapping[str, str], block_events: int) -> Blocks:
    """Blocks of a sequential file, its lists laid end to end: columns as in the flat layout.

    A block has about `block_events` events, rarely more: Parquet is read by rows, which may be of any length.

    Args:
        names: name in the flat layout → name in the file; `item_id` among them.

    Raises:
        InputError: a null, a uid that does not rise, or lists of a row that are not equally long.
    """

    def rows(group: pq.RowGroupMetaData) -> int:
        events = max(group.column(index).num_values for index in range(group.num_columns))
        return max(1, int(block_events * group.num_rows // (_ROOM * max(events, 1))))

    last = -1
    for place, batch in parquet_blocks(path, list(names.values()), rows):
        raise_if(_null_lists(place, batch) or _sequential_faults(place, batch, names, last))
        if "uid" in names:
            last = batch.column("uid")[len(batch) - 1].as_py()
        lengths = pc.list_value_length(batch.column(names["item_id"])).to_numpy(zero_copy_only=False).astype(np.int64)
        place = replace(place, offsets=np.concatenate([[0], np.cumsum(lengths)]))
        flat = {
            name: pa.array(np.repeat(values(batch, actual), lengths))
            if name == "uid"
            else batch.column(actual).flatten()
            for name, actual in names.items()
        }
        block = pa.RecordBatch.from_pydict(flat)
        raise_if(null_faults(place, block))
        if len(block):
            yield place, block


def _null_lists(place: Place, batch: pa.RecordBatch) -> list[str]:
    faults = []
    for name in batch.schema.names:
        column = batch.column(name)
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            faults.append(f"{place.row(row)}: column `{name}` is null; every row must have a value or a list there")
    return faults


def _sequential_faults(place: Place, batch: pa.RecordBatch, names: Mapping[str, str], last: int) -> list[str]:
    """One user a row, ascending, and lists of equal length within a row."""
    faults = []
    if "uid" in names:
        uid = values(batch, "uid").astype(np.int64)
        before = np.concatenate([[last], uid[:-1]])
        if (uid <= before).any():
            row = int(np.argmax(uid <= before))
            faults.append(
                f"{place.row(row)}: column `uid` is {uid[row]} after {before[row]}; one row a user, and uids must rise"
            )
    item = names["item_id"]
    lengths = pc.list_value_length(batch.column(item)).to_numpy(zero_copy_only=False)
    for name in [actual for actual in names.values() if actual not in ("uid", item)]:
        others = pc.list_value_length(batch.column(name)).to_numpy(zero_copy_only=False)
        if (others != lengths).any():
            row = int(np.argmax(others != lengths))
            faults.append(
                f"{place.row(row)}: list `{name}` has {others[row]} values, `{item}` has {lengths[row]}; the lists of "
                "a row must be equally long"
            )
    return faults


def values(batch: pa.RecordBatch, column: str) -> np.ndarray[Any, Any]:
    """A column without nulls as an array."""
    array: np.ndarray[Any, Any] = batch.column(column).to_numpy(zero_copy_only=False)
    return array


def raise_if(faults: list[str]) -> None:
    """Raise InputError with the faults, if there are any."""
    if faults:
        raise InputError(*faults)


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


def type_index(batch: pa.RecordBatch) -> np.ndarray[Any, Any]:
    """Index of each row's event type into MULTI_EVENT_TYPES, uint8 [E]; UNKNOWN_TYPE where the name is unknown."""
    column = batch.column("event_type")
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    known = pa.array(MULTI_EVENT_TYPES, type=pa.string())
    index = pc.index_in(encoded.dictionary.cast(pa.string()), value_set=known).fill_null(UNKNOWN_TYPE)
    found: np.ndarray[Any, Any] = index.to_numpy().astype(np.uint8)[encoded.indices.to_numpy()]
    return found


def check_events(place: Place, batch: pa.RecordBatch, last: tuple[int, int] | None, types: np.ndarray | None) -> None:
    """Hold a block to the order of rows and the range of values; cheap where nothing is wrong.

    Args:
        last: the (uid, timestamp) before the block.
        types: what `type_index` gives, None where the file has one type.

    Raises:
        InputError: the first row that breaks each rule.
    """
    uid, time = values(batch, "uid"), values(batch, "timestamp")
    wrong = last is not None and (int(uid[0]) < last[0] or (int(uid[0]) == last[0] and int(time[0]) < last[1]))
    wrong = wrong or bool((uid[1:] < uid[:-1]).any())
    earlier = np.flatnonzero(time[1:] < time[:-1])
    wrong = wrong or bool((uid[earlier] == uid[earlier + 1]).any())
    wrong = wrong or int(values(batch, "is_organic").max()) > 1
    wrong = wrong or (types is not None and int(types.max()) == UNKNOWN_TYPE)
    wrong = wrong or any(
        pc.max(batch.column(name)).as_py() == limit for name, limit in _LIMITS.items() if name in batch.schema.names
    )
    if wrong:
        raise InputError(*_event_faults(place, batch, last, types))


def _event_faults(
    place: Place, batch: pa.RecordBatch, last: tuple[int, int] | None, types: np.ndarray | None
) -> list[str]:
    """The first row of the block that breaks each rule."""
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
    for name, limit in _LIMITS.items():
        if name in batch.schema.names:
            broken = batch.column(name).fill_null(0).to_numpy(zero_copy_only=False) == limit
            rules[name] = broken, f"out of range: must be below {limit}, which stands for a missing value"
    if types is not None:
        rules["event_type"] = types == UNKNOWN_TYPE, f"must be one of {', '.join(MULTI_EVENT_TYPES)}"
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
    return f"{place.row(row)}: column `{name}`{of} is {shown(batch.column(name)[row])}{after}{more}; {rule}"
