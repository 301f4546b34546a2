"""Linear layers of the blocks, in the precision that is asked for around them.

Under autocast to bfloat16 a product takes rounded numbers, adds in float32 and rounds what comes out. On processors
without such products PyTorch makes them up, five to twenty times as slowly as float32 ones. There a float32 product of
the rounded numbers gives the same, but for the order of its sums.

Shapes: L tokens · I inputs · W outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.kernels.build import library


class Linear(nn.Linear):
    """PyTorch's layer, with `linear` for its product."""

    def forward(self, input: Tensor) -> Tensor:
        """[L, I] → [L, W]."""
        return linear(input, self.weight, self.bias)


def linear(x_LI: Tensor, weight_WI: Tensor, bias_W: Tensor | None) -> Tensor:
    """x Wᵀ + b, [L, W]; in bfloat16 under autocast to it."""
    if _made_up(x_LI):
        result: Tensor = _OfRounded.apply(x_LI, weight_WI, bias_W)
        return result
    return F.linear(x_LI, weight_WI, bias_W)


def has_bfloat16() -> bool:
    """Whether this processor has products of bfloat16 that PyTorch knows."""
    found: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return found


def _made_up(x: Tensor) -> bool:
    """Whether PyTorch would make up the product; with kernels off, it is left to do so."""
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not has_bfloat16()
        and not torch.compiler.is_compiling()
        and library() is not None
    )


class _OfRounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LI: Tensor, weight_WI: Tensor, bias_W: Tensor | None) -> Tensor:
        half_LI, half_WI = x_LI.bfloat16(), weight_WI.bfloat16()
        ctx.save_for_backward(half_LI, half_WI)
        ctx.dtypes = x_LI.dtype, weight_WI.dtype, None if bias_W is None else bias_W.dtype
        with torch.autocast("cpu", enabled=False):
            half_bias_W = None if bias_W is None else bias_W.bfloat16().float()
            return F.linear(half_LI.float(), half_WI.float(), half_bias_W).bfloat16()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LW: Tensor) -> tuple[Tensor | None, ...]:
        half_LI, half_WI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.dtypes
        with torch.autocast("cpu", enabled=False):
            grad_LW = grad_LW.float()
            grad_LI = (grad_LW @ half_WI.float()).bfloat16().to(of_x)
            grad_WI = (grad_LW.T @ half_LI.float()).bfloat16().to(of_weight)
            grad_W = None if of_bias is None else grad_LW.sum(dim=0).bfloat16().to(of_bias)
        return grad_LI, grad_WI, grad_W
