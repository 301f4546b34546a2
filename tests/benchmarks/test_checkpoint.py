"""The benchmark of checkpoints on a table of nothing: that it measures, not what."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import checkpoint
from benchmarks.harness import Findings


def test_it_measures_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "QUICK_SIZE", (30_000, 2))
    findings = Findings()
    checkpoint._work(True, tmp_path, findings)
    figures = findings.figures
    assert figures["restored_identical"]
    assert 0.05 <= figures["touched_share"] < 0.5
    own = figures["touched_share"] * figures["delta_bytes_over_rows_own"]
    assert figures["delta_bytes_ratio_float32"] == pytest.approx(own, rel=0.2), "rows are counted or weighed wrongly"
    ratios = [figures[f"delta_bytes_ratio_{name}"] for name in ("int4", "int8", "float32")]
    assert ratios == sorted(ratios)
    # Times of so small a table mean nothing by themselves; what is made of them must be what it is called.
    share = figures["stall_ms"] / 1e3 / figures["delta_seconds"]
    assert share > 0
    assert figures["stall_share_of_write"] == pytest.approx(share)
    assert figures["restore_time_ratio_vs_dcp"] > 0
    assert [title for title, _ in findings.sections] == ["A delta beside a full save", "Restoring"]
