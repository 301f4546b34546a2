"""Attention for training on a CPU: no [L, L], no padding to the longest user, nothing quadratic kept for the backward.

Users are sorted by length and put in groups of nearly equal ones, padded to the longest of the group. Each group
walks over blocks of queries; a block sees only the keys up to its own end, so most of the triangle above the diagonal
is never computed. A block's scores fit the cache, which is what makes this fast: on a CPU every pass over a large
score matrix costs as much as its matrix product. The backward computes the scores anew.

Work: for histories of median 65 and at most 200, 0.70 of Σn² scores are computed, against 0.5 that the causal mask
needs and 3.4 of a batch padded to its longest user (`padded_scores`). Memory: the scores of one block a few times
over, a block aiming at `CHUNK_SCORES` and never exceeding `MAX_SCORES`.

Padding inside a group repeats the user's own last token: as a key it lies in every real query's future, and as a
query it receives no gradient. So no value needs to be invented for it.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · G users of a group ·
m tokens of the group's longest user · q queries of a block · e end of the block (keys seen) · T time buckets.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.biases import MAX_SECONDS, ScoreBiases, log_buckets

QUERY_BLOCK = 48
"""Queries of a block. Smaller blocks skip more of the future and cost more calls."""

CHUNK_SCORES = 1 << 18
"""Scores (over all heads) that a block aims at: 1 MB of float32, so that they stay in the cache."""

MAX_SCORES = 1 << 24
"""Scores (over all heads) that a block never exceeds unless a single query does: 64 MB of float32."""


@dataclass(frozen=True)
class Group:
    """Users of nearly equal length, side by side.

    Args:
        heads: H.
        users: G.
        longest: m.
        block: queries of a block.
        first_place: where the group's H·G·m places begin among those of all groups.
        tokens_Gm: int64, the token at each place (of any head); places beyond a user's length repeat its last token.
    """

    heads: int
    users: int
    longest: int
    block: int
    first_place: int
    tokens_Gm: Tensor

    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of queries."""
        starts = range(0, self.longest, self.block)
        return [(start, min(start + self.block, self.longest)) for start in starts]

    def cut(self, x_PE: Tensor) -> Tensor:
        """The group's places as a view, [H*G, m, E]."""
        last_place = self.first_place + self.heads * self.tokens_Gm.numel()
        return x_PE[self.first_place : last_place].view(-1, self.longest, x_PE.shape[1])


@dataclass(frozen=True)
class Layout:
    """Where each token and head of a batch stands while attention works on it: its place.

    Places are ordered by group, then head, then user, then position. A row [token, head] of a contiguous [L, H, E]
    has number token·H + head.

    Args:
        groups: the groups.
        rows_P: int64, the row at each place.
        padding: int64, the places that repeat a token.
        places: int64, the place of each row of a user, P for the rows of the tail padding: [L*H].
    """

    groups: tuple[Group, ...]
    rows_P: Tensor
    padding: Tensor
    places: Tensor

    def gather(self, x_LHE: Tensor) -> Tensor:
        """[L, H, E] → [P, E]."""
        return x_LHE.reshape(-1, x_LHE.shape[2]).index_select(0, self.rows_P)

    def scatter(self, x_PE: Tensor, like_LHE: Tensor) -> Tensor:
        """[P+1, E], the last row zero, → [L, H, E]."""
        return x_PE.index_select(0, self.places).view(like_LHE.shape)

    def zeros(self, x_PE: Tensor) -> Tensor:
        """Zeros for results of the width of `x_PE`, with the row that `scatter` gives to the tail padding."""
        return x_PE.new_zeros(self.rows_P.numel() + 1, x_PE.shape[1])


@functools.lru_cache(maxsize=8)
def make_layout(bounds: tuple[int, ...], tokens: int, heads: int, device: torch.device) -> Layout:
    """The layout for the user ranges `bounds`; cached, since all blocks of a model ask for the same batch's."""
    users = [(stop - start, start) for start, stop in itertools.pairwise(bounds) if stop > start]
    users.sort(key=lambda user: (-user[0], user[1]))
    groups: list[Group] = []
    rows, real, begin, first_place = [], [], 0, 0
    head_H11 = torch.arange(heads)[:, None, None]
    while begin < len(users):
        end, block = _end_of_group(users, begin, heads)
        length_G1, start_G1 = torch.tensor(users[begin:end], dtype=torch.int64).T[:, :, None]
        position_m = torch.arange(users[begin][0])
        tokens_Gm = start_G1 + torch.minimum(position_m, length_G1 - 1)
        groups.append(Group(heads, end - begin, users[begin][0], block, first_place, tokens_Gm.to(device)))
        rows.append((tokens_Gm * heads + head_H11).flatten())
        real.append((position_m < length_G1).expand(heads, -1, -1).flatten())
        begin, first_place = end, first_place + rows[-1].numel()
    rows_P = torch.cat([*rows, torch.empty(0, dtype=torch.int64)])
    real_P = torch.cat([*real, torch.empty(0, dtype=torch.bool)])
    places = torch.full((tokens * heads,), first_place)
    places[rows_P[real_P]] = real_P.nonzero().flatten()
    return Layout(tuple(groups), rows_P.to(device), (~real_P).nonzero().flatten().to(device), places.to(device))


