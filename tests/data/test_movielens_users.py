"""Demographics of MovieLens-100K and -1M as series, in all layouts, and from where they are obtained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from data import schema, series_writer
from data.event_store import EventStore
from data.prepare import main
from data.sources import movielens_origins as origins
from data.sources.movielens import USERS_SHA256, MovieLens
from data.sources.movielens_users import DEMOGRAPHICS, OCCUPATIONS_1M, OCCUPATIONS_100K, UserRow, users_sha256
from tests.data import movielens_example as example
from tests.data import test_movielens_1m as million
from tests.data.series.test_series_store import of_user
from tests.data.test_movielens import GROUPLENS, RECBOLE, Host, host, put_wheel, with_line

__all__ = ["host"]  # a fixture

GROUPLENS_ALL, RECBOLE_ALL = GROUPLENS | example.grouplens_users(), RECBOLE | example.recbole_users()
MILLION = million.files() | {"users.dat": b"2::M::25::15::55117\n7::F::1::10::48067\n9::F::56::0::00000\n"}


def prepare(out: Path, series: str = "[demographics]", source: str = "movielens-100k", **keys: Any) -> int:
    given = [f"{key}={value}" for key, value in keys.items()]
    return main([f"source={source}", f"out={out}", f"series={series}", *given])


def told(store: EventStore) -> dict[str, list[str]]:
    """Each user's values, all of them from the first event on."""
    times = store.column(schema.TIMESTAMP)[store.offsets[:-1]]
    found = {}
    for place, user in enumerate(store.user_ids.to_pylist()):
        entries = of_user(store.series, place)
        assert {time for time, _ in entries} == {int(times[place])}
        found[user] = [text for _, text in entries]
    return found


def test_both_layouts_give_the_same_series(tmp_path: Path) -> None:
    (tmp_path / "ml.zip").write_bytes(example.archive(GROUPLENS_ALL, "ml-100k/"))
    paths = [
        example.write(tmp_path / "a", GROUPLENS_ALL),
        example.write(tmp_path / "b", RECBOLE_ALL),
        tmp_path / "ml.zip",
    ]
    fingerprints = set()
    for number, path in enumerate(paths):
        assert prepare(tmp_path / f"store-{number}", path=path) == 0
        fingerprints.add(EventStore.open(tmp_path / f"store-{number}").fingerprint)
    assert len(fingerprints) == 1
    store = EventStore.open(tmp_path / "store-0")
    assert told(store) == {
        "2": ["age_group: 50-55", "gender: F", "occupation: other"],
        "3": ["age_group: under 18", "gender: M", "occupation: student"],
        "5": ["age_group: under 18", "gender: F", "occupation: none"],
        "10": ["age_group: 56+", "gender: M", "occupation: lawyer"],
    }
    # The values of user 4, who rates nothing, are none of the store.
    assert store.series.texts.to_pylist() == [
        "under 18",
        "50-55",
        "56+",
        "F",
        "M",
        "lawyer",
        "none",
        "other",
        "student",
    ]
    assert (store.series.artists_V == -1).all()


def test_only_what_is_asked_for_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_writer, "DAY", 1)  # the log has four seconds
    path = example.write(tmp_path / "ml", GROUPLENS_ALL)
    assert prepare(tmp_path / "some", "[occupation,gender]", path=path) == 0
    store = EventStore.open(tmp_path / "some")
    assert told(store)["2"] == ["gender: F", "occupation: other"]
    assert store.series.names == ("gender", "occupation")
    example.write(tmp_path / "ml", {"u.user": b"nobody reads this"})
    assert prepare(tmp_path / "none", "[]", path=path) == 0
    assert not EventStore.open(tmp_path / "none").has_series
    assert prepare(tmp_path / "artist", "[preferred_artist]", path=path, preferred_artist_days=1) == 0
    assert EventStore.open(tmp_path / "artist").series.names == ("preferred_artist",)


def test_ages_become_the_published_groups() -> None:
    ages = [1, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 99]
    groups = ["under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"]
    assert [UserRow(age, "F", "none").of("age_group") for age in ages] == [group for group in groups for _ in range(2)]
    assert (len(OCCUPATIONS_100K), len(OCCUPATIONS_1M)) == (21, 21)


def test_numbers_of_movielens_1m_become_names(tmp_path: Path) -> None:
    path = example.write(tmp_path / "ml-1m", MILLION)
    assert prepare(tmp_path / "store", source="movielens-1m", path=path) == 0
    assert told(EventStore.open(tmp_path / "store")) == {
        "2": ["age_group: 25-34", "gender: M", "occupation: scientist"],
        "7": ["age_group: under 18", "gender: F", "occupation: K-12 student"],
    }


# ── faults in the files ──────────────────────────────────────────────────────────────────────────────────

