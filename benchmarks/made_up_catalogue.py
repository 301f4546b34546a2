"""An event store whose catalogue is far larger than its log: for what depends on items alone.

`data.synthesize` makes logs, and a store holds what its log names; nine million items would need hundreds of millions
of listens. Here items are there whether they are listened to or not.

N items · n items with a vector · D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.progress import Progress
from data.event_store import EventStore
from data.sources.base import Catalogue, Embeddings, Groups, Histories
from data.store_writer import write_event_store

_BLOCK = 2**17
_USERS, _LISTENS = 1000, 400
SHARE_WITH_VECTOR = 0.82
"""As in Yambda."""


class MadeUpCatalogue:
    """A source (`data.sources.base.Source`): items with clustered vectors, and a few users who play some of them."""

    description = {"source": "made-up catalogue"}  # noqa: RUF012
    event_types = ("listen",)
    optional_columns = ()
    left_out: dict[str, int] = {}  # noqa: RUF012
    num_events = _USERS * _LISTENS

    def __init__(self, items: int, width: int, seed: int = 0) -> None:
        """A function of its arguments."""
        self.items, self.embedding_width = items, width
        self._seed = seed
        random = np.random.default_rng([seed, 0])
        self._spectrum_D = np.arange(1, width + 1) ** -0.5
        self._centres_kD = (random.standard_normal((2000, width)) * self._spectrum_D).astype(np.float32)
        self.least_bytes = 4 * width * items

    def catalogue(self) -> Catalogue:
        """Every item has an artist; a seventh as many artists as items."""
        artists = max(1, self.items // 7)
        groups = Groups(
            offsets=np.arange(self.items + 1),
            values=(np.arange(self.items) % artists).astype(np.uint32),
            ids=pa.array(np.arange(artists)).cast(pa.string()),
        )
        return Catalogue(item_ids=pa.array(np.arange(self.items)).cast(pa.string()), artists=groups, titles=None)

    def histories(self) -> Iterator[Histories]:
        """Plays by a Pareto law, of items anywhere in the catalogue."""
        random = np.random.default_rng([self._seed, 1])
        ranks = np.minimum(random.pareto(0.7, self.num_events), self.items - 1).astype(np.int64)
        columns: dict[str, np.ndarray] = {
            "item": (ranks * 7919 % self.items).astype(np.uint32),
            "timestamp": np.tile(np.arange(_LISTENS, dtype=np.uint32) * 3600, _USERS),
            "event_type": np.zeros(self.num_events, np.uint8),
        }
        yield Histories(pa.array([str(user) for user in range(_USERS)]), np.arange(_USERS + 1) * _LISTENS, columns)

    def embeddings(self) -> Iterator[Embeddings]:
        """Clusters with a decaying spectrum, one block drawn at a time."""
        for begin in range(0, self.items, _BLOCK):
            items = np.arange(begin, min(begin + _BLOCK, self.items))
            items = items[items % 100 < 100 * SHARE_WITH_VECTOR].astype(np.uint32)
            random = np.random.default_rng([self._seed, 2, begin])
            noise_nD = random.standard_normal((len(items), self.embedding_width), np.float32)
            centre_n = random.integers(len(self._centres_kD), size=len(items))
            vectors_nD = self._centres_kD[centre_n] + 0.4 * noise_nD * self._spectrum_D.astype(np.float32)
            yield Embeddings(items, vectors_nD)


def write_store(path: Path, items: int, width: int) -> EventStore:
    """A store of so many items."""
    write_event_store(MadeUpCatalogue(items, width), path)
    return EventStore.open(path)


def write_vectors(path: Path, items: int, width: int) -> None:
    """The same vectors as a Parquet file with the columns item_id and embed."""
    schema = pa.schema([("item_id", pa.uint32()), ("embed", pa.list_(pa.float32()))])
    with pq.ParquetWriter(path, schema, compression="none") as writer, Progress("vectors", items, "items") as progress:
        for block in MadeUpCatalogue(items, width).embeddings():
            offsets = np.arange(len(block.items) + 1, dtype=np.int32) * width
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(block.vectors.ravel()))
            writer.write_batch(pa.record_batch([pa.array(block.items), lists], schema=schema))
            progress.advance(_BLOCK)
