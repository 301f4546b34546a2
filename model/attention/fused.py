"""Jagged attention by one kernel of our own, for a CPU with a compiler: `model/kernels/attention.cpp`.

The same sums as `model.attention.jagged`, which stays for what the kernel lacks (`serves`): a user's head is one piece
of work, in which scores are made, biased, masked, weighted and summed while they are in the nearest cache.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · T time buckets · N longest
history · P distances of a position bias.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.spans import ATTENTION, span
from model.attention.weighting import Weighting
from model.biases import ScoreBiases
from model.kernels.build import library
from model.kernels.calls import kernels_for, place
from model.mask import Mask


def serves(q_LHE: Tensor, mask: Mask, weighting: Weighting) -> bool:
    """Whether the kernel computes this: no cap, no dropout of weights, no tokens that are alone.

    It computes in float32, from bfloat16 too, whose scores and sums are float32 anyway: a processor without products of
    bfloat16 takes twenty times as long over them.
    """
    return (
        q_LHE.dtype in (torch.float32, torch.bfloat16)
        and not weighting.soft_cap
        and weighting.dropout is None
        and (mask.alone_L is None or not bool(mask.alone_L.any()))
        and kernels_for(q_LHE[:0].float()) is not None
    )


def attend(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """See `model.attention.attention`. Two runs give the same bits."""
    call = Call.of(mask, biases, weighting)
    result: Tensor = _Fused.apply(q_LHE, k_LHE, v_LHF, *Added.of(biases, call.longest), call)
    return result


class QueriesKeysValues(NamedTuple):
    """The columns of a head lie side by side; all else as it comes."""

    q_LHE: Tensor
    k_LHE: Tensor
    v_LHF: Tensor


class Added(NamedTuple):
    """What is added to the scores, with its history; None where there is none of a kind.

    Args:
        key_bias_LH: by key.
        by_distance_HN: by the distance in tokens.
        by_time_HT: by the bucket of the time between.
    """

    key_bias_LH: Tensor | None
    by_distance_HN: Tensor | None
    by_time_HT: Tensor | None

    @classmethod
    def of(cls, biases: ScoreBiases, longest: int) -> Added:
        """Of histories of at most so many tokens."""
        by_time = None if biases.time is None else biases.time.table_HT.float()
        return cls(biases.key_bias_LH(torch.float32), _by_distance(biases, longest), by_time)


def _by_distance(biases: ScoreBiases, longest: int) -> Tensor | None:
    parts = []
    if biases.slopes_H is not None:
        parts.append(-biases.slopes_H[:, None] * torch.arange(longest, dtype=torch.float32))
    if biases.position is not None:
        table_HP = biases.position.table_HP.float()
        parts.append(table_HP[:, torch.arange(longest).clamp_(max=table_HP.shape[1] - 1)])
    return sum(parts[1:], parts[0]) if parts else None


@dataclass(frozen=True)
class Call:
    """What carries no gradient.

    Args:
        offsets: of users.
        tokens: that are a user's.
        longest: history.
        softmax, scale, normaliser_L: see `model.attention.attention`.
        query_times_L, key_times_L: int64 seconds, where there is a bias by time.
    """

    offsets: Tensor
    tokens: int
    longest: int
    softmax: bool
    scale: float
    normaliser_L: Tensor | None
    query_times_L: Tensor | None
    key_times_L: Tensor | None

    @classmethod
    def of(cls, mask: Mask, biases: ScoreBiases, weighting: Weighting) -> Call:
        """From the arguments of `attend`."""
        time = biases.time
        return cls(
            mask.offsets,
            int(mask.offsets[-1]),
            int(mask.offsets.diff().amax()) if mask.offsets.numel() > 1 else 0,
            weighting.kind == "softmax",
            weighting.scale,
            weighting.normaliser_L,
            None if time is None else time.query_times_L.contiguous(),
            None if time is None else time.key_times_L.contiguous(),
        )


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


def _side_by_side(x_LHE: Tensor) -> Tensor:
    """In float32, columns side by side."""
    return x_LHE.float() if x_LHE.stride(2) == 1 else x_LHE.float().contiguous()


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
        call: Call,
    ) -> Tensor:
        qkv = QueriesKeysValues(*(_side_by_side(x) for x in (q_LHE, k_LHE, v_LHF)))
        added = Added(key_bias_LH, by_distance_HN, by_time_HT)
        out_LHF, log_sum_LH = forward(call, qkv, added)
        out_LHF = out_LHF.to(v_LHF.dtype)
        kept = qkv if q_LHE.dtype == torch.float32 else (q_LHE, k_LHE, v_LHF)  # half as many bytes
        ctx.save_for_backward(*kept, *added, out_LHF if call.softmax else None, log_sum_LH)
        ctx.call = call
        return out_LHF

    @staticmethod
    def backward(ctx: Any, grad_out_LHF: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out_LHF, log_sum_LH = ctx.saved_tensors
        qkv = QueriesKeysValues(*(_side_by_side(x) for x in tensors[:3]))
        grads = QueriesKeysValues(*(torch.empty(x.shape) for x in qkv))
        out_LHF = None if out_LHF is None else out_LHF.float()
        added = backward(ctx.call, qkv, Added(*tensors[3:]), out_LHF, log_sum_LH, _side_by_side(grad_out_LHF), grads)
        return *(grad.to(x.dtype) for grad, x in zip(grads, tensors, strict=False)), *added, None


def forward(call: Call, qkv: QueriesKeysValues, added: Added) -> tuple[Tensor, Tensor | None]:
    """What is gathered, [L, H, F], contiguous; and what the backward of softmax needs, [L, H]."""
    tokens, heads = qkv.q_LHE.shape[:2]
    out_LHF = qkv.v_LHF.new_empty(tokens, heads, qkv.v_LHF.shape[2])
    out_LHF[call.tokens :] = 0.0
    log_sum_LH = qkv.q_LHE.new_empty(tokens, heads) if call.softmax else None
    struct, _kept = _struct(call, qkv, added, out_LHF, log_sum_LH)
    with span(ATTENTION):
        _kernels().segue_attention_forward(ctypes.byref(struct))
    return out_LHF, log_sum_LH


def backward(
    call: Call,
    qkv: QueriesKeysValues,
    added: Added,
    out_LHF: Tensor | None,
    log_sum_LH: Tensor | None,
    grad_out_LHF: Tensor,
    grads: QueriesKeysValues,
) -> Added:
    """Gradients of what is added; those of queries, keys and values are written into `grads`, padding's as zeros."""
    for grad in grads:
        grad[call.tokens :] = 0.0
    users = len(call.offsets) - 1
    key_bias = None if added.key_bias_LH is None else torch.zeros_like(added.key_bias_LH)
    by_user = [None if x is None else x.new_zeros(users, *x.shape) for x in added[1:]]
    struct, _kept = _struct(call, qkv, added, out_LHF, log_sum_LH)
    struct.grad_out = _rows(grad_out_LHF)
    struct.grad_q, struct.grad_k, struct.grad_v = (_rows(x) for x in grads)
    struct.grad_key_bias = place(key_bias)
    struct.grad_by_distance, struct.grad_by_time = (place(x) for x in by_user)
    with span(ATTENTION):
        _kernels().segue_attention_backward(ctypes.byref(struct))
    return Added(key_bias, *(None if x is None else x.sum(dim=0, dtype=torch.float64).float() for x in by_user))


