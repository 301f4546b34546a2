"""The scores of a block of queries of jagged attention, with everything that is added to them or done to them.

A learned bias by time would cost as much as two matrix products in the backward if its gradient were summed pair by
pair. But the keys of a user stand in the order of time, so that a query's keys of one bucket stand side by side: sums
over buckets are differences of running sums, taken at as many places as there are buckets.

What depends on the distance of query and key only (ALiBi, learned positions) is laid out once for all blocks: the
block of another start is a slice of the same matrix.

Shapes: L tokens · H heads · E width of a query or key · F width of a value · G users of a group ·
m tokens of the group's longest user · q queries of a block · e end of the block (keys seen) · T time buckets ·
P distances of a position bias · A most queries of a block · Z columns of the matrix by distance.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention.dropout import Dropout, mix_
from model.attention.jagged_layout import Group, Layout
from model.biases import MAX_SECONDS, bucket_edges, log_buckets


@dataclass(frozen=True)
class Settings:
    """What is no tensor.

    Args:
        softmax: φ is the softmax, else SiLU.
        soft_cap: see `model.attention.attention`.
        dropout: its factor is left to the caller.
        dtype: of scores and of everything learned that is added to them.
    """

    softmax: bool
    soft_cap: float
    dropout: Dropout | None
    dtype: torch.dtype


@dataclass
class Scratch:
    """Memory by name that all blocks of a call share: fresh memory is slower than the arithmetic.

    Args:
        size: numbers that each can hold.
    """

    size: int
    device: torch.device
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Not initialised; what was taken by that name before is overwritten."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(self.size, dtype=dtype, device=self.device)
        return self.buffers[name][: math.prod(shape)].view(shape)


class Distances:
    """Biases by the distance i - j, as a matrix from which the blocks are cut, and the gradient of it."""

    def __init__(self, slopes_H: Tensor | None, table_HP: Tensor | None, layout: Layout, dtype: torch.dtype) -> None:
        """Builds the matrix."""
        self.table_HP = table_HP
        self.last_start = max(group.blocks()[-1][0] for group in layout.groups)
        most = max(group.block for group in layout.groups)
        row_A1 = torch.arange(most, device=layout.rows_P.device)[:, None]
        column_Z = torch.arange(self.last_start + most, device=layout.rows_P.device)
        # The future's distances are negative and masked.
        self.distance_AZ = (self.last_start + row_A1 - column_Z).clamp_(min=0)
        self.bias_HAZ = self.distance_AZ.new_zeros((layout.groups[0].heads, *self.distance_AZ.shape), dtype=dtype)
        if slopes_H is not None:
            self.bias_HAZ.sub_(slopes_H.to(dtype)[:, None, None] * self.distance_AZ)
        if table_HP is not None:
            self.bias_HAZ.add_(table_HP.to(dtype)[:, self.distance_AZ.clamp(max=table_HP.shape[1] - 1)])
        self.grad_HAZ = torch.zeros_like(self.bias_HAZ) if table_HP is not None else None

    def cut(self, x_HAZ: Tensor, start: int, stop: int) -> Tensor:
        """The block of the queries start … stop-1: [H, q, e]."""
        first = self.last_start - start
        return x_HAZ[:, : stop - start, first : first + stop]

    def table_gradient(self) -> Tensor | None:
        """[H, P]."""
        if self.table_HP is None:
            return None
        assert self.grad_HAZ is not None
        buckets = self.distance_AZ.clamp(max=self.table_HP.shape[1] - 1).flatten()
        sums = [torch.bincount(buckets, grad.flatten(), self.table_HP.shape[1]) for grad in self.grad_HAZ]
        return torch.stack(sums).to(self.table_HP.dtype)


_FEW_KEYS_A_BUCKET = 4


@dataclass(frozen=True)
class Times:
    """The clocks of one group, int32 seconds since each user's first event.

    Args:
        query_Gm, key_Gm: int32.
        ordered: keys ascend in each user.
    """

    query_Gm: Tensor
    key_Gm: Tensor
    ordered: bool

    @classmethod
    def of(cls, times_2L: Tensor, group: Group) -> Times:
        """The clocks of a group's users."""
        query_Gm, key_Gm = times_2L[:, group.tokens_Gm]
        first_G1 = key_Gm.amin(dim=1, keepdim=True)
        # int32 halves the traffic of a pass over pairs; 68 years of one user's history fit in it.
        query_Gm = (query_Gm - first_G1).clamp_(-1, MAX_SECONDS).to(torch.int32)
        key_Gm = (key_Gm - first_G1).clamp_(-1, MAX_SECONDS).to(torch.int32)
        return cls(query_Gm, key_Gm, bool((key_Gm[:, 1:] >= key_Gm[:, :-1]).all()))

    def buckets(self, start: int, stop: int, buckets: int) -> Tensor:
        """int32 [G*q*e]."""
        elapsed_Gqe = self.query_Gm[:, start:stop, None] - self.key_Gm[:, None, :stop]
        return log_buckets(elapsed_Gqe, buckets).flatten()

    def keys_from_bucket(self, start: int, stop: int, buckets: int) -> Tensor:
        """How many of a query's keys lie in bucket t or above, if keys are ordered: int32 [G, q, T'].

        T' leaves out the buckets that no pair reaches.
        """
        query_Gq = self.query_Gm[:, start:stop]
        top = int(log_buckets(query_Gq.amax() - self.key_Gm[:, 0].amin(), buckets))
        edges_T = bucket_edges(buckets)[: top + 1].to(query_Gq)
        latest = (query_Gq[:, :, None] - edges_T).flatten(1)
        counts = torch.searchsorted(self.key_Gm, latest, right=True, out_int32=True).clamp_(max=stop)
        counts = counts.view(*query_Gq.shape, top + 1)
        counts[:, :, 0] = stop  # whatever lies below one second counts as one
        return counts


