"""Yambda (arXiv 2505.22238), flat layout: listens, likes and their like on a music service.

`path` is the root of the data set:

    flat/SIZE/KIND.parquet          uid, timestamp, item_id, is_organic, …, sorted by (uid, timestamp)
    artist_item_mapping.parquet     optional; an item may have several artists
    embeddings.parquet              optional; item_id, embed; items may lack a row

SIZE is 50m, 500m or 5b; KIND one of yambda_files.FILES. Timestamps are seconds since an origin of the
data set's own. Everything is streamed: memory holds the vocabulary and one block of rows.

Dense item indices follow raw ids, ascending, over the items that occur in KIND.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from common.progress import Progress
from data import schema
from data.parquet_io import open_parquet
from data.sources import yambda_files as files
from data.sources.base import Catalogue, Embeddings, Histories, run_starts

NAME = "yambda"

BLOCK_ROWS = 2**20
"""Rows read at once; whole users of about as many events make one row group of the store."""

_STORED = {
    "timestamp": schema.TIMESTAMP,
    "is_organic": schema.ORGANIC,
    files.PLAYED[0]: schema.PLAYED_RATIO,
    files.PLAYED[1]: schema.DURATION,
}


class Yambda:
    """One flat file of Yambda with what the root tells of its items; implements `data.sources.base.Source`."""

    def __init__(self, root: Path, kind: str, size: str | None = None) -> None:
        """Check all files' columns.

        Raises:
            InputError: missing files and columns, wrong dtypes, all at once.
        """
        self.paths = files.find_files(root, kind, size)
        self.event_types = files.FILES[kind]
        self.description = {"name": NAME, "size": self.paths.size, "kind": kind}
        self._columns = ["uid", "timestamp", "item_id", "is_organic"]
        self.optional_columns: tuple[str, ...] = (schema.ORGANIC,)
        if kind in ("listens", "multi_event"):
            self._columns += files.PLAYED
            self.optional_columns = (schema.DURATION, schema.ORGANIC, schema.PLAYED_RATIO)
        if kind == "multi_event":
            self._columns.append("event_type")
        self._vocabulary = np.zeros(0, dtype=np.uint32)
        self._check_columns()

    def _check_columns(self) -> None:
        wanted = [(self.paths.events, self._columns)]
        if self.paths.artists:
            wanted.append((self.paths.artists, ["artist_id", "item_id"]))
        if self.paths.embeddings:
            wanted.append((self.paths.embeddings, ["item_id", "embed"]))
        faults: list[str] = []
        for path, columns in wanted:
            try:
                file = open_parquet(path)
            except InputError as error:
                faults += error.faults
                continue
            faults += files.schema_faults(path, file.schema_arrow, columns)
            if file.metadata.num_rows == 0:
                faults.append(f"{path}: has no rows, expected at least one")
        if faults:
            raise InputError(*faults)

    @property
    def num_events(self) -> int:
        """Rows of the flat file."""
        return int(open_parquet(self.paths.events).metadata.num_rows)

    # ── first pass ───────────────────────────────────────────────────────────────────────────────────────

    def catalogue(self) -> Catalogue:
        """The items that occur in the file, and their artists."""
        self._vocabulary = self._collect_items()
        items, artists = self._item_artists()
        artist_ids, artist_index = np.unique(artists, return_inverse=True)
        # One number a pair sorts and removes repeats at once; 2**64 holds far more than items times artists.
        pairs = np.unique(items * max(len(artist_ids), 1) + artist_index)
        item_of, artist_of = np.divmod(pairs, max(len(artist_ids), 1))
        offsets = np.zeros(len(self._vocabulary) + 1, dtype=np.int64)
        np.cumsum(np.bincount(item_of, minlength=len(self._vocabulary)), out=offsets[1:])
        return Catalogue(
            item_ids=pa.array(self._vocabulary).cast(pa.string()),
            artist_offsets=offsets,
            artist_values=artist_of.astype(np.uint32),
            artist_ids=pa.array(artist_ids, type=pa.uint32()).cast(pa.string()),
            titles=None,
        )

    def _collect_items(self) -> np.ndarray:
        """All raw item ids, ascending, merged now and then so that memory stays near the vocabulary's size."""
        known = np.zeros(0, dtype=np.uint32)
        pending: list[np.ndarray] = []
        with Progress("vocabulary", self.num_events, "events") as progress:
            for place, batch in files.blocks(self.paths.events, ["item_id"], BLOCK_ROWS):
                files.raise_if(files.null_faults(place, batch))
                pending.append(pc.unique(batch.column("item_id")).to_numpy(zero_copy_only=False))
                if sum(map(len, pending)) > max(len(known), BLOCK_ROWS):
                    known, pending = np.unique(np.concatenate([known, *pending])), []
                progress.advance(len(batch))
        return np.unique(np.concatenate([known, *pending]))

    def _item_artists(self) -> tuple[np.ndarray, np.ndarray]:
        """(dense item, raw artist) pairs of the items in the vocabulary."""
        items, artists = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint32)]
        if self.paths.artists:
            for place, batch in files.blocks(self.paths.artists, ["artist_id", "item_id"], BLOCK_ROWS):
                files.raise_if(files.null_faults(place, batch))
                dense, known = self._dense(files.values(batch, "item_id"))
                items.append(dense[known])
                artists.append(files.values(batch, "artist_id")[known])
        return np.concatenate(items), np.concatenate(artists)

    def _dense(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dense indices, and which of them mean anything: False where the item is not in the vocabulary."""
        dense = np.minimum(np.searchsorted(self._vocabulary, raw), len(self._vocabulary) - 1)
        return dense, self._vocabulary[dense] == raw

    # ── second pass ──────────────────────────────────────────────────────────────────────────────────────

    def histories(self) -> Iterator[Histories]:
        """Blocks of whole users, each of about BLOCK_ROWS events or one long user."""
        parts: list[dict[str, np.ndarray]] = []
        pending = 0
        last: tuple[int, int] | None = None
        for place, batch in files.blocks(self.paths.events, self._columns, BLOCK_ROWS):
            files.raise_if(files.null_faults(place, batch) or files.event_faults(place, batch, last, self.event_types))
            parts.append(self._rows(batch))
            last = int(parts[-1]["uid"][-1]), int(parts[-1][schema.TIMESTAMP][-1])
            pending += len(batch)
            if pending >= BLOCK_ROWS:
                rows = _concatenated(parts)
                cut = int(run_starts(rows["uid"])[-1])  # the last user may go on in the next block
                if cut:
                    yield _grouped({name: values[:cut] for name, values in rows.items()})
                parts = [{name: values[cut:] for name, values in rows.items()}]
                pending -= cut
        yield _grouped(_concatenated(parts))

    def _rows(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        """Columns of one block under the store's names and dtypes, and `uid`."""
        dense, _ = self._dense(files.values(batch, "item_id"))
        rows = {"uid": files.values(batch, "uid"), schema.ITEM: dense}
        for name, stored in _STORED.items():
            if name in self._columns:
                missing = schema.EVENT_COLUMNS[stored].missing
                column = batch.column(name)
                rows[stored] = (column if missing is None else column.fill_null(missing)).to_numpy(zero_copy_only=False)
        if "event_type" in self._columns:
            rows[schema.EVENT_TYPE] = files.type_index(batch, self.event_types).to_numpy(zero_copy_only=False)
        else:
            rows[schema.EVENT_TYPE] = np.zeros(len(batch), dtype=np.uint8)
        return {
            name: values if name == "uid" else values.astype(schema.EVENT_COLUMNS[name].dtype)
            for name, values in rows.items()
        }

    # ── embeddings ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def embedding_width(self) -> int | None:
        """Width of the first embedding in the file; `embeddings` holds the others to it."""
        if not self.paths.embeddings:
            return None
        for _, batch in files.blocks(self.paths.embeddings, ["embed"], BLOCK_ROWS):
            lengths = pc.list_value_length(batch.column("embed").drop_null())
            if len(lengths):
                return int(lengths[0].as_py())
        raise InputError(
            f"{self.paths.embeddings}: column `embed` is null in every row; leave the file out or give embeddings"
        )

    def embeddings(self) -> Iterator[Embeddings]:
        """Embeddings of the items in the vocabulary, in file order; a null one means that the item has none."""
        if not self.paths.embeddings:
            return
        width = self.embedding_width
        assert width is not None
        seen = np.zeros(len(self._vocabulary), dtype=bool)
        for place, batch in files.blocks(self.paths.embeddings, ["item_id", "embed"], BLOCK_ROWS):
            files.raise_if(files.null_faults(place, batch.select(["item_id"])))
            dense, known = self._dense(files.values(batch, "item_id"))
            known &= batch.column("embed").is_valid().to_numpy(zero_copy_only=False)
            lists = batch.column("embed").filter(pa.array(known))
            rows, items = np.flatnonzero(known), dense[known]
            files.raise_if(files.embedding_faults(place, lists, rows, width))
            files.raise_if(files.repeat_faults(place, self._vocabulary[items], rows, seen[items]))
            seen[items] = True
            if len(items):
                yield Embeddings(items.astype(np.uint32), files.embedding_vectors(lists, width))


def _concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _grouped(rows: dict[str, np.ndarray]) -> Histories:
    uid = rows["uid"]
    starts = run_starts(uid)
    return Histories(
        user_ids=pa.array(uid[starts], type=pa.uint32()).cast(pa.string()),
        offsets=np.append(starts, len(uid)),
        columns={name: values for name, values in rows.items() if name != "uid"},
    )
