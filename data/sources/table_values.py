"""Columns of a table → the store's values: times, and whole numbers that may be missing.

Every function adds to `faults` the first row that breaks a rule, with its place, its value and the rule; what it
returns then means nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import schema
from data.parquet_io import shown
from data.sources.table_files import RowPlace

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
ISO = "iso"
TIME_UNITS = (*UNITS, ISO)
_END_OF_TIME = 2**32
_MICROSECONDS = UNITS["us"]
_ZONE = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"


class Times:
    """Reads one column of times, of whatever type, as whole ticks.

    Attributes:
        per_second: ticks a second. Order keeps the ticks; the store gets whole seconds.
    """

    def __init__(self, dtype: pa.DataType, unit: str) -> None:
        """Take the column's type, and the unit of plain numbers (or ISO for text)."""
        self._unit = unit
        if pa.types.is_timestamp(dtype):
            self.per_second = UNITS[dtype.unit]
        elif pa.types.is_date(dtype):
            self.per_second = 1
        elif unit == ISO:
            self.per_second = UNITS["ns"]
        else:  # text and floats may have decimals, of which microseconds are kept
            self.per_second = UNITS[unit] if pa.types.is_integer(dtype) else max(UNITS[unit], _MICROSECONDS)

    @staticmethod
    def rule(dtype: pa.DataType, unit: str) -> str | None:
        """What a column of this type must be instead, None where it can be read."""
        if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
            return None
        if unit == ISO:
            return None if _is_text(dtype) else "a string or a timestamp, since timestamp_unit=iso"
        number = pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or _is_text(dtype)
        return None if number else "a timestamp, a number, or text with a number"

    def read(self, place: RowPlace, name: str, column: pa.Array, faults: list[str]) -> np.ndarray:
        """Ticks, int64 [n]."""
        dtype = column.type
        if pa.types.is_timestamp(dtype):
            numbers, unit = column.cast(pa.int64()), self.per_second
        elif pa.types.is_date(dtype):
            numbers, unit = column.cast(pa.timestamp("s")).cast(pa.int64()), 1
        elif self._unit == ISO:
            numbers, unit = _iso_ticks(column.cast(pa.string())), self.per_second
        else:
            numbers, unit = _numbers(column), UNITS[self._unit]
        if column.null_count:
            _add_fault(place, name, column, _nulls(column), "every row must have a value there", faults)
            return np.zeros(len(column), dtype=np.int64)
        if numbers.null_count:
            rule = "must be a date and time as 2024-05-01T12:30:00Z" if self._unit == ISO else "must be a number"
            _add_fault(place, name, column, _nulls(numbers), rule, faults)
            return np.zeros(len(column), dtype=np.int64)
        values = numbers.to_numpy(zero_copy_only=False)
        # A uint64 beyond int64 has become negative, which is out of range as well; NaN compares false.
        inside = (values >= 0) & (values < float(_END_OF_TIME * unit))
        if not inside.all():
            first, last = 0, _END_OF_TIME * unit - 1
            rule = f"must be {first} … {last}, 1970 to 2106 in {_unit_name(unit)}; is `timestamp_unit` right?"
            if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype) or self._unit == ISO:
                rule = "must lie between 1970 and 2106"
            _add_fault(place, name, column, ~inside, rule, faults)
            return np.zeros(len(column), dtype=np.int64)
        scaled = values * (self.per_second // unit)
        ticks: np.ndarray = (np.floor(scaled) if scaled.dtype.kind == "f" else scaled).astype(np.int64)
        return ticks


def _nulls(column: pa.Array) -> np.ndarray[Any, Any]:
    nulls: np.ndarray[Any, Any] = column.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _unit_name(unit: int) -> str:
    return next(name for name, size in UNITS.items() if size == unit)


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))


def _iso_ticks(text: pa.Array) -> pa.Array:
    """Nanoseconds since 1970, null where the text is no date; without a zone it is UTC."""
    zoned = pc.match_substring_regex(text, _ZONE)
    ticks = [
        _cast_or_null(pc.if_else(chosen, text, None), pa.timestamp("ns", tz=zone)).cast(pa.int64())
        for chosen, zone in ((zoned, "UTC"), (pc.invert(zoned), None))
    ]
    return pc.coalesce(*ticks)


