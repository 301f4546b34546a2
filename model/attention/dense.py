"""The obvious attention, in any dtype: the oracle that fast backends are held against.

Materialises [H, n, n] for every user and lets autograd keep it.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · n tokens of one user.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention.weighting import Weighting
from model.biases import ScoreBiases, log_buckets
from model.mask import Mask


def attend(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """See `model.attention.attention`. Half precision is computed in float32."""
    wide = torch.promote_types(q_LHE.dtype, torch.float32)
    q, k, v = (x.to(wide) for x in (q_LHE, k_LHE, v_LHF))
    parts = []
    bounds, place_L = mask.offsets.tolist(), mask.positions(q.shape[0])
    for start, stop in itertools.pairwise(bounds):
        user = slice(start, stop)
        token_n = torch.arange(start, stop, device=q.device)
        visible_nn = mask.visible(token_n[:, None], token_n[None, :])
        scores_Hnn = torch.einsum("ihe,jhe->hij", q[user], k[user]) * weighting.scale + _bias(
            biases, token_n, place_L[user], wide
        )
        if weighting.soft_cap:
            scores_Hnn = weighting.soft_cap * torch.tanh(scores_Hnn / weighting.soft_cap)
        if weighting.kind == "softmax":
            weights_Hnn = torch.softmax(scores_Hnn.masked_fill(~visible_nn, -torch.inf), dim=-1)
        else:
            assert weighting.normaliser_L is not None
            normaliser_n1 = weighting.normaliser_L[user, None].to(wide)
            weights_Hnn = F.silu(scores_Hnn).masked_fill(~visible_nn, 0.0) / normaliser_n1
        dropout = weighting.dropout
        if dropout is not None:
            head_H11 = torch.arange(q.shape[1], device=q.device)[:, None, None]
            kept_Hnn = dropout.keep(head_H11, token_n[:, None], token_n[None, :])
            weights_Hnn = weights_Hnn * kept_Hnn / (1 - dropout.probability)
        parts.append(torch.einsum("hij,jhf->ihf", weights_Hnn, v[user]))
    parts.append(v[bounds[-1] :] * 0.0)
    return torch.cat(parts).to(q_LHE.dtype)


def _bias(biases: ScoreBiases, token_n: Tensor, place_n: Tensor, dtype: torch.dtype) -> Tensor | float:
    """All biases of one user's pairs, [H, n, n] or broadcastable to it."""
    total: Tensor | float = 0.0
    distance_nn = place_n[:, None] - place_n[None, :]
    if biases.slopes_H is not None:
        total = total - biases.slopes_H.to(dtype)[:, None, None] * distance_nn
    if biases.position is not None:
        table_HP = biases.position.table_HP.to(dtype)
        total = total + table_HP[:, distance_nn.clamp(0, table_HP.shape[1] - 1)]
    if biases.time is not None:
        table_HT = biases.time.table_HT.to(dtype)
        elapsed_nn = biases.time.query_times_L[token_n, None] - biases.time.key_times_L[None, token_n]
        total = total + table_HT[:, log_buckets(elapsed_nn, table_HT.shape[1]).long()]
    for bias in biases.by_key:
        total = total + bias.table_HK.to(dtype)[:, None, bias.buckets_L[token_n]]
    return total
