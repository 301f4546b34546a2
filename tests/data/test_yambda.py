from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import schema
from data.event_store import EventStore
from data.prepare import main
from data.sources import yambda
from data.sources.yambda_files import FILES
from tests.yambda_example import EVENT_TYPES, KINDS, sequential_table, write_sequential, write_yambda_example


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yambda_example(tmp_path_factory.mktemp("yambda"))


def prepare(root: Path, out: Path, kind: str, *more: str) -> int:
    return main(["source=yambda", f"path={root}", f"kind={kind}", f"out={out}", *more])


@pytest.mark.parametrize("block_rows", [7, 100, 2**20])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_it_stands_in_the_file(
    root: Path, tmp_path: Path, kind: str, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yambda, "BLOCK_ROWS", block_rows)  # users straddle blocks of 7 and row groups of 100
    assert prepare(root, tmp_path / "store", kind) == 0
    store = EventStore.open(tmp_path / "store")
    rows = pq.read_table(root / "flat" / "50m" / f"{kind}.parquet").to_pylist()
    items = sorted({row["item_id"] for row in rows})
    users = sorted({row["uid"] for row in rows})
    assert store.item_ids.to_pylist() == [str(item) for item in items]
    assert store.user_ids.to_pylist() == [str(user) for user in users]
    np.testing.assert_array_equal(np.diff(store.offsets), [sum(row["uid"] == user for row in rows) for user in users])
    np.testing.assert_array_equal(store.column(schema.ITEM), [items.index(row["item_id"]) for row in rows])
    np.testing.assert_array_equal(store.column(schema.TIMESTAMP), [row["timestamp"] for row in rows])
    np.testing.assert_array_equal(store.column(schema.ORGANIC), [row["is_organic"] for row in rows])
    if kind == "multi_event":
        assert store.event_types == EVENT_TYPES
        np.testing.assert_array_equal(
            store.column(schema.EVENT_TYPE), [EVENT_TYPES.index(row["event_type"]) for row in rows]
        )
    else:
        assert store.event_types == (kind[:-1],)
        assert not store.column(schema.EVENT_TYPE).any()
    assert (
        store.has_column(schema.DURATION)
        == store.has_column(schema.PLAYED_RATIO)
        == (kind in ("listens", "multi_event"))
    )
    if store.has_column(schema.DURATION):
        missing = schema.MISSING_DURATION, schema.MISSING_PLAYED_RATIO
        pairs = [(row["track_length_seconds"], row["played_ratio_pct"]) for row in rows]
        durations, ratios = zip(*[missing if pair == (None, None) else pair for pair in pairs], strict=True)
        np.testing.assert_array_equal(store.column(schema.DURATION), durations)
        np.testing.assert_array_equal(store.column(schema.PLAYED_RATIO), ratios)
        assert max(pair[1] or 0 for pair in pairs) > 100


def test_artists_are_joined_and_unknown_ones_left_empty(root: Path, tmp_path: Path) -> None:
    assert prepare(root, tmp_path / "store", "likes") == 0
    store = EventStore.open(tmp_path / "store")
    names = store.artist_ids.to_pylist()
    mapping = pq.read_table(root / "artist_item_mapping.parquet").to_pylist()
    found = [
        sorted(
            int(names[artist])
            for artist in store.artist_values[store.artist_offsets[item] : store.artist_offsets[item + 1]]
        )
        for item in range(store.num_items)
    ]
    expected = [
        sorted({row["artist_id"] for row in mapping if row["item_id"] == int(raw)})
        for raw in store.item_ids.to_pylist()
    ]
    assert found == expected
    assert {0, 1, 2} <= {len(artists) for artists in found}  # unknown, one, several
    assert store.num_artists == len({artist for artists in expected for artist in artists})


