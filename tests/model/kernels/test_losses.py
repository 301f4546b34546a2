"""Losses by kernels against autograd's, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels import losses
from model.kernels.build import library, without_kernels

KERNELS = library()
pytestmark = pytest.mark.skipif(KERNELS is None, reason="needs a compiler")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 1, 1), (5, 3, 17), (49, 16, 96), (130, 52, 200)])
def test_a_linear_layer_under_a_cross_entropy(rows: int, width: int, outputs: int, threads: int) -> None:
    assert KERNELS is not None
    x, weight, bias = (normal(*shape) for shape in ((rows, width), (outputs, width), (outputs,)))
    targets = torch.arange(rows) * 7 % outputs
    leaves = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    logits = 1.7 * leaves[0] @ leaves[1].T + leaves[2]
    expected = F.cross_entropy(logits, targets, reduction="sum")
    expected.backward()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = losses.linear_cross_entropy(KERNELS, x, weight, bias, 1.7, with_gradient=True, targets_T=targets)
    finally:
        torch.set_num_threads(before)
    close(found.loss, expected.detach())
    hits = logits.gather(1, targets[:, None])[:, 0] >= logits.amax(dim=1)
    assert found.correct.item() == hits.sum().item()
    for got, leaf in zip((found.grad_x_TD, found.grad_weight_VD, found.grad_bias_V), leaves, strict=True):
        close(got, leaf.grad)
    silent = losses.linear_cross_entropy(KERNELS, x, weight, bias, 1.7, with_gradient=False, targets_T=targets)
    torch.testing.assert_close(silent.loss, found.loss)
    assert silent.grad_x_TD is None


def by_definition(
    scores_TM: Tensor, own_T: Tensor, negatives_TM: Tensor, targets_T: Tensor, offsets_d: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    hidden = negatives_TM == targets_T[:, None]
    logits = (scores_TM * scale).masked_fill(hidden, -torch.inf)
    hits = own_T * scale >= logits.amax(dim=1)
    if offsets_d is not None:
        logits = logits + offsets_d[negatives_TM]
    joined = torch.cat((own_T[:, None] * scale, logits), dim=1)
    return F.cross_entropy(joined, torch.zeros(len(joined), dtype=torch.int64), reduction="sum"), hits.sum()


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("tokens", "width", "items", "negatives"), [(1, 3, 4, 5), (60, 52, 90, 8), (33, 64, 500, 31)])
def test_negatives_of_each_targets_own(
    tokens: int, width: int, items: int, negatives: int, threads: int, offsets: bool
) -> None:
    """Some of them the target itself, some drawn twice."""
    assert KERNELS is not None
    generator = torch.Generator().manual_seed(0)
    x, matrix = normal(tokens, width), normal(items, width) / width**0.5
    targets_T = torch.randint(0, items, (tokens,), generator=generator)
    negatives_TM = torch.randint(0, items, (tokens, negatives), generator=generator)
    negatives_TM[::3, 0] = targets_T[::3]
    offsets_d = normal(items) if offsets else None
    leaves = [tensor.double().requires_grad_() for tensor in (x, matrix)]
    scores_TM = torch.einsum("td,tmd->tm", leaves[0], leaves[1][negatives_TM])
    own_T = (leaves[0] * leaves[1][targets_T]).sum(dim=1)
    wide = None if offsets_d is None else offsets_d.double()
    expected, hits = by_definition(scores_TM, own_T, negatives_TM, targets_T, wide, 3.0)
    expected.backward()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = losses.own_negatives_cross_entropy(
            KERNELS, x, matrix, targets_T, negatives_TM, offsets_d, 3.0, with_gradient=True
        )
    finally:
        torch.set_num_threads(before)
    close(found.loss, expected.detach())
    assert found.correct.item() == hits.item()
    close(found.grad_x_TD, leaves[0].grad)
    close(found.grad_weight_VD, leaves[1].grad)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("offsets", [True, False])
def test_scores_that_are_there_already(shared: bool, offsets: bool) -> None:
    """With and without kernels alike."""
    generator = torch.Generator().manual_seed(1)
    scores, own = normal(20, 37), normal(20)
    targets_T = torch.randint(0, 50, (20,), generator=generator)
    negatives_GM = torch.randint(0, 50, (1 if shared else 20, 37), generator=generator)
    offsets_d = normal(50) if offsets else None
    leaves = [tensor.double().requires_grad_() for tensor in (scores, own)]
    wide = None if offsets_d is None else offsets_d.double()
    expected, hits = by_definition(*leaves, negatives_GM.expand(20, -1), targets_T, wide, 2.0)
    expected.backward()

    def check() -> None:
        into, positive = scores.clone(), own.clone()
        chosen = None if offsets_d is None else offsets_d[negatives_GM]
        loss, correct = losses.sampled_cross_entropy_(into, negatives_GM, chosen, targets_T, positive, 2.0)
        close(loss, expected.detach())
        assert correct.item() == hits.item()
        close(into, leaves[0].grad)
        close(positive, leaves[1].grad)

    check()
    with without_kernels():
        check()


def test_logits_that_are_there_already_and_far_apart() -> None:
    logits, targets = normal(11, 45) * 200, torch.arange(11)
    leaf = logits.double().requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="sum")
    expected.backward()
    into = logits.clone()
    loss, _ = losses.cross_entropy_(into, targets)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-3)
    close(into, leaf.grad)


def test_what_is_no_number_makes_a_loss_that_is_none() -> None:
    logits = normal(2, 40)
    logits[1, 7] = torch.nan
    loss, _ = losses.cross_entropy_(logits, torch.tensor([3, 3]))
    assert loss.isnan()
