from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data import schema
from data.event_store import EventStore
from data.prepare import main
from data.sources import partitions, table, table_files
from data.sources.table import Table
from data.sources.table_config import TableColumns, TableConfig

Row = dict[str, Any]
COLUMNS = ("columns.user=who", "columns.item=what", "columns.timestamp=when")
EVERYTHING = (
    *COLUMNS,
    "columns.event_type=how",
    "columns.duration=long",
    "columns.organic=found",
    "columns.played_ratio=heard",
)


def make_rows(count: int = 400, seed: int = 0) -> list[Row]:
    """Events in any order, with ties in time, of ids that sort otherwise as text than as numbers."""
    random = np.random.default_rng(seed)
    return [
        {
            "who": int(random.choice([7, 30, 100, 2000, 5, 64])),
            "what": int(random.integers(1, 40)) * 3,
            "when": int(random.integers(0, 90)) + 1_700_000_000,
            "how": str(random.choice(["play", "like", "skip"])),
            "long": None if random.random() < 0.2 else int(random.integers(0, 400)),
            "found": None if random.random() < 0.2 else bool(random.integers(0, 2)),
            "heard": None if random.random() < 0.2 else int(random.integers(0, 180)),
            "other": "x",
        }
        for _ in range(count)
    ]


def csv_text(rows: list[Row], separator: str = ",") -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([["" if value is None else value for value in row.values()] for row in rows])
    return text.getvalue()


def prepare(path: object, out: Path, *more: str) -> int:
    return main(["source=table", f"path={path}", f"out={out}", "duplicates=keep", *more])


def prepared(path: object, out: Path, *more: str) -> EventStore:
    assert prepare(path, out, *more) == 0
    return EventStore.open(out)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 50)
    monkeypatch.setattr(table, "BLOCK_EVENTS", 64)
    monkeypatch.setattr(partitions, "SORTED_ROWS", 100)


def check_store(store: EventStore, rows: list[Row]) -> None:
    """Compare with the rows sorted by user and time, Python's sort being stable."""
    users, items = (sorted({row[name] for row in rows}) for name in ("who", "what"))
    types = sorted({row["how"] for row in rows})
    expected = sorted(rows, key=lambda row: (row["who"], row["when"]))
    assert store.user_ids.to_pylist() == [str(user) for user in users]
    assert store.item_ids.to_pylist() == [str(item) for item in items]
    assert store.event_types == tuple(types)
    lengths = [sum(row["who"] == user for row in rows) for user in users]
    np.testing.assert_array_equal(store.offsets, np.cumsum([0, *lengths]))
    wanted = {
        schema.ITEM: [items.index(row["what"]) for row in expected],
        schema.TIMESTAMP: [row["when"] for row in expected],
        schema.EVENT_TYPE: [types.index(row["how"]) for row in expected],
        schema.DURATION: [schema.MISSING_DURATION if row["long"] is None else row["long"] for row in expected],
        schema.ORGANIC: [schema.MISSING_ORGANIC if row["found"] is None else row["found"] for row in expected],
        schema.PLAYED_RATIO: [
            schema.MISSING_PLAYED_RATIO if row["heard"] is None else row["heard"] for row in expected
        ],
    }
    for name, values in wanted.items():
        np.testing.assert_array_equal(store.column(name), values, err_msg=name)


