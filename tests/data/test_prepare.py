from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import schema, series_writer
from data.event_store import EventStore
from data.prepare import main
from tests.data import movielens_example as example

ROOT = Path(__file__).parents[2]


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    return example.write(tmp_path / "ml", example.grouplens_files())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "data.prepare", *arguments], capture_output=True, text=True, env=environment
    )


def test_the_command_writes_a_store_and_ends_with_a_summary(tmp_path: Path, movielens: Path) -> None:
    done = run("source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'store'}", "--json")
    assert done.returncode == 0, done.stderr
    store = EventStore.open(tmp_path / "store")
    lines = done.stdout.splitlines()
    summary = json.loads(lines[-1])
    assert summary.pop("seconds") >= 0
    counts = dict(zip(store.event_types, store.manifest.event_type_counts, strict=True))
    assert summary == {
        "store": str(tmp_path / "store"),
        "fingerprint": store.fingerprint,
        "source": {"name": "movielens-100k"},
        "users": 4,
        "events": 16,
        "items": 6,
        "artists": 18,
        "albums": 0,
        "embeddings": 0,
        "event_types": counts,
        "time_range": list(store.manifest.time_range),
        "left_out": {},
        "duplicates": store.manifest.duplicates,
        "split": store.manifest.split,
        "test_users": int(store.split().test.asked_U.sum()),
    }
    assert "1997-11-20 … 1997-11-20" in done.stdout
    assert f"movielens-100k: read from {movielens}, NOT the published data set" in done.stderr


def test_the_command_ends_with_status_2_and_one_message(tmp_path: Path, movielens: Path) -> None:
    (movielens / "u.data").write_text("1\t2\n")
    done = run("source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'out' / 'store'}")
    assert done.returncode == 2
    assert done.stdout == ""
    place, rule = (
        f"{movielens}/u.data: line 1",
        "has 2 fields, expected 4 (user, item, rating, timestamp) separated by tabs",
    )
    assert done.stderr.splitlines() == [f"data.prepare: {place}: {rule}"]
    assert not (tmp_path / "out").exists()


def test_a_configuration_file_gives_the_keys(tmp_path: Path, movielens: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"prepare:\n  source: movielens-100k\n  path: {movielens}\n  out: {tmp_path / 'a'}\n")
    assert main(["--config", str(config)]) == 0
    assert main(["--config", str(config), f"out={tmp_path / 'b'}"]) == 0
    assert EventStore.open(tmp_path / "a").fingerprint == EventStore.open(tmp_path / "b").fingerprint


TABLE = ("source=table", "out=x", "path=y", "columns.user=u", "columns.item=i", "columns.timestamp=t")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["source=movielens-100k", "out=x", "pth=y"], ["unknown key `pth`; did you mean `path`"]),
        (
            ["source=movielens", "out=x"],
            ["`source` is 'movielens', expected one of movielens-100k, movielens-1m, yambda, table"],
        ),
        (["source=movielens-100k"], ["`out` is required"]),
        (["source=movielens-100k", "out="], ["`out` is empty"]),
        (["source=movielens-100k", "out=x", "kind=likes"], ["`kind` means nothing to source=movielens-100k"]),
        (["source=yambda", "out=x"], ["2 faults", "`kind` is required by source=yambda", "`path` is required"]),
        (["source=yambda", "out=x", "path=y", "kind=plays"], ["`kind` is 'plays', expected one of listens,"]),
        (["source=yambda", "out=x", "path=y", "kind=likes", "cache=z"], ["`cache` means nothing to source=yambda"]),
        (
            ["source=yambda", "out=x", "path=y", "kind=likes", "columns.user=u", "sorted=true", "timestamp_unit=ms"],
            [
                "3 faults",
                *(f"`{key}` means nothing to source=yambda" for key in ("columns.user", "sorted", "timestamp_unit")),
            ],
        ),
        (
            ["source=yambda", "out=x", "path=y", "kind=likes", "layout=wide"],
            ["`layout` is 'wide', expected one of flat,"],
        ),
        (
            ["source=yambda", "out=x", "path=y", "kind=likes", "embedding=e"],
            ["`embedding` is 'e', expected one of embed,"],
        ),
        (
            ["source=yambda", "out=x", "path=y", "kind=likes", "min_played_ratio=50"],
            ["`min_played_ratio` means nothing to kind=likes, which has no played ratio"],
        ),
        (
            ["source=movielens-100k", "out=x", "min_played_ratio=0"],
            ["`min_played_ratio` means nothing to source=movie"],
        ),
        (
            ["source=yambda", "out=x", "path=y", "kind=listens", "min_played_ratio=-1"],
            ["`min_played_ratio` is -1, must be at least 0"],
        ),
        (
            ["source=table", "out=x", "kind=likes", "columns.user=u"],
            [
                "4 faults",
                "`kind` means nothing to source=table",
                *(f"`{key}` is required by source=table" for key in ("path", "columns.item", "columns.timestamp")),
            ],
        ),
        (
            [*TABLE, "columns.duration=t", "catalogue.item=i", "catalogue.artist=i", "embeddings.path=e"],
            [
                "5 faults",
                "`columns.duration` is 't', which `timestamp` is as well; a column has one meaning",
                "`catalogue.item` needs `path`",
                "`catalogue.artist` needs `path`",
                "`catalogue.item`, `artist` and `title` must be different columns",
                "`embeddings.item` and `vector` must be given as well",
            ],
        ),
        (
            [*TABLE, "catalogue.path=c"],
            ["`catalogue.item` is required where", "`catalogue.artist` or `title` is required"],
        ),
        ([*TABLE, "separator=ab"], ["`separator` is 'ab', must be one character"]),
        ([*TABLE, "timestamp_unit=h"], ["`timestamp_unit` is 'h', expected one of s, ms, us, ns, iso"]),
        (
            ["source=yambda", "out=x", "path=y", "kind=likes", "series=[demographics,file,file]"],
            [
                "3 faults",
                "`series` names 'demographics', which source=yambda has not; choose of preferred_artist",
                "`series` names 'file', which",
                "`series` names file more than once",
            ],
        ),
        (
            ["source=movielens-100k", "out=x", "series=[file]", "series_file.path=z", "preferred_artist_days=0"],
            ["`preferred_artist_days` is 0, must be at least 1"],
        ),
        (
            ["source=movielens-100k", "out=x", "series=[gender]", "preferred_artist_days=7"],
            ["`preferred_artist_days` means nothing where `series` does not name preferred_artist; add it, or"],
        ),
        (
            ["source=movielens-1m", "out=x", "path=y", "series=[file,age]", "series_file.path=z"],
            [
                "3 faults",
                "`series_file.path` means nothing to source=movielens-1m",
                "`series` names 'age', which source=movielens-1m has not; choose of demographics, age_group,",
            ],
        ),
        ([*TABLE, "series=[file]"], ["`series_file.path` is required where `series` names file"]),
        ([*TABLE, "series_file.path=z"], ["`series_file` means nothing where `series` does not name file; add it"]),
        (
            [*TABLE, "series_file.user=series"],
            [
                "2 faults",
                "`series_file.user` needs `path`",
                "`series_file.user`, `timestamp`, `series` and `value` must be different columns",
            ],
        ),
        (["out"], ["`out` is not of the form key=value"]),
    ],
)
def test_faulty_keys_are_told_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    messages: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    for message in messages:
        assert message in told
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_the_former_store_as_it_was(tmp_path: Path, movielens: Path) -> None:
    assert main(["source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'stores' / 'ml'}"]) == 0
    former = EventStore.open(tmp_path / "stores" / "ml").fingerprint
    (movielens / "u.item").write_bytes(b"")
    assert main(["source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'stores' / 'ml'}"]) == 2
    assert EventStore.open(tmp_path / "stores" / "ml").fingerprint == former
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["ml"]


