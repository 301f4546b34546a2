"""Softmax attention through PyTorch's FlexAttention: a kernel generated for a GPU, or for inference on a CPU.

All biases are a `score_mod`, traced into the kernel; nothing of shape [L, L] exists. Which blocks of keys a block of
queries looks at is worked out from the users' offsets, not by trying pairs of tokens. Shapes of a batch are static, so
that the kernel is compiled once per configuration (half a minute on a CPU).

PyTorch has no backward of it on a CPU. On a GPU it has, gradients of the tables included; no GPU has run this yet.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · R blocks of `BLOCK` tokens ·
K = `BLOCK`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from common.errors import InputError
from model.attention.weighting import Weighting
from model.biases import MAX_SECONDS, ScoreBiases
from model.mask import Mask

BLOCK = 128
"""Tokens of a block of the mask: FlexAttention's own."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """See `model.attention.attention`.

    Raises:
        InputError: silu, dropout, or a gradient on a CPU.
    """
    _refuse((q_LHE, k_LHE, v_LHF), biases, weighting)
    assert weighting.normaliser_L is None
    tokens = q_LHE.shape[0]
    if tokens == 0:
        return torch.zeros_like(v_LHF)
    if not torch.is_grad_enabled():
        # On a CPU, PyTorch refuses a parameter even where no gradient is asked for.
        q_LHE, k_LHE, v_LHF = q_LHE.detach(), k_LHE.detach(), v_LHF.detach()
    q_1HLE, k_1HLE, v_1HLF = (x.transpose(0, 1)[None] for x in (q_LHE, k_LHE, v_LHF))
    out_1HLF = compiled()(
        q_1HLE,
        k_1HLE,
        v_1HLF,
        score_mod=make_score_mod(mask, tokens, biases, weighting.soft_cap),
        block_mask=make_block_mask(mask, tokens),
        scale=weighting.scale,
    )
    out_LHF: Tensor = out_1HLF[0].transpose(0, 1)
    is_padding_L = torch.arange(tokens, device=q_LHE.device) >= mask.offsets[-1]
    return out_LHF.masked_fill(is_padding_L[:, None, None], 0.0)


def _refuse(vectors: tuple[Tensor, ...], biases: ScoreBiases, weighting: Weighting) -> None:
    faults = []
    if weighting.kind != "softmax":
        faults.append(
            f"attention.backend=flex computes kind=softmax, not {weighting.kind}: "
            "set attention.backend=triton or jagged"
        )
    if weighting.dropout is not None:
        faults.append(
            "attention.backend=flex cannot drop weights after their softmax: set attention.dropout=0, "
            "or attention.backend=jagged"
        )
    tables = [bias.table_HK for bias in biases.by_key]
    tables += [] if biases.time is None else [biases.time.table_HT]
    tables += [] if biases.position is None else [biases.position.table_HP]
    if (
        vectors[0].device.type == "cpu"
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in (*vectors, *tables))
    ):
        faults.append(
            "attention.backend=flex has no gradient on a CPU, where PyTorch computes FlexAttention for inference only: "
            "set attention.backend=jagged to train on a CPU"
        )
    if faults:
        raise InputError(*faults)


@functools.cache
def compiled() -> Callable[..., Any]:
    """FlexAttention, compiled at its first call; not compiled, it would materialise [H, L, L]."""
    return torch.compile(flex_attention, dynamic=False)


def make_score_mod(mask: Mask, tokens: int, biases: ScoreBiases, soft_cap: float) -> ScoreMod:
    """What FlexAttention does to scale · q·k; it evaluates it for pairs that the mask hides too."""
    # Tables go in as float32: their gradients are added up in the type they go in with.
    key_bias_LH = biases.key_bias_LH(torch.float32)
    place_L = mask.positions(tokens).to(torch.int32) if mask.alone_L is not None else None
    key_bias_HL = None if key_bias_LH is None else key_bias_LH.T.contiguous()
    slopes_H = None if biases.slopes_H is None else biases.slopes_H.float()
    table_HP = None if biases.position is None else biases.position.table_HP.float()
    time = biases.time
    table_HT = None if time is None else time.table_HT.float()

    def distance(i: Tensor, j: Tensor) -> Tensor:
        # Where no token is alone, places differ as flat numbers do.
        return i - j if place_L is None else place_L[i] - place_L[j]

    def score_mod(score: Tensor, _user: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if slopes_H is not None:
            score = score - slopes_H[head] * distance(i, j)
        if time is not None and table_HT is not None:
            bucket = _log_bucket(time.query_times_L[i] - time.key_times_L[j], table_HT.shape[1])
            score = score + table_HT[head, bucket]
        if key_bias_HL is not None:
            score = score + key_bias_HL[head, j]
        if table_HP is not None:
            score = score + table_HP[head, distance(i, j).clamp(0, table_HP.shape[1] - 1)]
        return soft_cap * torch.tanh(score / soft_cap) if soft_cap > 0 else score

    return score_mod


def _log_bucket(seconds: Tensor, buckets: int) -> Tensor:
    """`model.biases.log_buckets` without its operations in place, which a `score_mod` may not have."""
    bits = seconds.clamp(1, MAX_SECONDS).to(torch.float32).view(torch.int32)
    return ((bits >> 22) - 2 * 127).clamp(max=buckets - 1)


def make_mask_mod(mask: Mask, tokens: int) -> MaskMod:
    """Who sees whom, for blocks of which only a part is visible.

    A token of the tail padding sees itself here: a softmax over nothing has no value. Its row is zeroed afterwards.
    """
    user_L = _users(mask.offsets, torch.arange(tokens, device=mask.offsets.device))
    is_padding_L = user_L == mask.offsets.numel()
    alone_L = mask.alone_L

    def mask_mod(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        before = (user_L[i] == user_L[j]) & (j < i) & ~is_padding_L[i]
        return (i == j) | (before if alone_L is None else before & ~alone_L[j])

    return mask_mod


def _users(offsets: Tensor, tokens: Tensor) -> Tensor:
    """Which user tokens belong to, counted from 1; one more than there are for the tail padding."""
    return torch.searchsorted(offsets, tokens, right=True)


def make_block_mask(mask: Mask, tokens: int) -> BlockMask:
    """The blocks of keys that each block of queries looks at, from the users' ranges.

    The first token of a block of queries sees the farthest: all blocks from its user's first token on, unless all that
    stands from there to the block's end is alone. Of these blocks, the ones that lie wholly within the user and have no
    token that is alone are seen in full, if the block of queries lies within the user too. What is compared is [R, R],
    the square of a number of tokens 128 times smaller.
    """
    offsets = mask.offsets
    row_R = torch.arange(-(-tokens // BLOCK), device=offsets.device)
    first_R = row_R * BLOCK
    last_R = first_R + (BLOCK - 1)
    user_R = _users(offsets, first_R)
    is_user_R = user_R < offsets.numel()
    start_R = torch.where(is_user_R, offsets[user_R - 1], first_R)
    is_within_R = is_user_R & (_users(offsets, last_R) == user_R) & (last_R < tokens)
    last_seen_R, is_seen_R = _seen_of_blocks(mask.alone_L, last_R)
    is_before_RR = row_R < row_R[:, None]
    visible_RR = ((last_seen_R >= start_R[:, None]) & is_before_RR) | (row_R == row_R[:, None])
    full_RR = is_within_R[:, None] & (first_R >= start_R[:, None]) & is_before_RR & is_seen_R
    return BlockMask.from_kv_blocks(
        *_ordered(visible_RR & ~full_RR),
        *_ordered(full_RR),
        BLOCK_SIZE=BLOCK,
        mask_mod=make_mask_mod(mask, tokens),
        seq_lengths=(tokens, tokens),
    )


def _seen_of_blocks(alone_L: Tensor | None, last_R: Tensor) -> tuple[Tensor, Tensor]:
    """Of each block the last token that is not alone, -1 if all are, and whether none is alone: both [R]."""
    if alone_L is None:
        return last_R, torch.ones_like(last_R, dtype=torch.bool)
    alone_RK = F.pad(alone_L, (0, last_R.numel() * BLOCK - alone_L.numel())).view(-1, BLOCK)
    number_RK = torch.arange(alone_RK.numel(), device=last_R.device).view_as(alone_RK)
    return number_RK.masked_fill(alone_RK, -1).amax(dim=1), ~alone_RK.any(dim=1)


def _ordered(chosen_RR: Tensor) -> tuple[Tensor, Tensor]:
    """Number of columns chosen in each row, and all columns, the chosen ones first: int32 [1, 1, R], [1, 1, R, R]."""
    columns_RR = torch.argsort(chosen_RR.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen_RR.sum(dim=1, dtype=torch.int32)[None, None], columns_RR.to(torch.int32)[None, None]
