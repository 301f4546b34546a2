"""The quick benchmark measures all that it names, and its contenders compute the same; speeds are not judged here."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import attention, harness
from benchmarks.attention import PADDED_SCORES, Inputs, shares
from benchmarks.harness import Measured
from sharding.world import World
from tests.ranks import run_on_ranks

AS_USERS_DO = "padded sdpa softmax"


def measured_aside(_world: World, name: str, *sizes: int) -> dict[str, Any]:
    """In a process that need not import anything; small matrices, and one thread: two wait longer than they work."""
    attention.THREADS, attention.PRODUCT = 1, 256
    return attention.measure_one(name, *sizes)


def test_the_quick_run_ends_with_every_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One contender in a process as users have it."""
    before = sorted(harness.RESULTS.iterdir())

    def measure(command: list[str]) -> Measured:
        module, (flag, name, *sizes) = command[:2], command[2:]
        if name == AS_USERS_DO:
            return harness.measure(command)
        assert (module, flag) == (["-m", "benchmarks.attention"], "--measure")
        return Measured(0.0, 0.0, run_on_ranks(1, measured_aside, name, *map(int, sizes))[0])

    monkeypatch.setattr(attention, "measure", measure)
    assert harness.run("attention", attention.main, ["--quick"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("speedup_vs_padded_dense", "peak_memory_ratio_vs_padded_dense", "speedup_vs_sdpa", "gemm_share"):
        assert figures[name] > 0, name
    assert figures["peak_memory_ratio_vs_padded_dense"] < 1
    assert 0 < figures["max_relative_error"] <= 1e-5
    assert figures["bias_bytes_constant"] is True
    assert sorted(harness.RESULTS.iterdir()) == before, "a quick run keeps no page"


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
