from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InputError
from data import schema
from data.event_store import EventStore
from data.prepare import main
from data.sources import movielens_origins as origins
from data.sources.movielens import GENRES, MovieLens
from tests.data import movielens_example as example


def prepare(out: Path, **keys: Any) -> int:
    return main(["source=movielens-100k", f"out={out}", *(f"{key}={value}" for key, value in keys.items())])


def test_both_layouts_folders_and_archives_give_the_same_store(tmp_path: Path) -> None:
    paths = [
        example.write(tmp_path / "a", example.grouplens_files()),
        example.write(tmp_path / "b", example.recbole_files()),
    ]
    paths += [tmp_path / "ml-100k.zip", tmp_path / "some.whl"]
    paths[2].write_bytes(example.archive(example.grouplens_files(), "ml-100k/"))
    paths[3].write_bytes(example.archive(example.recbole_files(), "recbole/dataset_example/ml-100k/"))
    fingerprints = set()
    for number, path in enumerate(paths):
        assert prepare(tmp_path / f"store-{number}", path=path) == 0
        fingerprints.add(EventStore.open(tmp_path / f"store-{number}").fingerprint)
    assert len(fingerprints) == 1


def test_histories_are_sorted_by_time_and_ties_stay_in_file_order(tmp_path: Path) -> None:
    example.write(tmp_path / "ml", example.grouplens_files())
    assert prepare(tmp_path / "store", path=tmp_path / "ml") == 0
    store = EventStore.open(tmp_path / "store")
    assert store.user_ids.to_pylist() == ["2", "3", "5", "10"]
    expected = [
        sorted((row for row in example.ratings() if row[0] == user), key=lambda row: row[3]) for user in (2, 3, 5, 10)
    ]
    flat = np.array([row for rows in expected for row in rows])
    np.testing.assert_array_equal(store.offsets, np.cumsum([0] + [len(rows) for rows in expected]))
    np.testing.assert_array_equal(store.column(schema.ITEM), flat[:, 1] - 1)
    np.testing.assert_array_equal(store.column(schema.EVENT_TYPE), flat[:, 2] - 1)
    np.testing.assert_array_equal(store.column(schema.TIMESTAMP), flat[:, 3])
    assert len({row[3] for row in expected[0]}) < len(expected[0])  # there were ties
    assert store.event_types == ("rating-1", "rating-2", "rating-3", "rating-4", "rating-5")
    assert store.manifest.optional_columns == ()


def test_the_catalogue_holds_every_film_and_its_genres(tmp_path: Path) -> None:
    example.write(tmp_path / "ml", example.recbole_files())
    assert prepare(tmp_path / "store", path=tmp_path / "ml") == 0
    store = EventStore.open(tmp_path / "store")
    assert store.item_ids.to_pylist() == ["1", "2", "3", "4", "5", "6"]
    assert store.item_titles == [" ".join(film[1].split()) for film in example.FILMS]
    assert store.artist_ids.to_pylist() == list(GENRES)
    offsets, values = store.artist_offsets, store.artist_values
    genres = [[GENRES[value] for value in values[offsets[item] : offsets[item + 1]]] for item in range(6)]
    assert genres == [[] if film[4] == ["unknown"] else film[4] for film in example.FILMS]


# ── faults in the files ──────────────────────────────────────────────────────────────────────────────────


def with_line(files: dict[str, bytes], name: str, number: int, line: str) -> dict[str, bytes]:
    lines = files[name].split(b"\n")
    lines[number - 1] = line.encode("latin-1")
    return files | {name: b"\n".join(lines)}


