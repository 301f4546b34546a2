"""Candidates in jagged attention: queries over the events before them, each of which sees itself besides.

The scores of a block have one column more than there are events that it looks at. The product fills it with what
nobody sees, then each query's score with itself takes its place: so the cap, the softmax and dropout treat it as any
other. Before the product with the values the column becomes zero again, and each query's own value is added.

Shapes: H heads · E width of a query or key · F width of a value · G users of a group · m most candidates of a user ·
q queries of a block · e events that the block looks at, and one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from model.attention.dropout import Dropout, mix_
from model.attention.jagged_blocks import Distances, Part
from model.attention.jagged_layout import Block, Candidates
from model.attention.jagged_memory import Gradients


@dataclass(frozen=True)
class OwnGradients(Gradients):
    """Where the gradients of what a candidate has by itself are written."""

    own_k: Tensor
    own_v: Tensor
    own_bias: Tensor | None


@dataclass(frozen=True)
class CandidatePart(Part):
    """The queries are the group's candidates, keys and values the events of the same users."""

    group: Candidates
    keys_Gm: Tensor  # tokens of the keys
    own_k: Tensor  # [H*G, m, E]
    own_v: Tensor  # [H*G, m, F]
    own_bias: Tensor | None  # [H*G, m, 1]

    def raw_scores(self, block: Block) -> Tensor:
        """See `Part`; the last column is each query's own."""
        scores = super().raw_scores(block)
        queries = slice(block.start, block.stop)
        own = self._dot(self.q[:, queries], self.own_k[:, queries])
        scores[:, :, -1:] = own if self.own_bias is None else own.add_(self.own_bias[:, queries])
        return scores

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Products of rows, [H*G, q, 1] of the dtype of scores."""
        dtype = self.settings.dtype
        return (a.to(dtype) * b.to(dtype)).sum(dim=2, keepdim=True)

    def biases(self, block: Block) -> Tensor | None:
        """See `Part`; candidates that ask at one time from one place share a row."""
        if not self._are_alike:
            return super().biases(block)
        row = super().biases(dataclasses.replace(block, stop=block.start + 1))
        if row is None:
            return None
        shape = (row.shape[0], block.stop - block.start, block.keys)
        return self.scratch.take("scores", shape, row.dtype).copy_(row.clone())

    @property
    def _are_alike(self) -> bool:
        """Whether the biases of all candidates of a user are the same."""
        if self.group.is_spread:
            return False
        return self.times is None or bool((self.times.query_Gm == self.times.query_Gm[:, :1]).all())

    def by_distance(self, distances: Distances, block: Block) -> Tensor:
        """See `Part`."""
        places_Gq = self.group.events_Gm[:, block.start : block.stop]
        shape = (self.group.heads, places_Gq.numel(), block.keys)
        rows = distances.rows(places_Gq.flatten(), self.scratch.take("other", shape, self.settings.dtype))
        return rows.view(-1, *places_Gq.shape, block.keys)

    def add_distance_gradient(self, distances: Distances, grad_scores: Tensor, block: Block) -> None:
        """See `Part`."""
        places = self.group.events_Gm[:, block.start : block.stop].flatten()
        distances.add_rows_gradient(places, grad_scores.view(self.group.heads, places.numel(), -1))

    def mask_(self, x: Tensor, block: Block, value: float) -> Tensor:
        """See `Part`; most columns are seen by all queries of the block."""
        number_e = torch.arange(block.seen, block.keys - 1, device=x.device)
        hidden_Gqe = number_e >= self.group.events_Gm[:, block.start : block.stop, None]
        between = x.view(self.group.heads, self.group.users, -1, block.keys)[..., block.seen : -1]
        between.masked_fill_(hidden_Gqe, value)
        return x

    def hashes(self, dropout: Dropout, block: Block) -> Tensor:
        """See `Part`."""
        query = self.query_hashes(dropout, block)
        tokens_Gqe = self.keys_Gm[:, None, : block.keys]
        hashes = query.bitwise_xor(dropout.key_hash(tokens_Gqe))
        own = dropout.key_hash(self.group.tokens_Gm[:, block.start : block.stop, None])
        hashes[..., -1:] = query.bitwise_xor(own)
        return mix_(hashes)

    def attend(self, block: Block) -> Tensor:
        """See `Part`."""
        weights = self.weights(block)
        own_weights = _take_last(weights)
        out = self.product("by query", weights.to(self.v.dtype), self.v[:, : block.keys])
        return out.addcmul_(own_weights, self.own_v[:, block.start : block.stop].to(out.dtype))

    def gradient_of_weights(self, grad_out: Tensor, block: Block) -> Tensor:
        """See `Part`."""
        grad = super().gradient_of_weights(grad_out, block)
        queries = slice(block.start, block.stop)
        grad[:, :, -1:] = self._dot(grad_out[:, queries], self.own_v[:, queries])
        return grad

    def backward(self, grad_out: Tensor, grads: Gradients, block: Block) -> None:
        """See `Part`."""
        assert isinstance(grads, OwnGradients)
        weights, grad_scores = self.weights_and_gradient(grad_out, block)
        own_weights, own_grad = _take_last(weights), _take_last(grad_scores)
        self.add_gradients(weights, grad_scores, grad_out, grads, block)
        queries, dtype = slice(block.start, block.stop), self.settings.dtype
        grads.q[:, queries].addcmul_(own_grad, self.own_k[:, queries].to(dtype))
        torch.mul(own_grad, self.q[:, queries], out=grads.own_k[:, queries])
        torch.mul(own_weights, grad_out[:, queries], out=grads.own_v[:, queries])
        if grads.own_bias is not None:
            grads.own_bias[:, queries] = own_grad


def _take_last(x: Tensor) -> Tensor:
    """The last column, zero being put in its place."""
    last = x[:, :, -1:].clone()
    x[:, :, -1:] = 0.0
    return last
