"""The obvious attention, in any dtype: the oracle that fast backends are held against.

Materialises [H, n, n] for every user and lets autograd keep it.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · n tokens of one user.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from model.biases import ScoreBiases, log_buckets


def attend(
    q_LHE: Tensor,
    k_LHE: Tensor,
    v_LHF: Tensor,
    offsets: Tensor,
    biases: ScoreBiases,
    kind: str,
    scale: float,
    normaliser_L: Tensor | None,
) -> Tensor:
    """See `model.attention.attention`."""
    parts = []
    bounds = offsets.tolist()
    for start, stop in itertools.pairwise(bounds):
        user = slice(start, stop)
        scores_Hnn = torch.einsum("ihe,jhe->hij", q_LHE[user], k_LHE[user]) * scale + _bias(biases, user, q_LHE.dtype)
        future = torch.ones_like(scores_Hnn, dtype=torch.bool).triu(1)
        if kind == "softmax":
            weights_Hnn = torch.softmax(scores_Hnn.masked_fill(future, -torch.inf), dim=-1)
        else:
            assert normaliser_L is not None
            weights_Hnn = F.silu(scores_Hnn).masked_fill(future, 0.0) / normaliser_L[user, None]
        parts.append(torch.einsum("hij,jhf->ihf", weights_Hnn, v_LHF[user]))
    parts.append(v_LHF[bounds[-1] :] * 0.0)
    return torch.cat(parts)


def _bias(biases: ScoreBiases, user: slice, dtype: torch.dtype) -> Tensor | float:
    """All biases of one user's pairs, [H, n, n] or broadcastable to it."""
    total: Tensor | float = 0.0
    if biases.slopes_H is not None:
        place = torch.arange(user.stop - user.start, device=biases.slopes_H.device)
        total = total - biases.slopes_H.to(dtype)[:, None, None] * (place[:, None] - place[None, :])
    if biases.time is not None:
        elapsed = biases.time.query_times_L[user, None] - biases.time.key_times_L[None, user]
        total = total + biases.time.table_HT[:, log_buckets(elapsed, biases.time.table_HT.shape[1]).long()]
    for bias in biases.by_key:
        total = total + bias.table_HK[:, None, bias.buckets_L[user]]
    return total
