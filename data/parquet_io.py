"""Parquet files opened and read so that damage is told by place, not by traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError

_READ_BUFFER = 2**20
"""Bytes. A column is read through a buffer, page by page, so that a row group of any size is streamed."""


@contextmanager
def damage_told(path: Path, place: str = "") -> Iterator[None]:
    """Turn what Arrow raises over damaged bytes into an InputError that names `path` and `place`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError:
        raise InputError(f"{path}: must not be read (permission denied); give yourself the right to read it") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"{path}: {place}: " if place else f"{path}: "
        reason = " ".join(str(error).split())
        raise InputError(f"{where}damaged or not a Parquet file ({reason}); copy or make it anew") from None


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file and read its footer; page checksums, where present, are verified on reading.

    Raises:
        InputError: the file is absent, a folder, empty, cut short or not Parquet.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a Parquet file")
    if path.exists() and path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes), expected a Parquet file")
    with damage_told(path):
        file = pq.ParquetFile(path, page_checksum_verification=True, buffer_size=_READ_BUFFER, pre_buffer=False)
        _ = file.schema_arrow.names  # damaged names are told here, not where they are first used
        return file


def parquet_writer(path: Path, arrow_schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of one file of a store: compressed, with page checksums, which tell a flipped bit from data.

    Dates and names of machines stay out of the file, so that equal content gives equal bytes.
    """
    return pq.ParquetWriter(path, arrow_schema, compression="zstd", write_page_checksum=True)


def shown(value: pa.Scalar) -> str:
    """A value as a fault shows it; Arrow does not check that text in Parquet is UTF-8."""
    try:
        return "null" if not value.is_valid else str(value)
    except UnicodeDecodeError:
        return "no UTF-8 text"


@dataclass(frozen=True)
class Place:
    """Where a block of rows lies; rows are counted from 0 within the row group.

    Attributes:
        offsets: int64, where the block's values were lists, laid end to end: the bounds of each row's list. None
            elsewhere.
    """

    path: Path
    group: int
    first_row: int
    offsets: np.ndarray | None = None

    def row(self, index: int) -> str:
        """The place of one row of the block or, where it was made of lists, of one of their elements."""
        if self.offsets is None:
            return f"{self.path}: row group {self.group}, row {self.first_row + index}"
        row = int(np.searchsorted(self.offsets, index, side="right")) - 1
        event = index - int(self.offsets[row])
        return f"{self.path}: row group {self.group}, row {self.first_row + row}, event {event}"


RowsOfGroup = Callable[[pq.RowGroupMetaData], int]


def parquet_blocks(
    path: Path, columns: Sequence[str], rows: int | RowsOfGroup
) -> Iterator[tuple[Place, pa.RecordBatch]]:
    """All rows of a file, in blocks of at most `rows` that lie within a row group; memory holds one block.

    Raises:
        InputError: damaged bytes, by row group.
    """
    file: pq.ParquetFile = open_parquet(path)
    for group in range(file.num_row_groups):
        size = rows if isinstance(rows, int) else rows(file.metadata.row_group(group))
        batches = file.iter_batches(batch_size=size, row_groups=[group], columns=list(columns))
        first = 0
        while True:
            with damage_told(path, f"row group {group}"):
                batch = next(batches, None)
            if batch is None:
                break
            if len(batch):
                yield Place(path, group, first), batch
            first += len(batch)