def write_files(folder: Path, rows: list[Row]) -> dict[str, str]:
    """The same rows in all that can be read; name → `path`."""
    folder.mkdir()
    arrow = pa.Table.from_pylist(rows)
    pq.write_table(arrow, folder / "log.parquet", row_group_size=70)
    strings = arrow.set_column(0, "who", arrow.column("who").cast(pa.large_string()))
    strings = strings.set_column(1, "what", strings.column("what").cast(pa.string()).dictionary_encode())
    strings = strings.set_column(3, "how", strings.column("how").dictionary_encode())
    pq.write_table(strings, folder / "strings.parquet")
    (folder / "log.csv").write_text(csv_text(rows))
    (folder / "windows.csv").write_bytes(b"\xef\xbb\xbf" + csv_text(rows).replace("\n", "\r\n").encode())
    (folder / "log.tsv").write_text(csv_text(rows, "\t"))
    (folder / "log.csv.gz").write_bytes(gzip.compress(csv_text(rows).encode()))
    for name, write in (("csvs", "csv"), ("parquets", "parquet")):
        (folder / name).mkdir()
        for number, first in enumerate(range(0, len(rows), 150)):
            part = rows[first : first + 150]
            path = folder / name / f"part-{number}.{write}"
            if write == "csv":
                path.write_text(csv_text(part))
            else:
                pq.write_table(pa.Table.from_pylist(part, schema=arrow.schema), path)
        (folder / name / "_SUCCESS").write_text("")
        (folder / name / ".part.crc").write_text("")
        (folder / name / "notes.txt").write_text("not read")
    names = ("log.parquet", "strings.parquet", "log.csv", "windows.csv", "log.tsv", "log.csv.gz", "csvs", "parquets")
    return {name: str(folder / name) for name in names} | {"glob": str(folder / "csvs" / "part-*.csv")}


def test_all_formats_give_one_store_which_is_the_sorted_log(tmp_path: Path) -> None:
    rows = make_rows()
    fingerprints = set()
    for name, path in write_files(tmp_path / "in", rows).items():
        store = prepared(path, tmp_path / "out" / name, *EVERYTHING)
        check_store(store, rows)
        fingerprints.add(store.fingerprint)
    assert len(fingerprints) == 1
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == sorted(write_files(tmp_path / "b", rows))


def test_only_what_is_named_is_read(tmp_path: Path) -> None:
    rows = make_rows()
    store = prepared(write_files(tmp_path / "in", rows)["log.csv"], tmp_path / "out", *COLUMNS)
    assert store.event_types == ("event",)
    assert store.manifest.optional_columns == ()
    assert not store.column(schema.EVENT_TYPE).any()
    assert store.manifest.source == {"name": "table"}


