"""Cross-entropy of the cascaded heads without ever holding the logits of all tokens.

The gradient of a linear layer under a cross-entropy is known as soon as its logits are: softmax minus one-hot. So
each chunk's gradients are formed in the forward while its logits are at hand, and nothing of width V outlives the
chunk. Compared with recomputing in the backward this saves a third of the products.

Shapes: T tokens with a target · D width · C code levels · V codes per level · t tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.heads import CascadedHeads
from model.kernels.losses import cross_entropy_, linear_cross_entropy, linear_loss_kernels


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
    losses, corrects = [], []
    for level, state_TD in enumerate(heads.states(x_TD, codes_TC[:, : heads.levels - 1])):
        loss, correct = _LinearCrossEntropy.apply(
            state_TD,
            heads.weight_CVD[level],
            heads.bias_CV[level],
            codes_TC[:, level],
            heads.scale,
            chunk_tokens,
            torch.is_grad_enabled(),
        )
        losses.append(loss)
        corrects.append(correct)
    loss_C = torch.stack(losses)
    return CascadeLoss(loss_C.sum(), loss_C.detach(), torch.stack(corrects))


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `scale · z Wᵀ + b`, and how often the target has the largest logit (ties count)."""

    @staticmethod
    def forward(
        ctx: Any,
        z_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        target_T: Tensor,
        scale: float,
        chunk_tokens: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        kernels = linear_loss_kernels(z_TD, weight_VD)
        if kernels is not None:
            found = linear_cross_entropy(
                kernels, z_TD, weight_VD, bias_V, scale, with_gradient=with_gradient, targets_T=target_T
            )
            ctx.mark_non_differentiable(found.correct)
            if with_gradient:
                ctx.save_for_backward(found.grad_x_TD, found.grad_weight_VD, found.grad_bias_V)
            return found.loss, found.correct
        grads = [torch.zeros_like(x) for x in (z_TD, weight_VD, bias_V)] if with_gradient else None
        loss, correct = z_TD.new_zeros(()), target_T.new_zeros(())
        for start in range(0, z_TD.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            z_tD = z_TD[chunk]
            logits_tV = torch.addmm(bias_V, z_tD, weight_VD.T, alpha=scale)
            loss_t, correct_t = cross_entropy_(logits_tV, target_T[chunk])
            loss += loss_t
            correct += correct_t
            if grads is not None:
                grad_z, grad_weight, grad_bias = grads
                grad_z[chunk].addmm_(logits_tV, weight_VD, alpha=scale)
                grad_weight.addmm_(logits_tV.T, z_tD, alpha=scale)
                grad_bias += logits_tV.sum(dim=0)
        ctx.mark_non_differentiable(correct)
        if grads is not None:
            ctx.save_for_backward(*grads)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * grad_loss for grad in ctx.saved_tensors), None, None, None, None
