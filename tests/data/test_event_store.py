from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from common.files import fingerprint_of, sha256_of_file
from data import schema
from data.event_store import EventStore
from data.store_writer import write_event_store
from tests.data.helpers import MemorySource, make_store

SOURCE = MemorySource(
    lengths_U=[3, 1, 5, 2, 2, 8, 1],
    artists_N=[[0, 2], [], [1], [], [3]],
    optional_columns=schema.OPTIONAL_COLUMNS,
    embedding_width=4,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_store(tmp_path, SOURCE).path


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    store = EventStore.open(folder)
    blocks = list(SOURCE.histories())
    assert len(blocks) > 1
    np.testing.assert_array_equal(store.offsets, [0, 3, 4, 9, 11, 13, 21, 22])
    assert store.offsets.dtype == np.int64
    for name in blocks[0].columns:
        expected = np.concatenate([block.columns[name] for block in blocks])
        np.testing.assert_array_equal(store.column(name), expected)
        assert store.column(name).dtype == expected.dtype == schema.EVENT_COLUMNS[name].dtype
    assert store.user_ids.to_pylist() == [f"user-{user}" for user in range(7)]
    assert store.item_ids.to_pylist() == [f"item-{item}" for item in range(5)]
    assert store.artist_ids.to_pylist() == [f"artist-{artist}" for artist in range(4)]
    assert store.item_titles == [f"Title {item}" for item in range(5)]
    np.testing.assert_array_equal(store.artist_offsets, [0, 2, 2, 3, 3, 4])
    np.testing.assert_array_equal(store.artist_values, [0, 2, 1, 3])
    embeddings = store.embeddings()
    assert embeddings is not None
    np.testing.assert_array_equal(embeddings[0], [0, 2, 4])
    np.testing.assert_array_equal(embeddings[1], np.arange(12, dtype=np.float32).reshape(3, 4))
    assert (store.num_users, store.num_items, store.num_artists, store.num_events) == (7, 5, 4, 22)
    assert store.event_types == ("listen", "like", "dislike")
    assert sum(store.manifest.event_type_counts) == 22
    times = store.column(schema.TIMESTAMP)
    assert store.manifest.time_range == (times.min(), times.max())


def test_columns_come_out_of_arrow_without_a_copy(folder: Path) -> None:
    store = EventStore.open(folder)
    values = store.column(schema.ITEM)
    assert not values.flags.writeable  # Arrow's own buffer
    assert not values.flags.owndata
    assert store.column(schema.ITEM) is values


def test_absent_parts_are_absent(tmp_path: Path) -> None:
    store = make_store(tmp_path, MemorySource(lengths_U=[2], artists_N=[[]], num_artists=0))
    assert store.embeddings() is None
    assert store.has_column(schema.ITEM)
    assert not any(store.has_column(name) for name in schema.OPTIONAL_COLUMNS)
    assert store.artist_values.tolist() == []
    with pytest.raises(AssertionError, match="no column `duration`"):
        store.column(schema.DURATION)


def test_the_fingerprint_names_the_content(tmp_path: Path) -> None:
    first = write_event_store(SOURCE, tmp_path / "first").fingerprint
    again = write_event_store(SOURCE, tmp_path / "elsewhere" / "again").fingerprint
    assert first == again == EventStore.open(tmp_path / "first").fingerprint
    other = MemorySource(**{**SOURCE.__dict__, "seed": 1})
    assert write_event_store(other, tmp_path / "other").fingerprint != first


def test_replacing_a_store_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_event_store(SOURCE, tmp_path / "store")
    write_event_store(MemorySource(lengths_U=[4], artists_N=[[0]]), tmp_path / "store")
    assert EventStore.open(tmp_path / "store").num_users == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────


def reseal(folder: Path, **changes: Any) -> None:
    """Make the manifest agree with the files again, so that the deeper checks are reached."""
    path = folder / schema.MANIFEST_FILE
    manifest = json.loads(path.read_text()) | changes
    del manifest["fingerprint"]
    for name, entry in manifest["files"].items():
        entry.update(bytes=(folder / name).stat().st_size, sha256=sha256_of_file(folder / name))
    path.write_text(json.dumps(manifest | {"fingerprint": fingerprint_of(manifest)}))


def rewrite_events(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = pq.read_table(folder / schema.EVENTS_FILE)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), folder / schema.EVENTS_FILE)
    reseal(folder)