def test_whole_ids_ascend_as_numbers_and_others_as_text(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for users, expected in [
        (["10", "9", "-3", "0"], ["-3", "0", "9", "10"]),
        (["10", "9", "007", "ä", "Z", "a"], ["007", "10", "9", "Z", "a", "ä"]),
    ]:
        log.write_text("who,what,when\n" + "".join(f"{user},x,{time}\n" for user in users for time in range(4)))
        assert prepared(log, tmp_path / "out", *COLUMNS).user_ids.to_pylist() == expected


# ── sorting ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Flat:
    """What a source yielded, block after block."""

    users: list[str]
    lengths: list[int]
    items: list[str]
    times: list[int]
    blocks: list[int]


def read(source: Table) -> Flat:
    catalogue = source.catalogue()
    flat = Flat([], [], [], [], [])
    for block in source.histories():
        flat.users += block.user_ids.to_pylist()
        flat.lengths += np.diff(block.offsets).tolist()
        flat.items += catalogue.item_ids.take(pa.array(block.columns[schema.ITEM])).to_pylist()
        flat.times += block.columns[schema.TIMESTAMP].tolist()
        flat.blocks.append(int(block.offsets[-1]))
    return flat


ID = st.integers(0, 12) | st.sampled_from([2**40, 2**63 - 1, -5])
NAME = st.sampled_from(["a", "B", "ü", "10-", "9-", "-", "x y", "é,"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(ID, ID, st.integers(0, 30)), min_size=1, max_size=60)
    | st.lists(st.tuples(NAME, NAME, st.integers(0, 30)), min_size=1, max_size=60),
    sorted_rows=st.sampled_from([1, 5, 1000]),
    block_rows=st.sampled_from([1, 7, 1000]),
    row_group=st.sampled_from([3, 1000]),
)
def test_rows_in_any_order_become_histories(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, Any, int]],
    sorted_rows: int,
    block_rows: int,
    row_group: int,
) -> None:
    partitions.SORTED_ROWS, table_files.BLOCK_ROWS, table.BLOCK_EVENTS = sorted_rows, block_rows, 10
    folder = tmp_path_factory.mktemp("log")
    columns = dict(zip(("who", "what", "when"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / "a.parquet", row_group)
    config = TableConfig(str(folder / "a.parquet"), TableColumns("who", "what", "when"))
    flat = read(Table(config, folder / "scratch"))
    users = sorted({row[0] for row in rows})
    expected = sorted(rows, key=lambda row: (row[0], row[2]))
    assert flat.users == [str(user) for user in users]
    assert flat.lengths == [sum(row[0] == user for row in rows) for user in users]
    assert flat.items == [str(row[1]) for row in expected]
    assert flat.times == [row[2] for row in expected]
    assert list((folder / "scratch").iterdir()) == []  # each file goes when it is read
    # The same rows sorted already need no sorting.
    pq.write_table(
        pa.table({name: [row[place] for row in expected] for place, name in enumerate(columns)}), folder / "b.parquet"
    )
    config = TableConfig(str(folder / "b.parquet"), TableColumns("who", "what", "when"), sorted=True)
    assert read(Table(config, folder / "none")) == flat
    assert not (folder / "none").exists()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40),
    st.sampled_from([1, 2**30, 2**60]),
    st.sampled_from([1, 4, 100]),
)
def test_any_span_of_time_is_sorted_and_ties_stay(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int]], step: int, sorted_rows: int
) -> None:
    partitions.SORTED_ROWS = sorted_rows
    dtype = np.dtype([("user", np.uint32), ("time", np.int64), ("row", np.uint32)])
    rows = np.array([(user, time * step, row) for row, (user, time) in enumerate(events)], dtype=dtype)
    waiting = partitions.Partitions(tmp_path_factory.mktemp("rows"), dtype, num_users=6, num_rows=len(rows))
    for first in range(0, len(rows), 7):
        waiting.add(rows[first : first + 7])
    found = [tuple(row) for block in waiting.sorted() for row in block.tolist()]
    assert found == sorted((tuple(row) for row in rows.tolist()), key=lambda row: row[:2])


def test_sorted_keeps_users_as_they_stand(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "who,what,when\n" + "".join(f"{user},{time % 3},{time}\n" for user in (9, 2, 5) for time in range(40))
    )
    assert prepared(log, tmp_path / "out", *COLUMNS, "sorted=true").user_ids.to_pylist() == ["9", "2", "5"]
    assert prepared(log, tmp_path / "out", *COLUMNS).user_ids.to_pylist() == ["2", "5", "9"]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=9),
    st.sampled_from([1, 2, 3, 100]),
    st.sampled_from([True, False]),
)
def test_sorted_is_held_to_its_promise(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]], block_rows: int, by_user: bool
) -> None:
    rows = sorted(rows, key=lambda row: row[0]) if by_user else rows
    table_files.BLOCK_ROWS = block_rows
    folder = tmp_path_factory.mktemp("log")
    users, times = zip(*rows, strict=True)
    columns = {"who": list(users), "what": [0] * len(rows), "when": list(times)}
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=4)
    broken = {
        row
        for row in range(1, len(rows))
        if (users[row] == users[row - 1] and times[row] < times[row - 1])
        or (users[row] != users[row - 1] and users[row] in users[:row])
    }
    source = Table(TableConfig(str(folder / "a.parquet"), TableColumns("who", "what", "when"), sorted=True), folder)
    if broken:
        group, row = divmod(min(broken), 4)
        with pytest.raises(InputError, match=f"a.parquet: row group {group}, row {row}: "):
            read(source)
    else:
        assert sum(read(source).lengths) == len(rows)


