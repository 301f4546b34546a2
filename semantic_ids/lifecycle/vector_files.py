"""Vectors in Parquet files, of items of any catalogue: one row an item, its id and a list of numbers.

A file, or a folder whose `*.parquet` are read in order of their names, as if they were one long file. Memory holds one
block of rows, however the row groups were cut.

n rows of a block · D vector width.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import InputError
from data.parquet_io import Place, damage_told, open_parquet
from data.sources.item_vectors import is_vector

BLOCK_BYTES = 2**24
"""Of the vectors of a block, as 32-bit numbers."""
_FOOTER_END = 8
"""A Parquet file ends with the length of its footer, in four bytes, and four bytes of a name."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows, one after another."""

    first_row: int
    """Counted over all files."""
    ids: pa.Array
    vectors_nD: npt.NDArray[np.float32]
    """All finite; zeros where a row has no vector."""

    def part(self, begin: int, end: int) -> Block:
        """Rows [begin, end) of the block."""
        return Block(self.first_row + begin, self.ids[begin:end], self.vectors_nD[begin:end])


@dataclass(frozen=True)
class _Group:
    """A row group and the rows before it, over all files."""

    path: Path
    group: int
    rows: int
    rows_before: int


class VectorFiles:
    """Rows of one file or many.

    Attributes:
        path: the file or the folder.
        item: name of the column of ids.
        id_type: its type in the first file, which the others share.
        rows: of all files together.
        sources: name, bytes and a digest of the footer of each file: what tells a file from another without reading
            it, since a Parquet footer says where every column chunk lies and between which values its rows are.
    """

    def __init__(self, path: Path, item: str, vector: str, width: int) -> None:
        """Read the footers.

        Args:
            path: a Parquet file, or a folder of them.
            item: name of the column of ids.
            vector: name of the column of vectors.
            width: D that every vector must have.

        Raises:
            InputError: no such file, no Parquet, or columns that cannot be read; with all faults.
        """
        self.path, self.item, self._vector, self._width = path, item, vector, width
        self._groups: list[_Group] = []
        self.sources: list[dict[str, Any]] = []
        self.rows = 0
        types: list[tuple[Path, pa.DataType]] = []
        faults: list[str] = []
        for file in _files(path):
            try:
                opened = open_parquet(file)
                types.append((file, self._checked_type(file, opened.schema_arrow)))
                self._note(file, opened.metadata)
            except InputError as error:
                faults += error.faults
        faults += [
            f"{file}: column `{item}` is {kind}, and {types[0][1]} in {types[0][0].name}; ids must be of one type"
            for file, kind in types
            if kind != types[0][1]
        ]
        if faults:
            raise InputError(*faults)
        self.id_type = types[0][1]

    def place(self, row: int) -> str:
        """Where a row stands, for people: file, row group, and row within it."""
        at = self._groups[bisect_right(self._groups, row, key=lambda group: group.rows_before) - 1]
        return Place(at.path, at.group, 0).row(row - at.rows_before)

    def blocks(self, first_row: int, end: int) -> Iterator[Block]:
        """Rows [first_row, end), in order.

        Raises:
            InputError: damaged bytes, an id that is null, a vector of another width or with a number that is not
                finite.
        """
        size = max(BLOCK_BYTES // (4 * self._width), 1)
        for group in self._groups:
            if group.rows_before >= end or group.rows_before + group.rows <= first_row:
                continue
            row = group.rows_before
            for batch in self._batches(group, size):
                begin, stop = max(first_row - row, 0), min(end - row, len(batch))
                if begin < stop:
                    yield self._block(group, row + begin, batch.slice(begin, stop - begin))
                row += len(batch)

    def _batches(self, group: _Group, size: int) -> Iterator[pa.RecordBatch]:
        columns = [self.item, self._vector]
        batches = open_parquet(group.path).iter_batches(batch_size=size, row_groups=[group.group], columns=columns)
        while True:
            with damage_told(group.path, f"row group {group.group}"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _block(self, group: _Group, row: int, batch: pa.RecordBatch) -> Block:
        place = Place(group.path, group.group, row - group.rows_before)
        ids, lists = batch.column(self.item), batch.column(self._vector)
        if ids.null_count:
            bad = int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(f"{place.row(bad)}: column `{self.item}` is null; it must have a value in every row")
        filled = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
        vectors_nD = np.zeros((len(batch), self._width), np.float32)
        vectors_nD[filled] = self._matrix(place, lists.drop_null(), filled)
        return Block(row, ids.cast(self.id_type), vectors_nD)

    def _matrix(self, place: Place, lists: pa.Array, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Lists as float32 [·, D]; `rows` says where each stands."""
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        if (lengths != self._width).any():
            bad = int(np.argmax(lengths != self._width))
            raise InputError(
                f"{place.row(int(rows[bad]))}: column `{self._vector}` has {lengths[bad]} values, but the code table "
                f"codes vectors of {self._width}; give vectors from the same encoder as those it was fitted to"
            )
        flat: npt.NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)  # a null within becomes NaN
        with np.errstate(over="ignore"):
            matrix = flat.astype(np.float32).reshape(-1, self._width)
        broken = ~np.isfinite(matrix).all(axis=1)
        if broken.any():
            raise InputError(
                f"{place.row(int(rows[np.argmax(broken)]))}: column `{self._vector}` has a value that is not a finite "
                "float32 number; all must be. Leave the vector null where there is none"
            )
        return matrix

    def _checked_type(self, file: Path, schema: pa.Schema) -> pa.DataType:
        faults = [
            f"{file}: has no column `{name}`; its columns are {', '.join(schema.names)}. Set `{key}`"
            for key, name in (("item", self.item), ("vector", self._vector))
            if name not in schema.names
        ]
        if faults:
            raise InputError(*faults)
        kind, vector = schema.field(self.item).type, schema.field(self._vector).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_integer(kind) or is_text(kind)):
            faults.append(f"{file}: column `{self.item}` is {kind}; ids must be whole numbers or text")
        if not is_vector(vector):
            faults.append(f"{file}: column `{self._vector}` is {vector}; vectors must be lists of float or double")
        elif pa.types.is_fixed_size_list(vector) and vector.list_size != self._width:
            faults.append(
                f"{file}: column `{self._vector}` has {vector.list_size} values, but the code table codes vectors of "
                f"{self._width}; give vectors from the same encoder as those it was fitted to"
            )
        if faults:
            raise InputError(*faults)
        return kind

    def _note(self, file: Path, metadata: pq.FileMetaData) -> None:
        self.sources.append({"name": file.name, "bytes": file.stat().st_size, "footer": _footer_digest(file)})
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if rows:
                self._groups.append(_Group(file, group, rows, self.rows))
            self.rows += rows


def is_text(kind: pa.DataType) -> bool:
    """Whether ids of this type are bytes of any length."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.parquet") if file.is_file())
    if not files:
        raise InputError(f"{path}: a folder without a file *.parquet; name a Parquet file or a folder of them")
    return files


def _footer_digest(file: Path) -> str:
    """SHA-256, cut short, of a Parquet file's footer."""
    with file.open("rb") as opened:
        opened.seek(-_FOOTER_END, 2)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-_FOOTER_END - length, 2)
        return hashlib.sha256(opened.read()).hexdigest()[:16]
