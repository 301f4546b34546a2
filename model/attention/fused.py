"""Jagged attention by one kernel of our own, for a CPU with a compiler: `model/kernels/attention.cpp`.

The same sums as `model.attention.jagged`, which stays for what the kernel lacks (`serves`): a user's head is one piece
of work, in which scores are made, biased, masked, weighted and summed while they are in the nearest cache.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · T time buckets · N longest
history · P distances of a position bias.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.attention.weighting import Weighting
from model.biases import ScoreBiases
from model.kernels.build import library
from model.kernels.calls import kernels_for
from model.mask import Mask


def serves(q_LHE: Tensor, mask: Mask, weighting: Weighting) -> bool:
    """Whether the kernel computes this: float32, no cap, no dropout of weights, no tokens that are alone."""
    return (
        not weighting.soft_cap
        and weighting.dropout is None
        and (mask.alone_L is None or not bool(mask.alone_L.any()))
        and kernels_for(q_LHE) is not None
    )


def attend(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """See `model.attention.attention`. Two runs give the same bits."""
    longest = int(mask.offsets.diff().amax()) if mask.offsets.numel() > 1 else 0
    time = biases.time
    result: Tensor = _Fused.apply(
        q_LHE,
        k_LHE,
        v_LHF,
        biases.key_bias_LH(torch.float32),
        _by_distance(biases, longest),
        None if time is None else time.table_HT.float(),
        _Call(
            mask.offsets,
            longest,
            weighting.kind == "softmax",
            weighting.scale,
            weighting.normaliser_L,
            None if time is None else time.query_times_L,
            None if time is None else time.key_times_L,
        ),
    )
    return result


def _by_distance(biases: ScoreBiases, longest: int) -> Tensor | None:
    """What is added at each distance, float32 [H, N], with its history."""
    parts = []
    if biases.slopes_H is not None:
        parts.append(-biases.slopes_H[:, None] * torch.arange(longest, dtype=torch.float32))
    if biases.position is not None:
        table_HP = biases.position.table_HP.float()
        parts.append(table_HP[:, torch.arange(longest).clamp_(max=table_HP.shape[1] - 1)])
    return sum(parts[1:], parts[0]) if parts else None


@dataclass(frozen=True)
class _Call:
    """What carries no gradient."""

    offsets: Tensor
    longest: int
    softmax: bool
    scale: float
    normaliser_L: Tensor | None
    query_times_L: Tensor | None
    key_times_L: Tensor | None


class _Rows(ctypes.Structure):
    """`SegueRows`."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("row", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("width", ctypes.c_int64),
    ]


