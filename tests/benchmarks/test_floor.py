"""A figure that falls by more than a third, twice, ends in status 3 and one message; nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import floor

KEPT = {
    "gemm_share_fp32": 0.5,
    "scaling_of_possible": 1.5,
    "speedup_vs_naive": 3.0,
    "padding_share": 0.003,
    "data_wait_share": 0.03,
}


def runs(monkeypatch: pytest.MonkeyPatch, *found: dict[str, float]) -> Iterator[dict[str, float]]:
    left = iter([KEPT | changed for changed in found])
    monkeypatch.setattr(floor, "measured", lambda: next(left))
    return left


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(KEPT), encoding="utf-8")
    return file


@pytest.mark.parametrize("found", [{}, {"gemm_share_fp32": 0.34}, {"padding_share": 0.019}, {"data_wait_share": 0.039}])
def test_what_is_within_a_third_or_good_enough_passes(
    monkeypatch: pytest.MonkeyPatch, kept: Path, found: dict[str, float]
) -> None:
    runs(monkeypatch, found)
    assert floor.main([], kept) == 0


def test_what_was_a_disturbance_passes_the_second_time(monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    left = runs(monkeypatch, {"scaling_of_possible": 0.9}, {"data_wait_share": 0.5})
    assert floor.main([], kept) == 0
    assert not list(left), "two runs"


def test_what_is_worse_twice_is_named(
    monkeypatch: pytest.MonkeyPatch, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(monkeypatch, {"speedup_vs_naive": 1.0}, {"speedup_vs_naive": 1.9, "scaling_of_possible": 0.1})
    assert floor.main([], kept) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "speedup_vs_naive is 1.9, was 3" in said
    assert "scaling" not in said


def test_what_is_kept_is_what_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs(monkeypatch, {"gemm_share_fp32": 0.7})
    assert floor.main(["--keep"], tmp_path / "kept.json") == 0
    assert json.loads((tmp_path / "kept.json").read_text(encoding="utf-8")) == KEPT | {"gemm_share_fp32": 0.7}
