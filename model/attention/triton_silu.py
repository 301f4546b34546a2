"""Pointwise SiLU attention for training on a GPU, written in Triton.

No [L, L], no padding to the longest user, nothing quadratic kept for the backward: users stand one after the other, a
program owns a block of one user's tokens, and the backward computes the scores anew. All biases are evaluated in
registers, the soft cap and dropout too. Two runs give the same bits (`triton_kernels`). The tables' gradients arrive as
one partial sum per block; looking up the biases by key is left to autograd.

It has run in Triton's interpreter, and it compiles for sm_80 and sm_90; no GPU has run it yet.

float32, bfloat16 and float16; products of the latter two are accumulated in float32, in which the scores are.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · N blocks of tokens ·
T time buckets · P position buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from model.attention.dropout import Dropout
from model.attention.weighting import Weighting
from model.biases import MAX_SECONDS, ScoreBiases, TimeBias
from model.mask import Mask

try:
    import triton
    import triton.language as tl

    from model.attention import triton_kernels as kernels
except ModuleNotFoundError as fault:
    if fault.name is None or fault.name.split(".")[0] != "triton":
        raise
    raise InputError(
        "attention.backend=triton needs the package triton, which is not installed here: install it "
        "(`pip install triton`, Linux only), or set attention.backend=jagged"
    ) from None

FORWARD_BLOCK, BLOCK = 64, 32
"""Tokens of a block; larger ones would spill registers in the backward."""

WIDE = 64
"""Width of a head beyond which the forward, too, takes the smaller blocks: they fit a GPU's shared memory."""

WARPS, STAGES = 8, 1
"""Of each program. Fewer warps would spill registers in the backward; tiles in flight would cost shared memory."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def attend(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """See `model.attention.attention`.

    Raises:
        InputError: softmax, a tensor that is not on a GPU, or one of another type than float32, bfloat16, float16.
    """
    _refuse(q_LHE, weighting.kind)
    assert weighting.normaliser_L is not None
    key_bias_LH = biases.key_bias_LH(torch.float32)
    time, position = biases.time, biases.position
    out_LHF: Tensor = _TritonSilu.apply(
        q_LHE,
        k_LHE,
        v_LHF,
        None if key_bias_LH is None else key_bias_LH.contiguous(),
        None if time is None else time.table_HT.float().contiguous(),
        None if position is None else position.table_HP.float().contiguous(),
        _Fixed(
            mask=mask,
            inverse_L=weighting.normaliser_L.float().reciprocal(),
            slopes_H=None if biases.slopes_H is None else biases.slopes_H.float(),
            places_L=None if mask.alone_L is None else _places(mask, mask.alone_L),
            times_2L=None if time is None else _times_of_user(mask.offsets, time),
            scale=weighting.scale,
            soft_cap=weighting.soft_cap,
            dropout=weighting.dropout,
        ),
    )
    return out_LHF


def _refuse(q_LHE: Tensor, kind: str) -> None:
    faults = []
    if kind != "silu":
        faults.append(f"attention.backend=triton computes kind=silu, not {kind}: set attention.backend=flex or jagged")
    if not q_LHE.is_cuda and not triton.knobs.runtime.interpret:
        faults.append(
            f"attention.backend=triton runs on a GPU, and the tensors are on {q_LHE.device.type}: "
            "set attention.backend=jagged"
        )
    if q_LHE.dtype not in TYPES:
        faults.append(
            f"attention.backend=triton does not know {q_LHE.dtype}: use one of {', '.join(map(str, TYPES))}, "
            "or set attention.backend=jagged"
        )
    if faults:
        raise InputError(*faults)


@dataclass(frozen=True)
class _Fixed:
    """What takes no gradient."""

    mask: Mask
    inverse_L: Tensor  # 1 / normaliser
    slopes_H: Tensor | None
    places_L: Tensor | None  # int32, see `_places`
    times_2L: Tensor | None  # int32, of queries and keys
    scale: float
    soft_cap: float
    dropout: Dropout | None


def _places(mask: Mask, alone_L: Tensor) -> Tensor:
    """Twice each token's place in its user's history, and one if the token is alone: int32 [L]."""
    return (2 * mask.positions(alone_L.numel()) + alone_L).to(torch.int32)


def _times_of_user(offsets: Tensor, time: TimeBias) -> Tensor:
    """Times of queries and keys since their user's first event: int32 [2, L], half the registers; 68 years fit."""
    times_2L = torch.stack((time.query_times_L, time.key_times_L))
    tokens = torch.arange(times_2L.shape[1], device=offsets.device)
    user_L = torch.searchsorted(offsets, tokens, right=True)
    first = torch.full((offsets.numel() + 1,), torch.iinfo(torch.int64).max, device=offsets.device)
    first = first.scatter_reduce(0, user_L, times_2L[1], "amin")
    return (times_2L - first[user_L]).clamp_(-1, MAX_SECONDS).to(torch.int32)


