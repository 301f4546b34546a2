"""What a block does to each row by itself, by the kernels; and dropout, with or without them.

Shapes: L rows · D, I, W columns.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.calls import kernels_for, place, real, whole


@dataclass(frozen=True)
class Drawn:
    """What dropout keeps: a function of seed, row and column, so that the backward need not be told.

    Args:
        share: that is dropped.
        seed: 31 bits.
    """

    share: float = 0.0
    seed: int = 0

    @classmethod
    def draw(cls, share: float, *, training: bool) -> Drawn:
        """By torch's CPU generator; nothing is dropped outside of training."""
        return cls(share, int(torch.randint(2**31 - 1, ()))) if training and share > 0 else cls()


def dropout(x_LD: Tensor, share: float, *, training: bool) -> Tensor:
    """`F.dropout`, by a kernel where there is one: PyTorch's draws on one thread alone."""
    if not training or share == 0:
        return x_LD
    if kernels_for(x_LD) is None:
        return F.dropout(x_LD, share)
    dropped: Tensor = _Dropout.apply(x_LD, Drawn.draw(share, training=True))
    return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LD: Tensor, drawn: Drawn) -> Tensor:
        ctx.drawn = drawn
        return _dropped(x_LD, drawn)

    @staticmethod
    def backward(ctx: Any, grad_LD: Tensor) -> tuple[Tensor, None]:
        return _dropped(grad_LD, ctx.drawn), None


def _dropped(x_LD: Tensor, drawn: Drawn) -> Tensor:
    x_LD = x_LD.contiguous()
    out_LD = torch.empty_like(x_LD)
    _kernels(x_LD).segue_dropout(place(x_LD), *_sizes(x_LD), real(drawn.share), whole(drawn.seed), place(out_LD))
    return out_LD


def unit(x_LD: Tensor, least: float) -> Tensor:
    """Rows over their lengths, or over `least` where they are shorter: `F.normalize`, by a kernel if there is one."""
    if kernels_for(x_LD) is None:
        return F.normalize(x_LD, dim=1, eps=least)
    found: Tensor = _Unit.apply(x_LD, least)
    return found


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LD: Tensor, least: float) -> Tensor:
        x_LD = x_LD.contiguous()
        ctx.save_for_backward(x_LD)
        ctx.least, out_LD = least, torch.empty_like(x_LD)
        _kernels(x_LD).segue_unit(place(x_LD), *_sizes(x_LD), real(least), place(out_LD))
        return out_LD

    @staticmethod
    def backward(ctx: Any, grad_LD: Tensor) -> tuple[Tensor, None]:
        (x_LD,), grad_LD = ctx.saved_tensors, grad_LD.contiguous()
        out_LD = torch.empty_like(x_LD)
        _kernels(x_LD).segue_unit_backward(place(x_LD), place(grad_LD), *_sizes(x_LD), real(ctx.least), place(out_LD))
        return out_LD, None


def layer_norm(x_LD: Tensor, epsilon: float) -> Tensor:
    """Each row less its mean, over its deviation."""
    out_LD = torch.empty_like(x_LD)
    _kernels(x_LD).segue_layer_norm(place(x_LD), *_sizes(x_LD), real(epsilon), place(out_LD))
    return out_LD


def layer_norm_backward(x_LD: Tensor, grad_LD: Tensor, more_LD: Tensor, epsilon: float) -> Tensor:
    """`more_LD` and, of x, the gradient of what `layer_norm` makes of it."""
    out_LD = torch.empty_like(x_LD)
    _kernels(x_LD).segue_layer_norm_backward(
        place(x_LD), place(grad_LD), place(more_LD), *_sizes(x_LD), real(epsilon), place(out_LD)
    )
    return out_LD


def silu(x_LW: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    out_LW = torch.empty_like(x_LW)
    _kernels(x_LW).segue_silu(place(x_LW), whole(x_LW.numel()), place(out_LW))
    return out_LW


def silu_backward_(x_LW: Tensor, grad_LW: Tensor) -> None:
    """The gradient of SiLU's results becomes that of x."""
    _kernels(x_LW).segue_silu_backward(place(x_LW), whole(x_LW.numel()), place(grad_LW))


def gate(gathered_LI: Tensor, u_LI: Tensor, epsilon: float, drawn: Drawn) -> Tensor:
    """dropout(norm(gathered) ⊙ u); u may be columns of a wider matrix."""
    out_LI = torch.empty_like(gathered_LI)
    _kernels(gathered_LI).segue_gate(*_of_gate(gathered_LI, u_LI, epsilon, drawn), place(out_LI))
    return out_LI


def gate_backward_(
    gathered_LI: Tensor, u_LI: Tensor, epsilon: float, drawn: Drawn, grad_LI: Tensor, grad_u_LI: Tensor
) -> Tensor:
    """The gradient of what `gate` makes becomes that of what was gathered; u's is written. Returns it, made again."""
    out_LI = torch.empty_like(gathered_LI)
    _kernels(gathered_LI).segue_gate_backward(
        *_of_gate(gathered_LI, u_LI, epsilon, drawn), place(grad_LI), *_rows(grad_u_LI), place(out_LI)
    )
    return out_LI


def add_rows(to_dD: Tensor, rows_n: Tensor, values_nD: Tensor) -> None:
    """Add values to rows, any number to each; in the same order whenever it is done again."""
    if to_dD.is_cuda:  # where index_add_ adds in the order in which threads come
        to_dD.index_put_((rows_n,), values_nD, accumulate=True)
    else:
        to_dD.index_add_(0, rows_n, values_nD)


def _of_gate(gathered_LI: Tensor, u_LI: Tensor, epsilon: float, drawn: Drawn) -> tuple[Any, ...]:
    sizes = _sizes(gathered_LI)
    return place(gathered_LI), *_rows(u_LI), *sizes, real(epsilon), real(drawn.share), whole(drawn.seed)


def _rows(x_LI: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    """Where rows begin, and how far apart they are."""
    return ctypes.c_void_p(x_LI.data_ptr()), whole(x_LI.stride(0))


def _sizes(x_LD: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return whole(x_LD.shape[0]), whole(x_LD.shape[1])


def _kernels(x: Tensor) -> ctypes.CDLL:
    found = kernels_for(x)
    assert found is not None, "whoever calls has asked"
    return found