def test_one_user_may_be_larger_than_what_is_sorted_at_once(tmp_path: Path) -> None:
    times = np.random.default_rng(0).permutation(1000)
    pq.write_table(
        pa.table({"who": ["a"] * 1000, "what": [f"{time}" for time in times], "when": times}), tmp_path / "a.parquet"
    )
    store = prepared(tmp_path / "a.parquet", tmp_path / "out", *COLUMNS)
    np.testing.assert_array_equal(store.column(schema.TIMESTAMP), np.arange(1000))
    np.testing.assert_array_equal(store.column(schema.ITEM), np.arange(1000))


def test_scratch_is_gone_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "in", make_rows())
    seen = []

    def interrupted(*arguments: object) -> Iterator[np.ndarray]:
        seen.extend(path.name for path in (tmp_path / "out").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(partitions.Partitions, "sorted", interrupted)
    assert prepare(tmp_path / "in" / "log.csv", tmp_path / "out" / "store", *COLUMNS) == 130
    assert [name.split("-")[0] for name in sorted(seen)] == [".store.lock", ".store.sorting", ".store.writing"]
    assert list((tmp_path / "out").iterdir()) == []


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────


def write_times(path: Path, values: pa.Array) -> Path:
    pq.write_table(pa.table({"who": [1] * len(values), "what": list(range(len(values))), "when": values}), path)
    return path


SECOND = 1_700_000_000
ZONED = ["2023-11-14T22:13:20Z", "2023-11-15 00:13:20.5+02:00", "2023-11-14T22:13:21", "2023-11-14T22:13:22.123456789"]


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        ("s", pa.array([SECOND, 2**32 - 1], pa.int64()), [SECOND, 2**32 - 1]),
        ("s", pa.array([5, 2], pa.uint8()), [2, 5]),
        ("s", pa.array([SECOND + 0.75, 3.9999999]), [3, SECOND]),
        ("s", pa.array([str(SECOND), f"{SECOND}.5"]), [SECOND, SECOND]),
        ("ms", pa.array([SECOND * 1000 + 999, 999]), [0, SECOND]),
        ("us", pa.array([SECOND * 10**6 + 999_999]), [SECOND]),
        ("ns", pa.array([SECOND * 10**9 + 1], pa.uint64()), [SECOND]),
        ("iso", pa.array(ZONED), [SECOND, SECOND, SECOND + 1, SECOND + 2]),
        ("iso", pa.array(["2023-11-14", "2023-11-14 00:00"]), [1699920000] * 2),
        ("s", pa.array([datetime.fromtimestamp(SECOND, tz=UTC)], pa.timestamp("us", "Europe/Berlin")), [SECOND]),
        ("iso", pa.array([SECOND * 1000 + 5], pa.timestamp("ms")), [SECOND]),
        ("s", pa.array([1, 20], pa.date32()), [86400, 20 * 86400]),
    ],
)
def test_times_become_seconds(tmp_path: Path, unit: str, values: pa.Array, expected: list[int]) -> None:
    path = write_times(tmp_path / "log.parquet", values)
    config = TableConfig(str(path), TableColumns("who", "what", "when"), timestamp_unit=unit)
    assert read(Table(config, tmp_path / "scratch")).times == expected


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("ms", pa.array([1500, 1200, 1900, 1100])),
        ("s", pa.array([1.5, 1.2, 1.9, 1.1])),
        ("s", pa.array(["1.5", "1.2", "1.9", "1.1"])),
        ("iso", pa.array([f"1970-01-01T00:00:01.{part}" for part in (500, 200, 900, 100)])),
        ("s", pa.array([1500, 1200, 1900, 1100], pa.timestamp("ms"))),
    ],
)
def test_parts_of_a_second_count_for_the_order(tmp_path: Path, unit: str, values: pa.Array) -> None:
    path = write_times(tmp_path / "log.parquet", values)
    config = TableConfig(str(path), TableColumns("who", "what", "when"), timestamp_unit=unit)
    assert read(Table(config, tmp_path / "scratch")).items == ["3", "1", "0", "2"]


