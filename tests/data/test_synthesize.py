from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data import prepare, schema, synthesize
from data.event_store import EventStore
from data.synthesize import main

ROOT = Path(__file__).parents[2]
SMALL = ["kind=yambda", "users=40", "items=600", "median_history=60", "embedding_width=8"]
STREAM = ["kind=dirichlet", "records=50", "record_length=8", "items=300", "categories=10"]


def test_the_command_writes_a_log_and_ends_with_a_summary(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.synthesize", *SMALL, f"out={tmp_path / 'log'}", "seed=3", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary.pop("seconds") >= 0
    manifest = json.loads((tmp_path / "log" / synthesize.MANIFEST_FILE).read_text())
    assert summary == {"out": str(tmp_path / "log"), "kind": "yambda", "seed": 3, **manifest["counts"]}
    listens = pq.read_metadata(tmp_path / "log" / "flat" / "50m" / "listens.parquet").num_rows
    assert summary["listens"] == listens
    assert manifest["config"]["users"] == 40
    assert "out" not in manifest["config"]
    assert f"python -m data.prepare source=yambda path={tmp_path / 'log'} size=50m kind=listens" in done.stdout
    assert "embeddings: 600 items in" in done.stderr
    assert "listens:" in done.stderr


@pytest.mark.parametrize("kind", ["listens", "multi_event"])
def test_what_is_written_can_be_prepared(tmp_path: Path, kind: str) -> None:
    assert main([*SMALL, f"out={tmp_path / 'log'}", f"kinds=[{kind}]"]) == 0
    assert prepare.main(["source=yambda", f"path={tmp_path / 'log'}", f"kind={kind}", f"out={tmp_path / 'store'}"]) == 0
    store = EventStore.open(tmp_path / "store")
    counts = json.loads((tmp_path / "log" / synthesize.MANIFEST_FILE).read_text())["counts"]
    assert (store.num_users, store.num_events) == (40, counts[kind])
    assert store.num_items == counts["items_heard"]


def test_all_layouts_and_names_are_read_as_the_same_events(tmp_path: Path) -> None:
    fingerprints = set()
    for names in ("singular", "plural"):
        log = [f"out={tmp_path / names}", "layouts=[flat,sequential]", "kinds=[multi_event]"]
        assert main([*SMALL, *log, f"sequential_names={names}"]) == 0
        for layout in ("flat", "sequential"):
            read = ["source=yambda", f"path={tmp_path / names}", f"layout={layout}", "kind=multi_event"]
            assert prepare.main([*read, f"out={tmp_path / 'store'}"]) == 0
            fingerprints.add(EventStore.open(tmp_path / "store").fingerprint)
    assert len(fingerprints) == 1


def test_a_stream_is_prepared_in_its_own_order(tmp_path: Path) -> None:
    assert main([*STREAM, f"out={tmp_path / 'log'}"]) == 0
    columns = [f"columns.{name}={name}" for name in ("user", "item", "timestamp")]
    catalogue = [
        f"catalogue.path={tmp_path / 'log' / 'items.parquet'}",
        "catalogue.item=item",
        "catalogue.artist=artist",
    ]
    read = ["source=table", f"path={tmp_path / 'log' / 'log.parquet'}", "duplicates=keep", *columns, *catalogue]
    assert prepare.main([*read, f"out={tmp_path / 'store'}"]) == 0
    store, log = EventStore.open(tmp_path / "store"), pq.read_table(tmp_path / "log" / "log.parquet")
    assert store.user_ids.to_pylist() == [str(record) for record in range(50)]
    stored = [int(store.item_ids[item].as_py()) for item in store.column(schema.ITEM)]
    assert stored == log.column("item").to_pylist()
    assert store.column(schema.TIMESTAMP).tolist() == log.column("timestamp").to_pylist()


def test_an_earlier_output_is_replaced_and_equal_commands_give_equal_folders(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        assert main([*STREAM, f"out={tmp_path / folder}"]) == 0
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("one", "two"))
    assert one == two
    assert main([*SMALL, f"out={tmp_path / 'two'}"]) == 0
    assert not (tmp_path / "two" / "log.parquet").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}


def test_a_stream_says_how_to_prepare_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "stream"
    assert main([*STREAM, f"out={out}"]) == 0
    assert (
        f"python -m data.prepare source=table path={out}/log.parquet columns.user=user columns.item=item "
        f"columns.timestamp=timestamp catalogue.path={out}/items.parquet catalogue.item=item catalogue.artist=artist "
        "duplicates=keep split.kind=held-out-users split.test_share=0.1 out=stores/stream"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("kind", [SMALL, STREAM])
def test_a_strangers_folder_is_left_alone(tmp_path: Path, kind: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear all")
    assert main([*kind, f"out={home}"]) == 2
    message = capsys.readouterr().err
    assert f"{home}: exists and was not made by this command (it has no synthesis.json)" in message
    assert [path.name for path in home.iterdir()] == ["letter.txt"]
    assert main([*kind, f"out={home / 'letter.txt'}"]) == 2
    assert "exists and is not a folder" in capsys.readouterr().err
    assert (home / "letter.txt").read_text() == "dear all"


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "log"
    assert main([*SMALL, f"out={out}"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.parquet")}

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.synthetic.yambda._write_log", full)
    assert main([*SMALL, f"out={out}", "seed=4"]) == 2
    assert {path: path.read_bytes() for path in out.rglob("*.parquet")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.synthetic.yambda.Blocks.make", interrupted)
    assert main([*SMALL, f"out={tmp_path / 'log'}"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_faults_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kind=yambda", f"out={tmp_path / 'log'}", "users=0", "layouts=[flat,round]", "recods=5"]) == 2
    message = capsys.readouterr().err
    for fault in ("`users` is 0, must be at least 1", "`layouts` is 'round'", "unknown key `recods`"):
        assert fault in message
    assert list(tmp_path.iterdir()) == []


def test_the_example_configuration_suits_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for entry in (main, prepare.main):
        with pytest.raises(SystemExit) as left:
            entry(["--config", str(ROOT / "configs" / "synthetic-yambda.yaml"), "--print-config"])
        assert left.value.code == 0
        assert "logs/synthetic-yambda" in capsys.readouterr().out
