"""The reader of a heartbeat, as a probe calls it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Prepared
from tests.trainer.test_train import train_here
from trainer.watch import main


def test_a_run_that_has_ended_is_shown_and_well(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(prepared, tmp_path / "run", "max_steps=3") == 0
    capfd.readouterr()
    assert main([str(tmp_path / "run")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("ended with status 0: step 3 of about 3")
    assert lines[2].split()[:1] == ["0"]
    assert lines[2].split()[3:6] == ["end", "0", "3"]
    assert train_here(prepared, tmp_path / "run", "resume=true", "max_steps=4", "model.width=32") == 2
    assert main([str(tmp_path / "run")]) == 0, "what was refused never was at work"


def content(state: str, *, age_s: float, **of_file: Any) -> str:
    written_at = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(timespec="seconds")
    rest = {"status": None, "step": 5, "expected_steps": 9, "steps_per_s": 1.5, "heartbeat_s": 10.0, "ranks": []}
    return json.dumps({"written_at": written_at, "state": state, **rest, **of_file})


@pytest.mark.parametrize(
    ("state", "age_s", "expected"),
    [
        ("running", 55, 0),
        ("running", 65, 4),  # three beats and half a minute
        ("ended", 1e6, 0),
        ("stopped", 1e6, 0),
        ("failed", 1, 4),
        ("lost", 1, 4),
    ],
)
def test_the_exit_status_is_that_of_a_probe(tmp_path: Path, state: str, age_s: float, expected: int) -> None:
    (tmp_path / "heartbeat.json").write_text(content(state, age_s=age_s))
    assert main([str(tmp_path)]) == expected


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"written_at": "noon", "state": "ended"}'])
def test_what_is_no_heartbeat_is_named(tmp_path: Path, text: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "heartbeat.json").write_text(text)
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path / "heartbeat.json") in capfd.readouterr().err
