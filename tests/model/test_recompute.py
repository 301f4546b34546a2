from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.recompute import Recomputation, Stage


def make(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    before = x @ weight
    return before, F.silu(before)


def run(on: bool, x: Tensor, weight: Tensor) -> tuple[Tensor, list[int]]:
    """A stage, views of what it made used outside of it; and how often the stage was called."""
    calls = []

    def counted(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(1)
        return make(x, weight)

    with Recomputation(on) as recomputation:
        made = recomputation.stage(counted, x).tensors[-1]
        left, right = made.split([2, 4], dim=1)
        out = (left.unsqueeze(2) * right.T[:, : x.shape[0]].T.unsqueeze(1)).exp().sum(dim=(1, 2))
    return out, calls


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(5, 3, generator=generator).requires_grad_(),
        torch.randn(3, 6, generator=generator).requires_grad_(),
    )


def test_gradients_have_the_same_bits_and_the_stage_is_made_once_more(inputs) -> None:
    x, weight = inputs
    kept, calls = run(False, x, weight)
    kept_grads = torch.autograd.grad(kept.sum(), (x, weight))
    assert len(calls) == 1
    remade, calls = run(True, x, weight)
    assert len(calls) == 1
    remade_grads = torch.autograd.grad(remade.sum(), (x, weight))
    assert len(calls) == 2
    for want, got in zip((kept, *kept_grads), (remade, *remade_grads), strict=True):
        assert torch.equal(want, got)


def test_a_graph_that_is_kept_can_be_walked_twice(inputs) -> None:
    out, calls = run(True, *inputs)
    first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(calls) == 2, "while the graph is there, so is what was made again"


def test_without_gradients_nothing_is_made_again(inputs) -> None:
    with torch.no_grad():
        out, calls = run(True, *inputs)
    torch.testing.assert_close(out, run(False, *inputs)[0].detach())
    assert len(calls) == 1


def test_what_a_stage_made_is_not_kept(inputs) -> None:
    x, weight = inputs
    with Recomputation(True) as recomputation:
        stage = recomputation.stage(make, x, weight)
        before, after = (weakref.ref(tensor.untyped_storage()) for tensor in stage.tensors)
        out = (stage.tensors[-1] ** 2).sum()
        assert before() is not None
    del stage
    assert before() is None
    assert after() is None
    out.backward()
    assert x.grad is not None


def test_nothing_outlives_a_graph_that_is_dropped(inputs) -> None:
    """An operation that keeps its own result (exp) and a stage that knows another must not keep each other alive."""
    x, weight = inputs
    gc.disable()
    try:
        hidden = x * 2
        with Recomputation(True) as recomputation:
            first = recomputation.stage(make, hidden, weight)
            between = first.tensors[-1].exp()
            second = recomputation.stage(lambda a, b, none: (a * b[-1],), between, first, None)
            out = second.tensors[-1].sum()
        kept = [weakref.ref(tensor.untyped_storage()) for tensor in (hidden, between)]
        del hidden, first, between, second, recomputation
        assert all(reference() is not None for reference in kept), "the backward needs them"
        del out
        assert all(reference() is None for reference in kept)
    finally:
        gc.enable()


def test_a_stage_of_a_stage_is_made_from_it(inputs) -> None:
    x, weight = inputs

    def build(on: bool) -> Tensor:
        with Recomputation(on) as recomputation:
            first = recomputation.stage(make, x, weight)
            second = recomputation.stage(lambda a, b: (b[0] * a, (b[0] * a).tanh()), first.tensors[1], first)
            return second.tensors[-1].square().sum()

    want, got = (torch.autograd.grad(build(on), (x, weight)) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_the_precision_of_the_forward_is_that_of_the_remake(inputs) -> None:
    def build(on: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = run(on, *inputs)
        return out.sum()

    want, got = (torch.autograd.grad(build(on), inputs) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert not torch.equal(got[0], torch.autograd.grad(run(False, *inputs)[0].sum(), inputs)[0])


def test_tensors_without_elements() -> None:
    x, weight = torch.zeros(0, 3, requires_grad=True), torch.ones(3, 6, requires_grad=True)
    with Recomputation(True) as recomputation:
        out = recomputation.stage(make, x, weight).tensors[-1] * torch.zeros(0, 6)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(3, 6))


def test_a_stage_remembers_no_history(inputs) -> None:
    stage = Stage(make, inputs)
    stage.forget()
    assert not stage.tensors[0].requires_grad
