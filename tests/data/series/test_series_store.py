"""Series in an event store: written in blocks, read back, refused where damaged, and absent without a trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from data import schema, series_writer
from data.event_store import EventStore
from data.prepare import main
from data.series.change_points import Entries
from data.series.columns import SeriesColumns
from data.series.merge import SeriesMerger
from data.series.values import SeriesValues
from data.series_writer import SeriesRequest
from data.store_writer import write_event_store
from tests.data import movielens_example as example
from tests.data.helpers import MemorySource
from tests.data.test_event_store import SOURCE, reseal

GIVEN = {
    "user-0": [(5, "plan", "free"), (9, "plan", "paid")],
    "user-2": [(0, "zone", "north"), (5, "plan", "free"), (5, "zone", "north"), (7, "plan", "free")],
    "user-5": [(40, "plan", "paid"), (3, "plan", "free"), (60, "about", "x")],
}
PAIRS = [("about", "x"), ("plan", "free"), ("plan", "never seen"), ("plan", "paid"), ("zone", "north")]


@dataclass
class Told:
    """Series by hand."""

    def values(self) -> SeriesValues:
        names = tuple(sorted({name for name, _ in PAIRS}))
        series_V = np.array([names.index(name) for name, _ in PAIRS])
        return SeriesValues(names, series_V, pa.array([text for _, text in PAIRS], type=pa.string()))

    def entries(self, user_ids: pa.Array, first_times: np.ndarray) -> Entries:
        rows = [
            (place, time, PAIRS.index((series, text)))
            for place, user in enumerate(user_ids.to_pylist())
            for time, series, text in GIVEN.get(user, [])
        ]
        assert len(first_times) == len(user_ids)
        return Entries(*np.array(rows, dtype=np.int64).reshape(-1, 3).T)


@pytest.fixture(autouse=True)
def short_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has less than a minute."""
    monkeypatch.setattr(series_writer, "DAY", 40)


