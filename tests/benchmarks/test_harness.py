from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Findings


def work(quick: bool, folder: Path, findings: Findings) -> None:
    """A benchmark of nothing."""
    assert folder.is_dir()
    findings.add("Part", harness.table(["a", "b"], [[1, "x"], [22, "y"]]), quick=int(quick), speed=1234.5678)


def test_a_full_run_keeps_a_page_and_prints_one_object_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert harness.run("nothing", work, []) == 0
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == {"quick": 0, "speed": 1235.0}
    kept = json.loads((tmp_path / "nothing.json").read_text())
    assert kept["figures"] == {"quick": 0, "speed": 1235.0}
    assert {"processor", "cores", "memory_gib", "python", "torch", "commit", "seconds"} <= kept["machine"].keys()
    page = (tmp_path / "nothing.md").read_text()
    assert f"`python -m benchmarks.nothing` at commit `{kept['machine']['commit']}`" in page
    assert "| a  | b |\n|----|---|\n| 1  | x |\n| 22 | y |" in page


def test_a_quick_run_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert harness.run("nothing", work, ["--quick"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"data\.describe store=nowhere ended with status 2"):
        harness.measure(["-m", "data.describe", "store=nowhere"])


@pytest.mark.parametrize(
    "name",
    [
        "activations",
        "attention",
        "checkpoint",
        "crash",
        "data",
        "mfalcon",
        "ranking",
        "retrieval",
        "semantic_ids",
        "sharding",
    ],
)
def test_a_benchmark_is_started_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m` does it; that it measures what it names is seen elsewhere, mostly by calls."""
    started = list[str]()

    def run(called: str, *_: object) -> int:
        started.append(called)
        return 7

    monkeypatch.setattr(harness, "run", run)
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert (started, ended.value.code) == ([name], 7)