@pytest.mark.parametrize("kind", ["likes", "listens"])
def test_embeddings_of_the_items_in_the_file(root: Path, tmp_path: Path, kind: str) -> None:
    assert prepare(root, tmp_path / "store", kind) == 0
    store = EventStore.open(tmp_path / "store")
    raw = store.item_ids.to_pylist()
    rows = [row for row in pq.read_table(root / "embeddings.parquet").to_pylist() if str(row["item_id"]) in raw]
    embeddings = store.embeddings()
    assert embeddings is not None
    assert [raw[item] for item in embeddings[0]] == [str(row["item_id"]) for row in rows]
    np.testing.assert_array_equal(embeddings[1], np.array([row["embed"] for row in rows], dtype=np.float32))
    assert 0 < len(rows) < store.num_items


def test_root_files_are_optional(root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "flat").mkdir(parents=True)
    (bare / "flat" / "50m").symlink_to(root / "flat" / "50m")
    assert prepare(bare, tmp_path / "store", "listens") == 0
    store = EventStore.open(tmp_path / "store")
    assert store.embeddings() is None
    assert store.num_artists == 0
    assert (np.diff(store.artist_offsets) == 0).all()


def test_a_null_embedding_is_a_missing_one(tmp_path: Path) -> None:
    root = write_yambda_example(tmp_path / "yambda", users=10)
    path = root / "embeddings.parquet"
    table = pq.read_table(path)
    embed = pa.array([None, *table.column("embed").to_pylist()[1:]], type=pa.list_(pa.float32()))
    pq.write_table(table.set_column(1, "embed", embed), path)
    assert prepare(root, tmp_path / "store", "listens") == 0
    embeddings = EventStore.open(tmp_path / "store").embeddings()
    assert embeddings is not None
    assert str(table.column("item_id")[0]) not in [
        EventStore.open(tmp_path / "store").item_ids[int(item)].as_py() for item in embeddings[0]
    ]


