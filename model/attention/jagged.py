"""Attention for training on a CPU: no [L, L], no padding to the longest user, nothing quadratic kept for the backward.

Users are sorted by length and put in groups of nearly equal ones, padded to the longest of the group. Each group
walks over blocks of queries; a block sees only the keys up to its own end, so most of the triangle above the diagonal
is never computed. A block's scores fit the cache, which is what makes this fast: on a CPU every pass over a large
score matrix costs as much as its matrix product. The backward computes the scores anew.

Work: for histories of median 65 and at most 200, 0.70 of Σn² scores are computed, against 0.5 that the causal mask
needs and 3.4 of a batch padded to its longest user (`padded_scores`). Memory: the scores of one block a few times
over, a block aiming at `CHUNK_SCORES` and never exceeding `MAX_SCORES`.

Tokens that are alone are no keys: they are queries over their user's other tokens (`jagged_candidates`).

Matrix products run in the dtype of the inputs. Scores, weights and all sums over blocks are float32 at least.

Shapes: B users · L tokens · H heads · E width of a query or key · F width of a value · T time buckets ·
P places of the layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from model.attention.jagged_blocks import Distances, Part, Settings
from model.attention.jagged_candidates import CandidatePart, OwnGradients
from model.attention.jagged_layout import Group, Layout, make_layout
from model.attention.jagged_memory import Gradients, Scratch
from model.attention.jagged_times import Times
from model.attention.weighting import Weighting
from model.biases import ScoreBiases
from model.mask import Mask


def attend(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """See `model.attention.attention`. Two runs on a CPU give the same bits."""
    wide = torch.promote_types(q_LHE.dtype, torch.float32)
    scale, dropout, normaliser_L = weighting.scale, weighting.dropout, weighting.normaliser_L
    time = biases.time
    alone = None
    if mask.alone_L is not None and mask.alone_L.any():
        alone = mask.alone_L.cpu().numpy().tobytes()
    out_LHF: Tensor = _Jagged.apply(
        q_LHE if scale == 1.0 else q_LHE * scale,
        k_LHE,
        v_LHF,
        biases.key_bias_LH(wide),
        None if alone is None else biases.own_bias_LH(q_LHE.shape[0], wide),
        None if time is None else time.table_HT.to(wide),
        None if biases.position is None else biases.position.table_HP,
        None if time is None else torch.stack((time.query_times_L, time.key_times_L)),
        biases.slopes_H,
        make_layout(tuple(mask.offsets.tolist()), q_LHE.shape[0], q_LHE.shape[1], q_LHE.device, alone),
        Settings(weighting.kind == "softmax", weighting.soft_cap, dropout, wide),
    )
    if dropout is not None:
        out_LHF = out_LHF * dropout.factor
    return out_LHF if normaliser_L is None else (out_LHF / normaliser_L[:, None, None]).to(q_LHE.dtype)


class _Inputs:
    """The inputs of all groups, gathered to their places."""

    def __init__(self, tensors: tuple[Tensor | None, ...], layout: Layout, settings: Settings) -> None:
        q_LHE, k_LHE, v_LHF, key_bias_LH, own_bias_LH, self.table_HT, table_HP, self.times_2L, slopes_H = tensors
        assert q_LHE is not None
        assert k_LHE is not None
        assert v_LHF is not None
        self.layout, self.settings = layout, settings
        self.q_PE, self.k_PE, self.v_PF = layout.gather(q_LHE), layout.gather(k_LHE), layout.gather(v_LHF)
        self.key_bias_P1, self.own_bias_P1 = (
            None if x is None else layout.gather(x[:, :, None]) for x in (key_bias_LH, own_bias_LH)
        )
        self.distances = None
        if layout.groups and (slopes_H is not None or table_HP is not None):
            self.distances = Distances(slopes_H, table_HP, layout, settings.dtype)
        widest = max(q_LHE.shape[2], v_LHF.shape[2])
        sizes = (group.most_numbers(widest) for group in (*layout.groups, *layout.candidates))
        self.scratch = Scratch(q_LHE.device, max(sizes, default=0))

    def parts(self) -> Iterator[tuple[Group, Part]]:
        """Each group's events, then its candidates; with the group of their keys."""
        for number, keys in enumerate(self.layout.groups):
            yield keys, Part(**self._common(keys, keys))
            if self.layout.candidates:
                group = self.layout.candidates[number]
                own: dict[str, Any] = {
                    "keys_Gm": keys.tokens_Gm,
                    "own_k": group.cut(self.k_PE),
                    "own_v": group.cut(self.v_PF),
                    "own_bias": _cut(self.own_bias_P1, group),
                }
                yield keys, CandidatePart(**self._common(group, keys), **own)

    def _common(self, group: Group, keys: Group) -> dict[str, Any]:
        return {
            "group": group,
            "settings": self.settings,
            "scratch": self.scratch,
            "q": group.cut(self.q_PE),
            "k": keys.cut(self.k_PE),
            "v": keys.cut(self.v_PF),
            "key_bias": _cut(self.key_bias_P1, keys),
            "table_HT": self.table_HT,
            "times": None if self.times_2L is None else Times.of(self.times_2L, group, keys),
            "distances": self.distances,
        }


