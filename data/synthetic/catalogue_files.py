"""What Yambda tells of its items: who made them, on which albums they are, and their embeddings.

An embedding is a sum of normal vectors of the item's genre, its artist and its own (GENRE_WEIGHT, ARTIST_WEIGHT,
ITEM_WEIGHT), so items heard together are near one another. Some items have none, some have no artist, some two, some
are on two albums (shares in data/synthetic/catalogue.py).

N items · A artists · D embedding width · n items of a row group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.progress import Progress
from common.seeding import derive_seed
from data.synthetic.catalogue import (
    NO_ARTIST_SHARE,
    NO_EMBEDDING_SHARE,
    SECOND_ALBUM_SHARE,
    SECOND_ARTIST_SHARE,
    Catalogue,
    raw_ids,
)
from data.synthetic.draws import generator

GENRE_WEIGHT, ARTIST_WEIGHT, ITEM_WEIGHT = 0.6, 0.6, 0.5
ROW_GROUP_ITEMS = 16_384

_VECTORS = pa.list_(pa.float32())


def write_maps(folder: Path, catalogue: Catalogue, seed: int) -> None:
    """Write `artist_item_mapping.parquet` and `album_item_mapping.parquet`; pairs are unique, in no order."""
    random = generator(derive_seed(seed, "maps"))
    items = len(catalogue.artist_N)
    credited = np.flatnonzero(random.random(items) >= NO_ARTIST_SHARE)
    artists = len(catalogue.genre_A)
    pairs = _with_seconds(credited, catalogue.artist_N[credited], artists, SECOND_ARTIST_SHARE, random)
    _write_map(folder / "artist_item_mapping.parquet", "artist_id", *pairs, artists, catalogue.raw_N, seed)
    albums = int(catalogue.album_N[-1]) + 1
    pairs = _with_seconds(np.arange(items), catalogue.album_N, albums, SECOND_ALBUM_SHARE, random)
    _write_map(folder / "album_item_mapping.parquet", "album_id", *pairs, albums, catalogue.raw_N, seed)


def _with_seconds(
    items: np.ndarray, groups: np.ndarray, num_groups: int, share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(item, group) pairs, with another group beside the first for a share of the items."""
    if num_groups == 1:
        return items, groups
    more = np.flatnonzero(random.random(len(items)) < share)
    other = (groups[more] + random.integers(1, num_groups, len(more))) % num_groups
    return np.concatenate([items, items[more]]), np.concatenate([groups, other])


def _write_map(
    path: Path, name: str, items: np.ndarray, groups: np.ndarray, num_groups: int, raw_N: np.ndarray, seed: int
) -> None:
    ids = raw_ids(num_groups, derive_seed(seed, name))
    table = pa.table({name: ids[groups], "item_id": raw_N[items]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=2**20)


def write_embeddings(path: Path, catalogue: Catalogue, width: int, seed: int) -> int:
    """Write `embeddings.parquet`, columns item_id, embed, normalized_embed. Returns the number of rows."""
    schema = pa.schema([("item_id", pa.uint32()), ("embed", _VECTORS), ("normalized_embed", _VECTORS)])
    genre_GD = generator(derive_seed(seed, "genre vectors")).standard_normal((catalogue.num_genres, width))
    count = 0
    # Random numbers do not become smaller by compressing them.
    with (
        pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer,
        Progress("embeddings", len(catalogue.artist_N), "items") as progress,
    ):
        for block, (first, last) in enumerate(_whole_artists(catalogue.first_A)):
            random = generator(derive_seed(seed, "embeddings", block))
            items, vectors_nD = _vectors(catalogue, first, last, genre_GD.astype(np.float32), random)
            norms_n = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
            columns = [pa.array(catalogue.raw_N[items]), _lists(vectors_nD), _lists(vectors_nD / norms_n)]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP_ITEMS)
            count += len(items)
            progress.advance(int(catalogue.first_A[last] - catalogue.first_A[first]))
    return count


def _whole_artists(first_A: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of artists of at most `ROW_GROUP_ITEMS` items, or of one artist who has more."""
    artists, first = len(first_A) - 1, 0
    while first < artists:
        last = int(np.searchsorted(first_A, first_A[first] + ROW_GROUP_ITEMS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _vectors(
    catalogue: Catalogue, first: int, last: int, genre_GD: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Items of artists `first` … `last` − 1 that have an embedding, and these: float32 [n, D]."""
    begin, end = int(catalogue.first_A[first]), int(catalogue.first_A[last])
    has = random.random(end - begin) >= NO_EMBEDDING_SHARE
    has[0] |= begin == 0  # a file without rows is a fault to its readers
    items = begin + np.flatnonzero(has)
    width = genre_GD.shape[1]
    artist_AD = random.standard_normal((last - first, width), dtype=np.float32)
    artist_AD *= np.float32(ARTIST_WEIGHT)
    artist_AD += np.float32(GENRE_WEIGHT) * genre_GD[catalogue.genre_A[first:last]]
    vectors_nD = random.standard_normal((len(items), width), dtype=np.float32)
    vectors_nD *= np.float32(ITEM_WEIGHT)
    vectors_nD += artist_AD[catalogue.artist_N[items] - first]
    return items, vectors_nD


def _lists(vectors_nD: np.ndarray) -> pa.Array:
    count, width = vectors_nD.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(vectors_nD).reshape(-1)))