def test_preparing_twice_gives_one_fingerprint(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(root, tmp_path / "one", "multi_event", "--json") == 0
    assert prepare(root, tmp_path / "two", "multi_event", "size=50m") == 0
    first, second = (EventStore.open(tmp_path / name).fingerprint for name in ("one", "two"))
    assert first == second


def test_event_types_may_be_plain_strings(root: Path, tmp_path: Path) -> None:
    plain = write_yambda_example(tmp_path / "plain")
    path = plain / "flat" / "50m" / "multi_event.parquet"
    table = pq.read_table(path)
    for dtype in (pa.string(), pa.large_string()):
        text = table.column("event_type").combine_chunks().dictionary_decode().cast(dtype)
        pq.write_table(table.set_column(table.column_names.index("event_type"), "event_type", text), path)
        assert prepare(plain, tmp_path / "store", "multi_event") == 0
        assert prepare(root, tmp_path / "enum", "multi_event") == 0
        assert EventStore.open(tmp_path / "store").fingerprint == EventStore.open(tmp_path / "enum").fingerprint


def fingerprint(folder: Path) -> str:
    return EventStore.open(folder).fingerprint


@pytest.mark.parametrize("block_rows", [7, 300, 2**20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plural", [True, False])
def test_both_layouts_give_the_same_store_bit_for_bit(
    root: Path, tmp_path: Path, kind: str, plural: bool, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yambda, "BLOCK_ROWS", block_rows)
    both = tmp_path / "both"
    both.mkdir()
    for name in ("flat", "artist_item_mapping.parquet", "album_item_mapping.parquet", "embeddings.parquet"):
        (both / name).symlink_to(root / name)
    write_sequential(both, plural)
    assert prepare(both, tmp_path / "flat", kind) == 0  # where both are there
    assert prepare(both, tmp_path / "sequential", kind, "layout=sequential") == 0
    (both / "flat").unlink()
    assert prepare(both, tmp_path / "alone", kind) == 0  # where only one is
    assert fingerprint(tmp_path / "flat") == fingerprint(tmp_path / "sequential") == fingerprint(tmp_path / "alone")


def test_users_without_events_are_not_in_the_store(root: Path, tmp_path: Path) -> None:
    flat = pq.read_table(root / "flat" / "50m" / "likes.parquet")
    table = sequential_table(flat, plural=False).to_pydict()
    table = {name: [values[0], *values[1:]] for name, values in table.items()}
    for name, values in table.items():
        values.insert(1, values[0] + 1 if name == "uid" else [])
    types = sequential_table(flat, plural=False).schema
    folder = tmp_path / "yambda" / "sequential" / "50m"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(table, schema=types), folder / "likes.parquet")
    assert prepare(tmp_path / "yambda", tmp_path / "store", "likes") == 0
    users = EventStore.open(tmp_path / "store").user_ids.to_pylist()
    assert users == [str(user) for user in sorted(set(flat.column("uid").to_pylist()))]


@pytest.mark.parametrize("layout", ["flat", "sequential"])
@pytest.mark.parametrize("kind", ["listens", "multi_event"])
def test_min_played_ratio_keeps_what_was_listened_to(
    root: Path,
    tmp_path: Path,
    kind: str,
    layout: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yambda, "BLOCK_ROWS", 64)
    changed = tmp_path / "yambda"
    (changed / "flat" / "50m").mkdir(parents=True)
    rows = pq.read_table(root / "flat" / "50m" / f"{kind}.parquet")
    uid = rows.column("uid").to_numpy()
    played = rows.column("played_ratio_pct").to_pylist()
    # One user listened to nothing for long, and one listen has no ratio.
    played = [3 if user == uid[0] and ratio is not None else ratio for user, ratio in zip(uid, played, strict=True)]
    played[-1] = None
    rows = rows.set_column(
        rows.column_names.index("played_ratio_pct"), "played_ratio_pct", pa.array(played, pa.uint16())
    )
    pq.write_table(rows, changed / "flat" / "50m" / f"{kind}.parquet", row_group_size=90)
    (changed / "sequential" / "50m").mkdir(parents=True)
    pq.write_table(sequential_table(rows), changed / "sequential" / "50m" / f"{kind}.parquet", row_group_size=9)
    capsys.readouterr()
    out = tmp_path / "store"
    assert prepare(changed, out, kind, f"layout={layout}", "min_played_ratio=55", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])

    def is_kept(row: dict[str, object]) -> bool:
        ratio = row["played_ratio_pct"]
        return row.get("event_type", "listen") != "listen" or (isinstance(ratio, int) and ratio >= 55)

    everything = rows.to_pylist()
    kept = [row for row in everything if is_kept(row)]
    users, items = ([str(raw) for raw in sorted({row[name] for row in kept})] for name in ("uid", "item_id"))
    store = EventStore.open(out)
    assert store.user_ids.to_pylist() == users
    assert store.item_ids.to_pylist() == items
    np.testing.assert_array_equal(store.column(schema.ITEM), [items.index(str(row["item_id"])) for row in kept])
    np.testing.assert_array_equal(store.column(schema.TIMESTAMP), [row["timestamp"] for row in kept])
    np.testing.assert_array_equal(
        store.offsets, np.cumsum([0, *(sum(str(row["uid"]) == user for row in kept) for user in users)])
    )
    assert store.manifest.source["min_played_ratio"] == "55"
    assert summary["left_out"]["listens below min_played_ratio"] == len(everything) - len(kept) > 0
    gone = len({row["uid"] for row in everything}) - len(users)
    assert summary["left_out"].get("users without events after that", 0) == gone
    assert gone > 0 or kind == "multi_event"


def test_items_have_their_albums(root: Path, tmp_path: Path) -> None:
    changed = write_yambda_example(tmp_path / "yambda")
    albums = pq.read_table(changed / "album_item_mapping.parquet").to_pylist()
    albums += [{"album_id": 1, "item_id": 1003}, {"album_id": 1, "item_id": 1003}, {"album_id": 4, "item_id": 5}]
    albums = [row for row in albums if row["item_id"] != 1006]
    pq.write_table(
        pa.Table.from_pylist(albums, pa.schema({"album_id": pa.uint32(), "item_id": pa.uint32()})),
        changed / "album_item_mapping.parquet",
    )
    assert prepare(changed, tmp_path / "store", "listens") == 0
    raw = EventStore.open(tmp_path / "store").item_ids.to_pylist()
    ids = pq.read_table(tmp_path / "store" / schema.ALBUMS_FILE).column(schema.ALBUM).to_pylist()
    lists = pq.read_table(tmp_path / "store" / schema.ITEMS_FILE).column(schema.ALBUMS).to_pylist()
    expected = [sorted({row["album_id"] for row in albums if str(row["item_id"]) == item}) for item in raw]
    assert [[int(ids[album]) for album in row] for row in lists] == expected
    assert expected[raw.index("1003")] == [1, 900]
    assert expected[raw.index("1006")] == []
    assert "4" not in ids


def test_rows_about_other_items_are_counted(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert prepare(root, tmp_path / "store", "undislikes", "--json") == 0
    printed = capsys.readouterr().out
    raw = EventStore.open(tmp_path / "store").item_ids.to_pylist()
    left_out = json.loads(printed.splitlines()[-1])["left_out"]
    for file in ("artist_item_mapping", "album_item_mapping", "embeddings"):
        others = [
            item for item in pq.read_table(root / f"{file}.parquet")["item_id"].to_pylist() if str(item) not in raw
        ]
        assert left_out[f"rows of {file}.parquet about other items"] == len(others) > 0
        assert f"left out       {len(others):,} rows of {file}.parquet about other items" in printed


def test_the_embedding_column_is_chosen(root: Path, tmp_path: Path) -> None:
    assert prepare(root, tmp_path / "store", "listens", "embedding=normalized_embed") == 0
    store = EventStore.open(tmp_path / "store")
    embeddings = store.embeddings()
    assert embeddings is not None
    np.testing.assert_allclose(np.linalg.norm(embeddings[1], axis=1), 1, rtol=1e-6)
    assert store.manifest.source["embedding"] == "normalized_embed"


def test_ids_beyond_the_flat_table(root: Path, tmp_path: Path) -> None:
    changed = write_yambda_example(tmp_path / "yambda")
    for file in [f"flat/50m/{kind}.parquet" for kind in FILES] + ["artist_item_mapping.parquet", "embeddings.parquet"]:
        table = pq.read_table(changed / file)
        items = table.column("item_id").to_numpy().astype(np.int64)
        moved = pa.array(np.where(items % 2, items, items + 2**32 - 2000), type=pa.uint32())
        pq.write_table(table.set_column(table.column_names.index("item_id"), "item_id", moved), changed / file)
    assert prepare(changed, tmp_path / "moved", "listens") == 0
    assert prepare(root, tmp_path / "store", "listens") == 0
    moved_store, store = EventStore.open(tmp_path / "moved"), EventStore.open(tmp_path / "store")
    raw = store.item_ids.to_numpy(zero_copy_only=False).astype(np.int64)
    far = np.where(raw % 2, raw, raw + 2**32 - 2000)
    assert moved_store.item_ids.to_pylist() == [str(item) for item in sorted(far)]
    np.testing.assert_array_equal(
        moved_store.item_ids.to_numpy(zero_copy_only=False).astype(np.int64)[moved_store.column(schema.ITEM)],
        far[store.column(schema.ITEM)],
    )


def test_ctrl_c_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(yambda.rows, "check_events", interrupted)
    assert prepare(root, tmp_path / "out" / "store", "listens") == 130
    assert list((tmp_path / "out").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────

EVENTS = "flat/50m/multi_event.parquet"
Change = tuple[str, str, int, object]  # file, column, row, value


def change_value(root: Path, file: str, column: str, row: int, value: object) -> None:
    table = pq.read_table(root / file)
    index = table.column_names.index(column)
    values = table.column(column).to_pylist()
    values[row] = value
    dtype = table.schema.field(index).type
    replaced = pa.array(values, type=dtype.value_type if pa.types.is_dictionary(dtype) else dtype)
    if pa.types.is_dictionary(dtype):
        replaced = replaced.dictionary_encode()
    pq.write_table(table.set_column(index, column, replaced), root / file, row_group_size=100)


BAD_VALUES: dict[str, tuple[Change, str]] = {
    "uid comes back": ((EVENTS, "uid", 210, 7), "row group 2, row 10: column `uid` is 7 after"),
    "uid comes back at a row group's start": ((EVENTS, "uid", 200, 7), "row group 2, row 0: column `uid` is 7 after"),
    "time goes down": ((EVENTS, "timestamp", 105, 0), "row group 1, row 5: column `timestamp` of uid"),
    "organic is 2": ((EVENTS, "is_organic", 3, 2), "row group 0, row 3: column `is_organic` is 2; must be 0 or 1"),
    "organic is null": ((EVENTS, "is_organic", 3, None), "row group 0, row 3: column `is_organic` is null"),
    "uid is null": ((EVENTS, "uid", 150, None), "row group 1, row 50: column `uid` is null"),
    "item is null": ((EVENTS, "item_id", 0, None), "row group 0, row 0: column `item_id` is null"),
    "time is null": ((EVENTS, "timestamp", 0, None), "row group 0, row 0: column `timestamp` is null"),
    "type is null": ((EVENTS, "event_type", 1, None), "row group 0, row 1: column `event_type` is null"),
    "unknown type": (
        (EVENTS, "event_type", 1, "skip"),
        "row group 0, row 1: column `event_type` is skip; must be one of listen,",
    ),
    "duration": (
        (EVENTS, "track_length_seconds", 2, 2**32 - 1),
        "column `track_length_seconds` is 4294967295; out of range: must be below",
    ),
    "played ratio": (
        (EVENTS, "played_ratio_pct", 2, 65535),
        "column `played_ratio_pct` is 65535; out of range: must be below 65535",
    ),
    "artist is null": (
        ("artist_item_mapping.parquet", "artist_id", 4, None),
        "row group 0, row 4: column `artist_id` is null",
    ),
    "embedding is short": (
        ("embeddings.parquet", "embed", 60, [0.5]),
        "row group 0, row 60: column `embed` has 1 values, the first embedding has 16",
    ),
    "embedding is not finite": (
        ("embeddings.parquet", "embed", 9, [float("nan")] * 16),
        "row 9: column `embed` has a value that is not a finite",
    ),
    "embedding overflows": (
        ("embeddings.parquet", "embed", 9, [1e300] * 16),
        "row 9: column `embed` has a value that is not a finite float32",
    ),
    "embedding twice": (
        ("embeddings.parquet", "item_id", 61, 1000),
        "row 61: column `item_id` is 1000, which has an embedding already",
    ),
}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_end_with_place_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (file, column, row, value), message = BAD_VALUES[name]
    root = write_yambda_example(tmp_path / "yambda")
    if file == "embeddings.parquet":
        # All items of the file must be in the vocabulary for row numbers to be these.
        change_value(root, file, "item_id", 0, 1000)
    change_value(root, file, column, row, value)
    expect_fault(tmp_path, root, capsys, f"{root / file}: ", message)


def expect_fault(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], *messages: str) -> None:
    (tmp_path / "out").mkdir(exist_ok=True)
    capsys.readouterr()
    assert prepare(root, tmp_path / "out" / "store", "multi_event") == 2
    told = capsys.readouterr().err
    for message in messages:
        assert message in told
    assert told.count("data.prepare: ") == 1
    assert list((tmp_path / "out").iterdir()) == []  # no store, no folder aside


def replace_column(root: Path, file: str, column: str, dtype: pa.DataType | None) -> None:
    table = pq.read_table(root / file)
    index = table.column_names.index(column)
    changed = (
        table.remove_column(index)
        if dtype is None
        else table.set_column(index, column, table.column(column).cast(dtype))
    )
    pq.write_table(changed, root / file)


@pytest.mark.parametrize(
    ("file", "column", "dtype", "message"),
    [
        (
            EVENTS,
            "is_organic",
            None,
            "column `is_organic` is missing; the file has uid, timestamp, item_id, played_ratio_pct",
        ),
        (EVENTS, "event_type", None, "column `event_type` is missing"),
        (EVENTS, "timestamp", pa.int64(), "column `timestamp` is int64, must be uint32; cast it before preparing"),
        (EVENTS, "timestamp", pa.float64(), "column `timestamp` is double, must be uint32"),
        (EVENTS, "uid", pa.string(), "column `uid` is string, must be uint32"),
        (EVENTS, "played_ratio_pct", pa.float32(), "column `played_ratio_pct` is float, must be uint16"),
        ("artist_item_mapping.parquet", "artist_id", None, "column `artist_id` is missing"),
        ("embeddings.parquet", "embed", None, "column `embed` is missing"),
        ("embeddings.parquet", "embed", pa.list_(pa.string()), "column `embed` is list<"),
    ],
)
def test_columns_are_checked_by_name_and_dtype(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, column: str, dtype: pa.DataType | None, message: str
) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    replace_column(root, file, column, dtype)
    expect_fault(tmp_path, root, capsys, f"{root / file}: {message}")


def test_negative_timestamps_cannot_hide_in_a_signed_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    replace_column(root, EVENTS, "timestamp", pa.int32())
    change_value(root, EVENTS, "timestamp", 0, -5)
    expect_fault(tmp_path, root, capsys, "column `timestamp` is int32, must be uint32")


def test_faults_of_all_files_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    replace_column(root, EVENTS, "uid", None)
    replace_column(root, EVENTS, "item_id", pa.int64())
    (root / "embeddings.parquet").write_bytes(b"PAR1")
    expect_fault(
        tmp_path,
        root,
        capsys,
        "3 faults",
        "`uid` is missing",
        "`item_id` is int64",
        "embeddings.parquet: damaged or not a Parquet file",
    )


def test_several_faults_of_one_block_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    change_value(root, EVENTS, "is_organic", 1, 9)
    change_value(root, EVENTS, "is_organic", 7, 9)
    change_value(root, EVENTS, "event_type", 2, "skip")
    expect_fault(
        tmp_path, root, capsys, "2 faults", "`is_organic` is 9 (and 1 more rows of this block)", "`event_type` is skip"
    )


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_files_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: int) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    path = root / EVENTS
    path.write_bytes(path.read_bytes()[:keep])
    message = "is empty (0 bytes), expected a Parquet file" if keep == 0 else "damaged or not a Parquet file"
    expect_fault(tmp_path, root, capsys, f"{path}: {message}")


def test_damaged_pages_are_told_by_row_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    path = root / EVENTS
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = start.dictionary_page_offset or start.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    expect_fault(tmp_path, root, capsys, f"{path}: row group 1: damaged")


def test_files_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    pq.write_table(pq.read_table(root / EVENTS).slice(0, 0), root / EVENTS)
    expect_fault(tmp_path, root, capsys, f"{root / EVENTS}: has no rows, expected at least one")


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_yambda_example(tmp_path / "yambda")
    (root / EVENTS).unlink()
    expect_fault(tmp_path, root, capsys, f"{root / EVENTS}: no such file; kind=multi_event is read from it")
    expect_fault(tmp_path, tmp_path / "nowhere", capsys, "nowhere: has no folder flat/SIZE or sequential/SIZE")
    (root / "flat" / "500m").mkdir()
    expect_fault(tmp_path, root, capsys, "yambda: holds 500m, 50m; say which with size=…")
    assert prepare(root, tmp_path / "out" / "store", "likes", "size=5b") == 2
    assert "has no 5b; it holds 500m, 50m" in capsys.readouterr().err