GROUPLENS, RECBOLE = example.grouplens_files(), example.recbole_files()
FAULTS: dict[str, tuple[dict[str, bytes], str]] = {
    "too few fields": (with_line(GROUPLENS, "u.data", 3, "1\t2\t3"), "u.data: line 3: has 3 fields, expected 4"),
    "not a number": (
        with_line(GROUPLENS, "u.data", 4, "1\ttwo\t3\t4"),
        "u.data: line 4: item id is 'two', must be a whole number",
    ),
    "half a rating": (with_line(RECBOLE, "ml-100k.inter", 2, "1\t2\t3.5\t4"), "ml-100k.inter: line 2: rating is '3.5'"),
    "negative timestamp": (
        with_line(GROUPLENS, "u.data", 2, "1\t2\t3\t-5"),
        "u.data: line 2: timestamp is -5, must be 0",
    ),
    "timestamp too large": (
        with_line(GROUPLENS, "u.data", 2, f"1\t2\t3\t{2**63}"),
        "u.data: line 2: timestamp is 9223372036854775808",
    ),
    "rating 6": (with_line(GROUPLENS, "u.data", 2, "1\t2\t6\t5"), "u.data: line 2: rating is 6, must be 1 … 5"),
    "item not listed": (with_line(GROUPLENS, "u.data", 2, "1\t7\t3\t5"), "u.data: line 2: item id 7 is not in"),
    "blank line": (with_line(GROUPLENS, "u.data", 5, ""), "u.data: line 5: has 1 fields"),
    "empty ratings": (GROUPLENS | {"u.data": b""}, "u.data: is empty"),
    "only a header": (
        RECBOLE | {"ml-100k.inter": RECBOLE["ml-100k.inter"].split(b"\n")[0]},
        "ml-100k.inter: holds no ratings",
    ),
    "empty items": (GROUPLENS | {"u.item": b"\n"}, "u.item: is empty"),
    "missing column": (
        with_line(RECBOLE, "ml-100k.inter", 1, "user_id:token\titem_id:token\ttimestamp:float"),
        "ml-100k.inter: line 1 lacks column `rating:float`",
    ),
    "wrong dtype in the header": (
        with_line(
            RECBOLE, "ml-100k.item", 1, "item_id:float\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
        ),
        "ml-100k.item: line 1 lacks column `item_id:token`",
    ),
    "genre flags": (with_line(GROUPLENS, "u.item", 2, "2|A|||" + "|2" * 19), "u.item: line 2: genre flags are 2|2"),
    "strange genre": (
        with_line(RECBOLE, "ml-100k.item", 3, "2\tA\t1995\tPolka"),
        "ml-100k.item: line 3: genre 'Polka' is none of",
    ),
    "same item twice": (
        with_line(RECBOLE, "ml-100k.item", 3, "1\tA\t1995\tDrama"),
        "ml-100k.item: line 3: item id 1 stands here for the second",
    ),
    "not text": (RECBOLE | {"ml-100k.item": b"\xff\xfe"}, "ml-100k.item: byte 0 is not utf-8"),
    "one file of two": ({"u.data": GROUPLENS["u.data"]}, "has u.data, expected u.data and u.item or"),
    "nothing": ({}, "has none of the files, expected u.data and u.item"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files_end_with_place_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    files, message = FAULTS[name]
    example.write(tmp_path / "ml", files)
    assert prepare(tmp_path / "out" / "store", path=tmp_path / "ml") == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("data.prepare: ") == 1
    assert str(tmp_path / "ml") in told
    assert not (tmp_path / "out").exists()


def test_all_faulty_lines_are_told_at_once_but_not_by_the_thousand(tmp_path: Path) -> None:
    files = with_line(with_line(GROUPLENS, "u.data", 2, "x"), "u.item", 1, "y")
    with pytest.raises(InputError) as caught:
        MovieLens.parse(origins.read_path(example.write(tmp_path / "two", files)))
    # Film 1 is not read, so its ratings are faulty too.
    assert len(caught.value.faults) > 2
    files = GROUPLENS | {"u.data": b"x\n" * 1000}
    with pytest.raises(InputError) as caught:
        MovieLens.parse(origins.read_path(example.write(tmp_path / "many", files)))
    assert len(caught.value.faults) == 11
    assert caught.value.faults[-1] == "… and 990 more"


@pytest.mark.parametrize("name", ["gone", "gone.zip", "cut.zip", "text.zip"])
def test_archives_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "cut.zip").write_bytes(example.archive(GROUPLENS, "ml-100k/")[:-100])
    (tmp_path / "text.zip").write_text("not a zip")
    assert prepare(tmp_path / "out" / "store", path=tmp_path / name) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / name}: {'no such file' if name.startswith('gone') else 'not a whole zip archive'}" in told
    assert not (tmp_path / "out").exists()


def test_an_archive_with_a_damaged_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(example.archive(GROUPLENS, "ml-100k/"))
    content[content.index(GROUPLENS["u.data"]) + 5] ^= 1
    (tmp_path / "ml.zip").write_bytes(content)
    assert prepare(tmp_path / "out" / "store", path=tmp_path / "ml.zip") == 2
    assert "ml.zip: not a whole zip archive (Bad CRC-32" in capsys.readouterr().err


# ── where the data come from, with the example in the place of the published set ─────────────────────────


