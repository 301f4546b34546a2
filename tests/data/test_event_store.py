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
from data.split import SplitConfig
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


def test_columns_are_the_files_themselves(folder: Path) -> None:
    store = EventStore.open(folder)
    values = store.column(schema.ITEM)
    assert not values.flags.writeable
    assert not values.flags.owndata  # a view of the mapped file
    assert store.column(schema.ITEM) is values
    np.testing.assert_array_equal(np.load(folder / "events" / "item.npy"), values)


def test_arrow_shows_the_same_buffers_as_one_row_a_user(folder: Path) -> None:
    store = EventStore.open(folder)
    table = store.to_arrow()
    assert table.num_rows == 7
    assert table.column_names == ["user", *schema.column_names(schema.OPTIONAL_COLUMNS)]
    for user in range(7):
        row = table.slice(user, 1).to_pylist()[0]
        begin, end = store.offsets[user], store.offsets[user + 1]
        assert row["user"] == f"user-{user}"
        assert row["item"] == store.column(schema.ITEM)[begin:end].tolist()
    lists = table.column(schema.TIMESTAMP).chunk(0)
    assert lists.values.buffers()[1].address == store.column(schema.TIMESTAMP).ctypes.data


def test_unverified_opening_reads_no_column(folder: Path) -> None:
    path = folder / schema.column_file(schema.ITEM)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert EventStore.open(folder, verify=False).num_users == 7
    with pytest.raises(InputError, match=r"events/item.npy: its content has SHA-256"):
        EventStore.open(folder)


def test_the_split_is_part_of_the_store(tmp_path: Path) -> None:
    split = SplitConfig(kind="temporal", test_seconds=10, validation_seconds=10, gap_seconds=1, end=50)
    write_event_store(SOURCE, tmp_path / "temporal", split)
    store = EventStore.open(tmp_path / "temporal")
    assert store.split_config == split
    times = store.column(schema.TIMESTAMP)
    first = int(store.offsets[5])
    of_user = times[first : first + 8]
    assert store.split().train_end_U[5] == (of_user < 28).sum()
    assert store.fingerprint != write_event_store(SOURCE, tmp_path / "last-out").fingerprint


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


def rewrite_column(name: str, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    """Change values of a column, and the manifest with it, as a forger would."""

    def rewrite(folder: Path) -> None:
        path = folder / schema.column_file(name)
        values = np.load(path)
        change(values)
        np.save(path, values)
        reseal(folder)

    return rewrite


def put(at: int, value: int) -> Callable[[np.ndarray], None]:
    return lambda values: values.__setitem__(at, value)


def truncate_events(folder: Path) -> None:
    path = folder / schema.column_file(schema.ITEM)
    path.write_bytes(path.read_bytes()[:-20])


def truncate_and_reseal(folder: Path) -> None:
    truncate_events(folder)
    reseal(folder)


def flip_a_bit(name: str, at: int) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        path = folder / name
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return flip


def another_dtype(folder: Path) -> None:
    path = folder / schema.column_file(schema.ITEM)
    np.save(path, np.load(path).astype(np.int64))
    reseal(folder)


def pickled(folder: Path) -> None:
    np.save(folder / schema.column_file(schema.ITEM), np.array([{}] * 22, dtype=object), allow_pickle=True)
    reseal(folder)


def edit_manifest(folder: Path) -> None:
    path = folder / schema.MANIFEST_FILE
    path.write_text(path.read_text().replace('"users": 7', '"users": 8'))


def drop_key(folder: Path) -> None:
    path = folder / schema.MANIFEST_FILE
    manifest = json.loads(path.read_text())
    del manifest["event_types"]
    path.write_text(json.dumps(manifest))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate_events, r"events/item.npy: has \d+ bytes, the store's manifest says \d+: cut short"),
    "truncated and resealed": (truncate_and_reseal, r"events/item.npy: damaged or not a NumPy file"),
    "flipped bit": (flip_a_bit("events/item.npy", -30), r"events/item.npy: its content has SHA-256 \w+…, .* says \w+…"),
    "flipped bit in Parquet": (flip_a_bit("users.parquet", 25), r"users.parquet: its content has SHA-256"),
    "another dtype": (another_dtype, r"item.npy: holds int64 of shape \(22,\), expected uint32 of shape \(22,\)"),
    "a pickle": (pickled, r"item.npy: damaged or not a NumPy file"),
    "edited manifest": (
        edit_manifest,
        r"manifest.json: its content has fingerprint \w+, but it says '\w+': it was changed",
    ),
    "manifest lacks a key": (drop_key, r"manifest.json: lacks `event_types`"),
    "not JSON": (lambda folder: (folder / "manifest.json").write_text("{") and None, r"manifest.json: cannot be read"),
    "other version": (
        lambda folder: reseal(folder, format_version=99),
        r"`format_version` is 99, this code reads version 2",
    ),
    "file gone": (lambda folder: (folder / "items.parquet").unlink(), r"items.parquet: missing"),
    "unsorted": (
        rewrite_column(schema.TIMESTAMP, lambda times: times[4:9].__setitem__(slice(None), [5, 6, 7, 6, 9])),
        r"events/timestamp.npy: user 2, event 3: `timestamp` is 6; a user's timestamps must not go down",
    ),
    "item out of range": (
        rewrite_column(schema.ITEM, put(20, 5)),
        r"user 5, event 7: `item` is 5; items are numbered below 5",
    ),
    "type out of range": (
        rewrite_column(schema.EVENT_TYPE, put(3, 3)),
        r"user 1, event 0: `event_type` is 3",
    ),
    "a user without events": (
        rewrite_column(schema.OFFSETS, put(2, 3)),
        r"events/offsets.npy: must rise from 0 to the 22 events of the store, with at least one event a user",
    ),
    "offsets beyond the events": (
        rewrite_column(schema.OFFSETS, put(-1, 23)),
        r"offsets.npy: must rise from 0 to the 22",
    ),
    "fewer users": (
        lambda folder: (
            pq.write_table(pq.read_table(folder / "users.parquet").slice(1), folder / "users.parquet") or reseal(folder)
        ),
        r"users.parquet: has 6 rows, .* says 7",
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
