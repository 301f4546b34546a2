"""A table's series file: any format, any order, and every fault by its place."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.event_store import EventStore
from data.prepare import main
from data.sources import partitions, table_files, table_series
from tests.data.series.test_series_store import of_user

Row = dict[str, Any]
COLUMNS = ("columns.user=user", "columns.item=item", "columns.timestamp=time")
NAMES = ("user", "timestamp", "series", "value")
LOG = [{"user": user, "item": item, "time": 100 + item} for user in (7, 30, 5) for item in range(4)]
ROWS = [
    dict(zip(NAMES, row, strict=True))
    for row in [
        (30, 150, "plan", "paid"),
        (7, 90, "country", "NO"),
        (30, 120, "plan", "free"),
        (99, 1, "plan", "gold"),
        (30, 170, "plan", None),
        (7, 100, "plan", "free"),
        (30, 160, "plan", "paid"),
        (30, 120, "country", "SE"),
    ]
]
EXPECTED = {
    "5": [],
    "7": [(90, "country: NO"), (100, "plan: free")],
    "30": [(120, "country: SE"), (120, "plan: free"), (150, "plan: paid"), (170, "plan: unknown")],
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 3)
    monkeypatch.setattr(partitions, "SORTED_ROWS", 4)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(LOG), tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepare(log: Path, out: Path, *more: str) -> int:
    return main(["source=table", f"path={log}", f"out={out}", *COLUMNS, "series=[file]", *more])


def prepared(log: Path, out: Path, *more: str) -> EventStore:
    assert prepare(log, out, *more) == 0
    return EventStore.open(out)


def told(store: EventStore) -> dict[str, list[tuple[int, str]]]:
    return {user: of_user(store.series, place) for place, user in enumerate(store.user_ids.to_pylist())}


def test_all_formats_give_one_store(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_text = [{**row, "user": str(row["user"])} for row in ROWS]
    renamed = [dict(zip(("who", "at", "what", "is"), row.values(), strict=True)) for row in ROWS]
    dated = pa.Table.from_pylist(ROWS)
    dated = dated.set_column(1, "timestamp", dated.column(1).cast(pa.timestamp("s")).cast(pa.timestamp("ms")))
    pq.write_table(dated, tmp_path / "dated.parquet")
    (tmp_path / "parts").mkdir()
    for number, rows in enumerate((ROWS[:3], ROWS[3:])):
        write(tmp_path / "parts" / f"{number}.csv", rows)
    given_as = {
        write(tmp_path / "a.parquet", ROWS): (),
        write(tmp_path / "b.csv", ROWS): (),
        write(tmp_path / "c.parquet", as_text[::-1]): (),
        tmp_path / "dated.parquet": (),
        tmp_path / "parts": (),
        write(tmp_path / "d.csv", renamed): tuple(
            f"series_file.{role}={name}" for role, name in zip(NAMES, renamed[0], strict=True)
        ),
    }
    fingerprints = set()
    for path, keys in given_as.items():
        store = prepared(log, tmp_path / "out", f"series_file.path={path}", "--json", *keys)
        assert told(store) == EXPECTED
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["left_out"] == {
            "rows of the series about other users": 1
        }
        fingerprints.add(store.fingerprint)
    assert len(fingerprints) == 1
    assert store.series.texts.to_pylist() == ["NO", "SE", "free", "paid", "unknown"]  # gold is nobody's
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_sorted_log_keeps_its_users_order(tmp_path: Path, log: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS)
    store = prepared(log, tmp_path / "out", f"series_file.path={path}", "sorted=true")
    assert store.user_ids.to_pylist() == ["7", "30", "5"]
    assert told(store) == EXPECTED


def test_values_may_be_true_or_numbers_and_seconds_may_be_parted(tmp_path: Path, log: Path) -> None:
    rows = [("7", 1.25, "paid", True), ("7", 1.75, "paid", False), ("5", 9.5, "paid", True)]
    path = write(tmp_path / "a.parquet", [dict(zip(NAMES, row, strict=True)) for row in rows])
    assert told(prepared(log, tmp_path / "out", f"series_file.path={path}")) == {
        "5": [(9, "paid: true")],
        "7": [(1, "paid: false")],  # the state in which the second ends
        "30": [],
    }
    path = write(tmp_path / "b.parquet", [dict(zip(NAMES, (5, 3, 1, 20), strict=True))])
    assert told(prepared(log, tmp_path / "out", f"series_file.path={path}"))["5"] == [(3, "1: 20")]


def test_beside_the_preferred_artist(tmp_path: Path, log: Path) -> None:
    catalogue = tmp_path / "items.csv"
    catalogue.write_text("item,artist\n0,A\n1,B\n2,B\n3,C\n")
    path = write(tmp_path / "a.parquet", ROWS)
    pq.write_table(pa.Table.from_pylist([*LOG, {"user": 5, "item": 1, "time": 100 + 86_400}]), log)
    keys = (f"catalogue.path={catalogue}", "catalogue.item=item", "catalogue.artist=artist", "preferred_artist_days=1")
    store = prepared(log, tmp_path / "out", f"series_file.path={path}", *keys, "series=[preferred_artist,file]")
    later = (100 + 86_400, "preferred_artist: B")
    assert told(store) == {user: [*entries, later] for user, entries in EXPECTED.items()}
    assert store.series.artists_V.tolist() == [-1, -1, -1, -1, -1, 1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.dictionaries(
        st.tuples(st.sampled_from([7, 30, 5, 99]), st.integers(0, 9), st.sampled_from("ab")),
        st.sampled_from(["x", "y", None]),
        min_size=1,
        max_size=25,
    ),
    seed=st.integers(0, 99),
)
def test_rows_in_any_order_become_change_points(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[tuple[int, int, str], str | None], seed: int
) -> None:
    if all(user == 99 for user, _, _ in rows):
        return
    folder = tmp_path_factory.mktemp("series")
    pq.write_table(pa.Table.from_pylist(LOG), folder / "log.parquet")
    order = np.random.default_rng(seed).permutation(len(rows))
    listed = [dict(zip(NAMES, (*key, value), strict=True)) for key, value in rows.items()]
    schema = pa.schema(
        [("user", pa.int64()), ("timestamp", pa.int64()), ("series", pa.string()), ("value", pa.string())]
    )
    pq.write_table(pa.Table.from_pylist([listed[place] for place in order], schema), folder / "a.parquet")
    store = prepared(folder / "log.parquet", folder / "out", f"series_file.path={folder / 'a.parquet'}")
    expected: dict[str, list[tuple[int, str]]] = {"5": [], "7": [], "30": []}
    for user in (5, 7, 30):
        now: dict[str, str] = {}
        for time, name in sorted((time, name) for who, time, name in rows if who == user):
            value = rows[user, time, name] or "unknown"
            if now.get(name) != value:
                expected[str(user)].append((time, f"{name}: {value}"))
            now[name] = value
    assert told(store) == expected


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────


def with_row(*row: object) -> list[Row]:
    return [*ROWS, dict(zip(NAMES, row, strict=True))]


FAULTS: dict[str, tuple[list[Row], list[str]]] = {
    "no user": (with_row(None, 1, "plan", "x"), ["row group 1, row 3: column `user` is null; every row must have"]),
    "no series": (with_row(7, 1, None, "x"), ["row group 1, row 3: column `series` is null"]),
    "no time": (with_row(7, None, "plan", "x"), ["row group 1, row 3: column `timestamp` is null"]),
    "a time before 1970": (with_row(7, -1, "plan", "x"), ["row group 1, row 3: column `timestamp` is -1; must be 0"]),
    "several": (with_row(None, -1, None, "x"), ["`user` is null", "`series` is null", "`timestamp` is -1"]),
    "two values at once": (
        with_row(30, 150, "plan", "free"),
        ["series plan of user 30 is 'paid' and 'free' at second 150 at once; a series must have one value at a time"],
    ),
    "nobody known": ([ROWS[3]], ["none of its 1 rows is about a user of the log; is `series_file.user` the right"]),
    "another column": ([{"who": 7}], [f"column `{name}` is missing; the file has who" for name in NAMES]),
    "lists": (
        [{**ROWS[0], "value": ["a"], "timestamp": True}],
        ["column `timestamp` (timestamp) is bool, must be a timestamp, a number", "(value) is list<", "must be whole"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_by_place_and_rule(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rows, messages = FAULTS[name]
    path = write(tmp_path / "a.parquet", rows)
    assert prepare(log, tmp_path / "out" / "store", f"series_file.path={path}") == 2
    said = capsys.readouterr().err
    for message in messages:
        assert message in said
    assert str(path) in said
    assert list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else []) == []


def test_a_line_of_csv_is_named(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.csv", with_row(7, "soon", "plan", "x"))
    assert prepare(log, tmp_path / "out" / "store", f"series_file.path={path}") == 2
    assert "a.csv: line 10: column `timestamp` is 'soon'; must be a number" in capsys.readouterr().err


def test_many_names_of_series_are_no_names(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_series.schema, "MAX_SERIES", 1)
    path = write(tmp_path / "a.parquet", ROWS)
    assert prepare(log, tmp_path / "out" / "store", f"series_file.path={path}") == 2
    assert "has 2 different values by the end of this block, must have at most 1; is it the" in capsys.readouterr().err


def test_a_number_is_no_category(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_series.schema, "MAX_SERIES_VALUES", 5)
    path = write(tmp_path / "a.parquet", ROWS)
    assert prepare(log, tmp_path / "five", f"series_file.path={path}") == 2
    said = capsys.readouterr().err
    assert "the series have 6 different values by the end of this block, 4 of them 'plan'; must have at most 5" in said
    assert "is it a number rather than a category?" in said
    monkeypatch.setattr(table_series.schema, "MAX_SERIES_VALUES", 6)
    assert prepare(log, tmp_path / "six", f"series_file.path={path}") == 0


BEGIN = 1_700_000_000
TIME_UNIT = "series_file.timestamp_unit"
DAYS = [(0, "free"), (3, "paid")]


def long_ago(tmp_path: Path, unit: int, states: list[tuple[int, str]] = DAYS) -> tuple[Path, str]:
    """A log of five days in milliseconds, and states of user 7 on some of them, in parts of a second."""
    rows = [{"user": 7, "item": day, "time": (BEGIN + day * 86_400) * 1000} for day in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ms.parquet")
    told_rows = [dict(zip(NAMES, (7, (BEGIN + day * 86_400) * unit, "plan", is_), strict=True)) for day, is_ in states]
    return tmp_path / "ms.parquet", f"series_file.path={write(tmp_path / 'states.csv', told_rows)}"


def test_a_wrong_unit_is_refused_and_the_right_one_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, series = long_ago(tmp_path, 1)
    assert prepare(path, tmp_path / "out" / "store", "timestamp_unit=ms", series) == 2
    assert (
        "series plan runs from 1970-01-20 to 1970-01-20, but the log from 2023-11-14 to 2023-11-18; is the unit of its "
        "times right? Say it by `series_file.timestamp_unit`" in capsys.readouterr().err
    )
    assert list((tmp_path / "out").iterdir()) == []
    for unit in ("us", "ns"):  # all states are then of one second
        assert prepare(path, tmp_path / "out" / "store", "timestamp_unit=ms", series, f"{TIME_UNIT}={unit}") == 2
        assert "plan runs from 1970-01-01 to 1970-01-01, but the log from 2023" in capsys.readouterr().err
    right = f"{TIME_UNIT}=s"
    seconds = prepared(path, tmp_path / "seconds", "timestamp_unit=ms", series, right)
    assert told(seconds) == {"7": [(BEGIN, "plan: free"), (BEGIN + 3 * 86_400, "plan: paid")]}
    assert re.search(r"plan +2 values, 2023-11-14 … 2023-11-17\n", capsys.readouterr().out)
    path, series = long_ago(tmp_path, 1000)
    assert prepared(path, tmp_path / "as the log", "timestamp_unit=ms", series).fingerprint == seconds.fingerprint


def test_states_that_began_once_long_ago_are_believed(tmp_path: Path) -> None:
    path, _ = long_ago(tmp_path, 1)
    people = write(tmp_path / "a.csv", [dict(zip(NAMES, (7, 0, name, "x"), strict=True)) for name in ("age", "zone")])
    store = prepared(path, tmp_path / "out", "timestamp_unit=ms", f"series_file.path={people}")
    assert told(store) == {"7": [(0, "age: x"), (0, "zone: x")]}
    path, series = long_ago(tmp_path, 1000, [(-4000, "free"), (-2000, "paid")])
    assert len(told(prepared(path, tmp_path / "out", "timestamp_unit=ms", series))["7"]) == 2


def test_the_separator_is_of_every_file_of_text(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the log itself is Parquet."""
    path = write(tmp_path / "a.csv", ROWS)
    path.write_text(path.read_text().replace(",", ";"))
    catalogue = tmp_path / "items.csv"
    catalogue.write_text("item;artist\n0;A\n1;B, C\n")
    keys = (f"catalogue.path={catalogue}", "catalogue.item=item", "catalogue.artist=artist", "separator=;")
    store = prepared(log, tmp_path / "out", f"series_file.path={path}", *keys)
    assert told(store) == EXPECTED
    assert store.artist_ids.to_pylist() == ["A", "B, C"]
    assert prepare(log, tmp_path / "no", f"series_file.path={write(tmp_path / 'a.parquet', ROWS)}", "separator=;") == 2
    assert "log.parquet: is Parquet, as all files here, for which `separator` means nothing" in capsys.readouterr().err


def test_faults_of_the_log_and_of_the_series_are_told_together(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("series_file.path=gone.csv", "columns.duration=long")
    assert prepare(log, tmp_path / "out" / "store", *keys) == 2
    said = capsys.readouterr().err
    assert "column `long` is missing" in said
    assert "gone.csv: no such file or folder" in said


def test_a_series_of_the_file_may_not_be_called_as_the_one_made(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = tmp_path / "items.csv"
    catalogue.write_text("item,artist\n0,A\n")
    path = write(tmp_path / "a.parquet", with_row(7, 1, "preferred_artist", "x"))
    keys = (f"catalogue.path={catalogue}", "catalogue.item=item", "catalogue.artist=artist")
    assert (
        prepare(log, tmp_path / "out" / "s", f"series_file.path={path}", *keys, "series=[preferred_artist,file]") == 2
    )
    assert (
        "the source tells of a series preferred_artist, and `series` asks for the one made" in capsys.readouterr().err
    )