def truncate_events(folder: Path) -> None:
    path = folder / schema.EVENTS_FILE
    path.write_bytes(path.read_bytes()[:-20])


def truncate_and_reseal(folder: Path) -> None:
    truncate_events(folder)
    reseal(folder)


def flip_a_bit(folder: Path) -> None:
    path = folder / schema.EVENTS_FILE
    content = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset + 60
    content[place] ^= 1
    path.write_bytes(content)


def edit_manifest(folder: Path) -> None:
    path = folder / schema.MANIFEST_FILE
    path.write_text(path.read_text().replace('"users": 7', '"users": 8'))


def drop_key(folder: Path) -> None:
    path = folder / schema.MANIFEST_FILE
    manifest = json.loads(path.read_text())
    del manifest["event_types"]
    path.write_text(json.dumps(manifest))


def unequal_lists(columns: dict[str, Any]) -> None:
    columns["timestamp"][2].pop()
    columns["timestamp"][3].append(60)


def time_goes_down(columns: dict[str, Any]) -> None:
    columns["timestamp"][2][:] = [5, 6, 7, 6, 9]


def negative_time(columns: dict[str, Any]) -> None:
    columns["timestamp"][0][0] = -1


def item_out_of_range(columns: dict[str, Any]) -> None:
    columns["item"][5][7] = 5


def type_out_of_range(columns: dict[str, Any]) -> None:
    columns["event_type"][1][0] = 3


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate_events, r"events.parquet: has \d+ bytes, the store's manifest says \d+: cut short"),
    "truncated and resealed": (truncate_and_reseal, r"events.parquet: damaged or not a Parquet file"),
    "flipped bit": (flip_a_bit, r"events.parquet: row group 0: damaged"),
    "edited manifest": (
        edit_manifest,
        r"manifest.json: its content has fingerprint \w+, but it says '\w+': it was changed",
    ),
    "manifest lacks a key": (drop_key, r"manifest.json: lacks `event_types`"),
    "not JSON": (lambda folder: (folder / "manifest.json").write_text("{") and None, r"manifest.json: cannot be read"),
    "other version": (
        lambda folder: reseal(folder, format_version=99),
        r"`format_version` is 99, this code reads version 1",
    ),
    "file gone": (lambda folder: (folder / "items.parquet").unlink(), r"items.parquet: missing"),
    "unequal lists": (
        lambda folder: rewrite_events(folder, unequal_lists),
        r"row group 0, row 2: list `timestamp` has 4 values, `item` has 5",
    ),
    "unsorted": (
        lambda folder: rewrite_events(folder, time_goes_down),
        r"row group 0, row 2, event 3: `timestamp` is 6; a user's timestamps must not go down",
    ),
    "negative time": (
        lambda folder: rewrite_events(folder, negative_time),
        r"row 0, event 0: `timestamp` is -1; .* never negative",
    ),
    "item out of range": (
        lambda folder: rewrite_events(folder, item_out_of_range),
        r"row 5, event 7: `item` is 5; items are numbered below 5",
    ),
    "type out of range": (
        lambda folder: rewrite_events(folder, type_out_of_range),
        r"row 1, event 0: `event_type` is 3",
    ),
    "fewer users": (
        lambda folder: rewrite_events(folder, lambda columns: [c.pop() for c in columns.values()] and None),
        r"has 6 rows, .* says 7",
    ),
    "another schema": (
        lambda folder: pq.write_table(pa.table({"item": ["a"]}), folder / "items.parquet") or reseal(folder),
        r"items.parquet: has columns \[item: string\], expected \[item: string, artists: ",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_refused_by_place_and_rule(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(InputError, match=message):
        EventStore.open(folder)


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder; an event store is made by `python -m data\.prepare"):
        EventStore.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="has no manifest"):
        EventStore.open(tmp_path)


def test_all_damaged_files_are_told(folder: Path) -> None:
    for name in (schema.ITEMS_FILE, schema.ARTISTS_FILE):
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        EventStore.open(folder)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        str(folder / "items.parquet"),
        str(folder / "artists.parquet"),
    ]
