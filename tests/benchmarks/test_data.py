"""The benchmark runs as a user would run it; its speeds are not judged here, what does not depend on speed is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_quick_run_ends_with_every_figure(tmp_path: Path) -> None:
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", "--quick", "--scratch", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    for name in (
        "prepare_events_per_s",
        "prepare_peak_gb",
        "prepare_share_of_scan_limit",
        "loader_tokens_per_s",
        "padding_share",
        "balance_max_over_mean",
        "stochastic_length_error",
    ):
        assert figures[name] > 0, name
    assert figures["balance_max_over_mean"] <= 1.05
    assert figures["stochastic_length_error"] <= 0.01
    assert list(tmp_path.iterdir()) == [], "what was generated is removed"
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before, "a quick run keeps no page"
