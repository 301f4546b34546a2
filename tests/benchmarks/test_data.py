"""The benchmark, smaller than quick; its speeds are not judged here, what does not depend on speed is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data, harness


def test_a_quick_run_ends_with_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(harness.RESULTS.iterdir())
    monkeypatch.setattr(data, "QUICK_USERS", 1000)
    monkeypatch.setattr(data, "QUICK_LOADING_S", 0.2)
    monkeypatch.setattr(data, "QUICK_TRAINING_STEPS", 1)
    assert harness.run("data", data.main, ["--quick", "--scratch", str(tmp_path)]) == 0
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
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
    assert sorted(harness.RESULTS.iterdir()) == before, "a quick run keeps no page"