class Host:
    """A web server on this machine that answers every request with `content`, after `delay_s`."""

    def __init__(self) -> None:
        self.content = b""
        self.delay_s = 0.0
        self.asked = 0
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked += 1
                time.sleep(host.delay_s)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(host.content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/ml-100k.zip"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """GroupLens on this machine; no package index but the folder `wheels`."""
    serving = Host()
    serving.content = example.archive(GROUPLENS, "ml-100k/")
    content = MovieLens.parse(origins.read_path(example.write(tmp_path / "published", GROUPLENS))).content_sha256()
    wheel = {name: hashlib.sha256(data).hexdigest() for name, data in RECBOLE.items()}
    monkeypatch.setattr(origins, "GROUPLENS_URL", serving.url)
    monkeypatch.setattr(origins, "GROUPLENS_MD5", hashlib.md5(serving.content).hexdigest())
    monkeypatch.setattr(origins, "CONTENT_SHA256", content)
    monkeypatch.setattr(origins, "WHEEL_SHA256", wheel)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "wheels").mkdir()
    yield serving
    serving.server.shutdown()
    serving.server.server_close()


def put_wheel(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A wheel that pip takes for recbole 1.2.1."""
    metadata = {
        "METADATA": b"Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        "WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    members = {f"recbole/dataset_example/ml-100k/{name}": data for name, data in files.items()}
    members |= {f"recbole-1.2.1.dist-info/{name}": data for name, data in metadata.items()}
    (tmp_path / "wheels" / "recbole-1.2.1-py3-none-any.whl").write_bytes(example.archive(members, ""))


def test_grouplens_is_asked_once_and_then_the_cache(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path / "one", cache=tmp_path / "cache") == 0
    assert f"movielens-100k: from {host.url}, SHA-256 verified\n" in capsys.readouterr().err
    assert prepare(tmp_path / "two", cache=tmp_path / "cache") == 0
    assert "movielens-100k: from the cache " in capsys.readouterr().err
    assert host.asked == 1
    assert EventStore.open(tmp_path / "one").fingerprint == EventStore.open(tmp_path / "two").fingerprint


def test_the_cache_lies_where_xdg_says(tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare(tmp_path / "store") == 0
    assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "xdg" / "segue").iterdir()] == ["movielens-100k"]


def test_a_wrong_archive_from_grouplens_is_not_used(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.content = example.archive(example.grouplens_files(example.ratings(seed=1)), "ml-100k/")
    put_wheel(tmp_path, RECBOLE)
    assert prepare(tmp_path / "store", cache=tmp_path / "cache") == 0
    told = capsys.readouterr().err
    assert "movielens-100k: from the PyPI wheel recbole==1.2.1, SHA-256 verified" in told
    assert "wrong checksum: MD5 is" in told
    cached = next((tmp_path / "cache").iterdir())
    assert sorted(path.name for path in cached.iterdir()) == ["ml-100k.inter", "ml-100k.item"]


def test_a_silent_grouplens_costs_seconds_not_minutes(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.delay_s = 3.0
    monkeypatch.setattr(origins, "ANSWER_LIMIT_S", 0.2)
    put_wheel(tmp_path, RECBOLE)
    assert prepare(tmp_path / "store", cache=tmp_path / "cache") == 0
    assert "no answer" in capsys.readouterr().err


def test_nothing_is_kept_when_every_origin_is_wrong(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.content = b"<html>sign in to this network</html>"
    put_wheel(tmp_path, example.recbole_files(example.ratings(seed=1)))
    assert prepare(tmp_path / "out" / "store", cache=tmp_path / "cache") == 2
    told = capsys.readouterr().err
    assert "movielens-100k could not be obtained" in told
    assert f"{host.url}: wrong checksum" in told
    assert "ml-100k.inter: wrong checksum: SHA-256 is" in told
    assert "give the unzipped ml-100k folder or ml-100k.zip as `path=…`" in told
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_no_wheel_and_no_server(tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.server.shutdown()
    host.server.server_close()
    assert prepare(tmp_path / "out" / "store", cache=tmp_path / "cache") == 2
    told = capsys.readouterr().err
    assert f"{host.url}: no answer" in told
    assert "pip download recbole==1.2.1: ERROR: No matching distribution" in told


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_cache_is_said_and_replaced(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    assert prepare(tmp_path / "one", cache=tmp_path / "cache") == 0
    (cached,) = (tmp_path / "cache").iterdir()
    ratings = cached / "u.data"
    if damage == "changed":
        ratings.write_bytes(ratings.read_bytes().replace(b"\t4\t", b"\t3\t", 1))
    elif damage == "cut":
        ratings.write_bytes(ratings.read_bytes()[:-3])
    else:
        ratings.unlink()
    capsys.readouterr()
    assert prepare(tmp_path / "two", cache=tmp_path / "cache") == 0
    told = capsys.readouterr().err
    assert f"movielens-100k: from {host.url}, SHA-256 verified ({cached}" in told
    assert ratings.read_bytes() == GROUPLENS["u.data"]
    assert EventStore.open(tmp_path / "one").fingerprint == EventStore.open(tmp_path / "two").fingerprint


def test_a_cache_that_cannot_be_written_costs_only_the_cache(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    assert prepare(tmp_path / "store", cache=tmp_path / "cache") == 0
    assert "could not be cached in" in capsys.readouterr().err