def _struct(
    call: Call, qkv: QueriesKeysValues, added: Added, out_LHF: Tensor | None, log_sum_LH: Tensor | None
) -> tuple[_Attention, list[Tensor | None]]:
    """What the kernel is told, and what must live as long as it is."""
    offsets = call.offsets.contiguous()
    order_B = offsets.diff().argsort(descending=True, stable=True)
    divisors = None if call.normaliser_L is None else call.normaliser_L.float().contiguous()
    contiguous = [None if x is None else x.contiguous() for x in added]
    key_bias, by_distance, by_time = contiguous
    struct = _Attention(
        users=len(offsets) - 1,
        heads=qkv.q_LHE.shape[1],
        offsets=place(offsets),
        order=place(order_B),
        softmax=call.softmax,
        scale=call.scale,
        divisors=place(divisors),
        q=_rows(qkv.q_LHE),
        k=_rows(qkv.k_LHE),
        v=_rows(qkv.v_LHF),
        log_sum=place(log_sum_LH),
        key_bias=place(key_bias),
        by_distance=place(by_distance),
        longest=call.longest,
        by_time=place(by_time),
        buckets=0 if by_time is None else by_time.shape[1],
    )
    if out_LHF is not None:
        struct.out = _rows(out_LHF)
    if by_time is not None:
        struct.query_times, struct.key_times = place(call.query_times_L), place(call.key_times_L)
    return struct, [offsets, order_B, divisors, *contiguous]


def _kernels() -> ctypes.CDLL:
    found = library()
    assert found is not None, "asked `serves` before"
    return found
