"""The benchmark runs as a user would run it, and its contenders compute the same; speeds are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.attention import PADDED_SCORES, Inputs, shares

ROOT = Path(__file__).parents[2]


def test_the_quick_run_ends_with_every_figure() -> None:
    results = ROOT / "benchmarks" / "results"
    before = sorted(results.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.attention", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    for name in ("speedup_vs_padded_dense", "peak_memory_ratio_vs_padded_dense", "speedup_vs_sdpa", "gemm_share"):
        assert figures[name] > 0, name
    assert figures["peak_memory_ratio_vs_padded_dense"] < 1
    assert 0 < figures["max_relative_error"] <= 1e-5
    assert figures["bias_bytes_constant"] is True
    assert sorted(results.iterdir()) == before, "a quick run keeps no page"


def test_contenders_compute_the_same() -> None:
    """Forward and the gradients of q, k, v and the tables."""
    for kind in ("silu", "softmax"):
        inputs = Inputs.make((40, 7, 31, 1))
        leaves = list(inputs.leaves.values())
        (share,) = shares(inputs)
        assert PADDED_SCORES >= 4 * 4 * 40**2
        ours = inputs.attend(kind)
        theirs = share.dense_silu() if kind == "silu" else share.sdpa_softmax(trained=True)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        for want, found in zip(
            torch.autograd.grad(ours, leaves, inputs.weight),
            torch.autograd.grad(theirs, leaves, inputs.weight),
            strict=True,
        ):
            torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)
