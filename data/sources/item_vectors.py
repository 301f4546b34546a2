"""Content embeddings of items from a Parquet file: one row an item, a list of numbers each.

Shapes: n rows of a block · D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from data.parquet_io import Place, parquet_blocks
from data.sources.base import Embeddings
from data.sources.raw_ids import ABSENT

BLOCK_ROWS = 2**13

Find = Callable[[pa.Array], np.ndarray]
"""A column of raw item ids → dense indices uint32 [n], ABSENT where an item is not in the catalogue."""


def is_vector(dtype: pa.DataType) -> bool:
    """Whether a column of this type can hold embeddings."""
    lists = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    return bool(lists and dtype.value_type in (pa.float32(), pa.float64()))


class ItemVectors:
    """Embeddings in file order; memory holds a block of them.

    Attributes:
        ignored: rows of items that are not in the catalogue, counted while `blocks` goes on.
    """

    def __init__(self, path: Path, item: str, vector: str) -> None:
        """Name the file and its two columns."""
        self.path, self._item, self._vector = path, item, vector
        self.ignored = 0

    @cached_property
    def width(self) -> int:
        """Width of the first embedding in the file; `blocks` holds the others to it.

        Raises:
            InputError: there is none.
        """
        for _, batch in parquet_blocks(self.path, [self._vector], BLOCK_ROWS):
            lengths = pc.list_value_length(batch.column(self._vector).drop_null())
            if len(lengths):
                return int(lengths[0].as_py())
        raise InputError(
            f"{self.path}: column `{self._vector}` is null in every row; leave the file out or give embeddings"
        )

    def blocks(self, find: Find, num_items: int) -> Iterator[Embeddings]:
        """Embeddings of the items in the catalogue; a null one means that the item has none.

        Raises:
            InputError: a null item, an item twice, a vector of another width, or a number that is not finite.
        """
        self.ignored = 0
        seen = np.zeros(num_items, dtype=bool)
        for place, batch in parquet_blocks(self.path, [self._item, self._vector], BLOCK_ROWS):
            ids, vectors = batch.column(self._item), batch.column(self._vector)
            if ids.null_count:
                row = int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False)))
                raise InputError(f"{place.row(row)}: column `{self._item}` is null; it must have a value in every row")
            dense = find(ids)
            known = dense != ABSENT
            self.ignored += int(len(known) - known.sum())
            known &= vectors.is_valid().to_numpy(zero_copy_only=False)
            rows, items = np.flatnonzero(known), dense[known]
            if len(rows):
                self._check_repeats(place, ids, rows, items, seen)
                yield Embeddings(items, self._matrix(place, vectors.filter(pa.array(known)), rows))

    def _matrix(self, place: Place, lists: pa.Array, rows: np.ndarray) -> np.ndarray:
        """Lists as float32 [n, D]; `rows` says where each stands."""
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        if (lengths != self.width).any():
            bad = int(np.argmax(lengths != self.width))
            raise InputError(
                f"{place.row(int(rows[bad]))}: column `{self._vector}` has {lengths[bad]} values, the first embedding "
                f"has {self.width}; all must be equally wide"
            )
        flat: np.ndarray[Any, Any] = lists.flatten().to_numpy(zero_copy_only=False)  # a null within becomes NaN
        with np.errstate(over="ignore"):
            matrix = flat.astype(np.float32).reshape(-1, self.width)
        broken = ~np.isfinite(matrix).all(axis=1)
        if broken.any():
            raise InputError(
                f"{place.row(int(rows[np.argmax(broken)]))}: column `{self._vector}` has a value that is not a finite "
                "float32 number; all must be"
            )
        return matrix

    def _check_repeats(
        self, place: Place, ids: pa.Array, rows: np.ndarray, items: np.ndarray, seen: np.ndarray
    ) -> None:
        """An item's second embedding, in this block or after an earlier one; marks the block's items in `seen`."""
        repeated = np.ones(len(items), dtype=bool)
        repeated[np.unique(items, return_index=True)[1]] = False
        repeated |= seen[items]
        seen[items] = True
        if repeated.any():
            row = int(rows[np.argmax(repeated)])
            raise InputError(
                f"{place.row(row)}: column `{self._item}` is {ids[row]}, which has an embedding already; an item has "
                "at most one"
            )
