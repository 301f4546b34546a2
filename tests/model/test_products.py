"""Products in bfloat16 against what they stand for, and against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import products
from model.kernels.build import library, without_kernels
from model.products import Linear, linear

pytestmark = pytest.mark.skipif(library() is None, reason="needs a compiler")


@pytest.fixture(autouse=True)
def a_processor_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)


def in_bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    """The layer's result and its gradients."""
    leaves = [one.detach().clone().requires_grad_() for one in (x, weight, bias) if one is not None]
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(*leaves, *([None] if bias is None else []))
    assert out.dtype == torch.bfloat16
    found = torch.autograd.grad(out, leaves, grad.bfloat16())
    assert [one.dtype for one in found] == [one.dtype for one in leaves]
    return [out, *found]


@pytest.mark.parametrize("rows", [0, 1, 37])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_rounded_numbers(rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    x, weight, grad = torch.randn(rows, 24).to(dtype), torch.randn(40, 24), torch.randn(rows, 40)
    bias = torch.randn(40) if with_bias else None
    found = in_bfloat16(x, weight, bias, grad)
    exact = [one.bfloat16().double().requires_grad_() for one in (x, weight, bias) if one is not None]
    expected_out = F.linear(*exact)
    expected = [expected_out, *torch.autograd.grad(expected_out, exact, grad.bfloat16().double())]
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have.double(), want.detach(), rtol=2.0**-8, atol=1e-5)
    with without_kernels():  # PyTorch's own; rounding may fall either way
        for have, want in zip(found, in_bfloat16(x, weight, bias, grad), strict=True):
            torch.testing.assert_close(have.float(), want.float(), rtol=2.0**-6, atol=2.0**-6)


def test_elsewhere_it_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(8, 4), torch.randn(5, 8)
    calls = []
    monkeypatch.setattr(products._OfRounded, "apply", lambda *given: calls.append(given) or F.linear(*given))
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.float16):
        assert layer(x).dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr(products, "has_bfloat16", lambda: True)
        layer(x)
        assert not calls
        monkeypatch.setattr(products, "has_bfloat16", lambda: False)
        layer(x)
        assert len(calls) == 1
