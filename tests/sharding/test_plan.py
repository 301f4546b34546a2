"""The command: what it prints and writes, its exit status, and how little it takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common import files
from sharding import plan
from sharding.planning.placement_file import read_placement
from sharding.planning.report import size

SMALL = ["model.width=16", "model.blocks=1", "data.codes=32", "data.levels=2", "tokens=256", "model.max_history=64"]


def run(*options: str) -> int:
    return plan.main([*SMALL, *options])


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_figures_of_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plans" / "one"
    assert run("topology=a100-40", "nodes=2", "ranks_per_node=3", f"out={out}", "--json") == 0
    found = summary(capsys)
    assert found["num_ranks"] == len(found["ranks"]) == 6
    assert found["seconds"] > 0
    assert found["peak_gb"] > 0
    assert [(rank["rank"], rank["node"]) for rank in found["ranks"]] == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    for rank in found["ranks"]:
        assert rank["hbm_bytes"] == sum(rank["hbm"]["kinds"].values())
        assert rank["headroom_bytes"] == 40 * 2**30 - rank["hbm_bytes"]
        assert rank["ddr_bytes"] == 0
    held = sum(rank["hbm"]["kinds"]["tables"] for rank in found["ranks"])
    assert held == sum(table["bytes"] for table in found["tables"])
    assert [table["name"] for table in found["tables"]] == ["artist_quotient", "artist_remainder", "event_type", "rq"]
    assert not any("pieces" in table for table in found["tables"])
    assert found["bottleneck"].endswith(".")
    assert found["fits"] is True
    assert found["missing"] == []

    written = json.loads((out / "plan.json").read_text())
    assert {key: written[key] for key in found if key != "tables"} == {
        key: found[key] for key in found if key != "tables"
    }
    assert read_placement(out / "plan.json").num_ranks == 6


def test_the_page_needs_nothing_from_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("topology=h100", f"out={tmp_path}") == 0
    page = (tmp_path / "plan.html").read_text()
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(|\son\w+=", page)
    assert capsys.readouterr().out.splitlines()[0] in page
    for word in (
        "artist_quotient",
        "rank 7",
        "left to the runtime",
        "It fits",
    ):
        assert word in page


def test_what_does_not_fit_is_written_and_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    misfit = ["model.items.kind=vocabulary", "data.items=3000000000", "topology=h100", "ranks_per_node=2"]
    assert run(*misfit, f"out={tmp_path}", "--json") == 2
    told = capsys.readouterr()
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"] is False
    (missing,) = written["missing"]
    assert missing["memory"] == "hbm"
    assert f"short of {missing['bytes']} bytes" in told.err
    assert -missing["bytes"] == min(rank["headroom_bytes"] for rank in written["ranks"])
    assert "any one of these changes would make it fit: sharding.tables.item.kernel=" in told.err
    page = (tmp_path / "plan.html").read_text()
    assert "It does not fit" in page
    assert size(missing["bytes"]) in page
    assert "{" not in told.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        (["goal=best", "nodes=-1", "tokens=0"], ["`goal` is 'best'", "`nodes` is -1", "`tokens` is 0"]),
        (["sharding.plan=x", "store=y"], ["`sharding.plan` names a plan", "`store` and `codes` belong together"]),
        (["tokens=63"], ["`tokens` is 63, less than the 64 tokens of a window of `model.max_history` 64"]),
        (["topology=nowhere.yaml"], ["nowhere.yaml: no such file"]),
        (["data.distinct_share=2"], ["`data.distinct_share` is 2.0"]),
        (["sharding.tables.rq.columns=3"], ["`sharding.tables.rq.columns` is 3"]),
        (["store=/nowhere", "codes=/nowhere"], ["/nowhere: no such folder"]),
    ],
)
def test_a_fault_is_told_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], faults: list[str]
) -> None:
    assert run(*options, f"out={tmp_path / 'plan'}") == 2
    told = capsys.readouterr()
    assert all(fault in told.err for fault in faults)
    assert "Traceback" not in told.err
    assert told.out == ""
    assert not (tmp_path / "plan").exists()


def test_no_room_to_write_leaves_what_was_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(f"out={tmp_path}") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert run(f"out={tmp_path}", "tokens=512") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").write_text("")
    assert run(f"out={tmp_path / 'file'}") == 2


def test_goals(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["model.items.kind=vocabulary", "data.items=3000000000", "--json"]
    assert run("goal=min_ranks", "topology=h100", "nodes=4", *wanted) == 0
    found = summary(capsys)
    assert found["num_ranks"] == 4
    assert run("goal=max_tokens", "topology=h100", "nodes=1", *wanted) == 0
    assert summary(capsys)["workload"]["tokens"] > 256


def test_a_billion_rows_take_neither_memory_nor_other_processes() -> None:
    options = ["model.width=128", "model.items.kind=vocabulary", "data.items=1000000000", "nodes=16", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "sharding.plan", "topology=h100", "ranks_per_node=8", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    item = next(table for table in found["tables"] if table["name"] == "item")
    assert (item["rows"], item["width"], len(item["ranks"])) == (10**9, 128, 128)
    assert found["num_ranks"] == 128
    assert found["peak_gb"] < 2
    assert sum(rank["hbm"]["kinds"]["tables"] for rank in found["ranks"]) > 512e9