LINES = {
    "2|53|F|other": "u.user: line 1: has 4 fields, expected 5 separated by '|'",
    "2|young|F|other|1": "u.user: line 1: age is 'young', must be a whole number",
    "2|0|F|other|1": "u.user: line 1: age is 0, must be 1 … 150",
    "2|53|X|other|1": "u.user: line 1: gender is 'X', must be F or M",
    "2|53|F|poet|1": "u.user: line 1: occupation 'poet' is none of administrator, artist",
    "3|53|F|other|1": "u.user: line 2: user id 3 stands here for the second time; ids must be unique",
    "two|53|F|other|1": "u.user: line 1: user id is 'two', must be a whole number",
}
FAULTS = {
    **{line: (with_line(GROUPLENS_ALL, "u.user", 1, line), message) for line, message in LINES.items()},
    "missing": (
        GROUPLENS_ALL | {"u.user": b"2|53|F|other|1\n"},
        "u.user: lacks user 3 (and 2 more users); every user of",
    ),
    "empty": (GROUPLENS_ALL | {"u.user": b""}, "u.user: is empty"),
    "no header": (
        with_line(RECBOLE_ALL, "ml-100k.user", 1, "user_id:token\tage:token"),
        "ml-100k.user: line 1 lacks column `gender:token`, `occupation:token`, `zip_code:token`",
    ),
    "no file": (GROUPLENS, "has u.data and u.item, expected u.data and u.item and u.user or ml-100k.inter and"),
    "two faults": (
        with_line(with_line(GROUPLENS_ALL, "u.user", 2, "x"), "u.data", 1, "y"),
        "2 faults",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files_end_with_place_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    files, message = FAULTS[name]
    path = example.write(tmp_path / "ml", files)
    assert prepare(tmp_path / "out" / "store", path=path) == 2
    said = capsys.readouterr().err
    assert message in said
    assert str(path) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("2::M::26::15::1", "age is 26, must be one of 1, 18, 25, 35, 45, 50, 56"),
        ("2::M::25::21::1", "occupation is 21, must be 0 … 20"),
        ("2::25::M::15::1", "age is 'M', must be a whole number"),
    ],
)
def test_faulty_users_of_movielens_1m(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, fault: str
) -> None:
    path = example.write(tmp_path / "ml-1m", MILLION | {"users.dat": f"{line}\n7::F::1::10::1\n".encode()})
    assert prepare(tmp_path / "store", source="movielens-1m", path=path) == 2
    assert f"{path}/users.dat: line 1: {fault}" in capsys.readouterr().err


# ── where the data come from, with the example in the place of the published set ─────────────────────────


@pytest.fixture
def users(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """GroupLens with its users, and the wheel's checksums with theirs."""
    host.content = example.archive(GROUPLENS_ALL, "ml-100k/")
    read = MovieLens.parse(origins.read_path(example.write(tmp_path / "all", GROUPLENS_ALL), with_users=True))
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in RECBOLE_ALL.items()}
    monkeypatch.setattr(origins, "GROUPLENS_MD5", hashlib.md5(host.content).hexdigest())
    monkeypatch.setattr(origins, "USERS_SHA256", read.users_sha256())
    monkeypatch.setattr(origins, "WHEEL_SHA256", sums)
    return host


def test_users_are_fetched_when_the_cache_lacks_them(
    tmp_path: Path, users: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path / "none", "[]", cache=tmp_path / "cache") == 0
    (cached,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in cached.iterdir()) == ["u.data", "u.item"]
    assert prepare(tmp_path / "one", cache=tmp_path / "cache") == 0
    assert "has u.data and u.item, expected u.data and u.item and u.user" in capsys.readouterr().err
    assert prepare(tmp_path / "two", cache=tmp_path / "cache") == 0
    assert prepare(tmp_path / "none", "[]", cache=tmp_path / "cache") == 0
    assert "from the cache " in capsys.readouterr().err
    assert users.asked == 2
    assert EventStore.open(tmp_path / "one").fingerprint == EventStore.open(tmp_path / "two").fingerprint


def test_users_come_from_the_wheel_too(tmp_path: Path, users: Host) -> None:
    users.content = b"sign in"
    put_wheel(tmp_path, RECBOLE_ALL)
    assert prepare(tmp_path / "store", cache=tmp_path / "cache") == 0
    assert EventStore.open(tmp_path / "store").series.names == DEMOGRAPHICS


@pytest.mark.parametrize("where", ["cache", "wheel"])
def test_changed_users_are_not_used(
    tmp_path: Path, users: Host, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    changed = RECBOLE_ALL | {"ml-100k.user": RECBOLE_ALL["ml-100k.user"].replace(b"53", b"54")}
    if where == "cache":
        assert prepare(tmp_path / "store", cache=tmp_path / "cache") == 0
        (cached,) = (tmp_path / "cache").iterdir()
        (cached / "u.user").write_bytes(GROUPLENS_ALL["u.user"].replace(b"53", b"54"))
        assert prepare(tmp_path / "store", cache=tmp_path / "cache") == 0
        assert "u.user: wrong checksum: content SHA-256 is" in capsys.readouterr().err
        assert (cached / "u.user").read_bytes() == GROUPLENS_ALL["u.user"]
    else:
        users.content = b"sign in"
        put_wheel(tmp_path, changed)
        assert prepare(tmp_path / "out" / "store", cache=tmp_path / "cache") == 2
        assert "ml-100k.user: wrong checksum: SHA-256 is" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_path_of_other_users_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = example.write(tmp_path / "ml", GROUPLENS_ALL)
    assert prepare(tmp_path / "store", path=path) == 0
    assert "NOT the published data set, used as is" in capsys.readouterr().err


def test_the_checksum_does_not_depend_on_the_order_of_lines() -> None:
    one, other = (5, UserRow(20, "F", "artist")), (3, UserRow(30, "M", "none"))
    assert users_sha256(dict([one, other])) == users_sha256(dict([other, one])) != USERS_SHA256
