"""The quick benchmark measures all that it names, and its ways agree; speeds are not judged here."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import attention, harness, mfalcon
from benchmarks.mfalcon import Bench


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few items and tokens, on one thread: two wait longer for each other than they work."""
    for name, value in {"ITEMS": 3_000, "ARTISTS": 50, "THREADS": 1, "QUICK_HISTORIES": (64,)}.items():
        monkeypatch.setattr(mfalcon, name, value)
    monkeypatch.setattr(attention, "PRODUCT", 256)
    monkeypatch.setattr(mfalcon, "CACHING", (1_024, 2_048))


def test_the_quick_run_ends_with_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(harness.RESULTS.iterdir())
    assert harness.run("mfalcon", mfalcon.main, ["--quick"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in (
        "speedup_vs_naive",
        "cache_speedup_vs_single_microbatch",
        "repeat_request_speedup",
        "candidates_per_s",
        "share_of_product_rate",
    ):
        assert figures[name] > 0, name
    assert 0 < figures["max_abs_difference"] <= 1e-5
    assert sorted(harness.RESULTS.iterdir()) == before, "a quick run keeps no page"


@pytest.mark.parametrize("kind", ["silu", "softmax"])
def test_all_ways_predict_the_same(kind: str) -> None:
    bench = Bench.make(32, kind)
    candidates = bench.candidates(12)
    oracle = bench.one_by_one(candidates)
    assert oracle.std(dim=0).min() > 1e-5, "predictions that are all alike would agree whatever they are made of"
    torch.testing.assert_close(bench.masked(candidates), oracle, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bench.score(bench.prepare(), candidates, 5), oracle, atol=1e-5, rtol=1e-5)
