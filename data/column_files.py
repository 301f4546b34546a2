"""Columns of an event store on disk: NumPy's format, appended to while the rows come, mapped into memory afterwards."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from common.errors import InputError


class ColumnWriter:
    """Writes one column, of numbers or of vectors, whose length is known only at its end. A context manager.

    NumPy pads the header so that the first axis may grow in place: it is written for no rows, and again at the end.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int | None = None) -> None:
        """Open `path` for writing; rows are vectors of `width` numbers where it is given."""
        self.dtype = dtype
        self._row_shape = () if width is None else (width,)
        self.rows = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        """Add rows [n] or [n, width] at the end."""
        assert values.dtype == self.dtype, f"{values.dtype} in a column of {self.dtype}"
        assert values.shape[1:] == self._row_shape, values.shape
        self._file.write(np.ascontiguousarray(values).data)
        self.rows += len(values)

    def _write_header(self) -> None:
        shape = (self.rows, *self._row_shape)
        content = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, content)

    def __enter__(self) -> ColumnWriter:
        """For the header to be completed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the header, if nothing went wrong, and close the file."""
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()


def open_column(path: Path, dtype: np.dtype[Any], rows: int, width: int | None = None) -> np.ndarray:
    """Map a column [rows] or [rows, width] into memory, read-only; nothing is read before it is touched.

    Raises:
        InputError: the file is absent or damaged, or holds another dtype or number of values.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: missing, though the store's manifest lists it; prepare the store again") from None
    except (ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged or not a NumPy file ({reason}); prepare the store again") from None
    shape = (rows,) if width is None else (rows, width)
    if mapped.dtype != dtype or mapped.shape != shape:
        raise InputError(
            f"{path}: holds {mapped.dtype} of shape {mapped.shape}, expected {dtype} of shape {shape}; prepare the "
            "store again"
        )
    values: np.ndarray = mapped.view(np.ndarray)  # a plain array: slices of a memmap cost more than they should
    return values


def forget_pages(column: np.ndarray) -> None:
    """Let go of what was read of a mapped column, which counts as this process's memory until then.

    The bytes stay in the page cache as long as there is room, so reading them again is cheap. An array that is not
    mapped is left alone.
    """
    owner: Any = column
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def read_block(path: Path, dtype: np.dtype[Any], first: int, rows: int) -> np.ndarray:
    """Values [rows] of a column from row `first` on, read into memory of their own and gone with it."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return np.fromfile(path, dtype=dtype, count=rows, offset=file.tell() + first * dtype.itemsize)
