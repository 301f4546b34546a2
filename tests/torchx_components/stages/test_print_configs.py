"""What several entries say of their configurations, asked in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]


def printed(*stages: tuple[str, list[str]]) -> list[Any]:
    command = [sys.executable, "-m", "torchx_components.stages.print_configs", json.dumps(stages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_each_is_told_as_the_entry_itself_tells_it() -> None:
    stages = [
        ("data.prepare", ["source=yambda", "path=raw", "kind=multi_event", "out=store"]),
        ("data.prepare", ["source=yambda", "ouT=store"]),
        ("data.synthesize", ["kind=yambda", "out=log"]),
    ]
    for (module, arguments), found in zip(stages, printed(*stages), strict=True):
        command = [sys.executable, "-m", module, "--print-config", *arguments]
        alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert found == [alone.returncode, alone.stdout, alone.stderr]
    assert [status for status, _, _ in printed(*stages)] == [0, 2, 0]


def test_a_bug_of_one_does_not_hide_what_the_others_say() -> None:
    (broken, _, traceback), (fine, told, _) = printed(
        ("data.nothing", []), ("data.synthesize", ["kind=yambda", "out=log"])
    )
    assert (broken, fine) == (1, 0)
    assert "No module named 'data.nothing'" in traceback
    assert yaml.safe_load(told)["out"] == "log"
