"""Item vectors that a store ships: content embeddings, mapped from disk and read a block at a time.

A vector of zeros tells nothing of its item, and codes of it would say that such items are alike: they count as items
without a vector.

N items in the catalogue · F embeddings of the file · n items that have a vector · D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.progress import Progress
from data.column_files import forget_pages
from data.event_store import EventStore
from semantic_ids.vectors.base import ItemVectors

BLOCK_BYTES = 2**25


_ROWS_AT_ONCE = 2**14
"""Rows read before their pages are let go of: of scattered rows each brings tens of kilobytes with it."""


@dataclass(frozen=True, eq=False)
class _Usable:
    """What one reading of all embeddings found.

    Attributes:
        items_n: items whose vector is finite and not all zero, ascending.
        places_n: where the file holds their vectors; sources write embeddings in any order.
        zeros: vectors of zeros.
    """

    items_n: npt.NDArray[np.int64]
    places_n: npt.NDArray[np.int64]
    zeros: int


class ContentVectors(ItemVectors):
    """The store's embeddings. All are read once, by `check` or when `items_n` is first asked for."""

    kind = "content"

    def __init__(self, store: EventStore, asked: str = "content") -> None:
        """Map the embeddings; nothing is read yet.

        Args:
            asked: what the configuration says, for the fault.

        Raises:
            InputError: the store has none.
        """
        mapped = store.embeddings()
        if mapped is None:
            raise InputError(
                f"{store.path}: the store holds no content embeddings, and embeddings={asked} asks for them;"
                " use embeddings=collaborative, or prepare the store from a source that ships embeddings"
            )
        self._store = store
        self._items_F, self._vectors_FD = mapped

    @property
    def width(self) -> int:
        """D, the store's `embedding_width`."""
        return int(self._vectors_FD.shape[1])

    @cached_property
    def items_n(self) -> npt.NDArray[np.int64]:  # type: ignore[override]
        """See `ItemVectors.items_n`.

        Raises:
            InputError: as `check`.
        """
        return self._usable.items_n

    @property
    def zero_vectors(self) -> int:
        """Vectors of zeros, whose items count as items without a vector."""
        return self._usable.zeros

    def check(self) -> None:
        """Read every embedding once, in blocks.

        Raises:
            InputError: with all faults: an item that has two embeddings, an item index out of range, values that are
                not finite; or no embedding that tells anything.
        """
        assert len(self._usable.items_n)

    def rows(self, places_m: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """See `ItemVectors.rows`; that values are finite was checked."""
        vectors_mD = np.empty((len(places_m), self.width), np.float32)
        for begin in range(0, len(places_m), _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            vectors_mD[part] = self._vectors_FD[self._usable.places_n[places_m[part]]]
            forget_pages(self._vectors_FD)
        return vectors_mD

    def notes(self) -> tuple[str, ...]:
        """How many vectors of zeros there are."""
        if not self.zero_vectors:
            return ()
        return (
            f"{self.zero_vectors:,} embeddings are all zero and tell nothing: their items count as items without one",
        )

    @cached_property
    def _usable(self) -> _Usable:
        order_F = np.argsort(self._items_F, kind="stable")
        items_F = np.asarray(self._items_F, np.int64)[order_F]
        faults = self._item_faults(items_F)
        finite_F, filled_F = self._read()
        bad = np.flatnonzero(~finite_F[order_F])
        if bad.size:
            faults.append(
                f"{bad.size} embeddings hold a value that is not finite, the first is that of"
                f" {self._named(items_F[bad[0]])}; leave such items without an embedding"
            )
        if faults:
            raise InputError(*(f"{self._store.path}: {fault}; prepare the store again" for fault in faults))
        told = filled_F[order_F]
        if not told.any():
            what = "are all zero" if len(items_F) else "hold no item"
            raise InputError(f"{self._store.path}: the content embeddings {what}; use embeddings=collaborative")
        return _Usable(items_F[told], order_F[told], int((~told).sum()))

    def _item_faults(self, items_F: npt.NDArray[np.int64]) -> list[str]:
        """Rules that ascending item indices may break."""
        faults = []
        if (twice := np.flatnonzero(items_F[1:] == items_F[:-1])).size:
            faults.append(
                f"{self._named(items_F[twice[0]])} has two embeddings, an item has at most one"
                + (f"; so it is with {twice.size} embeddings" if twice.size > 1 else "")
            )
        if len(items_F) and items_F[-1] >= self._store.num_items:
            faults.append(
                f"an embedding is for item index {items_F[-1]}, but items are numbered below {self._store.num_items}"
            )
        return faults

    def _named(self, item: int) -> str:
        if item >= self._store.num_items:
            return f"item index {item}"
        return f"item {str(self._store.item_ids[int(item)])!r} (item index {item})"

    def _read(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which embeddings [F] are finite, and which are not all zero."""
        count = len(self._vectors_FD)
        finite_F, filled_F = np.ones(count, bool), np.ones(count, bool)
        step = max(BLOCK_BYTES // max(4 * self.width, 1), 1)
        with Progress("check embeddings", count, "items") as progress:
            for begin in range(0, count, step):
                block = self._vectors_FD[begin : begin + step]
                finite_F[begin : begin + step] = np.isfinite(block).all(axis=1)
                filled_F[begin : begin + step] = block.any(axis=1)
                progress.advance(len(block))
                forget_pages(self._vectors_FD)
        return finite_F, filled_F
