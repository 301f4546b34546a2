from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from data import describe, schema
from data.describe_page import render_page
from data.describe_tables import Table, make_tables, share, unit_of
from data.event_store import EventStore
from data.series_writer import SeriesRequest
from data.statistics import gather
from data.store_writer import write_event_store
from tests.common.html_reader import Page
from tests.data.written_log import Event, WrittenLog, written_logs

DAY = 86_400
HISTORIES = [
    [Event(0, 0, 0, 200, 1, 100), Event(1, 0, 0, 200, 0, 40), Event(0, 4000, 1), Event(0, 5 * DAY, 0, 100, 1, 250)],
    [Event(2, DAY, 0, 60, None, 5)],
    [Event(3, 2 * DAY), Event(3, 2 * DAY + 60), Event(3, 2 * DAY + 120)],
]
LOG = WrittenLog(HISTORIES, artists_N=[[0], [0, 1], [], [2], [1]], albums_N=[[0], [], [], [], []], embedded=[0, 1, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return LOG.store(tmp_path / "stores" / "log").path


def run(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = describe.main(list(argv))
    out, err = capfd.readouterr()
    return status, out, err


def fault(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    status, out, err = run(capfd, *argv)
    assert status == 2
    assert out == ""
    return err


def row(text: str, name: str) -> list[str]:
    """The cells of the one line of a text that begins with `name`."""
    (line,) = (line for line in text.splitlines() if re.match(rf"  {re.escape(name)}   ", line))
    return re.split(r" {3,}", line.strip())[1:]


def test_every_figure_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capfd, f"store={folder}")
    assert status == 0
    expected = {
        "users": ["3"],
        "albums": ["1"],
        "· listen": ["7", "87.50%"],
        "· like": ["1", "12.50%"],
        "last event": ["432,000 s"],
        "days between": ["5.0"],
        "duplicates found (keep)": ["0"],
        "fingerprint": [EventStore.open(folder).fingerprint],
        "training": ["3", "4", "50.00%"],
        "validation": ["2", "2", "25.00%"],
        "gaps": ["5"],
        "of 0 s: events in the same second": ["1", "20.00%"],
        "over 30 min: a session ends": ["2", "40.00%"],
        "sessions": ["5"],
        "sessions a user": ["1.67"],
        "events a session": ["1.60"],
        "items without an event": ["1", "20.00%"],
        "items with one event": ["2", "40.00%"],
        "events on the 1% most popular items": ["37.50%"],
        "repeats: the user had the item before": ["4", "50.00%"],
        "without an embedding": ["2", "40.00%", "3", "37.50%"],
        "without an album": ["4", "80.00%", "5", "62.50%"],
        "without an artist": ["1", "20.00%", "1", "12.50%"],
        "1 artist": ["3", "60.00%", "6", "75.00%"],
        "without duration": ["4", "50.00%"],
        "without origin": ["5", "62.50%"],
        "organic, of those known": ["2", "66.67%"],
        "half played or more, of those known": ["2", "50.00%"],
        "of the events": ["99.48%", "99.74%", "99.87%", "99.93%", "99.97%"],
    }
    assert {name: row(text, name) for name in expected} == expected
    assert "over time, day by day" in text
    assert row(text, "active users") == ["0.7", "0", "1", "day 0"]


def test_series_and_their_values_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_event_store(LOG, tmp_path / "store", series=SeriesRequest(preferred_artist_days=2))
    status, text, _ = run(capfd, f"store={tmp_path / 'store'}", "--json")
    assert status == 0
    assert row(text, "series_entries") == ["2"]  # the third user has played no artist before the log ends
    assert row(text, "· preferred_artist") == ["2 values", "2 days"]
    summary = json.loads(text.splitlines()[-1])
    assert summary["series"] == {"preferred_artist": {"values": 2, "first": 2 * DAY, "last": 4 * DAY, "days": 2}}


def test_the_page_stands_beside_the_store(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, text, _ = run(capfd, f"store={folder}{os.sep}")
    page = folder.parent / "log.describe.html"
    assert status == 0
    assert f"written: {page}" in text
    assert {path.name for path in folder.parent.iterdir()} == {"log", "log.describe.html"}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    html = page.read_text(encoding="utf-8")
    run(capfd, f"store={folder}", f"out={folder.parent / 'new' / 'x.html'}")
    assert (folder.parent / "new" / "x.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize("name", [".", "../log"])
def test_a_store_named_by_where_one_stands(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(capfd, f"store={name}")[0] == 0
    assert (folder.parent / "log.describe.html").exists()
    assert not list(folder.glob("*.html"))


def test_without_a_page(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capfd, f"store={folder}", "page=false")
    assert status == 0
    assert "written: " not in text
    assert [path.name for path in folder.parent.iterdir()] == ["log"]


def test_the_summary_holds_every_figure(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capfd, f"store={folder}", "--json")
    summary: dict[str, Any] = json.loads(text.splitlines()[-1])
    assert (summary["users"], summary["events"], summary["items"]) == (3, 8, 5)
    assert summary["event_types"] == {"listen": 7, "like": 1}
    assert summary["split"]["test"] == {"users": 2, "events": 2}
    assert summary["timeline"]["events"] == [3, 1, 3, 0, 0, 1]
    assert summary["timeline"]["users"] == [1, 1, 1, 0, 0, 1]
    assert summary["lengths"]["bins"] == {"edges": [1, 2, 3, 4, 5], "counts": [1, 0, 1, 1]}
    assert summary["plays"]["played"]["counts"][4:11:6] == [1, 1]
    assert summary["page"] == str(folder.parent / "log.describe.html")
    assert {"gaps", "popularity", "repeats", "by_artists", "duplicates", "fingerprint", "seconds"} <= summary.keys()


def page_of(log: WrittenLog, folder: Path, name: str = "log") -> str:
    store = log.store(folder / "store")
    figures = gather(store)
    return render_page(name, store.manifest, figures, make_tables(store.manifest, figures))


def test_the_page_has_every_table_and_chart_and_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    html = page_of(LOG, tmp_path)
    page = Page(html)
    store = EventStore.open(folder)
    for table in make_tables(store.manifest, gather(store)).values():
        for cell in [cell for line in (table.head, *table.rows) for cell in line if cell]:
            assert cell in page.texts
    assert page.tags.count("svg") == page.tags.count("figcaption") == 8
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import|javascript:", html)
    for said in (
        "day 5: 1 events",
        "day 2: 1 active users",
        "32 s to 1.07 min: 40%",
        "3: 1 users",
        "of events, 100: 25.0000",
    ):
        assert said in page.texts


@given(written_logs())
@settings(max_examples=15, deadline=None)
def test_any_store_has_a_page(tmp_path_factory: pytest.TempPathFactory, log: WrittenLog) -> None:
    html = page_of(log, tmp_path_factory.mktemp("any"))
    Page(html)
    assert not re.search(r"\b(nan|inf|None)\b", html)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    name = '<b onload="x">'
    log = WrittenLog(HISTORIES, LOG.artists_N, event_types=(name, "<script>"), description={"name": name})
    page = Page(page_of(log, tmp_path, name))
    assert "script" not in page.tags
    assert "onload" not in {attribute for attribute, _ in page.attributes}
    assert f"· {name}" in page.texts
    assert name in page.texts


def test_dates_where_the_source_has_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = 875_577_600  # 1997-09-30
    users = [[event._replace(timestamp=event.timestamp + start) for event in user] for user in HISTORIES]
    log = WrittenLog(users, LOG.artists_N, description={"name": "movielens-100k"})
    assert run(capfd, f"store={log.store(tmp_path / 'store').path}", "page=false")[0] == 0
    html = page_of(log, tmp_path / "other")
    assert "1997-09-30: 3 events" in Page(html).texts
    assert "1997-10-05 00:00" in Page(html).texts


def test_a_store_of_ties_has_no_chart_of_gaps(tmp_path: Path) -> None:
    page = Page(page_of(WrittenLog([[Event(0, 7), Event(0, 7)]], [[]], optional_columns=()), tmp_path))
    assert "No two events of a user are more than 0 seconds apart." in page.texts
    assert "The source of this store does not say how much of an item was played." in page.texts
    assert page.tags.count("svg") == 6


def test_tables_as_text() -> None:
    assert Table("t", ("name", "n"), [("a", "1,000"), ("longer", "2")]).to_text().splitlines() == [
        "t",
        "  name         n",
        "  a        1,000",
        "  longer       2",
    ]
    assert Table("t", (), [("a", "1", ""), ("b", "22", "x")]).to_text() == "t\n  a    1\n  b   22   x"


def test_words_for_numbers() -> None:
    assert [share(part, 100_000) for part in (0, 1, 10, 50_000)] == ["0.00%", "<0.01%", "0.01%", "50.00%"]
    assert share(0, 0) == "–"
    assert [unit_of(width) for width in (3600, DAY, 3 * DAY)] == ["hour", "day", "3 days"]


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_that_contradict_each_other(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fault(capfd, f"store={folder}", "page=false", "out=x.txt") == (
        "data.describe: 2 faults\n"
        "  - `out` means nothing with page=false; leave one of them out\n"
        "  - `out` is 'x.txt', expected a file that ends in .html\n"
    )
    assert "`store` is required" in fault(capfd)
    assert "`store` is empty" in fault(capfd, "store=")


def test_no_store(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in fault(capfd, f"store={tmp_path / 'none'}")
    assert "has no manifest" in fault(capfd, f"store={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    column = folder / schema.column_file(schema.ITEM)
    content = bytearray(column.read_bytes())
    content[-1] ^= 1
    column.write_bytes(bytes(content))
    assert str(column) in fault(capfd, f"store={folder}")
    column.unlink()
    assert f"{column}: missing" in fault(capfd, f"store={folder}")
    assert [path.name for path in folder.parent.iterdir()] == ["log"]


@pytest.mark.parametrize("inside", ["x.html", "events/x.html", "../log/x.html"])
def test_a_page_inside_the_store_is_refused(inside: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert f"{folder / inside}: lies inside the event store" in fault(
        capfd, f"store={folder}", f"out={folder / inside}"
    )
    assert sorted(folder.rglob("*")) == before


def test_a_page_that_reaches_the_store_through_a_link(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert "lies inside the event store" in fault(capfd, f"store={folder}", f"out={link / 'x.html'}")
    assert "lies inside the event store" in fault(capfd, f"store={link}", f"out={folder / 'x.html'}")


def test_places_that_hold_no_page(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = folder.parent / "folder.html"
    page.mkdir()
    assert f"{page}: is a folder" in fault(capfd, f"store={folder}", f"out={page}")
    file = folder.parent / "file"
    file.write_text("kept")
    assert f"{file} is not a folder" in fault(capfd, f"store={folder}", f"out={file / 'x.html'}")
    assert file.read_text() == "kept"


def test_a_place_that_may_not_be_written(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere, so the answer is given for the operating system.
    monkeypatch.setattr(describe.os, "access", lambda path, mode: path != folder.parent)
    assert f"nothing may be added to {folder.parent}" in fault(capfd, f"store={folder}")


def test_faults_of_store_and_page_are_told_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.html").mkdir()
    text = fault(capfd, f"store={tmp_path / 'none'}", f"out={tmp_path / 'x.html'}")
    assert "2 faults" in text
    assert "no such folder" in text
    assert "is a folder" in text


def test_a_full_disk_leaves_the_former_page(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = folder.parent / "log.describe.html"
    page.write_text("former")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(page))

    monkeypatch.setattr("common.files.os.fsync", full)
    assert "No space left on device" in fault(capfd, f"store={folder}")
    assert page.read_text() == "former"
    assert {path.name for path in folder.parent.iterdir()} == {"log", "log.describe.html"}
