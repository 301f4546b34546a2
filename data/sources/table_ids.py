"""Raw ids of a table, whole numbers or strings ↔ dense indices.

Indices follow ids ascending: as numbers where all are whole numbers (also in text, as 7 but not 007), else as strings
by code point. So the same ids get the same indices from CSV, where all is text, and from Parquet.
"""

from __future__ import annotations

import re
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.sources.raw_ids import ABSENT, RawIds
from data.sources.table_files import RowPlace

_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


class Ids(Protocol):
    """A vocabulary: `add` all, `seal` once, then `find` any. Columns are those that `id_column` gives."""

    def add(self, ids: pa.Array) -> None:
        """Note that these occur."""

    def seal(self) -> pa.Array:
        """All ids, string [N], in the order of their indices."""

    def find(self, ids: pa.Array) -> np.ndarray:
        """Dense indices, uint32 [n]; ABSENT where an id does not occur or is null."""


class NumberIds:
    """Whole numbers. Takes five bytes for each number up to the largest (raw_ids.RawIds)."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._ids = RawIds()

    def add(self, ids: pa.Array) -> None:
        """Note that these occur: int64 [n] without nulls."""
        self._ids.add(ids.to_numpy())

    def seal(self) -> pa.Array:
        """All ids, string [N], ascending."""
        return pa.array(self._ids.seal()).cast(pa.string())

    def find(self, ids: pa.Array) -> np.ndarray:
        """Dense indices of int64 [n], or of strings that may be whole numbers."""
        if pa.types.is_string(ids.type):
            whole = _as_numbers(ids)
            ids = whole if whole is not None else pa.array(map(_number, ids.to_pylist()), type=pa.int64())
        found = self._ids.find(ids.fill_null(0).to_numpy())
        found[ids.is_null().to_numpy(zero_copy_only=False)] = ABSENT
        return found


class NameIds:
    """Strings. Takes about 200 bytes for each that occurs."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._codes: dict[str, int] = {}
        self._index = np.zeros(0, dtype=np.uint32)

    def __len__(self) -> int:
        """How many occur."""
        return len(self._codes)

    def __contains__(self, name: str) -> bool:
        """Whether it occurs."""
        return name in self._codes

    def add(self, ids: pa.Array) -> None:
        """Note that these occur: string or int64 [n] without nulls."""
        for name in pc.unique(ids).cast(pa.string()).to_pylist():
            self._codes.setdefault(name, len(self._codes))

    def seal(self) -> pa.Array:
        """All ids, string [N], ascending."""
        key = int if all(map(_WHOLE.fullmatch, self._codes)) else str
        names = sorted(self._codes, key=key)
        self._index = np.zeros(len(names), dtype=np.uint32)
        self._index[[self._codes[name] for name in names]] = np.arange(len(names), dtype=np.uint32)
        return pa.array(names, type=pa.string())

    def find(self, ids: pa.Array) -> np.ndarray:
        """Dense indices of strings or int64 [n]."""
        encoded = ids.dictionary_encode()
        codes = [self._codes.get(name, -1) for name in encoded.dictionary.cast(pa.string()).to_pylist()]
        index = np.append(self._index, ABSENT)  # position -1
        found: np.ndarray = index[np.array([*codes, -1])][encoded.indices.fill_null(-1).to_numpy()]
        return found


class TextIds:
    """Strings that are kept as numbers, which is smaller and faster, for as long as all are whole numbers."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._ids: NumberIds | NameIds = NumberIds()

    def add(self, ids: pa.Array) -> None:
        """Note that these occur: string [n] without nulls."""
        if isinstance(self._ids, NumberIds):
            numbers = _as_numbers(ids)
            if numbers is not None:
                self._ids.add(numbers)
                return
            names = NameIds()
            names.add(self._ids.seal())
            self._ids = names
        self._ids.add(ids)

    def seal(self) -> pa.Array:
        """All ids, string [N], ascending."""
        return self._ids.seal()

    def find(self, ids: pa.Array) -> np.ndarray:
        """Dense indices of strings or int64 [n]."""
        return self._ids.find(ids)


def _as_numbers(ids: pa.Array) -> pa.Array | None:
    """Strings as int64, if each is a whole number written as Python would write it."""
    try:
        numbers = ids.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return numbers if numbers.cast(pa.string()).equals(ids) else None


def _number(text: str | None) -> int | None:
    """A whole number that int64 holds, if the text is one."""
    if text is None or not _WHOLE.fullmatch(text):
        return None
    return number if abs(number := int(text)) < 2**63 else None


def ids_of(dtype: pa.DataType) -> Ids:
    """An empty vocabulary for a column of this type."""
    return NumberIds() if pa.types.is_integer(dtype) else TextIds()


def is_id(dtype: pa.DataType) -> bool:
    """Whether a column of this type can hold ids: whole numbers or strings, also as an enum."""
    dtype = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)
    return bool(pa.types.is_integer(dtype) or text)


def plain_ids(column: pa.Array) -> pa.Array:
    """A column of ids as int64 or string, nulls as they are; an empty string is null.

    A number that int64 does not hold comes out negative.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64(), safe=False)
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def text_faults(place: RowPlace, name: str, ids: pa.Array) -> list[str]:
    """The first value that is no UTF-8 text: CSV is checked as it is read, text in Parquet only here."""
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid:
        row = next(row for row, value in enumerate(ids.cast(pa.binary()).to_pylist()) if value and not _is_utf8(value))
        return [f"{place.row(row)}: column `{name}` is not UTF-8 text"]
    return []


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def id_column(place: RowPlace, name: str, column: pa.Array, faults: list[str]) -> pa.Array:
    """A column of ids as int64 or string; nulls and empty strings are faults."""
    ids = plain_ids(column)
    broken = text_faults(place, name, ids)
    if broken:
        faults += broken
        return ids[:0]
    if ids.null_count:
        missing = ids.is_null().to_numpy(zero_copy_only=False)
        row = int(np.argmax(missing))
        more = f" (and {ids.null_count - 1} more rows of this block)" if ids.null_count > 1 else ""
        what = "null" if not column[row].is_valid else "empty"
        faults.append(f"{place.row(row)}: column `{name}` is {what}{more}; every row must have a value there")
        return ids.drop_null()
    if column.type == pa.uint64() and len(ids) and pc.min(ids).as_py() < 0:
        row = int(np.argmax(ids.to_numpy() < 0))
        faults.append(f"{place.row(row)}: column `{name}` is {column[row]}; whole numbers must be below 2**63")
    return ids