class _Attention(ctypes.Structure):
    """`SegueAttention`."""

    _fields_ = [
        ("users", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("softmax", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("divisor", ctypes.c_float),
        ("divisors", ctypes.c_void_p),
        ("q", _Rows),
        ("k", _Rows),
        ("v", _Rows),
        ("out", _Rows),
        ("log_sum", ctypes.c_void_p),
        ("key_bias", ctypes.c_void_p),
        ("by_distance", ctypes.c_void_p),
        ("longest", ctypes.c_int64),
        ("by_time", ctypes.c_void_p),
        ("buckets", ctypes.c_int64),
        ("query_times", ctypes.c_void_p),
        ("key_times", ctypes.c_void_p),
        ("grad_out", _Rows),
        ("grad_q", _Rows),
        ("grad_k", _Rows),
        ("grad_v", _Rows),
        ("grad_key_bias", ctypes.c_void_p),
        ("grad_by_distance", ctypes.c_void_p),
        ("grad_by_time", ctypes.c_void_p),
    ]


def _rows(x_LHE: Tensor) -> _Rows:
    assert x_LHE.stride(2) == 1
    return _Rows(x_LHE.data_ptr(), x_LHE.stride(0), x_LHE.stride(1), x_LHE.shape[2])


def _place(x: Tensor | None) -> int | None:
    assert x is None or x.is_contiguous()
    return None if x is None else x.data_ptr()


def _side_by_side(x_LHE: Tensor) -> Tensor:
    return x_LHE if x_LHE.stride(2) == 1 else x_LHE.contiguous()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_LHE: Tensor,
        k_LHE: Tensor,
        v_LHF: Tensor,
        key_bias_LH: Tensor | None,
        by_distance_HN: Tensor | None,
        by_time_HT: Tensor | None,
        call: _Call,
    ) -> Tensor:
        tensors: list[Tensor | None] = [_side_by_side(x) for x in (q_LHE, k_LHE, v_LHF)]
        tensors += [None if x is None else x.contiguous() for x in (key_bias_LH, by_distance_HN, by_time_HT)]
        tokens, heads = q_LHE.shape[:2]
        out_LHF = v_LHF.new_zeros(tokens, heads, v_LHF.shape[2])
        log_sum_LH = q_LHE.new_empty(tokens, heads) if call.softmax else None
        struct, _kept = _struct(call, tensors, out_LHF, log_sum_LH)
        _kernels().segue_attention_forward(ctypes.byref(struct))
        ctx.save_for_backward(*tensors, out_LHF if call.softmax else None, log_sum_LH)
        ctx.call = call
        return out_LHF

    @staticmethod
    def backward(ctx: Any, grad_out_LHF: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        *tensors, out_LHF, log_sum_LH = ctx.saved_tensors
        q, k, v, key_bias, by_distance, by_time = tensors
        grad_out_LHF = _side_by_side(grad_out_LHF)
        grads = [torch.zeros(x.shape) for x in (q, k, v)]
        users = len(call.offsets) - 1
        grad_key_bias = None if key_bias is None else torch.zeros_like(key_bias)
        by_user = [None if x is None else x.new_zeros(users, *x.shape) for x in (by_distance, by_time)]
        struct, _kept = _struct(call, tensors, out_LHF, log_sum_LH)
        struct.grad_out = _rows(grad_out_LHF)
        struct.grad_q, struct.grad_k, struct.grad_v = (_rows(x) for x in grads)
        struct.grad_key_bias = _place(grad_key_bias)
        struct.grad_by_distance, struct.grad_by_time = (_place(x) for x in by_user)
        _kernels().segue_attention_backward(ctypes.byref(struct))
        summed = [None if x is None else x.sum(dim=0, dtype=torch.float64).float() for x in by_user]
        return *grads, grad_key_bias, *summed, None


def _struct(
    call: _Call, tensors: list[Tensor | None], out_LHF: Tensor | None, log_sum_LH: Tensor | None
) -> tuple[_Attention, list[Tensor]]:
    """What the kernel is told, and what must live as long as it is."""
    q, k, v, key_bias, by_distance, by_time = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    order_B = call.offsets.diff().argsort(descending=True, stable=True)
    kept = [order_B, call.offsets.contiguous()]
    divisors = None
    if call.normaliser_L is not None:
        divisors = call.normaliser_L.float().contiguous()
        kept.append(divisors)
    struct = _Attention(
        users=len(call.offsets) - 1,
        heads=q.shape[1],
        offsets=kept[1].data_ptr(),
        order=order_B.data_ptr(),
        softmax=call.softmax,
        scale=call.scale,
        divisor=1.0,
        divisors=_place(divisors),
        q=_rows(q),
        k=_rows(k),
        v=_rows(v),
        log_sum=_place(log_sum_LH),
        key_bias=_place(key_bias),
        by_distance=_place(by_distance),
        longest=call.longest,
        by_time=_place(by_time),
        buckets=0 if by_time is None else by_time.shape[1],
    )
    if out_LHF is not None:
        struct.out = _rows(out_LHF)
    if by_time is not None:
        assert call.query_times_L is not None
        assert call.key_times_L is not None
        struct.query_times, struct.key_times = _place(call.query_times_L), _place(call.key_times_L)
    return struct, kept


def _kernels() -> ctypes.CDLL:
    found = library()
    assert found is not None, "asked `serves` before"
    return found