REQUEST = SeriesRequest(Told(), preferred_artist_days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_event_store(SOURCE, tmp_path / "store", series=REQUEST)
    return tmp_path / "store"


def of_user(series: SeriesColumns, user: int) -> list[tuple[int, str]]:
    places = range(series.offsets[user], series.offsets[user + 1])
    return [(int(series.timestamps[place]), series.told(int(series.values[place]))) for place in places]


def test_what_is_read_is_what_was_told(folder: Path) -> None:
    store = EventStore.open(folder)
    assert store.has_series
    series = store.series
    told = [[entry for entry in of_user(series, user) if "preferred" not in entry[1]] for user in range(7)]
    assert told == [
        [(5, "plan: free"), (9, "plan: paid")],
        [],
        [(0, "zone: north"), (5, "plan: free")],
        [],
        [],
        [(3, "plan: free"), (40, "plan: paid"), (60, "about: x")],
        [],
    ]
    assert series.names == ("about", "plan", "preferred_artist", "zone")
    assert not series.timestamps.flags.writeable
    assert (series.timestamps.dtype, series.values.dtype) == (np.uint32, np.uint32)
    artists = [text for text, artist in zip(series.texts.to_pylist(), series.artists_V, strict=True) if artist >= 0]
    assert series.texts.to_pylist() == ["x", "free", "paid", *artists, "north"]  # what nobody has is no value
    assert artists
    assert artists == store.artist_ids.take(pa.array(series.artists_V[series.artists_V >= 0])).to_pylist()
    assert store.manifest.series["plan"] == {"values": 2, "first": 3, "last": 40}
    assert store.manifest.counts[schema.SERIES_ENTRIES] == len(series.values)


def test_blocks_make_no_difference(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_writer, "_BLOCK_EVENTS", 4)
    again = write_event_store(SOURCE, tmp_path / "again", series=REQUEST)
    assert again.fingerprint == EventStore.open(folder).fingerprint
    assert again.fingerprint == EventStore.open(tmp_path / "again", verify=False).fingerprint


def test_without_series_a_store_is_what_it_was(tmp_path: Path) -> None:
    """The fingerprints are those of the commit before there were any series; Parquet's bytes name pyarrow's version."""
    assert write_event_store(SOURCE, tmp_path / "memory").fingerprint == "d24e74ceaee5aabc"
    raw = example.write(tmp_path / "ml", example.grouplens_files())
    assert main(["source=movielens-100k", f"path={raw}", f"out={tmp_path / 'films'}"]) == 0
    store = EventStore.open(tmp_path / "films")
    assert store.fingerprint == "6c4b6bca58d57461"
    manifest = (tmp_path / "films" / schema.MANIFEST_FILE).read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == "a7dd0b0dc59bf20ea6a2e5594ad9b3f5a3d9b9b6683e4800166374b3705500c2"
    assert not store.has_series
    assert not (store.path / schema.SERIES_FOLDER).exists()
    with pytest.raises(AssertionError, match="has no series; ask has_series first"):
        _ = store.series


def test_the_events_of_a_store_with_series_are_those_without(folder: Path, tmp_path: Path) -> None:
    plain = write_event_store(SOURCE, tmp_path / "plain")
    manifest = EventStore.open(folder).manifest
    assert {name: entry for name, entry in manifest.files.items() if "series" not in name} == plain.files


def test_a_fault_of_the_series_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(Told):
        def values(self) -> SeriesValues:
            raise InputError("people.csv: line 3: no such thing")

    bare = MemorySource(lengths_U=[2], artists_N=[[]], num_artists=0)
    with pytest.raises(InputError) as caught:
        write_event_store(bare, tmp_path / "store", series=SeriesRequest(Broken(), preferred_artist_days=1))
    assert [fault.split(",")[0] for fault in caught.value.faults] == [
        "people.csv: line 3: no such thing",
        "`series` names preferred_artist",
    ]
    assert list(tmp_path.iterdir()) == []


def test_more_series_than_can_be_counted_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_SERIES", 3)
    write_event_store(SOURCE, tmp_path / "three", series=SeriesRequest(Told()))
    store = EventStore.open(tmp_path / "three")
    assert SeriesMerger(store.series, 9).counts(*np.array([[2], [60], [60]])).tolist() == [2]
    with pytest.raises(InputError, match="tells of 3 series, 4 with preferred_artist, but a store has at most 3; give"):
        write_event_store(SOURCE, tmp_path / "four", series=REQUEST)
    assert [path.name for path in tmp_path.iterdir()] == ["three"]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────


def put(name: str, at: int, value: int) -> Callable[[Path], None]:
    """Change a value of a column, and the manifest with it, as a forger would."""

    def change(folder: Path) -> None:
        path = folder / schema.series_file(name)
        values = np.load(path)
        values[at] = value
        np.save(path, values)
        reseal(folder)

    return change


def table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / schema.SERIES_FILE
        pq.write_table(change(pq.read_table(path)), path)
        reseal(folder)

    return rewrite


def with_artist(rows: pa.Table) -> pa.Table:
    artists = pa.array([7, *rows.column(2).to_pylist()[1:]], pa.uint32())
    return rows.set_column(2, schema.series_schema().field(2), artists)


def flip_a_bit(folder: Path) -> None:
    path = folder / schema.series_file(schema.VALUE)
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def other_order(folder: Path) -> None:
    series = json.loads((folder / schema.MANIFEST_FILE).read_text())["series"]
    reseal(folder, series={name: series[name] for name in reversed(series)})


def plan_behind_zone(folder: Path) -> None:
    """User 2 has a zone at second 0; its plan, at 5, moves there."""
    offsets = np.load(folder / schema.series_file(schema.OFFSETS))
    put(schema.TIMESTAMP, int(offsets[2]) + 1, 0)(folder)


def several(folder: Path) -> None:
    for change in (put(schema.VALUE, 0, 99), put(schema.TIMESTAMP, 1, 4), table(with_artist)):
        change(folder)


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "gone": (lambda folder: (folder / "series/value.npy").unlink(), ["series/value.npy: missing"]),
    "flipped bit": (flip_a_bit, ["series/value.npy: its content has SHA-256"]),
    "no such value": (
        put(schema.VALUE, 0, 99),
        ["series/value.npy: user 0, entry 0: `value` is 99; values are numbered below "],
    ),
    "out of order": (
        put(schema.TIMESTAMP, 1, 4),
        ["series/timestamp.npy: user 0, entry 1: `timestamp` is 4; a user's entries must ascend by time"],
    ),
    "one series twice in a second": (
        put(schema.TIMESTAMP, 1, 5),
        ["user 0, entry 1: `timestamp` is 5; a user's entries must ascend by time, those of one second by series"],
    ),
    "series of a second in another order": (
        plan_behind_zone,
        ["user 2, entry 1: `timestamp` is 0; a user's entries must ascend by time, those of one second by series"],
    ),
    "offsets": (put(schema.OFFSETS, -1, 99), ["series/offsets.npy: must rise from 0 to the "]),
    "offsets that fall": (put(schema.OFFSETS, 1, 99), ["series/offsets.npy: must rise from 0 to the "]),
    "fewer values": (table(lambda rows: rows.slice(1)), ["series.parquet: has "]),
    "no such artist": (table(with_artist), ["row 0: `artist` is 7; artists are numbered below 4"]),
    "series in another order": (
        other_order,
        ["series.parquet: row 0: `series` is about, but by the manifest's counts it must be zone"],
    ),
    "several": (several, ["`artist` is 7", "`value` is 99", "`timestamp` is 4"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_series_are_refused_by_place_and_rule(folder: Path, name: str) -> None:
    damage, messages = DAMAGES[name]
    damage(folder)
    with pytest.raises(InputError) as caught:
        EventStore.open(folder)
    assert len(caught.value.faults) == len(messages)
    for fault, message in zip(caught.value.faults, messages, strict=True):
        assert message in fault
        assert str(folder) in fault
        assert "prepare the store again" in fault
