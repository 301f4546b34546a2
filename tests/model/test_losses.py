from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from model.config import HeadsConfig, Vocabulary
from model.heads import CascadedHeads
from model.kernels.build import library, without_kernels
from model.losses import cascaded_cross_entropy


@pytest.mark.parametrize("tokens", [0, 1, 10, 16, 37])  # of which 16 are a chunk of states
@pytest.mark.parametrize("gated", [True, False])
def test_chunked_equals_obvious_in_value_and_gradient(tokens: int, gated: bool) -> None:
    torch.manual_seed(tokens)
    heads = CascadedHeads(HeadsConfig(gated=gated, logit_scale=4.0), 7, Vocabulary(3, 11, 1, 1)).double()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    x = torch.randn(tokens, 7, dtype=torch.float64, requires_grad=True)
    codes = torch.randint(0, 11, (tokens, 3))
    leaves = [x, *heads.parameters()]
    logits = heads(x, codes)
    by_token = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(tokens, 3)
    expected = torch.autograd.grad(by_token.sum() * 0.3, leaves)
    result = cascaded_cross_entropy(heads, x, codes, chunk_tokens=2)
    found = torch.autograd.grad(result.loss_sum * 0.3, leaves)
    torch.testing.assert_close(result.loss_sum, by_token.sum())
    torch.testing.assert_close(result.level_loss_sum_C, by_token.sum(dim=0))
    assert torch.equal(result.level_correct_C, (logits.argmax(dim=2) == codes).sum(dim=0))
    for want, have in zip(expected, found, strict=True):
        torch.testing.assert_close(have, want)
    with torch.no_grad():
        assert torch.equal(cascaded_cross_entropy(heads, x, codes, chunk_tokens=2).loss_sum, result.loss_sum)


def test_gradients_are_given_away_once() -> None:
    heads = CascadedHeads(HeadsConfig(), 4, Vocabulary(2, 3, 1, 1))
    loss = cascaded_cross_entropy(heads, torch.randn(5, 4), torch.zeros(5, 2, dtype=torch.int64), 8).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given away by an earlier backward: compute it again"):
        loss.backward()


def test_hopeless_logits_give_a_finite_loss() -> None:
    heads = CascadedHeads(HeadsConfig(logit_scale=1000.0), 2, Vocabulary(1, 2, 1, 1))
    with torch.no_grad():
        heads.weight_CVD.copy_(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]))
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    result = cascaded_cross_entropy(heads, x, torch.tensor([[1]]), chunk_tokens=8)
    result.loss_sum.backward()
    assert result.loss_sum.item() == 2000.0
    assert x.grad is not None
    assert x.grad.tolist() == [[2000.0, 0.0]]


def test_holds_one_chunk_of_one_level_at_most() -> None:
    heads = CascadedHeads(HeadsConfig(), 4, Vocabulary(8, 512, 1, 1))
    x, codes = torch.randn(300, 4, requires_grad=True), torch.zeros(300, 8, dtype=torch.int64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (512,):
                largest = max(largest, out.numel())
            return out

    def lose() -> int:
        nonlocal largest
        largest = 0
        with Watch():
            cascaded_cross_entropy(heads, x, codes, chunk_tokens=32).loss_sum.backward()
        return largest

    with without_kernels():
        assert lose() == 32 * 512
    kernels = library()
    if kernels is not None:
        rows = kernels.segue_linear_loss_rows()
        assert lose() == min(torch.get_num_threads(), -(-300 // rows)) * rows * 512
