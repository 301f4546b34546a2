"""Attention of tokens that come after a past, user by user: of more of the history, and of candidates.

The two differ in who sees whom. New tokens of a history see the past and one another up to themselves. Candidates see
the past and themselves (HSTU paper, Algorithm 1): all stand at the same place and ask at the same time, so what is
added to the scores of a key of the past is the same for all of them, one row [H, n] a block, made once for a request.

A block of scores fits the cache, as in `model.attention.jagged`: heads are taken one by one where the past is long.

Shapes: m candidates · q queries, the newest tokens of a past · n keys · H heads · E width of a query or key · F width
of a value · L tokens of a batch · b queries of a block · g heads of a block · w = n + 1 rounded up.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention.jagged_memory import Scratch
from model.attention.weighting import Weighting
from model.biases import ScoreBiases, log_buckets
from model.layers import Opened

BLOCK_SCORES = 1 << 18
"""Scores of a block: 1 MB of float32, so that they are still in the cache when they become weights."""

BLOCK_QUERIES = 128
"""Fewest queries of a block, where there are as many: matrix products of fewer rows are slow."""

_ROUND = 16
"""Rows of scores begin at multiples of so many numbers."""


def pair_biases(biases: ScoreBiases, distance_qn: Tensor, times_q: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of some queries and keys, [H, q, n]; None where nothing is.

    Args:
        biases: made of the keys.
        distance_qn: int64, places between query and key; negative in a query's future, where results mean nothing.
        times_q: int64, the queries' clocks.
    """
    total: Tensor | None = None
    if biases.time is not None:
        table_HT = biases.time.table_HT.to(dtype)
        elapsed_qn = times_q[:, None] - biases.time.key_times_L[None, :]
        total = table_HT[:, log_buckets(elapsed_qn, table_HT.shape[1]).long()]
    if biases.slopes_H is not None:
        by_distance = biases.slopes_H.to(dtype)[:, None, None] * distance_qn
        total = -by_distance if total is None else total.sub_(by_distance)
    if biases.position is not None:
        table_HP = biases.position.table_HP.to(dtype)
        by_distance = table_HP[:, distance_qn.clamp(0, table_HP.shape[1] - 1)]
        total = by_distance if total is None else total.add_(by_distance)
    by_key_LH = biases.key_bias_LH(dtype)
    if by_key_LH is not None:
        by_key = by_key_LH.T[:, None, :]
        total = by_key if total is None else total.add_(by_key)
    return total


