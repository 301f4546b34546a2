"""Without a GPU the check says so; what it does on a GPU is tried on the CPU, where it compares like with like."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import Attention, Checked
from tests.ranks import spawn


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert "gpu_check: there is no CUDA GPU that PyTorch can use" in error
    assert "make gpu-check ACCELERATOR=cuda" in error


def test_attention_is_compared_in_both_types() -> None:
    checks = [check for check in gpu_check.CHECKS if check.backend == "jagged"]
    found = list(gpu_check.check_attention(torch.device("cpu"), checks, (0, 1, 60, 17)))
    assert len(found) == 2 * len(checks)
    assert [row.what for row in found if not row.holds] == []
    assert all(row.gradients > 0 for row in found)


def test_an_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_check.attention

    def wrong(*arguments: object, backend: str, **others: object) -> torch.Tensor:
        return right(*arguments, backend=backend, **others) * (1.0 if backend == "dense" else 1.03)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_check, "attention", wrong)
    found = list(gpu_check.check_attention(torch.device("cpu"), [Attention("jagged", "silu")], (9,)))
    assert [row.holds for row in found] == [False, False]


def test_a_backend_that_fails_does_not_hide_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Attention("flex", "softmax"), Attention("jagged", "softmax")]
    found = list(gpu_check.check_attention(torch.device("cpu"), checks, (9,)))
    assert [row.holds for row in found] == [False, False, True, True]
    assert "no gradient on a CPU" in capsys.readouterr().err


def test_training_on_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways on the CPU; everything moves. Ranks are processes of their own, though none that imports anything."""
    monkeypatch.setattr(gpu_check.multiprocessing, "spawn", spawn)
    trained, train = [], gpu_check.train
    monkeypatch.setattr(gpu_check, "train", lambda *way: trained.append(train(*way)) or trained[-1])
    assert gpu_check.check_training(2, "cpu", "dense").holds
    found, expected = trained
    assert {"rq", "artist_quotient", "artist_remainder", "event_type", "losses"} < set(found)
    assert any(not torch.equal(found[name], expected[name]) for name in found), "these are two ways of computing"
    assert found["losses"].shape == (gpu_check.STEPS,)
    rows = gpu_check.draw_rows(0, "rq", 0, len(found["rq"]), gpu_check.MODEL.width, gpu_check.INITIAL_STD)
    assert (found["rq"] != rows).any(dim=1).all()


def test_what_is_not_a_number_does_not_hold() -> None:
    row = Checked("x", 0.0, 0.0, 1e-3)
    assert row.holds
    for fault in ({"forward": math.nan}, {"gradients": math.nan}, {"forward": 1e-2}, {"gradients": 1e-2}):
        assert not dataclasses.replace(row, **fault).holds
    assert math.isnan(gpu_check.worst([1.0, math.nan, 2.0]))


def test_report() -> None:
    text = gpu_check.report([Checked("a", 1e-7, 2e-7, 1e-4), Checked("b", 1.0, 2e-7, 1e-4)])
    assert "| a " in text
    assert "NO" in text
    assert text.endswith("1 of 2 hold")
