from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import schema
from data.event_store import EventStore
from data.prepare import main
from data.sources import yambda
from tests.yambda_example import EVENT_TYPES, KINDS, write_yambda_example


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
    expect_fault(tmp_path, tmp_path / "nowhere", capsys, "nowhere: has no folder flat/SIZE")
    (root / "flat" / "500m").mkdir()
    expect_fault(tmp_path, root, capsys, "holds 500m, 50m; say which with size=…")
    assert prepare(root, tmp_path / "out" / "store", "likes", "size=5b") == 2
    assert "has no 5b; it holds 500m, 50m" in capsys.readouterr().err