def forward_block(width_qk: int, width_v: int) -> int:
    """Tokens of a block in the forward, for heads of these widths."""
    return FORWARD_BLOCK if max(width_qk, width_v) <= WIDE else BLOCK


def make_blocks(mask: Mask, tokens: int, block: int, *, of_keys: bool) -> Tensor:
    """Blocks of tokens that share a user, those with the most tiles to walk over first.

    How many there are is known on the GPU only. Waiting for it would cost more than a few empty blocks: there are as
    many as could be needed.

    Args:
        mask: who sees whom.
        tokens: L.
        block: tokens of a block.
        of_keys: a block of keys walks on to its user's end, unless all of it is alone; one of queries, from its user's
            first token on to the last that is not alone, then over itself.

    Returns:
        int32 [N, 4]: first token of the block, first and end of its user, and how far the walk goes, as in
        `triton_kernels`; empty blocks begin at their user's end.
    """
    offsets = mask.offsets
    starts, stops = offsets[:-1], offsets[1:]
    last = ((stops - starts + block - 1) // block).cumsum(0)
    numbers = torch.arange(tokens // block + starts.numel(), device=offsets.device)
    user = torch.searchsorted(last, numbers, right=True).clamp_(max=starts.numel() - 1)
    before = torch.where(user > 0, last[user - 1], 0)
    first = torch.minimum(starts[user] + (numbers - before) * block, stops[user])
    start, stop = starts[user], stops[user]
    far = stop if of_keys else first
    if mask.alone_L is not None:
        behind = _behind_last_seen(mask.alone_L)
        if of_keys:
            far = torch.where(
                behind[torch.minimum(first + block, stop)] > first, stop, torch.minimum(first + block, stop)
            )
        else:
            tiles = ((behind[first] - start).clamp_(min=0) + block - 1) // block
            far = start + tiles * block
    work = far - first if of_keys else torch.where(first < stop, far - start + 1, 0)
    order = torch.argsort(work, descending=True, stable=True)
    return torch.stack((first, start, stop, far), dim=1)[order].to(torch.int32)


def _behind_last_seen(alone_L: Tensor) -> Tensor:
    """One behind the last token before each that is not alone, 0 if there is none: int64 [L+1]."""
    number_L = torch.arange(1, alone_L.numel() + 1, device=alone_L.device).masked_fill_(alone_L, 0)
    return torch.cat((number_L.new_zeros(1), number_L.cummax(0).values))


class _TritonSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_LHE: Tensor,
        k_LHE: Tensor,
        v_LHF: Tensor,
        key_bias_LH: Tensor | None,
        time_HT: Tensor | None,
        position_HP: Tensor | None,
        fixed: _Fixed,
    ) -> Tensor:
        saved = (q_LHE, k_LHE, v_LHF, key_bias_LH, time_HT, position_HP)
        ctx.save_for_backward(*saved)
        ctx.fixed = fixed
        launch = _Launch(saved, fixed)
        # Not every token belongs to a user: the padding's rows stay zero.
        out_LHF = torch.zeros(v_LHF.shape, dtype=v_LHF.dtype, device=v_LHF.device)
        if launch.is_needed:
            block = forward_block(launch.width_qk, launch.width_v)
            launch(kernels.forward_kernel, launch.blocks(block, of_keys=False), block, {"out": out_LHF})
        return out_LHF

    @staticmethod
    def backward(ctx: Any, grad_out_LHF: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        key_bias_LH, time_HT, position_HP = saved[3:]
        launch = _Launch(saved, ctx.fixed)
        grad_out_LHF = grad_out_LHF.contiguous()
        grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in saved[:3])
        grad_key_bias = None if key_bias_LH is None else torch.zeros_like(key_bias_LH)
        if not launch.is_needed:
            tables = [None if x is None else torch.zeros_like(x) for x in (time_HT, position_HP)]
            return grad_q, grad_k, grad_v, grad_key_bias, *tables, None
        blocks = launch.blocks(BLOCK, of_keys=False)
        grad_time, grad_position = (
            None if x is None else torch.zeros((len(blocks), *x.shape), device=x.device) for x in (time_HT, position_HP)
        )
        padded_t = 1 if time_HT is None else triton.next_power_of_2(time_HT.shape[1])
        results = {"grad_q": grad_q, "grad_time": grad_time, "grad_position": grad_position, "PADDED_T": padded_t}
        launch(kernels.query_gradient_kernel, blocks, BLOCK, {"grad_out": grad_out_LHF, **results})
        results = {"grad_k": grad_k, "grad_v": grad_v, "grad_key_bias": grad_key_bias}
        blocks = launch.blocks(BLOCK, of_keys=True)
        launch(kernels.key_gradient_kernel, blocks, BLOCK, {"grad_out": grad_out_LHF, **results})
        tables = [None if x is None else x.sum(dim=0) for x in (grad_time, grad_position)]
        return grad_q, grad_k, grad_v, grad_key_bias, *tables, None


class _Launch:
    """The arguments that all kernels share."""

    def __init__(self, saved: tuple[Any, ...], fixed: _Fixed) -> None:
        """`saved` as `_TritonSilu` saves it for its backward."""
        *vectors, key_bias_LH, time_HT, position_HP = saved
        q_LHE, k_LHE, v_LHF = (x if x.stride(2) == 1 else x.contiguous() for x in vectors)
        self.tokens, self.heads, self.width_qk = q_LHE.shape
        self.width_v = v_LHF.shape[2]
        self.fixed, self.dtype = fixed, q_LHE.dtype
        dropout = fixed.dropout
        self.arguments: dict[str, Any] = {
            "q": q_LHE,
            "k": k_LHE,
            "v": v_LHF,
            "slopes": fixed.slopes_H,
            "key_bias": key_bias_LH,
            "time_table": time_HT,
            "query_times": None if fixed.times_2L is None else fixed.times_2L[0],
            "key_times": None if fixed.times_2L is None else fixed.times_2L[1],
            "position_table": position_HP,
            "places": fixed.places_L,
            "inverse": fixed.inverse_L,
            "q_token": q_LHE.stride(0),
            "q_head": q_LHE.stride(1),
            "k_token": k_LHE.stride(0),
            "k_head": k_LHE.stride(1),
            "v_token": v_LHF.stride(0),
            "v_head": v_LHF.stride(1),
            "heads": self.heads,
            "T": 0 if time_HT is None else time_HT.shape[1],
            "P": 0 if position_HP is None else position_HP.shape[1],
            "scale": float(fixed.scale),
            "soft_cap": float(fixed.soft_cap),
            "seed": 0 if dropout is None else _int32(dropout.seed),
            "threshold": 0 if dropout is None else dropout.threshold,
            "kept_factor": 1.0 if dropout is None else dropout.factor,
            "CAPPED": fixed.soft_cap > 0,
            "DROPOUT": dropout is not None,
        }

    @property
    def is_needed(self) -> bool:
        """Whether there is a user's token at all."""
        return self.tokens > 0 and self.fixed.mask.offsets.numel() > 1

    def blocks(self, block: int, *, of_keys: bool) -> Tensor:
        """See `make_blocks`."""
        return make_blocks(self.fixed.mask, self.tokens, block, of_keys=of_keys)

    def __call__(self, kernel: Any, blocks: Tensor, block: int, others: dict[str, Any]) -> None:
        """One program a block and head."""
        constants = kernel_constants(block, self.width_qk, self.width_v, self.dtype)
        launched = kernel[(len(blocks), self.heads)]
        launched(**self.arguments, **constants, **others, blocks=blocks, num_warps=WARPS, num_stages=STAGES)


def kernel_constants(block: int, width_qk: int, width_v: int, dtype: torch.dtype) -> dict[str, Any]:
    """What kernels are compiled for, besides which biases there are."""
    # Triton's interpreter multiplies bfloat16 as if it were integers.
    dot = torch.float32 if triton.knobs.runtime.interpret else dtype
    return {
        "E": width_qk,
        "F": width_v,
        "BLOCK": block,
        "PADDED_E": max(16, triton.next_power_of_2(width_qk)),
        "PADDED_F": max(16, triton.next_power_of_2(width_v)),
        "DOT": {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dot],
    }


def _int32(number: int) -> int:
    """The number with the same lowest 32 bits that fits int32."""
    return (number + 2**31) % 2**32 - 2**31
