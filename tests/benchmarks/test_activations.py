"""The count is held against what can be counted by hand; speeds are not judged here."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import activations, harness
from benchmarks.activations import configurations, kept_by, kept_per_layer, make_tokens


def test_the_quick_run_ends_with_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(harness.RESULTS.iterdir())
    assert harness.run("activations", activations.main, ["--quick"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    hstu, recomputed = figures["activation_d_hstu"], figures["activation_d_hstu_recompute"]
    assert recomputed < 6 < 27 < hstu < 30, "bytes in bfloat16: two numbers and a bit, against fourteen numbers"
    assert figures["activation_d_transformer"] > hstu
    assert figures["recompute_time_ratio"] > 0
    assert sorted(harness.RESULTS.iterdir()) == before, "a quick run keeps no page"


@pytest.mark.parametrize("name", ["HSTU", "Transformer", "Transformer++"])
def test_memory_and_autograd_tell_the_same(name: str) -> None:
    alive, saved = kept_per_layer(configurations(64)[name], 512, torch.float32)
    assert alive == pytest.approx(saved, rel=0.03)


def test_a_count_that_can_be_made_by_hand() -> None:
    """x W1, SiLU, W2: kept are the arguments of SiLU and of W2, in full; x and the result do not count."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 32, bias=False), nn.Linear(32, 8, bias=False)

        def forward(self, x: torch.Tensor, _: object) -> torch.Tensor:
            return self.outer(nn.functional.silu(self.inner(x)))

    tokens = make_tokens(configurations(64)["HSTU"], 256)
    kept = kept_by(Plain(), torch.randn(256, 8, requires_grad=True), tokens)
    assert kept.alive == 2 * 256 * 32 * 4
    assert kept.saved == 2 * 256 * 32 * 4
