"""The Triton kernels' numbers, found by Triton's interpreter on CPU tensors.

Triton decides when it is imported whether to interpret, so `test_triton.py` runs this file in a process of its own with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model.attention import attention, triton_silu
from model.attention.dropout import Dropout
from model.biases import KeyBias, PositionBias, ScoreBiases, TimeBias, alibi_slopes
from model.mask import Mask

TIME_BUCKETS, DURATION_BUCKETS, ORGANIC_BUCKETS = 64, 5, 3
SWITCHES = ("alibi", "time", "duration", "organic", "position")


@dataclass(frozen=True)
class Case:
    """Random inputs for given user lengths."""

    lengths: tuple[int, ...]
    padding: int = 0
    alone: float = 0.0
    heads: int = 1
    width_qk: int = 3
    width_v: int = 4
    scale: float = 1.0
    soft_cap: float = 0.0
    dropout: float = 0.0
    positions: int = 20
    without: tuple[str, ...] = ()
    seed: int = 0


def alone_of(case: Case, tokens: int) -> Tensor | None:
    """That share of the tokens, at random."""
    if not case.alone:
        return None
    return torch.rand(tokens, generator=torch.Generator().manual_seed(case.seed)) < case.alone


def forward_and_gradients(case: Case, backend: str, dtype: torch.dtype, inputs: torch.dtype) -> dict[str, Tensor]:
    """The output and every gradient; the inputs are rounded to `inputs`, whatever they are computed in."""
    generator = torch.Generator().manual_seed(case.seed)
    tokens, heads = sum(case.lengths) + case.padding, case.heads
    offsets = torch.tensor([0, *case.lengths]).cumsum(0)
    leaves: dict[str, Tensor] = {}

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(inputs).to(dtype)

    def integers(below: int) -> Tensor:
        return torch.randint(0, below, (tokens,), generator=generator)

    def leaf(name: str, *shape: int) -> Tensor:
        leaves[name] = normal(*shape).requires_grad_()
        return leaves[name]

    # As a layer has them: views into one projection, so not contiguous.
    joined = leaf("qkv", tokens, heads * (2 * case.width_qk + case.width_v))
    widths = [heads * width for width in (case.width_qk, case.width_qk, case.width_v)]
    q, k, v = (part.view(tokens, heads, -1) for part in joined.split(widths, dim=1))
    # Few distinct steps: ties in time are frequent. In the padding time stands at zero.
    times = 1_600_000_000 + (integers(4) * integers(50_000) // 3).cumsum(0)
    times[int(offsets[-1]) :] = 0
    on = {name: name not in case.without for name in SWITCHES}
    query_times = times + integers(3) * 1000
    by_key = {"duration": DURATION_BUCKETS, "organic": ORGANIC_BUCKETS}
    biases = ScoreBiases(
        slopes_H=alibi_slopes(heads) if on["alibi"] else None,
        time=TimeBias(leaf("time", heads, TIME_BUCKETS), query_times, times) if on["time"] else None,
        by_key=tuple(KeyBias(leaf(name, heads, size), integers(size)) for name, size in by_key.items() if on[name]),
        position=PositionBias(leaf("position", heads, case.positions)) if on["position"] else None,
    )
    out = attention(
        q,
        k,
        v,
        Mask(offsets, alone_of(case, tokens)),
        biases,
        backend=backend,
        kind="silu",
        scale=case.scale,
        normaliser_L=1.0 + integers(9).to(dtype),
        soft_cap=case.soft_cap,
        dropout=Dropout(case.dropout, seed=2**33 + 12345 * case.seed - 7) if case.dropout else None,
    )
    # The padding is weighted too: it must come out as zero and hand back nothing.
    grads = torch.autograd.grad((out * normal(*out.shape)).sum(), list(leaves.values()))
    return {"out": out, **{f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}}


def assert_same(case: Case, inputs: torch.dtype, tolerance: float) -> None:
    """Within a share of the largest magnitude of each tensor, of the dense oracle in float64 on the same inputs."""
    expected = forward_and_gradients(case, "dense", torch.float64, inputs)
    found = forward_and_gradients(case, "triton", inputs, inputs)
    assert list(found) == list(expected)
    for name, want in expected.items():
        assert found[name].dtype == inputs
        torch.testing.assert_close(
            found[name].double(), want, rtol=0, atol=tolerance * max(1e-30, want.abs().max().item()), msg=name
        )
        assert not found[name][sum(case.lengths) :].any() or name not in ("out", "dqkv"), name


CASES = {
    "one event": Case((1,)),
    "empty and one-event users, padding": Case((0, 3, 1, 0, 0, 9, 1, 0), padding=5, heads=2),
    "users at the edges of blocks": Case((15, 16, 17, 33), padding=1, seed=1),
    "a user of several blocks": Case((70, 2), width_qk=5, width_v=7, seed=2),
    "odd widths, many heads": Case((12, 6), heads=3, width_qk=1, width_v=17, scale=0.3, seed=3),
    "wide heads": Case((12,), width_qk=80, width_v=24, scale=80**-0.5, seed=4),
    "soft cap": Case((30, 5), soft_cap=1.5, seed=5),
    "a wide soft cap": Case((12,), soft_cap=50.0, seed=6),
    "dropout": Case((30, 5), heads=2, dropout=0.3, padding=2, seed=7),
    "dropout and soft cap": Case((20,), dropout=0.1, soft_cap=2.0, seed=8),
    "one position bucket": Case((20,), positions=1, seed=9),
    "more positions than distances": Case((20, 50), positions=77, without=("time",), seed=10),
    "position buckets at the edge of a block": Case((50,), positions=17, without=("time",), seed=11),
    "half alone, dropout": Case((40, 0, 1, 17), alone=0.5, dropout=0.3, padding=3, heads=2, seed=15),
    "most alone, one position bucket": Case((36,), alone=0.9, positions=1, soft_cap=2.0, seed=16),
    "half alone, few positions": Case((70,), alone=0.5, positions=9, without=("time",), seed=17),
    "all alone": Case((20, 3), alone=1.0, seed=18),
    "half alone, no biases": Case((20,), alone=0.5, without=SWITCHES, seed=19),
    "no biases": Case((18, 5), without=SWITCHES, seed=12),
    **{f"no {name}": Case((18,), without=(name,), seed=13) for name in SWITCHES},
    **{f"{name} alone": Case((18,), without=tuple(set(SWITCHES) - {name}), seed=14) for name in SWITCHES},
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_silu, "FORWARD_BLOCK", 32)
    monkeypatch.setattr(triton_silu, "BLOCK", 16)


@pytest.mark.parametrize("name", CASES)
def test_equals_dense_in_float32(name: str) -> None:
    assert_same(CASES[name], torch.float32, 1e-5)


@pytest.mark.parametrize("name", ["users at the edges of blocks", "soft cap", "dropout"])
def test_equals_dense_on_rounded_inputs_in_bfloat16(name: str) -> None:
    """Weights, gradients of scores and results are rounded once each, by at most 2^-8 of themselves.

    The errors of a sum's terms partly cancel: a hundredth of the largest magnitude is left.
    """
    assert_same(CASES[name], torch.bfloat16, 1e-2)


def test_the_blocks_of_a_launch() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_silu, "FORWARD_BLOCK", 64)
        patch.setattr(triton_silu, "BLOCK", 32)
        assert_same(Case((70, 3), padding=1, without=("time",)), torch.float32, 1e-5)


def test_far_apart_and_unsorted_times() -> None:
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 2**31, (24,), generator=generator)
    offsets = torch.tensor([0, 13, 24])
    found = {}
    for backend, dtype in (("dense", torch.float64), ("triton", torch.float32)):
        table = torch.arange(64.0, dtype=dtype)[None].div(64).requires_grad_()
        q = torch.ones(24, 1, 2, dtype=dtype)
        biases = ScoreBiases(time=TimeBias(table, times.flip(0), times))
        out = attention(
            q,
            q,
            q,
            Mask(offsets),
            biases,
            backend=backend,
            kind="silu",
            scale=0.1,
            normaliser_L=torch.ones(24).to(dtype),
        )
        found[backend] = (out, *torch.autograd.grad(out.sum(), table))
    for have, want in zip(found["triton"], found["dense"], strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=1e-5)


def test_two_runs_give_the_same_bits() -> None:
    case = dataclasses.replace(CASES["dropout"], soft_cap=3.0)
    first, second = (forward_and_gradients(case, "triton", torch.float32, torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_keeps_nothing_quadratic_for_the_backward() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    tokens, width = 100, 4
    x_L12 = torch.randn(tokens, 1, 3 * width, requires_grad=True)
    times = torch.arange(tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(
            *x_L12.split(width, dim=2),
            Mask(torch.tensor([0, tokens])),
            ScoreBiases(time=TimeBias(torch.ones(1, 64, requires_grad=True), times, times)),
            backend="triton",
            kind="silu",
            scale=1.0,
            normaliser_L=torch.ones(tokens),
        )
    assert kept
    assert max(kept) <= x_L12.untyped_storage().nbytes()


def test_no_token_and_no_user() -> None:
    for offsets, tokens in (([0], 3), ([0, 0, 0], 3), ([0, 0], 0)):
        q = torch.ones(tokens, 2, 4, requires_grad=True)
        out = attention(
            q,
            q,
            q,
            Mask(torch.tensor(offsets)),
            ScoreBiases(position=PositionBias(torch.ones(2, 3, requires_grad=True))),
            backend="triton",
            kind="silu",
            scale=1.0,
            normaliser_L=torch.ones(tokens),
        )
        out.sum().backward()
        assert torch.equal(out, torch.zeros(tokens, 2, 4))
        assert q.grad is not None
        assert torch.equal(q.grad, torch.zeros(tokens, 2, 4))