def _end_of_group(users: list[tuple[int, int]], begin: int, heads: int) -> tuple[int, int]:
    """How far the group of `users[begin]` reaches among users sorted by length, and its queries per block."""
    longest = users[begin][0]
    block = max(1, min(QUERY_BLOCK, longest, MAX_SCORES // (heads * longest)))
    most = max(1, CHUNK_SCORES // (heads * block * longest))
    end = begin
    # A tenth shorter, or four tokens: beyond that the padding costs more than another round of calls.
    while end < len(users) and end - begin < most and users[end][0] >= 0.9 * longest - 4:
        end += 1
    return end, block


def padded_scores(layout: Layout) -> int:
    """Scores per head that are computed; at best Σ n(n+1)/2."""
    return sum(group.users * (stop - start) * stop for group in layout.groups for start, stop in group.blocks())


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
    """See `model.attention.attention`. Two runs on a CPU give the same bits."""
    # What is linear in tokens is left to autograd; only the quadratic part is ours.
    key_bias_LH = None
    for bias in biases.by_key:
        looked_up = F.embedding(bias.buckets_L, bias.table_HK.T)
        key_bias_LH = looked_up if key_bias_LH is None else key_bias_LH + looked_up
    time = biases.time
    out_LHF: Tensor = _Jagged.apply(
        q_LHE if scale == 1.0 else q_LHE * scale,
        k_LHE,
        v_LHF,
        key_bias_LH,
        None if time is None else time.table_HT,
        None if time is None else torch.stack((time.query_times_L, time.key_times_L)),
        None if biases.slopes_H is None else biases.slopes_H.to(q_LHE.dtype),
        make_layout(tuple(offsets.tolist()), q_LHE.shape[0], q_LHE.shape[1], q_LHE.device),
        kind == "softmax",
    )
    return out_LHF if normaliser_L is None else out_LHF / normaliser_L[:, None, None]


@dataclass(frozen=True)
class _GroupInputs:
    """One group's inputs, and the scores of a block of its queries."""

    group: Group
    softmax: bool
    q: Tensor  # [H*G, m, E]
    k: Tensor  # [H*G, m, E]
    v: Tensor  # [H*G, m, F]
    key_bias: Tensor | None  # [H*G, m, 1]
    table_HT: Tensor | None
    query_times_Gm: Tensor | None  # int32, since the user's first event
    key_times_Gm: Tensor | None
    slopes_H: Tensor | None

    def scores(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Scores [H*G, q, e] of the queries start … stop-1, and their time buckets, int32 [G*q*e]."""
        scores = torch.bmm(self.q[:, start:stop], self.k[:, :stop].transpose(1, 2))
        if self.key_bias is not None:
            scores += self.key_bias[:, :stop].transpose(1, 2)
        by_place = self._by_place(start, stop)
        if by_place is not None:
            scores.view(by_place.shape[0], -1, stop - start, stop).add_(by_place[:, None])
        if self.table_HT is None:
            return scores, None
        assert self.query_times_Gm is not None
        assert self.key_times_Gm is not None
        elapsed = self.query_times_Gm[:, start:stop, None] - self.key_times_Gm[:, None, :stop]
        buckets = log_buckets(elapsed, self.table_HT.shape[1]).flatten()
        scores.view(self.table_HT.shape[0], -1).add_(self.table_HT.index_select(1, buckets))
        return scores, buckets

    def _by_place(self, start: int, stop: int) -> Tensor | None:
        """What depends on places alone, [H or 1, q, e]: ALiBi, and the mask where it must precede the softmax."""
        if self.slopes_H is None and not self.softmax:
            return None
        place = torch.arange(stop, device=self.q.device, dtype=self.q.dtype)
        distance_1qe = (place[start:, None] - place)[None]
        by_place = (
            torch.zeros_like(distance_1qe) if self.slopes_H is None else -self.slopes_H[:, None, None] * distance_1qe
        )
        return by_place.masked_fill(distance_1qe < 0, -torch.inf) if self.softmax else by_place

    def weights(self, scores: Tensor, start: int) -> Tensor:
        """φ(scores), zero in the future. Overwrites `scores` when it can."""
        if self.softmax:
            return torch.softmax(scores, dim=-1)
        return F.silu(scores, inplace=True).tril_(start)

    def weights_and_gradient(self, scores: Tensor, grad_weights: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """φ(scores) and the gradient of the scores."""
        if self.softmax:
            weights = torch.softmax(scores, dim=-1)
            return weights, torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, scores.dtype)
        grad_scores = torch.ops.aten.silu_backward(grad_weights, scores).tril_(start)
        return self.weights(scores, start), grad_scores


class _Inputs:
    """The inputs of all groups, gathered to their places."""

    def __init__(self, tensors: tuple[Tensor | None, ...], layout: Layout, softmax: bool) -> None:
        q_LHE, k_LHE, v_LHF, key_bias_LH, self.table_HT, self.times_2L, self.slopes_H = tensors
        assert q_LHE is not None
        assert k_LHE is not None
        assert v_LHF is not None
        self.layout, self.softmax = layout, softmax
        self.q_PE, self.k_PE, self.v_PF = layout.gather(q_LHE), layout.gather(k_LHE), layout.gather(v_LHF)
        self.key_bias_P1 = None if key_bias_LH is None else layout.gather(key_bias_LH[:, :, None])

    def of(self, group: Group) -> _GroupInputs:
        queries = keys = None
        if self.times_2L is not None:
            query_times, key_times = self.times_2L[:, group.tokens_Gm]
            first = key_times.amin(dim=1, keepdim=True)
            # int32 halves the traffic of a pass over pairs; 68 years of one user's history fit in it.
            queries = (query_times - first).clamp_(-1, MAX_SECONDS).to(torch.int32)
            keys = (key_times - first).clamp_(-1, MAX_SECONDS).to(torch.int32)
        return _GroupInputs(
            group=group,
            softmax=self.softmax,
            q=group.cut(self.q_PE),
            k=group.cut(self.k_PE),
            v=group.cut(self.v_PF),
            key_bias=None if self.key_bias_P1 is None else group.cut(self.key_bias_P1),
            table_HT=self.table_HT,
            query_times_Gm=queries,
            key_times_Gm=keys,
            slopes_H=self.slopes_H,
        )


class _Jagged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_LHE: Tensor,
        k_LHE: Tensor,
        v_LHF: Tensor,
        key_bias_LH: Tensor | None,
        table_HT: Tensor | None,
        times_2L: Tensor | None,
        slopes_H: Tensor | None,
        layout: Layout,
        softmax: bool,
    ) -> Tensor:
        tensors = (q_LHE, k_LHE, v_LHF, key_bias_LH, table_HT, times_2L, slopes_H)
        ctx.save_for_backward(*tensors)
        ctx.layout, ctx.softmax = layout, softmax
        inputs = _Inputs(tensors, layout, softmax)
        out_PF = layout.zeros(inputs.v_PF)
        for group in layout.groups:
            part, out = inputs.of(group), group.cut(out_PF)
            for start, stop in group.blocks():
                scores, _ = part.scores(start, stop)
                out[:, start:stop] = torch.bmm(part.weights(scores, start), part.v[:, :stop])
        return layout.scatter(out_PF, v_LHF)

    @staticmethod
    def backward(ctx: Any, grad_out_LHF: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        inputs = _Inputs(ctx.saved_tensors, layout, ctx.softmax)
        grad_out_PF = layout.gather(grad_out_LHF).index_fill_(0, layout.padding, 0.0)
        places = (inputs.q_PE, inputs.k_PE, inputs.v_PF, inputs.key_bias_P1)
        grads = [None if x is None else layout.zeros(x) for x in places]
        grad_table = None if inputs.table_HT is None else torch.zeros_like(inputs.table_HT)
        for group in layout.groups:
            parts = [None if grad is None else group.cut(grad) for grad in grads]
            _backward_group(inputs.of(group), group.cut(grad_out_PF), parts, grad_table)
        q, k, v, key_bias = (
            None if grad is None else layout.scatter(grad, like if like.dim() == 3 else like[:, :, None])
            for grad, like in zip(grads, ctx.saved_tensors[:4], strict=True)
        )
        return q, k, v, None if key_bias is None else key_bias[:, :, 0], grad_table, *[None] * 4


def _backward_group(
    part: _GroupInputs, grad_out: Tensor, grads: list[Tensor | None], grad_table: Tensor | None
) -> None:
    """Write the gradients of one group's q, k, v and key bias to `grads`, add that of the time table."""
    grad_q, grad_k, grad_v, grad_bias = grads
    assert grad_q is not None
    assert grad_k is not None
    assert grad_v is not None
    for start, stop in part.group.blocks():
        scores, buckets = part.scores(start, stop)
        grad_weights = torch.bmm(grad_out[:, start:stop], part.v[:, :stop].transpose(1, 2))
        weights, grad_scores = part.weights_and_gradient(scores, grad_weights, start)
        # Not baddbmm_: on a slice it falls back to one product per user.
        grad_v[:, :stop] += torch.bmm(weights.transpose(1, 2), grad_out[:, start:stop])
        grad_q[:, start:stop] = torch.bmm(grad_scores, part.k[:, :stop])
        grad_k[:, :stop] += torch.bmm(grad_scores.transpose(1, 2), part.q[:, start:stop])
        if grad_bias is not None:
            grad_bias[:, :stop, 0] += grad_scores.sum(dim=1)
        if grad_table is not None:
            assert buckets is not None
            for grad_T, grad_pairs in zip(grad_table, grad_scores.view(grad_table.shape[0], -1), strict=True):
                grad_T += torch.bincount(buckets, grad_pairs, grad_T.numel())
