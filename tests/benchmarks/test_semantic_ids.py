"""The benchmark of semantic ids, quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

FIGURES = {
    "fit_speedup_vs_faiss",
    "encode_speedup_vs_faiss",
    "error_ratio_vs_faiss",
    "trie_step_us_per_beam",
    "trie_bytes_per_item",
}


def test_the_quick_run_ends_with_every_figure() -> None:
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.semantic_ids", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() >= FIGURES
    assert all(value > 0 for value in figures.values())
    assert figures["error_ratio_vs_faiss"] < 1.02
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before, "a quick run keeps no page"
