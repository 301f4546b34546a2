"""The benchmark of sharding on tables of nothing: that it measures, and that what must be exact is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import sharding
from benchmarks.harness import Findings
from benchmarks.sharding_prediction import Job
from benchmarks.sharding_tables import Size
from model.config import ItemTableConfig, ModelConfig

SIZE = Size(rows=1680 * 8, bags=64, repeats=2, catalogues=(5000, 20))
TINY = {"width": 16, "blocks": 1, "heads": 1, "head_dim_qk": 8, "head_dim_v": 8, "max_history": 50}


def tiny_jobs(_scale: int) -> list[Job]:
    return [Job("as configured", ModelConfig(**TINY, items=ItemTableConfig(kind="vocabulary")), 512)]


def test_it_measures_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"QUICK_SIZE": SIZE, "jobs": tiny_jobs, "USERS": 60, "ITEMS": 3000}.items():
        monkeypatch.setattr(sharding, name, value)
    findings = Findings()
    sharding._work(True, tmp_path, findings)
    figures = findings.figures
    assert figures["parameter_bytes_error"] == 0
    assert figures["alltoall_bytes_error"] < 0.1, "of a small batch, whose ids are not even"
    assert figures["peak_memory_error"] < 1, "of a few MB, where every library's own count"
    assert figures["rows_per_s_ratio_vs_single_process"] > 0
    assert 0.5 < figures["dedup_bytes_saved"] < 1, "20 items make up 64 tokens"
    assert figures["dedup_bytes_saved_little_repetition"] < figures["dedup_bytes_saved"]
    assert 1e-5 < figures["float16_error"] < 1e-3 < figures["bfloat16_error"] < 2e-2
    assert 1e-4 < figures["int8_error"] < 2e-2
    assert figures["item_rows_per_s_vocabulary"] > 0
    assert figures["item_rows_per_s_hashed"] > 0
    assert 0 < figures["max_table_difference"] < 1e-4, "another order of sums is seen, and nothing else"
    assert len(findings.sections) == 8
