"""A small Yambda, generated in the published layout, traps included, with something to learn in it.

Listeners keep to a few artists and mostly go on to the next track of the one they listen to, so a sequence
model beats popularity. Some users have a single event, some items no embedding (about 18%), several artists,
or none; some listens played over 100%.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = ("listens", "likes", "dislikes", "unlikes", "undislikes", "multi_event")
EVENT_TYPES = ("listen", "dislike", "like", "undislike", "unlike")
EMBEDDING_WIDTH = 16
ITEMS_PER_ARTIST = 8
FIRST_ITEM, ITEM_STEP = 1000, 3  # raw ids are neither dense nor zero-based

Columns = dict[str, np.ndarray]


def write_yambda_example(folder: Path, users: int = 40, items: int = 120, seed: int = 0) -> Path:
    """Write flat/50m/*.parquet and the mapping and embedding files under `folder`; return `folder`."""
    random = np.random.default_rng(seed)
    events = _listens_and_reactions(random, users, items)
    flat = folder / "flat" / "50m"
    flat.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        rows = (
            events if kind == "multi_event" else _select(events, events["event_type"] == EVENT_TYPES.index(kind[:-1]))
        )
        # Small row groups, so that users straddle them.
        pq.write_table(_table(rows, kind), flat / f"{kind}.parquet", row_group_size=100)
    _write_catalogue(folder, random, items)
    return folder


def write_sequential(folder: Path, plural: bool = True, row_group_size: int = 7) -> Path:
    """Write sequential/50m/*.parquet beside the flat files of `folder`, of the same events; return `folder`.

    Args:
        plural: whether the columns are called item_ids and timestamps.
    """
    target = folder / "sequential" / "50m"
    target.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        table = sequential_table(pq.read_table(folder / "flat" / "50m" / f"{kind}.parquet"), plural)
        pq.write_table(table, target / f"{kind}.parquet", row_group_size=row_group_size)
    return folder


def sequential_table(flat: pa.Table, plural: bool = True) -> pa.Table:
    """One row a user, with the other columns as lists."""
    uid = flat.column("uid").to_numpy()
    starts = np.flatnonzero(np.diff(uid, prepend=-1))
    offsets = pa.array(np.append(starts, len(uid)), type=pa.int32())
    columns = {"uid": pa.array(uid[starts], type=pa.uint32())}
    for name in flat.column_names[1:]:
        called = {"item_id": "item_ids", "timestamp": "timestamps"}.get(name, name) if plural else name
        values = flat.column(name).combine_chunks()
        columns[called] = pa.ListArray.from_arrays(offsets, values)
    return pa.table(columns)


def _listens_and_reactions(random: np.random.Generator, users: int, items: int) -> Columns:
    """All events of all users, sorted by (uid, timestamp)."""
    parts = []
    for user in range(users):
        length = 1 if user % 11 == 5 else int(random.lognormal(3.2, 0.6)) + 1
        listened = _walk(random, length, items)
        reacts = random.random(length) < 0.15
        event_type = np.zeros(length, dtype=np.int64)
        event_type[reacts] = random.choice([1, 2, 2, 2, 3, 4], size=int(reacts.sum()))
        times = np.cumsum(random.integers(5, 40, size=length) * 5) + int(random.integers(0, 10_000)) * 5
        track = 90 + (listened * 37) % 240 // 5 * 5
        parts.append(
            {
                "uid": np.full(length, 7 + 2 * user),
                "timestamp": times,
                "item_id": FIRST_ITEM + ITEM_STEP * listened,
                "is_organic": random.integers(0, 2, size=length),
                "played_ratio_pct": random.choice([3, 55, 100, 100, 130], size=length),
                "track_length_seconds": track,
                "event_type": event_type,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _walk(random: np.random.Generator, length: int, items: int) -> np.ndarray:
    """Three events in four are the next track of the same artist; else another track, popular ones first."""
    walk = np.empty(length, dtype=np.int64)
    current = int(random.integers(items))
    for step in range(length):
        walk[step] = current
        artist, track = divmod(current, ITEMS_PER_ARTIST)
        following = artist * ITEMS_PER_ARTIST + (track + 1) % ITEMS_PER_ARTIST
        goes_on = random.random() < 0.75 and following < items
        current = following if goes_on else int(items * random.random() ** 2)
    return walk


def _select(events: Columns, mask: np.ndarray) -> Columns:
    return {name: values[mask] for name, values in events.items()}


def _table(rows: Columns, kind: str) -> pa.Table:
    columns = {
        "uid": pa.array(rows["uid"], type=pa.uint32()),
        "timestamp": pa.array(rows["timestamp"], type=pa.uint32()),
        "item_id": pa.array(rows["item_id"], type=pa.uint32()),
        "is_organic": pa.array(rows["is_organic"], type=pa.uint8()),
    }
    if kind in ("listens", "multi_event"):
        not_a_listen = rows["event_type"] != 0
        columns["played_ratio_pct"] = pa.array(rows["played_ratio_pct"], type=pa.uint16(), mask=not_a_listen)
        columns["track_length_seconds"] = pa.array(rows["track_length_seconds"], type=pa.uint32(), mask=not_a_listen)
    if kind == "multi_event":
        indices = pa.array(rows["event_type"], type=pa.int8())
        columns["event_type"] = pa.DictionaryArray.from_arrays(indices, pa.array(EVENT_TYPES))
    return pa.table(columns)


def _write_catalogue(folder: Path, random: np.random.Generator, items: int) -> None:
    dense = np.arange(items)
    raw = FIRST_ITEM + ITEM_STEP * dense
    main = 50 + dense // ITEMS_PER_ARTIST
    guests = dense % 7 == 3
    known = dense % 13 != 6
    artist_id = np.concatenate([main[known], 50 + (dense[guests & known] * 5) % (main.max() - 49)])
    item_id = np.concatenate([raw[known], raw[guests & known]])
    shuffled = random.permutation(len(item_id))
    mapping = {"artist_id": artist_id[shuffled], "item_id": item_id[shuffled]}
    uint32 = {name: pa.array(values, type=pa.uint32()) for name, values in mapping.items()}
    pq.write_table(pa.table(uint32), folder / "artist_item_mapping.parquet")
    albums = {"album_id": pa.array(900 + dense // 4, type=pa.uint32()), "item_id": pa.array(raw, type=pa.uint32())}
    pq.write_table(pa.table(albums), folder / "album_item_mapping.parquet")

    centres = random.normal(size=(main.max() - 49, EMBEDDING_WIDTH))
    chosen = np.sort(random.choice(items, size=items - items * 18 // 100, replace=False))
    vectors = centres[main[chosen] - 50] + 0.3 * random.normal(size=(len(chosen), EMBEDDING_WIDTH))
    normalized = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = {
        "item_id": pa.array(raw[chosen], type=pa.uint32()),
        "embed": pa.array(list(vectors), type=pa.list_(pa.float64())),
        "normalized_embed": pa.array(list(normalized), type=pa.list_(pa.float64())),
    }
    pq.write_table(pa.table(embeddings), folder / "embeddings.parquet", row_group_size=50)