def _cast_or_null(values: pa.Array, dtype: pa.DataType) -> pa.Array:
    """Cast value by value where the whole cannot be cast; what cannot be is null."""
    try:
        return values.cast(dtype)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, dtype)
        half = len(values) // 2  # few are wrong, so most halves are cast at once
        return pa.concat_arrays([_cast_or_null(values[:half], dtype), _cast_or_null(values[half:], dtype)])


def _numbers(column: pa.Array) -> pa.Array:
    """A column of numbers or text as int64 or float64; null where the text is no number."""
    dtype = column.type
    if pa.types.is_integer(dtype):
        return column.cast(pa.int64(), safe=False)
    if pa.types.is_floating(dtype):
        return column.cast(pa.float64())
    if pa.types.is_boolean(dtype):
        return column.cast(pa.int64())
    text = column.cast(pa.string())
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:
        return _cast_or_null(text, pa.float64())


def is_number(dtype: pa.DataType) -> bool:
    """Whether `whole_numbers` can read a column of this type."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(is_kind(dtype) for is_kind in kinds) or _is_text(dtype)


class Shares:
    """Notes, block by block, whether what should be percentages are shares of 1."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._beyond_one, self._parts = False, False

    def note(self, known_n: np.ndarray) -> None:
        """Some of the values, none of them missing."""
        self._beyond_one |= bool((known_n > 1).any())
        self._parts |= bool(((known_n > 0) & (known_n < 1)).any())

    @property
    def likely(self) -> bool:
        """Whether no value was above 1, and some stood between 0 and 1."""
        return self._parts and not self._beyond_one


def whole_numbers(
    place: RowPlace, name: str, column: pa.Array, stored: str, faults: list[str], shares: Shares | None = None
) -> np.ndarray[Any, Any]:
    """An optional column [n] in the dtype of `stored`, one of schema.OPTIONAL_COLUMNS.

    Null, NaN and empty text are missing; decimals are cut off; true and false are 1 and 0.

    Args:
        shares: is told of the values before that.
    """
    described = schema.EVENT_COLUMNS[stored]
    limit = described.missing
    assert limit is not None
    if pa.types.is_null(column.type):
        return np.full(len(column), limit, dtype=described.dtype)
    given = column
    if _is_text(column.type):
        text = pc.utf8_lower(column.cast(pa.string()))
        text = pc.if_else(pc.equal(text, "true"), "1", pc.if_else(pc.equal(text, "false"), "0", text))
        given = pc.if_else(pc.equal(text, ""), None, text)
    numbers = _numbers(given)
    if pa.types.is_floating(numbers.type):
        numbers = pc.if_else(pc.is_nan(numbers), None, numbers) if not _is_text(column.type) else numbers
    unread = _nulls(numbers) & ~_nulls(given)
    if _is_text(column.type) and unread.any():
        _add_fault(place, name, column, unread, "must be a number, or empty where it is not known", faults)
        return np.zeros(len(column), dtype=described.dtype)
    missing = _nulls(numbers)
    values = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    outside = ~((values >= 0) & (values < limit))
    if stored == schema.ORGANIC:
        outside |= values != values.astype(np.int64, copy=False)
    if outside.any():
        rule = "must be 0 or 1" if stored == schema.ORGANIC else f"must be 0 … {limit - 1} ({described.meaning})"
        _add_fault(place, name, column, outside, rule, faults)
        return np.zeros(len(column), dtype=described.dtype)
    if shares is not None:
        shares.note(values[~missing])
    filled: np.ndarray[Any, Any] = np.where(missing, limit, values).astype(described.dtype)
    return filled


def _add_fault(place: RowPlace, name: str, column: pa.Array, broken: np.ndarray, rule: str, faults: list[str]) -> None:
    row = int(np.argmax(broken))
    more = f" (and {int(broken.sum()) - 1} more rows of this block)" if broken.sum() > 1 else ""
    text = _is_text(column.type) and column[row].is_valid
    value = repr(shown(column[row])) if text else shown(column[row])
    faults.append(f"{place.row(row)}: column `{name}` is {value}{more}; {rule}")
