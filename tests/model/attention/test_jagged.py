"""The jagged backend against the dense oracle: forward and every gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.attention import attention, jagged
from model.biases import KeyBias, ScoreBiases, TimeBias, alibi_slopes

KINDS = ("silu", "softmax")


@dataclass
class Case:
    """Random inputs for given user lengths; every tensor that takes a gradient is in `leaves`."""

    lengths: list[int]
    padding: int = 0
    heads: int = 2
    width_qk: int = 3
    width_v: int = 4
    kind: str = "silu"
    scale: float = 1.0
    alibi: bool = True
    time: bool = True
    duration: bool = True
    organic: bool = True
    dtype: torch.dtype = torch.float64
    seed: int = 0
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        tokens, heads = sum(self.lengths) + self.padding, self.heads
        self.offsets = torch.tensor([0, *self.lengths]).cumsum(0)
        self.q, self.k = (self.leaf(name, tokens, heads, self.width_qk) for name in "qk")
        self.v = self.leaf("v", tokens, heads, self.width_v)
        # Few distinct steps: ties in time are frequent. In the padding time stands at zero.
        steps = self.integers(4, tokens) * self.integers(50_000, tokens) // 3
        times = 1_600_000_000 + steps.cumsum(0)
        times[int(self.offsets[-1]) :] = 0
        time = None
        if self.time:
            time = TimeBias(self.leaf("time", heads, 64), times + self.integers(3, tokens) * 1000, times)
        by_key = []
        if self.duration:
            by_key.append(KeyBias(self.leaf("duration", heads, 5), self.integers(5, tokens)))
        if self.organic:
            by_key.append(KeyBias(self.leaf("organic", heads, 3), self.integers(3, tokens)))
        self.biases = ScoreBiases(alibi_slopes(heads) if self.alibi else None, time, tuple(by_key))
        self.normaliser = None if self.kind == "softmax" else 1.0 + self.integers(9, tokens).to(self.dtype)
        self.weight = self.normal(tokens, heads, self.width_v)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def integers(self, below: int, count: int) -> Tensor:
        return torch.randint(0, below, (count,), generator=self.generator)

    def leaf(self, name: str, *shape: int) -> Tensor:
        self.leaves[name] = self.normal(*shape).requires_grad_()
        return self.leaves[name]

    def forward(self, backend: str) -> Tensor:
        return attention(
            self.q,
            self.k,
            self.v,
            self.offsets,
            self.biases,
            backend=backend,
            kind=self.kind,
            scale=self.scale,
            normaliser_L=self.normaliser,
        )

    def forward_and_gradients(self, backend: str) -> dict[str, Tensor]:
        out = self.forward(backend)
        # The padding is weighted too: it must come out as zero and hand back nothing.
        grads = torch.autograd.grad((out * self.weight).sum(), list(self.leaves.values()), materialize_grads=True)
        return {"out": out, **{f"d{name}": grad for name, grad in zip(self.leaves, grads, strict=True)}}


def assert_same(case: Case, rtol: float) -> None:
    expected, found = case.forward_and_gradients("dense"), case.forward_and_gradients("jagged")
    for name, want in expected.items():
        torch.testing.assert_close(
            found[name],
            want,
            rtol=rtol,
            atol=rtol * max(1.0, want.abs().amax().item() if want.numel() else 0.0),
            msg=name,
        )


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=0, max_size=9),
    padding=st.integers(0, 4),
    heads=st.integers(1, 3),
    width_qk=st.integers(1, 9),
    width_v=st.integers(1, 9),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from((1.0, 0.3)),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31),
)
def test_equals_dense(
    lengths: list[int],
    padding: int,
    heads: int,
    width_qk: int,
    width_v: int,
    kind: str,
    scale: float,
    switches: tuple[bool, bool, bool, bool],
    seed: int,
) -> None:
    case = Case(lengths, padding, heads, width_qk, width_v, kind, scale, *switches, seed=seed)
    if case.q.shape[0]:
        assert_same(case, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_dense_beyond_a_block(kind: str, dtype: torch.dtype) -> None:
    block = jagged.QUERY_BLOCK
    lengths = [3, block, 0, block + 1, 1, 2 * block, 3 * block + 5, 2 * block - 1, block - 1]
    assert_same(Case(lengths, padding=7, kind=kind, dtype=dtype), 1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_dense_when_memory_is_short(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few queries, groups of one user."""
    monkeypatch.setattr(jagged, "MAX_SCORES", 500)
    monkeypatch.setattr(jagged, "CHUNK_SCORES", 300)
    jagged.make_layout.cache_clear()
    case = Case([61, 60, 61, 7], padding=1, kind=kind)
    layout = jagged.make_layout((0, 61, 121, 182, 189), 190, 2, torch.device("cpu"))
    assert all(g.users * g.heads * g.block * g.longest <= 500 for g in layout.groups)
    assert_same(case, 1e-10)
    jagged.make_layout.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_unsorted_times_and_far_apart_ones(kind: str) -> None:
    case = Case([12, 30], kind=kind)
    assert case.biases.time is not None
    order = torch.randperm(42, generator=torch.Generator().manual_seed(1))
    case.biases.time.key_times_L.copy_(case.biases.time.key_times_L[order])
    case.biases.time.query_times_L[5] += 2**30
    assert_same(case, 1e-10)


@pytest.mark.parametrize("backend", ["dense", "jagged"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_zero_and_takes_no_gradient(backend: str, kind: str) -> None:
    case = Case([5, 80, 2], padding=6, kind=kind)
    found = case.forward_and_gradients(backend)
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(found[name][87:], torch.zeros_like(found[name][87:])), name
        assert found[name][:87].abs().amax(dim=(1, 2)).gt(0).float().mean() > 0.9, name


@pytest.mark.parametrize("backend", ["dense", "jagged"])
@pytest.mark.parametrize("kind", KINDS)
def test_sees_neither_the_future_nor_other_users(backend: str, kind: str) -> None:
    """A change at one token of the middle user leaves all but its own later tokens bit for bit as they were."""
    case = Case([40, 70, 40, 68], padding=3, kind=kind)
    before, changed = case.forward(backend), 40 + 33
    with torch.no_grad():
        for tensor in (case.q, case.k, case.v):
            tensor[changed] += 1.0
    assert case.biases.time is not None
    case.biases.time.key_times_L[changed] += 1
    case.biases.by_key[0].buckets_L[changed] = (case.biases.by_key[0].buckets_L[changed] + 1) % 5
    after = case.forward(backend)
    touched = (before != after).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert touched == list(range(changed, 40 + 70))


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_give_the_same_bits(kind: str) -> None:
    case = Case([90, 31, 30, 64, 5, 5, 4], padding=2, kind=kind, dtype=torch.float32)
    first, second = case.forward_and_gradients("jagged"), case.forward_and_gradients("jagged")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_keeps_nothing_quadratic_for_the_backward() -> None:
    case, kept = Case([400, 300], dtype=torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        case.forward("jagged")
    assert max(kept) <= 700 * 2 * 4


def test_work_stays_near_the_causal_half() -> None:
    """Histories like those of MovieLens: a batch padded to its longest would compute 3.4 Σn²."""
    generator = torch.Generator().manual_seed(0)
    lengths = (65 * torch.randn(90, generator=generator).mul(0.9).exp()).clamp(18, 200).long()
    layout = jagged.make_layout((0, *lengths.cumsum(0).tolist()), int(lengths.sum()), 2, torch.device("cpu"))
    assert jagged.padded_scores(layout) < 0.8 * int((lengths**2).sum())
    assert sum(len(group.blocks()) for group in layout.groups) < 80
