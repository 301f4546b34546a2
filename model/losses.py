"""Cross-entropy of the cascaded heads without ever holding the logits, or the states, of all tokens.

The gradient of a linear layer under a cross-entropy is known as soon as its logits are: softmax minus one-hot. So
each chunk's gradients are formed in the forward while its logits are at hand, and nothing of width V outlives the
chunk. Compared with recomputing in the backward this saves a third of the products. The states of all levels go the
same way: autograd would keep four numbers a token, level and column, and take each of them through memory again.

Shapes: T tokens with a target · D width · C code levels · V codes per level · t tokens of a chunk · r of them whose
logits are held · R rows of the tables of earlier codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.heads import CascadedHeads
from model.kernels.losses import LinearLoss, cross_entropy_, linear_cross_entropy, linear_loss_kernels
from model.kernels.rows import add_rows

STATES = 8
"""Tokens whose states are held at once for each whose logits are."""


@dataclass(frozen=True)
class CascadeLoss:
    """Sums over tokens; only `loss_sum` carries a gradient.

    Args:
        loss_sum: 0-d, over levels and tokens, in nats.
        level_loss_sum_C: the same, by level.
        level_correct_C: int64, tokens whose true code has the largest logit, given the true earlier codes.
    """

    loss_sum: Tensor
    level_loss_sum_C: Tensor
    level_correct_C: Tensor


def cascaded_cross_entropy(heads: CascadedHeads, x_TD: Tensor, codes_TC: Tensor, chunk_tokens: int) -> CascadeLoss:
    """Σ over tokens and levels of -log p(code | x, true earlier codes), for tokens that all have a target.

    Equal to the cross-entropy of `heads(x_TD, codes_TC)` in value and gradient.
    """
    parameters = (heads.weight_CVD, heads.bias_CV, heads.shift, heads.gate)
    return CascadeLoss(*_Cascade.apply(x_TD, *parameters, heads, codes_TC, chunk_tokens, torch.is_grad_enabled()))


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_CVD: Tensor,
        bias_CV: Tensor,
        shift_RD: Tensor | None,
        gate_RD: Tensor | None,
        heads: CascadedHeads,
        codes_TC: Tensor,
        chunk_tokens: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = None
        if with_gradient:
            zeros = (None if x is None else torch.zeros_like(x) for x in (shift_RD, gate_RD))
            grads = _Gradients(torch.zeros_like(x_TD), torch.zeros_like(weight_CVD), torch.zeros_like(bias_CV), *zeros)
        loss_C, correct_C = x_TD.new_zeros(heads.levels), codes_TC.new_zeros(heads.levels)
        for start in range(0, len(x_TD), STATES * chunk_tokens):
            chunk = slice(start, start + STATES * chunk_tokens)
            x_tD, codes_tC, grads_CtD = x_TD[chunk], codes_TC[chunk], []
            for level, state_tD in enumerate(heads.states(x_tD, codes_tC[:, : heads.levels - 1])):
                found = _cross_entropy(
                    state_tD,
                    weight_CVD[level],
                    bias_CV[level],
                    codes_tC[:, level],
                    heads.scale,
                    chunk_tokens,
                    with_gradient=with_gradient,
                )
                loss_C[level] += found.loss
                correct_C[level] += found.correct
                if grads is not None and found.grad_x_TD is not None:
                    grads.add_level(level, found)
                    grads_CtD.append(found.grad_x_TD)
            if grads is not None:
                grads.add_states(chunk, heads, x_tD, codes_tC, grads_CtD)
        ctx.mark_non_differentiable(loss_C, correct_C)
        ctx.grads = grads
        return loss_C.sum(), loss_C, correct_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradients of this loss were given away by an earlier backward: compute it again")
        return *(None if grad is None else grad.mul_(grad_loss) for grad in grads), None, None, None, None


class _Gradients(NamedTuple):
    """Of the loss, added up over chunks; None of what there is not."""

    x_TD: Tensor
    weight_CVD: Tensor
    bias_CV: Tensor
    shift_RD: Tensor | None
    gate_RD: Tensor | None

    def add_level(self, level: int, found: LinearLoss) -> None:
        assert found.grad_weight_VD is not None
        assert found.grad_bias_V is not None
        self.weight_CVD[level] += found.grad_weight_VD
        self.bias_CV[level] += found.grad_bias_V

    def add_states(
        self, chunk: slice, heads: CascadedHeads, x_tD: Tensor, codes_tC: Tensor, grads_CtD: list[Tensor]
    ) -> None:
        """Those of all levels' states: an earlier code's rows have the sum of what comes from all levels behind it."""
        grad_tD = torch.zeros_like(x_tD)
        for level in reversed(range(heads.levels)):
            grad_tD += grads_CtD[level]
            if self.shift_RD is None or level == 0:
                continue
            rows_t = codes_tC[:, level - 1] + (level - 1) * heads.codes
            add_rows(self.shift_RD, rows_t, grad_tD)
            if self.gate_RD is not None and heads.gate is not None:
                add_rows(self.gate_RD, rows_t, grad_tD * x_tD)
                self.x_TD[chunk].addcmul_(grad_tD, F.embedding(rows_t, heads.gate))
        self.x_TD[chunk] += grad_tD


def _cross_entropy(
    z_tD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_t: Tensor, scale: float, rows: int, *, with_gradient: bool
) -> LinearLoss:
    """Summed cross-entropy of `scale · z Wᵀ + b`, and how often the target has the largest logit (ties count).

    Args:
        rows: whose logits are held at once, by PyTorch's operators; the kernels hold as many as suits them.
    """
    kernels = linear_loss_kernels(z_tD, weight_VD)
    if kernels is not None:
        return linear_cross_entropy(
            kernels, z_tD, weight_VD, bias_V, scale, with_gradient=with_gradient, targets_T=target_t
        )
    grads = [torch.zeros_like(x) for x in (z_tD, weight_VD, bias_V)] if with_gradient else None
    loss, correct = z_tD.new_zeros(()), target_t.new_zeros(())
    for start in range(0, len(z_tD), rows):
        some = slice(start, start + rows)
        logits_rV = torch.addmm(bias_V, z_tD[some], weight_VD.T, alpha=scale)
        loss_r, correct_r = cross_entropy_(logits_rV, target_t[some])
        loss += loss_r
        correct += correct_r
        if grads is not None:
            grad_z_tD, grad_weight_VD, grad_bias_V = grads
            grad_z_tD[some].addmm_(logits_rV, weight_VD, alpha=scale)
            grad_weight_VD.addmm_(logits_rV.T, z_tD[some], alpha=scale)
            grad_bias_V += logits_rV.sum(dim=0)
    return LinearLoss(loss, correct, *(grads or (None, None, None)))
