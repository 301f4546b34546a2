"""The benchmark of semantic ids, smaller than quick and on one thread: two wait longer than they work."""

from __future__ import annotations

import json

import pytest

from benchmarks import harness, semantic_ids

FIGURES = {
    "fit_speedup_vs_faiss",
    "encode_speedup_vs_faiss",
    "error_ratio_vs_faiss",
    "trie_step_us_per_beam",
    "trie_bytes_per_item",
}


def test_a_quick_run_ends_with_every_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(harness.RESULTS.iterdir())
    monkeypatch.setattr(semantic_ids, "THREADS", 1)
    monkeypatch.setattr(semantic_ids, "CODES", 256)
    monkeypatch.setattr(semantic_ids, "QUICK_VECTORS", 16_000)
    monkeypatch.setattr(semantic_ids, "QUICK_ITEMS", 100_000)
    assert harness.run("semantic_ids", semantic_ids.work, ["--quick"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures.keys() >= FIGURES
    assert all(value > 0 for value in figures.values())
    assert figures["error_ratio_vs_faiss"] < 1.02
    assert sorted(harness.RESULTS.iterdir()) == before, "a quick run keeps no page"