def attend_alone(
    opened: Opened,
    keys_HnE: Tensor,
    values_HnF: Tensor,
    past_bias_H1n: Tensor | None,
    own_bias_mH: Tensor | None,
    weighting: Weighting,
    scratch: Scratch,
) -> Tensor:
    """What each of m candidates gathers from the past and from itself, [m, H, F].

    Args:
        opened: of the candidates.
        past_bias_H1n: added to the scores of all candidates with each key of the past.
        own_bias_mH: added to each candidate's score with itself.
        scratch: memory that calls share.
    """
    wide = torch.promote_types(opened.q_LHE.dtype, torch.float32)
    q_HmE, k_HmE = _scaled(opened.q_LHE, weighting).transpose(0, 1), opened.k_LHE.transpose(0, 1)
    v_HmF = opened.v_LHF.transpose(0, 1)
    own_Hm = (q_HmE.to(wide) * k_HmE.to(wide)).sum(dim=2)
    if own_bias_mH is not None:
        own_Hm += own_bias_mH.T
    (heads, tokens, _), keys = q_HmE.shape, keys_HnE.shape[1]
    out_mHF = torch.empty(tokens, heads, v_HmF.shape[2], dtype=wide, device=q_HmE.device)
    width = -(-(keys + 1) // _ROUND) * _ROUND
    for head, part in _blocks(heads, tokens, width):
        shape = (head.stop - head.start, part.stop - part.start, width)
        scores_gbw = scratch.take("scores", shape, wide)
        scores_gbw[:, :, keys] = own_Hm[head, part]
        bias_g1n = None if past_bias_H1n is None else past_bias_H1n[head]
        _product(q_HmE[head, part], keys_HnE[head].transpose(1, 2), scores_gbw[:, :, :keys], bias_g1n)
        _cap(scores_gbw, weighting)
        scores_gbw[:, :, keys + 1 :] = -torch.inf if weighting.kind == "softmax" else 0.0
        weights_gbw = _weights(scores_gbw, weighting, scratch)
        out_gbF = out_mHF.transpose(0, 1)[head, part]
        _product(weights_gbw[:, :, :keys].to(values_HnF.dtype), values_HnF[head], out_gbF, None)
        out_gbF.addcmul_(weights_gbw[:, :, keys : keys + 1], v_HmF[head, part].to(wide))
    return _finished(out_mHF, weighting, opened)


def attend_newest(
    opened: Opened,
    keys_HnE: Tensor,
    values_HnF: Tensor,
    biases: ScoreBiases,
    times_q: Tensor,
    weighting: Weighting,
    scratch: Scratch,
) -> Tensor:
    """What the newest q tokens of a past gather from all of it up to themselves, [q, H, F].

    Args:
        opened: of those tokens, whose keys and values are already the last of the past.
        biases: made of all tokens of the past.
        times_q: int64, clocks of the queries.
    """
    wide = torch.promote_types(opened.q_LHE.dtype, torch.float32)
    q_HqE = _scaled(opened.q_LHE, weighting).transpose(0, 1)
    (heads, tokens, _), keys = q_HqE.shape, keys_HnE.shape[1]
    out_qHF = torch.empty(tokens, heads, values_HnF.shape[2], dtype=wide, device=q_HqE.device)
    place_n = torch.arange(keys, device=q_HqE.device)
    whole = slice(0, heads)
    step = max(1, min(tokens, BLOCK_SCORES // (heads * keys)))
    for start in range(0, tokens, step):
        part = slice(start, min(start + step, tokens))
        seen = keys - tokens + part.stop
        distance_bn = place_n[keys - tokens + start : seen, None] - place_n
        bias_Hbn = pair_biases(biases, distance_bn, times_q[part], wide)
        shape = (heads, part.stop - start, seen)
        scores_Hbn = scratch.take("scores", shape, wide)
        cut = None if bias_Hbn is None else bias_Hbn[:, :, :seen]
        _product(q_HqE[whole, part], keys_HnE[:, :seen].transpose(1, 2), scores_Hbn, cut)
        _cap(scores_Hbn, weighting)
        weights_Hbn = _weights(scores_Hbn, weighting, scratch, future_bn=distance_bn[:, :seen] < 0)
        _product(weights_Hbn.to(values_HnF.dtype), values_HnF[:, :seen], out_qHF.transpose(0, 1)[whole, part], None)
    return _finished(out_qHF, weighting, opened)


def _blocks(heads: int, tokens: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Heads and queries of each block."""
    queries = max(1, min(tokens, max(BLOCK_QUERIES, BLOCK_SCORES // width)))
    together = max(1, min(heads, BLOCK_SCORES // (queries * width)))
    for head in range(0, heads, together):
        for start in range(0, tokens, queries):
            yield slice(head, min(head + together, heads)), slice(start, min(start + queries, tokens))


def _scaled(q_LHE: Tensor, weighting: Weighting) -> Tensor:
    return q_LHE if weighting.scale == 1.0 else q_LHE * weighting.scale


def _product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None) -> None:
    """out = a @ b + bias, for a few heads; in the dtype of a and b, while out may be wider."""
    if a.dtype != out.dtype:
        out.copy_(torch.bmm(a, b))
        if bias is not None:
            out.add_(bias)
    elif len(a) > 1:
        _ = torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b, out=out)
    else:  # of one head by another routine, which shares the rows out to threads
        _ = torch.mm(a[0], b[0], out=out[0]) if bias is None else torch.addmm(bias[0], a[0], b[0], out=out[0])


def _cap(scores: Tensor, weighting: Weighting) -> None:
    if weighting.soft_cap:
        scores.div_(weighting.soft_cap).tanh_().mul_(weighting.soft_cap)


def _weights(scores: Tensor, weighting: Weighting, scratch: Scratch, future_bn: Tensor | None = None) -> Tensor:
    """φ of the scores, zero in the future; in their memory or in memory of its own."""
    if weighting.kind != "softmax":
        F.silu(scores, inplace=True)
        return scores if future_bn is None else scores.masked_fill_(future_bn, 0.0)
    if future_bn is not None:
        scores.masked_fill_(future_bn, -torch.inf)
    weights = scratch.take("weights", tuple(scores.shape), scores.dtype)
    found: Tensor = torch.ops.aten._softmax.out(scores, -1, False, out=weights)
    return found


def _finished(out_LHF: Tensor, weighting: Weighting, opened: Opened) -> Tensor:
    if weighting.normaliser_L is not None:
        out_LHF /= weighting.normaliser_L[:, None, None]
    return out_LHF.to(opened.q_LHE.dtype)
