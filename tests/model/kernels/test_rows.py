"""Kernels of single rows against PyTorch's operators, at widths with and without a rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels import rows
from model.kernels.build import library, without_kernels
from model.kernels.rows import Drawn

pytestmark = pytest.mark.skipif(library() is None, reason="needs a compiler")

WIDTHS = (1, 7, 8, 50, 64, 257)
EPSILON = 1e-6


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(width: int) -> None:
    x, grad, more = normal(9, width).requires_grad_(), normal(9, width) + 1, normal(9, width) - 2
    expected = F.layer_norm(x, (width,), eps=EPSILON)
    torch.testing.assert_close(rows.layer_norm(x.detach(), EPSILON), expected.detach(), rtol=1e-5, atol=2e-6)
    expected.backward(grad)
    assert x.grad is not None
    found = rows.layer_norm_backward(x.detach(), grad, more, EPSILON)
    torch.testing.assert_close(found, x.grad + more, rtol=1e-4, atol=1e-4 if width > 1 else 1e-2)


@pytest.mark.parametrize("width", WIDTHS)
def test_unit_rows(width: int) -> None:
    """One of them shorter than what it is divided by, one of zeros, one that is no number."""
    x = normal(6, width)
    x[1], x[2], x[3] = x[1] * 1e-4, 0.0, torch.nan
    leaf, own = x.double().requires_grad_(), x.clone().requires_grad_()
    expected = F.normalize(leaf, dim=1, eps=1e-2)
    found = rows.unit(own, 1e-2)
    torch.testing.assert_close(found.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)
    grad = normal(6, width) + 1
    expected.backward(grad.double())
    found.backward(grad)
    assert own.grad is not None
    assert leaf.grad is not None
    torch.testing.assert_close(own.grad[:2].double(), leaf.grad[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.grad[4:].double(), leaf.grad[4:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.grad[2], grad[2] / 1e-2)


@pytest.mark.parametrize("width", WIDTHS)
def test_silu(width: int) -> None:
    x, grad = (20 * normal(3, width)).requires_grad_(), normal(3, width) + 1
    expected = F.silu(x)
    torch.testing.assert_close(rows.silu(x.detach()), expected.detach())
    expected.backward(grad)
    found = grad.clone()
    rows.silu_backward_(x.detach(), found)
    assert x.grad is not None
    torch.testing.assert_close(found, x.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("width", WIDTHS[1:])
def test_gate(width: int, share: float) -> None:
    """Among the columns of a wider matrix, with what dropout keeps as the kernel draws it."""
    drawn, wide = Drawn(share, 12345), normal(6, 3 * width)
    gathered, u = normal(6, width).requires_grad_(), wide[:, width : 2 * width].clone().requires_grad_()
    kept = rows._dropped(torch.ones(6, width), drawn)
    expected = F.layer_norm(gathered, (width,), eps=EPSILON) * u * kept
    u_columns = wide[:, width : 2 * width]
    found = rows.gate(gathered.detach(), u_columns, EPSILON, drawn)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=2e-6)
    grad = normal(6, width) - 1
    expected.backward(grad)
    grads, own = torch.full((6, 3 * width), 7.0), grad.clone()
    again = rows.gate_backward_(gathered.detach(), u_columns, EPSILON, drawn, own, grads[:, width : 2 * width])
    assert torch.equal(again, found)
    torch.testing.assert_close(own, gathered.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads[:, width : 2 * width], u.grad, rtol=1e-4, atol=1e-5)
    assert (grads[:, :width] == 7).all()
    assert (grads[:, 2 * width :] == 7).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_keeps_a_share_of_every_row_and_column_and_the_mean(share: float) -> None:
    torch.manual_seed(0)
    dropped = rows.dropout(torch.ones(2000, 300), share, training=True)
    zeros = (dropped == 0).double()
    assert zeros.mean().item() == pytest.approx(share, abs=0.002)
    assert dropped[dropped != 0].unique().tolist() == pytest.approx([1 / (1 - share)])
    for along, count in ((0, 2000), (1, 300)):
        apart = (zeros.mean(dim=along) - share) * (count / (share * (1 - share))) ** 0.5
        assert apart.abs().max() < 5
        assert apart.std().item() == pytest.approx(1.0, abs=0.15)
    neighbours = torch.corrcoef(torch.stack((zeros[:, :-1].flatten(), zeros[:, 1:].flatten())))[0, 1]
    below = torch.corrcoef(torch.stack((zeros[:-1].flatten(), zeros[1:].flatten())))[0, 1]
    assert max(abs(neighbours), abs(below)) < 0.006


def test_dropout_follows_the_seed_and_its_gradient_is_its_own() -> None:
    x = normal(40, 50).requires_grad_()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(rows.dropout(x, 0.3, training=True))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    found[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), found[0].detach())
    assert rows.dropout(x, 0.3, training=False) is x


def test_without_kernels_dropout_is_pytorchs() -> None:
    torch.manual_seed(3)
    with without_kernels():
        found = rows.dropout(torch.ones(5, 6), 0.5, training=True)
    torch.manual_seed(3)
    assert torch.equal(found, F.dropout(torch.ones(5, 6), 0.5))
