"""What a table's catalogue file says of the items: artists and titles.

Shapes: N items · n rows of a block.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from data.sources.base import Groups, groups_of_pairs
from data.sources.raw_ids import ABSENT
from data.sources.table_config import TableCatalogue
from data.sources.table_files import RowPlace, TableFiles
from data.sources.table_ids import Ids, NameIds, id_column, is_id, plain_ids


class CatalogueReader:
    """Reads the file; of items that do not occur in the log nothing is kept.

    Attributes:
        files: what is read, where there are no faults.
        ignored: rows about items that do not occur.
    """

    def __init__(self, config: TableCatalogue, separator: str | None, faults: list[str]) -> None:
        """Check the file's columns; what is wrong is added to `faults`.

        Args:
            separator: between values of CSV, by the suffix where None.
        """
        assert config.path is not None
        assert config.item is not None
        self._item, self._artist, self._title = config.item, config.artist, config.title
        self._columns = [name for name in (config.item, config.artist, config.title) if name is not None]
        self.ignored = 0
        try:
            self.files = TableFiles.find(config.path, separator)
        except InputError as error:
            faults += error.faults
            return
        types = self.files.checked_types(self._columns, faults)
        for name, dtype in types.items():
            inner = dtype.value_type if name == config.artist and _is_list(dtype) else dtype
            if not is_id(inner):
                what = "whole numbers or strings, or lists of them" if name == config.artist else "numbers or strings"
                faults.append(f"{self.files.paths[0]}: column `{name}` is {dtype}, must hold {what}")

    def read(self, items: Ids, num_items: int) -> tuple[Groups, pa.Array | None]:
        """Artists and titles of the items [N]; no titles where no column of them is named.

        Raises:
            InputError: a row without an item, or an item with two titles.
        """
        self.ignored = 0
        item_parts: list[np.ndarray] = [np.zeros(0, dtype=np.uint32)]
        artist_parts: list[pa.Array] = [pa.array([], type=pa.string())]
        titles: list[str | None] = [None] * num_items
        for place, batch in self.files.blocks(self._columns):
            faults: list[str] = []
            ids = id_column(place, self._item, batch.column(self._item), faults)
            faults += self._text_faults(place, batch)
            if faults:
                raise InputError(*faults)
            dense = items.find(ids)
            known = dense != ABSENT
            self.ignored += int(len(known) - known.sum())
            if self._artist is not None:
                owners, artists = _artists(dense[known], batch.column(self._artist).filter(pa.array(known)))
                item_parts.append(owners)
                artist_parts.append(artists)
            if self._title is not None:
                self._note_titles(place, dense, batch.column(self._title), titles)
        names = NameIds()
        for part in artist_parts:
            names.add(part)
        ids = names.seal()
        found = [names.find(part) for part in artist_parts]
        groups = groups_of_pairs(np.concatenate(item_parts), np.concatenate(found), ids, num_items)
        if self._title is None:
            return groups, None
        return groups, pa.array([title or "" for title in titles], type=pa.string())

    def _text_faults(self, place: RowPlace, batch: pa.RecordBatch) -> list[str]:
        faults = []
        for name in self._columns[1:]:
            try:
                batch.column(name).validate(full=True)
            except pa.ArrowInvalid:
                faults.append(f"{place.row(0)} or a later row of this block: column `{name}` is not UTF-8 text")
        return faults

    def _note_titles(self, place: RowPlace, dense: np.ndarray, column: pa.Array, titles: list[str | None]) -> None:
        rows = zip(dense.tolist(), plain_ids(column).cast(pa.string()).to_pylist(), strict=True)
        for row, (item, title) in enumerate(rows):
            if item == ABSENT or title is None:
                continue
            if titles[item] not in (None, title):
                raise InputError(
                    f"{place.row(row)}: column `{self._title}` is {title!r}, but the item was {titles[item]!r} "
                    "before; all rows of an item must have the same title, or none"
                )
            titles[item] = title


def _is_list(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_list(dtype) or pa.types.is_large_list(dtype))


def _artists(items: np.ndarray, column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """(item, artist) pairs as uint32 [n] and string [n]; a null or empty artist is not known."""
    if _is_list(column.type):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        items, column = np.repeat(items, lengths), column.flatten()
    names = plain_ids(column).cast(pa.string())
    return items[names.is_valid().to_numpy(zero_copy_only=False)], names.drop_null()
