"""The scores of a block of queries of jagged attention, with everything that is added to them or done to them.

A learned bias by time would cost as much as two matrix products in the backward if its gradient were summed pair by
pair. But the keys of a user stand in the order of time, so that a query's keys of one bucket stand side by side: sums
over buckets are differences of running sums, taken at as many places as there are buckets.

What depends on the distance of query and key only (ALiBi, learned positions) is laid out once for all blocks: the
block of another start is a slice of the same matrix. Candidates may stand at any places: each of their rows is cut
from one that is longer.

Shapes: L tokens · H heads · E width of a query or key · F width of a value · G users of a group ·
m tokens of the group's longest user · q queries of a block · e keys that the block looks at · T time buckets ·
P distances of a position bias · A most queries of a block · Z columns of the matrix by distance ·
Y columns of the row by distance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention.dropout import Dropout, mix_
from model.attention.jagged_layout import Block, Group, Layout
from model.attention.jagged_memory import Gradients, Scratch
from model.attention.jagged_times import Times


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


class Distances:
    """Biases by the distance i - j, as a matrix from which the blocks are cut, and the gradient of it."""

    def __init__(self, slopes_H: Tensor | None, table_HP: Tensor | None, layout: Layout, dtype: torch.dtype) -> None:
        """Builds the matrix."""
        self.table_HP = table_HP
        self.grad_HP: Tensor | None = None
        self.last_start = max((block.start for group in layout.groups for block in group.blocks[-1:]), default=0)
        most = max(group.block for group in layout.groups)
        row_A1 = torch.arange(most, device=layout.rows_P.device)[:, None]
        column_Z = torch.arange(self.last_start + most, device=layout.rows_P.device)
        # The future's distances are negative and masked.
        self.distance_AZ = (self.last_start + row_A1 - column_Z).clamp_(min=0)
        self.bias_HAZ = self._bias(self.distance_AZ, slopes_H, layout.groups[0].heads, dtype)
        self.grad_HAZ = torch.zeros_like(self.bias_HAZ) if table_HP is not None else None
        if layout.candidates:
            self.farthest = max(group.longest for group in layout.groups)
            distance_Y = (self.farthest - torch.arange(2 * self.farthest + 1, device=row_A1.device)).clamp_(min=0)
            self.bias_HY = self._bias(distance_Y, slopes_H, layout.groups[0].heads, dtype)
            if table_HP is not None:
                self.grad_HP = torch.zeros_like(table_HP, dtype=dtype)

    def _bias(self, distance: Tensor, slopes_H: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor:
        """[H, …]."""
        bias = distance.new_zeros((heads, *distance.shape), dtype=dtype)
        if slopes_H is not None:
            bias.sub_(slopes_H.to(dtype).view(-1, *[1] * distance.dim()) * distance)
        if self.table_HP is not None:
            bias.add_(self.table_HP.to(dtype)[:, distance.clamp(max=self.table_HP.shape[1] - 1)])
        return bias

    def cut(self, x_HAZ: Tensor, block: Block) -> Tensor:
        """The block of the queries start … stop-1: [H, q, e]."""
        first = self.last_start - block.start
        return x_HAZ[:, : block.stop - block.start, first : first + block.keys]

    def rows(self, places: Tensor, out: Tensor) -> Tensor:
        """A row for each of the places, of the distances to the events 0, 1 …, into `out`: [H, places, e]."""
        first = self.farthest - places
        for bias_Y, rows in zip(self.bias_HY, out, strict=True):
            torch.index_select(bias_Y.unfold(0, out.shape[2], 1), 0, first, out=rows)
        return out

    def add_rows_gradient(self, places: Tensor, grad: Tensor) -> None:
        """Add the gradient of `rows`."""
        if self.table_HP is None:
            return
        assert self.grad_HP is not None
        distances = places[:, None] - torch.arange(grad.shape[2], device=places.device)
        buckets = distances.clamp_(0, self.table_HP.shape[1] - 1).flatten()
        for sums_P, rows in zip(self.grad_HP, grad, strict=True):
            sums_P += torch.bincount(buckets, rows.flatten(), self.table_HP.shape[1])

    def table_gradient(self) -> Tensor | None:
        """[H, P]."""
        if self.table_HP is None:
            return None
        assert self.grad_HAZ is not None
        buckets = self.distance_AZ.clamp(max=self.table_HP.shape[1] - 1).flatten()
        sums = [torch.bincount(buckets, grad.flatten(), self.table_HP.shape[1]) for grad in self.grad_HAZ]
        total_HP = torch.stack(sums)
        if self.grad_HP is not None:
            total_HP += self.grad_HP
        return total_HP.to(self.table_HP.dtype)


_FEW_KEYS_A_BUCKET = 4


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

    def scores(self, block: Block) -> Tensor:
        """Scores [H*G, q, e] of a block of queries, capped, not masked."""
        scores = self.raw_scores(block)
        if self.settings.soft_cap:
            scores.div_(self.settings.soft_cap).tanh_().mul_(self.settings.soft_cap)
        return scores

    def raw_scores(self, block: Block) -> Tensor:
        """Scores before their cap, [H*G, q, e]."""
        scores = self.biases(block)
        q, k_transposed = self.q[:, block.start : block.stop], self.k[:, : block.keys].transpose(1, 2)
        if scores is None:
            return self.product("scores", q, k_transposed)
        if q.dtype == scores.dtype:
            return scores.baddbmm_(q, k_transposed)  # the sum costs nothing beside the product
        return scores.add_(torch.bmm(q, k_transposed))

    def biases(self, block: Block) -> Tensor | None:
        """What is added to the scores, [H*G, q, e], in the memory of scores; None where there is nothing."""
        if self.times is None and self.distances is None and self.key_bias is None:
            return None
        heads, q, e = self.group.heads, block.stop - block.start, block.keys
        biases = self.scratch.take("scores", (heads * self.group.users, q, e), self.settings.dtype)
        if self.times is not None:
            assert self.table_HT is not None
            index = self.times.buckets(block, self.table_HT.shape[1]).expand(heads, -1)
            torch.gather(self.table_HT, 1, index, out=biases.view(heads, -1))
        if self.distances is not None:
            biases_HGqe = biases.view(heads, -1, q, e)
            (biases_HGqe.copy_ if self.times is None else biases_HGqe.add_)(self.by_distance(self.distances, block))
        if self.key_bias is not None:
            alone = self.times is None and self.distances is None
            (biases.copy_ if alone else biases.add_)(self.key_bias[:, :e].transpose(1, 2))
        return biases

    def by_distance(self, distances: Distances, block: Block) -> Tensor:
        """What is added by distance, [H, G or 1, q, e]."""
        return distances.cut(distances.bias_HAZ, block)[:, None]

    def mask_(self, x: Tensor, block: Block, value: float) -> Tensor:
        """Put `value`, 0 or -inf, in the future of a block's queries: only its last columns reach there."""
        if value == 0.0:
            return x.tril_(block.start)
        corner = x[:, :, block.start :]
        corner.masked_fill_(_future(corner.shape[1], x.device), value)
        return x

    def hashes(self, dropout: Dropout, block: Block) -> Tensor:
        """What tells the pairs that dropout keeps, [H, G, q, e]."""
        query = self.query_hashes(dropout, block)
        return mix_(query.bitwise_xor(dropout.key_hash(self.group.tokens_Gm[:, None, : block.keys])))

    def query_hashes(self, dropout: Dropout, block: Block) -> Tensor:
        """[H, G, q, 1]."""
        head_H111 = torch.arange(self.group.heads, device=self.q.device)[:, None, None, None]
        return dropout.query_hash(head_H111, self.group.tokens_Gm[:, block.start : block.stop, None])

    def kept(self, block: Block) -> Tensor | None:
        """What dropout leaves, [H*G, q, e] of the dtype of scores."""
        dropout = self.settings.dropout
        if dropout is None:
            return None
        kept = self.hashes(dropout, block) >= dropout.threshold
        return kept.to(self.settings.dtype).view(-1, block.stop - block.start, block.keys)

    def attend(self, block: Block) -> Tensor:
        """[H*G, q, F]."""
        return self.product("by query", self.weights(block).to(self.v.dtype), self.v[:, : block.keys])

    def weights(self, block: Block) -> Tensor:
        """The weights of the values, [H*G, q, e]."""
        scores = self.scores(block)
        if self.settings.softmax:
            weights = self._softmax(self.mask_(scores, block, -torch.inf))
        else:
            weights = self.mask_(F.silu(scores, inplace=True), block, 0.0)
        kept = self.kept(block)
        return weights if kept is None else weights.mul_(kept)

    def gradient_of_weights(self, grad_out: Tensor, block: Block) -> Tensor:
        """[H*G, q, e]."""
        return self.product("gradient", grad_out[:, block.start : block.stop], self.v[:, : block.keys].transpose(1, 2))

    def weights_and_gradient(self, grad_out: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """The weights of the values and the gradient of the scores before their cap, both [H*G, q, e]."""
        scores, kept = self.scores(block), self.kept(block)
        grad = self.gradient_of_weights(grad_out, block)
        if kept is not None:
            grad.mul_(kept)
        slope = None
        if self.settings.soft_cap:
            # In memory of its own: the scores are overwritten, or become infinite.
            slope = torch.mul(scores, scores, out=self.scratch.take("slope", tuple(scores.shape), scores.dtype))
            slope.mul_(-(self.settings.soft_cap**-2)).add_(1.0)
        if self.settings.softmax:
            weights = self._softmax(self.mask_(scores, block, -torch.inf))
            # The scores are no longer needed: their memory takes the gradient.
            grad = torch.ops.aten._softmax_backward_data.out(grad, weights, -1, grad.dtype, grad_input=scores)
        else:
            torch.ops.aten.silu_backward.grad_input(grad, scores, grad_input=grad)
            self.mask_(grad, block, 0.0)
            weights = self.mask_(F.silu(scores, inplace=True), block, 0.0)
        if slope is not None:
            grad.mul_(slope)
        return weights if kept is None else weights.mul_(kept), grad

    def _softmax(self, scores: Tensor) -> Tensor:
        weights = self.scratch.take("weights", tuple(scores.shape), scores.dtype)
        found: Tensor = torch.ops.aten._softmax.out(scores, -1, False, out=weights)
        return found

    def backward(self, grad_out: Tensor, grads: Gradients, block: Block) -> None:
        """Gradients of a block of queries, of [H*G, m, F] of its part's results."""
        self.add_gradients(*self.weights_and_gradient(grad_out, block), grad_out, grads, block)

    def add_gradients(
        self, weights: Tensor, grad_scores: Tensor, grad_out: Tensor, grads: Gradients, block: Block
    ) -> None:
        """From the scores' gradient to that of all that they were made from."""
        queries, keys = slice(block.start, block.stop), slice(block.keys)
        dtype = grad_out.dtype
        # Not baddbmm_: on a slice it falls back to one product per user.
        grads.v[:, keys] += self.product("by key", weights.to(dtype).transpose(1, 2), grad_out[:, queries])
        narrow = grad_scores.to(dtype)
        grads.q[:, queries] = self.product("by query", narrow, self.k[:, keys])
        grads.k[:, keys] += self.product("by key", narrow.transpose(1, 2), self.q[:, queries])
        if grads.key_bias is not None:
            grads.key_bias[:, keys, 0] += grad_scores.sum(dim=1)
        if self.distances is not None:
            self.add_distance_gradient(self.distances, grad_scores, block)
        if grads.table_HT is not None:
            self.add_time_gradient(grads.table_HT, grad_scores, block)

    def add_distance_gradient(self, distances: Distances, grad_scores: Tensor, block: Block) -> None:
        """Add the gradient of `by_distance`."""
        if distances.grad_HAZ is not None:
            into_Hqe = distances.cut(distances.grad_HAZ, block)
            into_Hqe += grad_scores.view(into_Hqe.shape[0], -1, *into_Hqe.shape[1:]).sum(dim=1)

    def add_time_gradient(self, grad_HT: Tensor, grad_scores: Tensor, block: Block) -> None:
        """Add the sums over the pairs of each bucket."""
        assert self.times is not None
        heads, buckets = grad_HT.shape
        few = block.keys < _FEW_KEYS_A_BUCKET * buckets  # are sooner counted than searched
        if not self.times.ordered or few:
            pairs = self.times.buckets(block, buckets)
            for grad_T, grad_pairs in zip(grad_HT, grad_scores.view(heads, -1), strict=True):
                grad_T += torch.bincount(pairs, grad_pairs, buckets)
            return
        running = self.scratch.take("other", tuple(grad_scores.shape), grad_scores.dtype)
        torch.cumsum(grad_scores, dim=2, out=running)
        count_GqT = self.times.keys_from_bucket(block, buckets)
        index = (count_GqT - 1).clamp_(min=0).expand(heads, -1, -1, -1)
        sums = torch.gather(running.view(heads, -1, *grad_scores.shape[1:]), 3, index).mul_(count_GqT > 0)
        from_bucket_HT = sums.sum(dim=(1, 2), dtype=torch.float64)
        from_bucket_HT[:, :-1] -= from_bucket_HT[:, 1:].clone()
        grad_HT[:, : from_bucket_HT.shape[1]] += from_bucket_HT


@functools.lru_cache(maxsize=16)
def _future(queries: int, device: torch.device) -> Tensor:
    """bool [q, q], true above the diagonal."""
    return torch.ones(queries, queries, dtype=torch.bool, device=device).triu_(1)
