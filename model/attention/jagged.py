"""Attention for training on a CPU: no [L, L], no padding to the longest user, nothing quadratic kept for the backward.

Users are sorted by length and put in groups of nearly equal ones, padded to the longest of the group. Each group
walks over blocks of queries; a block sees only the keys up to its own end, so most of the triangle above the diagonal
is never computed. A block's scores fit the cache, which is what makes this fast: on a CPU every pass over a large
score matrix costs as much as its matrix product. The backward computes the scores anew.

Work: for histories of median 65 and at most 200, 0.70 of Σn² scores are computed, against 0.5 that the causal mask
needs and 3.4 of a batch padded to its longest user (`padded_scores`). Memory: the scores of one block a few times
over, a block aiming at `CHUNK_SCORES` and never exceeding `MAX_SCORES`.

Matrix products run in the dtype of the inputs. Scores, weights and all sums over blocks are float32 at least.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · T time buckets ·
P places of the layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.attention.jagged_blocks import Distances, Part, Scratch, Settings, Times
from model.attention.jagged_layout import Group, Layout, make_layout
from model.attention.mask import Mask
from model.attention.weighting import Weighting
from model.biases import ScoreBiases


def attend(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """See `model.attention.attention`. Two runs on a CPU give the same bits."""
    wide = torch.promote_types(q_LHE.dtype, torch.float32)
    scale, dropout, normaliser_L = weighting.scale, weighting.dropout, weighting.normaliser_L
    time = biases.time
    out_LHF: Tensor = _Jagged.apply(
        q_LHE if scale == 1.0 else q_LHE * scale,
        k_LHE,
        v_LHF,
        biases.key_bias_LH(wide),
        None if time is None else time.table_HT.to(wide),
        None if biases.position is None else biases.position.table_HP,
        None if time is None else torch.stack((time.query_times_L, time.key_times_L)),
        biases.slopes_H,
        make_layout(tuple(mask.offsets.tolist()), q_LHE.shape[0], q_LHE.shape[1], q_LHE.device),
        Settings(weighting.kind == "softmax", weighting.soft_cap, dropout, wide),
    )
    if dropout is not None:
        out_LHF = out_LHF * dropout.factor
    return out_LHF if normaliser_L is None else (out_LHF / normaliser_L[:, None, None]).to(q_LHE.dtype)


class _Inputs:
    """The inputs of all groups, gathered to their places."""

    def __init__(self, tensors: tuple[Tensor | None, ...], layout: Layout, settings: Settings) -> None:
        q_LHE, k_LHE, v_LHF, key_bias_LH, self.table_HT, table_HP, self.times_2L, slopes_H = tensors
        assert q_LHE is not None
        assert k_LHE is not None
        assert v_LHF is not None
        self.settings = settings
        self.q_PE, self.k_PE, self.v_PF = layout.gather(q_LHE), layout.gather(k_LHE), layout.gather(v_LHF)
        self.key_bias_P1 = None if key_bias_LH is None else layout.gather(key_bias_LH[:, :, None])
        self.distances = None
        if layout.groups and (slopes_H is not None or table_HP is not None):
            self.distances = Distances(slopes_H, table_HP, layout, settings.dtype)
        widest = max(q_LHE.shape[2], v_LHF.shape[2])
        sizes = (g.heads * g.users * g.longest * max(g.block, widest) for g in layout.groups)
        self.scratch = Scratch(max(sizes, default=0), q_LHE.device)

    def of(self, group: Group) -> Part:
        return Part(
            group=group,
            settings=self.settings,
            scratch=self.scratch,
            q=group.cut(self.q_PE),
            k=group.cut(self.k_PE),
            v=group.cut(self.v_PF),
            key_bias=None if self.key_bias_P1 is None else group.cut(self.key_bias_P1),
            table_HT=self.table_HT,
            times=None if self.times_2L is None else Times.of(self.times_2L, group),
            distances=self.distances,
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
        table_HP: Tensor | None,
        times_2L: Tensor | None,
        slopes_H: Tensor | None,
        layout: Layout,
        settings: Settings,
    ) -> Tensor:
        tensors = (q_LHE, k_LHE, v_LHF, key_bias_LH, table_HT, table_HP, times_2L, slopes_H)
        ctx.save_for_backward(*tensors)
        ctx.layout, ctx.settings = layout, settings
        inputs = _Inputs(tensors, layout, settings)
        out_PF = layout.zeros(inputs.v_PF)
        for group in layout.groups:
            part, out = inputs.of(group), group.cut(out_PF)
            for start, stop in group.blocks():
                out[:, start:stop] = part.attend(start, stop)
        return layout.scatter(out_PF, v_LHF)

    @staticmethod
    def backward(ctx: Any, grad_out_LHF: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        inputs = _Inputs(ctx.saved_tensors, layout, ctx.settings)
        grad_out_PF = layout.gather(grad_out_LHF).index_fill_(0, layout.padding, 0.0)
        places = (inputs.q_PE, inputs.k_PE, inputs.v_PF, inputs.key_bias_P1)
        grads = [None if x is None else layout.zeros(x, ctx.settings.dtype) for x in places]
        table_HT, table_HP = ctx.saved_tensors[4:6]
        grad_HT = None if table_HT is None else torch.zeros_like(table_HT, dtype=torch.float64)
        for group in layout.groups:
            parts = [None if grad is None else group.cut(grad) for grad in grads]
            _backward_group(inputs.of(group), group.cut(grad_out_PF), parts, grad_HT)
        q, k, v, key_bias = (
            None if grad is None else layout.scatter(grad, like if like.dim() == 3 else like[:, :, None]).to(like.dtype)
            for grad, like in zip(grads, ctx.saved_tensors[:4], strict=True)
        )
        grad_HP = None if table_HP is None else torch.zeros_like(table_HP)
        if inputs.distances is not None:
            grad_HP = inputs.distances.table_gradient()
        key_bias = None if key_bias is None else key_bias[:, :, 0]
        return q, k, v, key_bias, None if grad_HT is None else grad_HT.to(table_HT.dtype), grad_HP, *[None] * 4


def _backward_group(part: Part, grad_out: Tensor, grads: list[Tensor | None], grad_HT: Tensor | None) -> None:
    """Write the gradients of one group's q, k, v and key bias to `grads`, add those of the tables."""
    grad_q, grad_k, grad_v, grad_bias = grads
    assert grad_q is not None
    assert grad_k is not None
    assert grad_v is not None
    dtype = grad_out.dtype
    for start, stop in part.group.blocks():
        weights, grad_scores = part.weights_and_gradient(grad_out, start, stop)
        # Not baddbmm_: on a slice it falls back to one product per user.
        grad_v[:, :stop] += part.product("by key", weights.to(dtype).transpose(1, 2), grad_out[:, start:stop])
        narrow = grad_scores.to(dtype)
        grad_q[:, start:stop] = part.product("by query", narrow, part.k[:, :stop])
        grad_k[:, :stop] += part.product("by key", narrow.transpose(1, 2), part.q[:, start:stop])
        if grad_bias is not None:
            grad_bias[:, :stop, 0] += grad_scores.sum(dim=1)
        if part.distances is not None and part.distances.grad_HAZ is not None:
            into_Hqe = part.distances.cut(part.distances.grad_HAZ, start, stop)
            into_Hqe += grad_scores.view(into_Hqe.shape[0], -1, stop - start, stop).sum(dim=1)
        if grad_HT is not None:
            part.add_time_gradient(grad_HT, grad_scores, start, stop)