def test_nothing_but_a_store_is_ever_replaced(
    tmp_path: Path, movielens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(movielens)
    for name, message in [
        ("ml", "exists and is not an event store"),
        ("file", "exists and is not a folder"),
        ("link", "exists and is not a folder"),
    ]:
        assert main(["source=movielens-100k", f"path={movielens}", f"out={tmp_path / name}"]) == 2
        assert f"{tmp_path / name}: {message}" in capsys.readouterr().err
    assert sorted(path.name for path in movielens.iterdir()) == ["u.data", "u.item"]
    (tmp_path / "empty").mkdir()
    assert main(["source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'empty'}"]) == 0


def test_series_are_summed_up(
    tmp_path: Path, movielens: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series_writer, "DAY", 1)  # the log has four seconds
    example.write(movielens, example.grouplens_users())
    keys = ["source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'store'}", "--json"]
    assert main([*keys, "series=[gender,preferred_artist]", "preferred_artist_days=2"]) == 0
    printed = capsys.readouterr().out
    assert "\n  gender           2 values, 1997-11-20 … 1997-11-20\n" in printed.replace("    gender", "  gender")
    summary = json.loads(printed.splitlines()[-1])
    store = EventStore.open(tmp_path / "store")
    of_artists = store.manifest.series["preferred_artist"]
    begins = store.column(schema.TIMESTAMP)[store.offsets[:-1]]
    assert summary["series"] == {
        "gender": {"values": 2, "first": begins.min(), "last": begins.max()},
        "preferred_artist": of_artists,
    }
    assert (of_artists["days"], of_artists["first"]) == (2, begins.min() + 2)
    assert summary["series_entries"] == len(store.series.values)


def test_periods_have_a_month_where_not_told(
    tmp_path: Path, movielens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'stores' / 'ml'}"]
    assert main([*keys, "series=[preferred_artist]"]) == 2
    assert "`preferred_artist_days` is 30, but the log is over in" in capsys.readouterr().err
    assert list((tmp_path / "stores").iterdir()) == []


def test_it_is_told_whether_anybody_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    keys = ["source=table", f"path={log}", "columns.user=u", "columns.item=i", "columns.timestamp=t"]
    for lines, asked, told in (
        ("1,2,3\n1,2,4\n", 0, "nobody is asked, so that nothing can be evaluated: their histories are too short"),
        ("1,2,3\n1,2,4\n1,2,5\n2,2,3\n", 1, "1 of 2 users are asked"),
    ):
        log.write_text(f"u,i,t\n{lines}")
        assert main([*keys, f"out={tmp_path / 'out'}", "--json"]) == 0
        printed = capsys.readouterr().out
        assert told in printed
        assert json.loads(printed.splitlines()[-1])["test_users"] == asked


def test_a_series_file_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "log.csv", tmp_path / "out"
    log.write_text("u,i,t\n1,2,3\n")
    keys = ["source=table", f"path={log}", "columns.user=u", "columns.item=i", "columns.timestamp=t", f"out={out}"]
    assert main(keys) == 0
    (out / "series.csv").write_text("user,timestamp,series,value\n1,2,plan,x\n")
    assert main([*keys, "series=[file]", f"series_file.path={out / 'series.csv'}"]) == 2
    assert f"series.csv: lies inside {out}, which would be replaced" in capsys.readouterr().err


def test_an_unwritable_place_is_told(tmp_path: Path, movielens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["source=movielens-100k", f"path={movielens}", f"out={tmp_path / 'file' / 'store'}"]) == 2
    assert f"{tmp_path / 'file'}" in capsys.readouterr().err
