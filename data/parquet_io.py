"""Parquet files opened and read so that damage is told by place, not by traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError


@contextmanager
def damage_told(path: Path, place: str = "") -> Iterator[None]:
    """Turn what Arrow raises over damaged bytes into an InputError that names `path` and `place`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
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
        return pq.ParquetFile(path, page_checksum_verification=True)


def parquet_writer(path: Path, arrow_schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of one file of a store: compressed, with page checksums, by which a reader tells a flipped bit from data.

    Dates and names of machines stay out of the file, so that equal content gives equal bytes.
    """
    return pq.ParquetWriter(path, arrow_schema, compression="zstd", write_page_checksum=True)