def _cut(x_P1: Tensor | None, group: Group) -> Tensor | None:
    return None if x_P1 is None else group.cut(x_P1)


class _Jagged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_LHE: Tensor,
        k_LHE: Tensor,
        v_LHF: Tensor,
        key_bias_LH: Tensor | None,
        own_bias_LH: Tensor | None,
        table_HT: Tensor | None,
        table_HP: Tensor | None,
        times_2L: Tensor | None,
        slopes_H: Tensor | None,
        layout: Layout,
        settings: Settings,
    ) -> Tensor:
        tensors = (q_LHE, k_LHE, v_LHF, key_bias_LH, own_bias_LH, table_HT, table_HP, times_2L, slopes_H)
        ctx.save_for_backward(*tensors)
        ctx.layout, ctx.settings = layout, settings
        inputs = _Inputs(tensors, layout, settings)
        out_PF = layout.zeros(inputs.v_PF)
        for _, part in inputs.parts():
            out = part.group.cut(out_PF)
            for block in part.group.blocks:
                out[:, block.start : block.stop] = part.attend(block)
        return layout.scatter(out_PF, v_LHF)

    @staticmethod
    def backward(ctx: Any, grad_out_LHF: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        inputs = _Inputs(ctx.saved_tensors, layout, ctx.settings)
        grad_out_PF = layout.gather(grad_out_LHF).index_fill_(0, layout.padding, 0.0)
        places = (inputs.q_PE, inputs.k_PE, inputs.v_PF, inputs.key_bias_P1, inputs.own_bias_P1)
        grads = [None if x is None else layout.zeros(x, ctx.settings.dtype) for x in places]
        table_HT, table_HP = ctx.saved_tensors[5:7]
        grad_HT = None if table_HT is None else torch.zeros_like(table_HT, dtype=torch.float64)
        for keys, part in inputs.parts():
            part_grads = _gradients(part, keys, grads, grad_HT)
            for block in part.group.blocks:
                part.backward(part.group.cut(grad_out_PF), part_grads, block)
        found = [
            None if grad is None else layout.scatter(grad, like).to(like.dtype)
            for grad, like in zip(grads, ctx.saved_tensors[:5], strict=True)
        ]
        grad_HP = None if table_HP is None else torch.zeros_like(table_HP)
        if inputs.distances is not None:
            grad_HP = inputs.distances.table_gradient()
        return *found, None if grad_HT is None else grad_HT.to(table_HT.dtype), grad_HP, *[None] * 4


def _gradients(part: Part, keys: Group, grads: list[Tensor | None], grad_HT: Tensor | None) -> Gradients:
    """A part's share of the gradients at all places: of q, k, v, of the bias by key and of each token's own."""
    q, k, v, key_bias, own_bias = grads
    assert q is not None
    assert k is not None
    assert v is not None
    group = part.group
    found = Gradients(group.cut(q), keys.cut(k), keys.cut(v), _cut(key_bias, keys), grad_HT)
    if group is keys:
        return found
    return OwnGradients(**vars(found), own_k=group.cut(k), own_v=group.cut(v), own_bias=_cut(own_bias, group))