@dataclass(frozen=True)
class Part:
    """One group's inputs, and what happens to the scores of a block of its queries."""

    group: Group
    settings: Settings
    scratch: Scratch
    q: Tensor  # [H*G, m, E]
    k: Tensor  # [H*G, m, E]
    v: Tensor  # [H*G, m, F]
    key_bias: Tensor | None  # [H*G, m, 1]
    table_HT: Tensor | None
    times: Times | None
    distances: Distances | None

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a @ b in the dtype of the settings, in scratch memory."""
        out = self.scratch.take(name, (a.shape[0], a.shape[1], b.shape[2]), self.settings.dtype)
        return torch.bmm(a, b, out=out) if a.dtype == out.dtype else out.copy_(torch.bmm(a, b))

    def scores(self, start: int, stop: int) -> Tensor:
        """Scores [H*G, q, e] of the queries start … stop-1, capped, not masked."""
        scores = self._biases(start, stop)
        q, k_transposed = self.q[:, start:stop], self.k[:, :stop].transpose(1, 2)
        if scores is None:
            scores = self.product("scores", q, k_transposed)
        elif q.dtype == scores.dtype:
            scores.baddbmm_(q, k_transposed)  # the sum costs nothing beside the product
        else:
            scores.add_(torch.bmm(q, k_transposed))
        if self.settings.soft_cap:
            scores.div_(self.settings.soft_cap).tanh_().mul_(self.settings.soft_cap)
        return scores

    def _biases(self, start: int, stop: int) -> Tensor | None:
        """What is added to the scores, [H*G, q, e], in the memory of scores; None where there is nothing."""
        if self.times is None and self.distances is None and self.key_bias is None:
            return None
        heads, q, e = self.group.heads, stop - start, stop
        biases = self.scratch.take("scores", (heads * self.group.users, q, e), self.settings.dtype)
        if self.times is not None:
            assert self.table_HT is not None
            index = self.times.buckets(start, stop, self.table_HT.shape[1]).expand(heads, -1)
            torch.gather(self.table_HT, 1, index, out=biases.view(heads, -1))
        if self.distances is not None:
            by_distance_Hqe = self.distances.cut(self.distances.bias_HAZ, start, stop)
            biases_HGqe = biases.view(heads, -1, q, e)
            (biases_HGqe.copy_ if self.times is None else biases_HGqe.add_)(by_distance_Hqe[:, None])
        if self.key_bias is not None:
            alone = self.times is None and self.distances is None
            (biases.copy_ if alone else biases.add_)(self.key_bias[:, :stop].transpose(1, 2))
        return biases

    def mask_(self, x: Tensor, start: int, value: float) -> Tensor:
        """Put `value`, 0 or -inf, in the future of a block's queries: only its last columns reach there."""
        if value == 0.0:
            return x.tril_(start)
        corner = x[:, :, start:]
        corner.masked_fill_(_future(corner.shape[1], x.device), value)
        return x

    def kept(self, start: int, stop: int) -> Tensor | None:
        """What dropout leaves, [H*G, q, e] of the dtype of scores."""
        dropout = self.settings.dropout
        if dropout is None:
            return None
        head_H111 = torch.arange(self.group.heads, device=self.q.device)[:, None, None, None]
        query = dropout.query_hash(head_H111, self.group.tokens_Gm[:, start:stop, None])
        hashes = mix_(query.bitwise_xor(dropout.key_hash(self.group.tokens_Gm[:, None, :stop])))
        return (hashes >= dropout.threshold).to(self.settings.dtype).view(-1, stop - start, stop)

    def attend(self, start: int, stop: int) -> Tensor:
        """[H*G, q, F]."""
        scores = self.scores(start, stop)
        if self.settings.softmax:
            weights = self._softmax(self.mask_(scores, start, -torch.inf))
        else:
            weights = self.mask_(F.silu(scores, inplace=True), start, 0.0)
        kept = self.kept(start, stop)
        if kept is not None:
            weights.mul_(kept)
        return self.product("by query", weights.to(self.v.dtype), self.v[:, :stop])

    def weights_and_gradient(self, grad_out: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The weights of the values and the gradient of the scores before their cap, both [H*G, q, e]."""
        scores, kept = self.scores(start, stop), self.kept(start, stop)
        grad = self.product("gradient", grad_out[:, start:stop], self.v[:, :stop].transpose(1, 2))
        if kept is not None:
            grad.mul_(kept)
        slope = None
        if self.settings.soft_cap:
            # In memory of its own: the scores are overwritten, or become infinite.
            slope = torch.mul(scores, scores, out=self.scratch.take("slope", tuple(scores.shape), scores.dtype))
            slope.mul_(-(self.settings.soft_cap**-2)).add_(1.0)
        if self.settings.softmax:
            weights = self._softmax(self.mask_(scores, start, -torch.inf))
            # The scores are no longer needed: their memory takes the gradient.
            grad = torch.ops.aten._softmax_backward_data.out(grad, weights, -1, grad.dtype, grad_input=scores)
        else:
            torch.ops.aten.silu_backward.grad_input(grad, scores, grad_input=grad)
            self.mask_(grad, start, 0.0)
            weights = self.mask_(F.silu(scores, inplace=True), start, 0.0)
        if slope is not None:
            grad.mul_(slope)
        return weights if kept is None else weights.mul_(kept), grad

    def _softmax(self, scores: Tensor) -> Tensor:
        weights = self.scratch.take("weights", tuple(scores.shape), scores.dtype)
        found: Tensor = torch.ops.aten._softmax.out(scores, -1, False, out=weights)
        return found

    def add_time_gradient(self, grad_HT: Tensor, grad_scores: Tensor, start: int, stop: int) -> None:
        """Add the sums over the pairs of each bucket."""
        assert self.times is not None
        heads, buckets = grad_HT.shape
        if not self.times.ordered or stop < _FEW_KEYS_A_BUCKET * buckets:  # few keys are sooner counted than searched
            pairs = self.times.buckets(start, stop, buckets)
            for grad_T, grad_pairs in zip(grad_HT, grad_scores.view(heads, -1), strict=True):
                grad_T += torch.bincount(pairs, grad_pairs, buckets)
            return
        running = self.scratch.take("other", tuple(grad_scores.shape), grad_scores.dtype)
        torch.cumsum(grad_scores, dim=2, out=running)
        count_GqT = self.times.keys_from_bucket(start, stop, buckets)
        index = (count_GqT - 1).clamp_(min=0).expand(heads, -1, -1, -1)
        sums = torch.gather(running.view(heads, -1, stop - start, stop), 3, index).mul_(count_GqT > 0)
        from_bucket_HT = sums.sum(dim=(1, 2), dtype=torch.float64)
        from_bucket_HT[:, :-1] -= from_bucket_HT[:, 1:].clone()
        grad_HT[:, : from_bucket_HT.shape[1]] += from_bucket_HT


@functools.lru_cache(maxsize=16)
def _future(queries: int, device: torch.device) -> Tensor:
    """bool [q, q], true above the diagonal."""
    return torch.ones(queries, queries, dtype=torch.bool, device=device).triu_(1)