def test_optional_values_in_all_their_guises(tmp_path: Path) -> None:
    rows = {"who": ["u"] * 4, "what": ["a", "b", "c", "d"], "when": [1, 2, 3, 4]}
    floats = pa.table(
        rows | {"long": [1.9, float("nan"), 0.0, None], "found": [1.0, 0.0, None, 1.0], "heard": pa.nulls(4)}
    )
    pq.write_table(floats, tmp_path / "floats.parquet")
    (tmp_path / "text.csv").write_text(
        "who,what,when,long,found,heard\nu,a,1,1.9,True,\nu,b,2,,FALSE,\nu,c,3,0,,\nu,d,4,,1,\n"
    )
    for name in ("floats.parquet", "text.csv"):
        store = prepared(tmp_path / name, tmp_path / "out", *(key for key in EVERYTHING if "event_type" not in key))
        none = schema.MISSING_DURATION
        assert store.column(schema.DURATION).tolist() == [1, none, 0, none]
        assert store.column(schema.ORGANIC).tolist() == [1, 0, schema.MISSING_ORGANIC, 1]
        assert store.column(schema.PLAYED_RATIO).tolist() == [schema.MISSING_PLAYED_RATIO] * 4


@pytest.mark.parametrize("form", ["parquet", "csv", "sorted"])
def test_a_share_is_no_percentage(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Known only when the whole log has been read."""
    path = tmp_path / ("log.csv" if form == "csv" else "log.parquet")

    def prepared_with(heard: list[float | None]) -> int:
        rows = [{"who": 1, "what": 1, "when": place, "heard": value} for place, value in enumerate(heard)]
        path.write_text(csv_text(rows)) if form == "csv" else pq.write_table(pa.Table.from_pylist(rows), path)
        more = ["sorted=true"] if form == "sorted" else []
        return prepare(path, tmp_path / "out" / "store", *COLUMNS, "columns.played_ratio=heard", *more)

    assert prepared_with([0.0, 1.0, None, *[0.25, 0.75] * 60]) == 2
    said = capsys.readouterr().err
    assert f"{path}: column `heard` (played_ratio) has no value above 1 and some between 0 and 1, so that it" in said
    assert "it must be percent: multiply it by 100" in said
    assert list((tmp_path / "out").iterdir()) == []
    assert prepared_with([0.5] * 120 + [2.0]) == 0
    assert prepared_with([0.0, 1.0, None] * 40) == 0


def test_event_types_may_be_numbers(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"who": [1] * 12, "what": [1] * 12, "when": list(range(12)), "how": [10, 9, 1] * 4}),
        tmp_path / "log.parquet",
    )
    store = prepared(tmp_path / "log.parquet", tmp_path / "out", *COLUMNS, "columns.event_type=how")
    assert store.event_types == ("1", "9", "10")
    assert store.column(schema.EVENT_TYPE).tolist() == [2, 1, 0] * 4


def test_another_separator_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('who;what;when\n"a;b";"say ""hi""";3\n\nc;d;4\nc;d;5\n')
    store = prepared(tmp_path / "log.csv", tmp_path / "out", *COLUMNS, "separator=;")
    assert store.user_ids.to_pylist() == ["a;b", "c"]
    assert store.item_ids.to_pylist() == ["d", 'say "hi"']


# ── catalogue and embeddings ─────────────────────────────────────────────────────────────────────────────

CATALOGUE = [
    {"song": 3, "by": "Zoë", "called": "Three"},
    {"song": 6, "by": "Ann", "called": "Six"},
    {"song": 3, "by": "Ann", "called": "Three"},
    {"song": 3, "by": "Ann", "called": None},
    {"song": 9, "by": None, "called": "Nine"},
    {"song": 5000, "by": "Nobody", "called": "Unheard"},
]
CATALOGUE_KEYS = ("catalogue.item=song", "catalogue.artist=by", "catalogue.title=called")


def artists_of(store: EventStore) -> dict[str, list[str]]:
    names, offsets, values = store.artist_ids.to_pylist(), store.artist_offsets, store.artist_values
    return {
        raw: [names[artist] for artist in values[offsets[item] : offsets[item + 1]]]
        for item, raw in enumerate(store.item_ids.to_pylist())
    }


@pytest.mark.parametrize("log", ["log.parquet", "strings.parquet", "log.csv"])
@pytest.mark.parametrize("form", ["rows.csv", "rows.parquet", "lists.parquet", "strings.parquet"])
def test_items_get_artists_and_titles(tmp_path: Path, log: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = tmp_path / form
    if form == "rows.csv":
        catalogue.write_text(csv_text(CATALOGUE))
    elif form == "lists.parquet":
        lists = [
            {"song": 3, "by": ["Zoë", "Ann", None, "Ann"], "called": "Three"},
            {"song": 9, "by": None, "called": "Nine"},
            {"song": 6, "by": ["Ann"], "called": "Six"},
            {"song": 12, "by": [], "called": ""},
            {"song": 5000, "by": ["Nobody"], "called": "Unheard"},
        ]
        pq.write_table(pa.Table.from_pylist(lists), catalogue)
    else:
        rows = [row | {"song": str(row["song"])} for row in CATALOGUE] if form == "strings.parquet" else CATALOGUE
        pq.write_table(pa.Table.from_pylist(rows), catalogue)
    path = write_files(tmp_path / "in", make_rows())[log]
    assert prepare(path, tmp_path / "out", *COLUMNS, f"catalogue.path={catalogue}", *CATALOGUE_KEYS, "--json") == 0
    store = EventStore.open(tmp_path / "out")
    expected = {raw: [] for raw in store.item_ids.to_pylist()} | {"3": ["Ann", "Zoë"], "6": ["Ann"]}
    assert artists_of(store) == expected
    assert store.artist_ids.to_pylist() == ["Ann", "Zoë"]
    titles = {"3": "Three", "6": "Six", "9": "Nine"}
    assert store.item_titles == [titles.get(raw, "") for raw in store.item_ids.to_pylist()]
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["left_out"] == {"rows of the catalogue about other items": 1}


def test_artists_without_titles_and_titles_without_artists(tmp_path: Path) -> None:
    path = write_files(tmp_path / "in", make_rows())["log.csv"]
    catalogue = tmp_path / "songs.tsv"
    catalogue.write_text(csv_text(CATALOGUE, "\t"))
    keys = (*COLUMNS, f"catalogue.path={catalogue}", "catalogue.item=song")
    store = prepared(path, tmp_path / "a", *keys, "catalogue.artist=by")
    assert store.item_titles is None
    assert artists_of(store)["3"] == ["Ann", "Zoë"]
    store = prepared(path, tmp_path / "b", *keys, "catalogue.title=called")
    assert store.item_titles is not None
    assert store.num_artists == 0


@pytest.mark.parametrize("log", ["log.parquet", "log.csv"])
@pytest.mark.parametrize("dtype", [pa.list_(pa.float32()), pa.list_(pa.float64(), 3)])
def test_embeddings_of_the_items_that_occur(tmp_path: Path, log: str, dtype: pa.DataType) -> None:
    vectors = [[1.0, 2.0, 3.0], None, [7.0, 8.0, 9.0], [0.5, 0.5, 0.5]]
    embeddings = pa.table({"song": pa.array([9, 6, 3, 5000]), "v": pa.array(vectors, dtype)})
    pq.write_table(embeddings, tmp_path / "e.parquet")
    path = write_files(tmp_path / "in", make_rows())[log]
    keys = (f"embeddings.path={tmp_path / 'e.parquet'}", "embeddings.item=song", "embeddings.vector=v")
    store = prepared(path, tmp_path / "out", *COLUMNS, *keys)
    found = store.embeddings()
    assert found is not None
    assert [store.item_ids[int(item)].as_py() for item in found[0]] == ["9", "3"]
    np.testing.assert_array_equal(found[1], np.array([vectors[0], vectors[2]], np.float32))
