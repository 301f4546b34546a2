"""Yambda (arXiv 2505.22238): listens, likes and their like on a music service, in both published layouts.

`path` is the root of the data set:

    flat/SIZE/KIND.parquet          uid, timestamp, item_id, is_organic, …, sorted by (uid, timestamp)
    sequential/SIZE/KIND.parquet    one row a user: uid, and lists of the others
    artist_item_mapping.parquet     optional; an item may have several artists
    album_item_mapping.parquet      optional; an item may be on several albums
    embeddings.parquet              optional; item_id, embed, normalized_embed; items may lack a row

SIZE is 50m, 500m or 5b; KIND one of yambda_files.FILES. Both layouts of the same events give the same store. Timestamps
are seconds since an origin of the data set's own. Everything is streamed: memory holds the vocabulary (five bytes for
each number up to the largest raw id), one block of events and the longest history.

Dense item indices follow raw ids, ascending, over the items that occur in the events that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.errors import InputError
from common.progress import Progress
from data import schema
from data.parquet_io import open_parquet, parquet_blocks
from data.sources import yambda_files as files
from data.sources import yambda_rows as rows
from data.sources.base import Catalogue, Embeddings, Groups, Histories, column_bytes, groups_of_pairs
from data.sources.item_vectors import ItemVectors
from data.sources.prefetch import prefetched
from data.sources.raw_ids import ABSENT, RawIds
from data.sources.whole_users import Runs, runs_of_rows, whole_users

NAME = "yambda"

BLOCK_ROWS = 2**20
"""Events read at once; whole users of about as many events are yielded at once."""

_STORED = {
    "timestamp": schema.TIMESTAMP,
    "is_organic": schema.ORGANIC,
    files.PLAYED_RATIO: schema.PLAYED_RATIO,
    files.TRACK_LENGTH: schema.DURATION,
}
_LISTEN = files.MULTI_EVENT_TYPES.index("listen")


class Yambda:
    """One event file of Yambda with what the root tells of its items; implements `data.sources.base.Source`."""

    def __init__(
        self,
        root: Path,
        kind: str,
        size: str | None = None,
        layout: str | None = None,
        min_played_ratio: int | None = None,
        embedding: str = files.EMBEDDINGS[0],
    ) -> None:
        """Check all files' columns.

        Args:
            min_played_ratio: percent; listens played less, or of unknown ratio, are left out. None keeps all.
            embedding: the column of embeddings.parquet to read.

        Raises:
            InputError: missing files and columns, wrong dtypes, all at once.
        """
        self.paths = files.find_files(root, kind, size, layout)
        self.event_types = files.FILES[kind]
        self.optional_columns: tuple[str, ...] = (schema.ORGANIC,)
        columns = ["uid", "timestamp", "item_id", "is_organic"]
        if kind in files.PLAYED_KINDS:
            columns += files.PLAYED
            self.optional_columns = (schema.DURATION, schema.ORGANIC, schema.PLAYED_RATIO)
        self._many_types = kind == "multi_event"
        if self._many_types:
            columns.append("event_type")
        self._min_played_ratio = min_played_ratio
        self._vectors = ItemVectors(self.paths.embeddings, "item_id", embedding) if self.paths.embeddings else None
        self._columns = self._check_columns(columns, embedding)
        self.description = {"name": NAME, "size": self.paths.size, "kind": kind}
        if min_played_ratio is not None:
            self.description["min_played_ratio"] = str(min_played_ratio)
        if self._vectors is not None and embedding != files.EMBEDDINGS[0]:
            self.description["embedding"] = embedding
        self._items = RawIds()
        self.left_out: dict[str, int] = {}

    def _check_columns(self, columns: list[str], embedding: str) -> dict[str, str]:
        faults: list[str] = []
        lists = self.paths.layout == files.SEQUENTIAL
        names = files.checked_columns(self.paths.events, columns, lists, faults)
        for path, wanted in (
            (self.paths.artists, ["artist_id", "item_id"]),
            (self.paths.albums, ["album_id", "item_id"]),
            (self.paths.embeddings, ["item_id", embedding]),
        ):
            if path is not None:
                files.checked_columns(path, wanted, False, faults)
        rows.raise_if(faults)
        return names

    @property
    def num_events(self) -> int:
        """Events of the file, before any are left out."""
        metadata = open_parquet(self.paths.events).metadata
        if self.paths.layout == files.FLAT:
            return int(metadata.num_rows)
        name = self._columns["item_id"].split(".")[0]
        return sum(
            metadata.row_group(group).column(column).num_values
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
            if metadata.schema.column(column).path.split(".")[0] == name
        )

    @property
    def least_bytes(self) -> int:
        """The store's events; 0 where some may be left out."""
        return column_bytes(self.num_events, self.optional_columns) if self._min_played_ratio is None else 0

    def _blocks(self, columns: list[str]) -> rows.Blocks:
        names = {name: self._columns[name] for name in columns}
        if self.paths.layout == files.FLAT:
            return prefetched(rows.flat_blocks(self.paths.events, columns, BLOCK_ROWS))
        return prefetched(rows.sequential_blocks(self.paths.events, names, BLOCK_ROWS))

    def _kept(self, batch: pa.RecordBatch, types: np.ndarray | None) -> np.ndarray | None:
        """Which events of a block are kept, bool [E]; None for all."""
        if self._min_played_ratio is None:
            return None
        ratio = batch.column(files.PLAYED_RATIO).fill_null(schema.MISSING_PLAYED_RATIO).to_numpy()
        kept: np.ndarray = (ratio >= self._min_played_ratio) & (ratio != schema.MISSING_PLAYED_RATIO)
        return kept if types is None else kept | (types != _LISTEN)

    # ── first pass ───────────────────────────────────────────────────────────────────────────────────────

    def catalogue(self) -> Catalogue:
        """The items that occur in the events that are kept, with their artists and albums."""
        self.left_out = {}
        self._collect_items()
        if not len(self._items):
            raise InputError(
                f"{self.paths.events}: no event is left: no listen has `{files.PLAYED_RATIO}` ≥ "
                f"{self._min_played_ratio} (min_played_ratio)"
                if self._min_played_ratio is not None
                else f"{self.paths.events}: has no events, all lists are empty"
            )
        return Catalogue(
            item_ids=pa.array(self._items.ids).cast(pa.string()),
            artists=self._groups(self.paths.artists, "artist_id"),
            titles=None,
            albums=self._groups(self.paths.albums, "album_id") if self.paths.albums else None,
        )

    def _collect_items(self) -> None:
        columns = ["item_id"]
        if self._min_played_ratio is not None:
            columns += [files.PLAYED_RATIO, "event_type"] if self._many_types else [files.PLAYED_RATIO]
        with Progress("vocabulary", self.num_events, "events") as progress:
            for _, batch in self._blocks(columns):
                types = rows.type_index(batch) if "event_type" in columns else None
                kept = self._kept(batch, types)
                items = rows.values(batch, "item_id")
                self._items.add(items if kept is None else items[kept])
                progress.advance(len(batch))
        self._items.seal()

    def _groups(self, path: Path | None, column: str) -> Groups:
        """What a map file says of the items in the vocabulary; rows of other items are counted as left out."""
        items, groups, ignored = [np.zeros(0, dtype=np.uint32)], [np.zeros(0, dtype=np.uint32)], 0
        for place, batch in parquet_blocks(path, [column, "item_id"], BLOCK_ROWS) if path else ():
            rows.raise_if(rows.null_faults(place, batch))
            dense = self._items.find(rows.values(batch, "item_id"))
            known = dense != ABSENT
            items.append(dense[known])
            groups.append(rows.values(batch, column)[known])
            ignored += int(len(known) - known.sum())
        if path:
            self.left_out[f"rows of {path.name} about other items"] = ignored
        ids, index = np.unique(np.concatenate(groups), return_inverse=True)
        names = pa.array(ids, type=pa.uint32()).cast(pa.string())
        return groups_of_pairs(np.concatenate(items), index, names, len(self._items))

    # ── second pass ──────────────────────────────────────────────────────────────────────────────────────

    def histories(self) -> Iterator[Histories]:
        """Blocks of whole users, each of up to BLOCK_ROWS events or one long user, the same in both layouts."""
        self.left_out |= {"listens below min_played_ratio": 0, "users without events after that": 0}
        users = 0
        for block in whole_users(self._runs(), BLOCK_ROWS):
            users += len(block.users)
            yield Histories(pa.array(block.users).cast(pa.string()), block.offsets, block.columns)
        self.left_out["users without events after that"] -= users

    def _runs(self) -> Iterator[Runs]:
        """Checked blocks; counts the users before any event is left out."""
        last: tuple[int, int] | None = None
        for place, batch in self._blocks(list(self._columns)):
            types = rows.type_index(batch) if self._many_types else None
            rows.check_events(place, batch, last, types)
            uid, time = rows.values(batch, "uid"), rows.values(batch, "timestamp")
            changes = int(np.count_nonzero(uid[1:] != uid[:-1])) + (last is None or last[0] != int(uid[0]))
            self.left_out["users without events after that"] += changes
            last = int(uid[-1]), int(time[-1])
            runs = runs_of_rows(uid, self._stored(batch, types))
            kept = self._kept(batch, types)
            if kept is not None:
                self.left_out["listens below min_played_ratio"] += int(len(kept) - kept.sum())
                runs = runs_of_rows(uid[kept], {name: column[kept] for name, column in runs.columns.items()})
            if len(runs.users) and int(runs.columns[schema.ITEM].max()) == ABSENT:
                raise InputError(f"{place.path}: changed while it was read; let nobody write to it and begin again")
            yield runs

    def _stored(self, batch: pa.RecordBatch, types: np.ndarray | None) -> dict[str, np.ndarray]:
        """Columns of one block under the store's names and dtypes."""
        stored = {schema.ITEM: self._items.find(rows.values(batch, "item_id"))}
        for name, column in _STORED.items():
            if name in batch.schema.names:
                missing = schema.EVENT_COLUMNS[column].missing
                filled = batch.column(name) if missing is None else batch.column(name).fill_null(missing)
                stored[column] = filled.to_numpy(zero_copy_only=False)
        stored[schema.EVENT_TYPE] = types if types is not None else np.zeros(len(batch), dtype=np.uint8)
        return {name: column.astype(schema.EVENT_COLUMNS[name].dtype, copy=False) for name, column in stored.items()}

    # ── embeddings ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def embedding_width(self) -> int | None:
        """Width of the first embedding in the file; `embeddings` holds the others to it."""
        return self._vectors.width if self._vectors is not None else None

    def embeddings(self) -> Iterator[Embeddings]:
        """Embeddings of the items in the vocabulary, in file order; a null one means that the item has none."""
        if self._vectors is None:
            return
        yield from self._vectors.blocks(lambda ids: self._items.find(ids.to_numpy()), len(self._items))
        self.left_out[f"rows of {self._vectors.path.name} about other items"] = self._vectors.ignored
