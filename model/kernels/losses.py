"""Cross-entropies in the memory of their logits, in one reading where PyTorch's operators take several.

Where there are no kernels, PyTorch's operators do the same.

Shapes: t rows · V columns · M negatives · G rows of negatives: t, or 1 that all share · T rows · D width.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.kernels.calls import kernels_for, place, real, whole


def cross_entropy_(logits_tV: Tensor, target_t: Tensor) -> tuple[Tensor, Tensor]:
    """−log softmax at the target, and whether no logit is larger (ties count), both summed over rows.

    Args:
        logits_tV: contiguous; become the loss's gradient, softmax − one-hot.
        target_t: int64.

    Returns:
        Nats, 0-d; hits, int64 0-d.
    """
    kernels = kernels_for(logits_tV)
    if kernels is not None:
        loss_t, hit_t = logits_tV.new_empty(len(logits_tV)), target_t.new_empty(len(logits_tV), dtype=torch.bool)
        rows, columns = (whole(size) for size in logits_tV.shape)
        target_t = target_t.contiguous()
        kernels.segue_cross_entropy(place(logits_tV), place(target_t), rows, columns, place(loss_t), place(hit_t))
        return loss_t.sum(), hit_t.sum()
    target_t1 = target_t[:, None]
    target_logit_t1, largest_t1 = logits_tV.gather(1, target_t1), logits_tV.amax(dim=1, keepdim=True)
    p_tV = logits_tV.copy_(torch.softmax(logits_tV, dim=1))
    # The largest probability is 1 / Σ exp(logit - largest), never zero: the log-sum-exp without its own pass.
    loss = (largest_t1 - p_tV.amax(dim=1, keepdim=True).log() - target_logit_t1).sum()
    p_tV.scatter_add_(1, target_t1, p_tV.new_full((1, 1), -1.0).expand_as(target_t1))
    return loss, (target_logit_t1 >= largest_t1).sum()


def sampled_cross_entropy_(
    scores_tM: Tensor,
    negatives_GM: Tensor,
    offsets_GM: Tensor | None,
    positives_t: Tensor,
    positive_t: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """−log of the target's share in the softmax over itself and its negatives, and hits, both summed over rows.

    A logit is scale · score, a negative's offset added; a negative that is the target itself is left out. A hit is a
    target whose score, offsets apart, no negative exceeds.

    Args:
        scores_tM: of the negatives, contiguous; become the loss's gradient of them.
        negatives_GM: int64, which items they are.
        offsets_GM: what is added to their logits; None where nothing is.
        positives_t: int64, which items the targets are.
        positive_t: their scores; become the loss's gradient of them.
    """
    kernels = kernels_for(scores_tM, positive_t)
    if kernels is not None:
        rows, negatives = (whole(size) for size in scores_tM.shape)
        ids_GM, targets_t = negatives_GM.int().contiguous(), positives_t.int()
        offsets_GM = None if offsets_GM is None else offsets_GM.contiguous()
        loss_t, hit_t = torch.empty_like(positive_t), positives_t.new_empty(len(scores_tM), dtype=torch.bool)
        kernels.segue_sampled_cross_entropy(
            place(scores_tM),
            place(ids_GM),
            place(offsets_GM),
            whole(0 if len(negatives_GM) == 1 else negatives_GM.shape[1]),
            place(targets_t),
            place(positive_t),
            rows,
            negatives,
            real(scale),
            place(loss_t),
            place(hit_t),
        )
        return loss_t.sum(), hit_t.sum()
    scores_tM.mul_(scale).masked_fill_(negatives_GM == positives_t[:, None], -torch.inf)
    target_t1 = positive_t[:, None] * scale
    hits = (target_t1 >= scores_tM.amax(dim=1, keepdim=True)).sum()
    if offsets_GM is not None:
        scores_tM += offsets_GM
    logits_tJ = torch.cat((target_t1, scores_tM), dim=1)
    p_tJ = torch.softmax(logits_tJ, dim=1)
    loss = (logits_tJ.amax(dim=1, keepdim=True) - p_tJ.amax(dim=1, keepdim=True).log() - target_t1).sum()
    torch.mul(p_tJ[:, 1:], scale, out=scores_tM)
    positive_t.copy_((p_tJ[:, 0] - 1) * scale)
    return loss, hits


# ── with the linear layer before it ──────────────────────────────────────────────────────────────────────

_MOST_OUTPUTS = 2048
_MOST_WIDTH = 512
"""Beyond these a block's logits or weights leave the caches, and PyTorch's products are as good."""


class _LinearLoss(ctypes.Structure):
    """`SegueLinearLoss`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "width", "outputs", "parts")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "panels", "slices", "x_slices", "logits")),
        ("scale", ctypes.c_float),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("bias", "targets", "ids", "target_ids", "positive"),
                *("loss", "hit", "grad_x", "grad_weight", "grad_bias"),
            )
        ),
    ]


@dataclass(frozen=True)
class LinearLoss:
    """Sums over rows, and gradients of the loss; None where nobody asked.

    Args:
        loss: nats, 0-d.
        correct: int64 0-d, hits.
        grad_x_TD, grad_weight_VD, grad_bias_V: of what came in.
    """

    loss: Tensor
    correct: Tensor
    grad_x_TD: Tensor | None
    grad_weight_VD: Tensor | None
    grad_bias_V: Tensor | None


def linear_loss_kernels(x_TD: Tensor, weight_VD: Tensor) -> ctypes.CDLL | None:
    """The kernels, where a linear layer of this size and its loss are one of them."""
    if weight_VD.shape[0] > _MOST_OUTPUTS or weight_VD.shape[1] > _MOST_WIDTH or not len(x_TD):
        return None
    return kernels_for(x_TD, weight_VD)


def linear_cross_entropy(
    kernels: ctypes.CDLL,
    x_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    scale: float,
    *,
    with_gradient: bool,
    targets_T: Tensor | None = None,
    negatives: tuple[Tensor, Tensor, Tensor] | None = None,
) -> LinearLoss:
    """Cross-entropy of logits `scale · x Wᵀ + b` and its gradients.

    Args:
        targets_T: int64, which output is the target.
        negatives: instead, where outputs are negatives of targets elsewhere: int64 [V], which items they are; int64
            [T], which the targets are; [T], the targets' scores, which become the loss's gradient of them. Their logits
            are `scale` · score; the gradients of x and of the weights are then of these outputs alone.
    """
    tile, rows, width = kernels.segue_tile_columns(), kernels.segue_linear_loss_rows(), x_TD.shape[1]
    parts = min(torch.get_num_threads(), -(-len(x_TD) // rows))
    x_TD, weight_VD = _wide(x_TD, tile), _wide(weight_VD, tile)
    outputs = len(weight_VD)
    columns = -(-outputs // tile) * tile
    new = x_TD.new_empty
    loss_T, hit_T = new(len(x_TD)), new(len(x_TD), dtype=torch.bool)
    call = _LinearLoss(rows=len(x_TD), width=x_TD.shape[1], outputs=outputs, parts=parts, scale=scale)
    tensors: dict[str, Tensor | None] = {
        "x": x_TD,
        "weight": weight_VD,
        "panels": new(columns, x_TD.shape[1]),
        "slices": torch.empty_like(weight_VD),
        "x_slices": new(parts, rows, x_TD.shape[1]),
        "logits": new(parts, rows, columns),
        "bias": None if bias_V is None else bias_V.contiguous(),
        "loss": loss_T,
        "hit": hit_T,
    }
    if targets_T is not None:
        tensors["targets"] = targets_T.contiguous()
    else:
        assert negatives is not None
        ids_V, target_ids_T, positive_T = negatives
        tensors |= {"ids": ids_V.int(), "target_ids": target_ids_T.int(), "positive": positive_T}
    grad_x_TD, grads_pVD, grad_bias_pV = None, None, None
    if with_gradient:
        grad_x_TD, grads_pVD = torch.zeros_like(x_TD), x_TD.new_zeros(parts, *weight_VD.shape)
        if bias_V is not None and targets_T is not None:
            grad_bias_pV = x_TD.new_zeros(parts, outputs)
    tensors |= {"grad_x": grad_x_TD, "grad_weight": grads_pVD, "grad_bias": grad_bias_pV}
    for name, tensor in tensors.items():
        setattr(call, name, place(tensor))
    kernels.segue_linear_loss(ctypes.byref(call))
    factor = scale if targets_T is not None else 1.0  # the gradients of negatives have it already
    return LinearLoss(
        loss_T.sum(),
        hit_T.sum(),
        None if grad_x_TD is None else _narrow(grad_x_TD, width).mul_(factor),
        None if grads_pVD is None else _narrow(_summed(grads_pVD), width).mul_(factor),
        None if grad_bias_pV is None else _summed(grad_bias_pV),
    )


def _summed(x_pn: Tensor) -> Tensor:
    """Over parts."""
    return x_pn[0] if len(x_pn) == 1 else x_pn.sum(dim=0)


# ── negatives of each target's own ───────────────────────────────────────────────────────────────────────

_MOST_GRADIENTS = 2**25
"""Numbers of the rows' gradients, of which each thread has its own: 128 MB."""


class _SampledLoss(ctypes.Structure):
    """`SegueSampledLoss`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("targets", "width", "items", "negatives", "parts")),
        *((name, ctypes.c_void_p) for name in ("x", "rows", "target_ids", "ids", "offsets")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("scores", "loss", "hit", "grad_x", "grad_rows")),
    ]


def sampled_loss_kernels(x_TD: Tensor, rows_dD: Tensor) -> ctypes.CDLL | None:
    """The kernels, where each target's own negatives are read from so many rows."""
    if rows_dD.numel() * torch.get_num_threads() > _MOST_GRADIENTS or not len(x_TD):
        return None
    return kernels_for(x_TD, rows_dD)


def own_negatives_cross_entropy(
    kernels: ctypes.CDLL,
    x_TD: Tensor,
    rows_dD: Tensor,
    targets_T: Tensor,
    negatives_TM: Tensor,
    offsets_d: Tensor | None,
    scale: float,
    *,
    with_gradient: bool,
) -> LinearLoss:
    """`sampled_cross_entropy_` of x with rows, and its gradients, through targets and negatives alike.

    Args:
        targets_T, negatives_TM: int64, places among the rows.
        offsets_d: added to a row's logit where it is a negative; None where nothing is.
    """
    width, parts = x_TD.shape[1], min(torch.get_num_threads(), len(x_TD))
    x_TD, rows_dD = (_wide(x, kernels.segue_lanes()) for x in (x_TD, rows_dD))
    new = x_TD.new_empty
    loss_T, hit_T = new(len(x_TD)), new(len(x_TD), dtype=torch.bool)
    grad_x_TD, grads_pdD = None, None
    if with_gradient:
        grad_x_TD, grads_pdD = torch.zeros_like(x_TD), x_TD.new_zeros(parts, *rows_dD.shape)
    tensors = {
        "x": x_TD,
        "rows": rows_dD,
        "target_ids": targets_T.int(),
        "ids": negatives_TM.int().contiguous(),
        "offsets": None if offsets_d is None else offsets_d.contiguous(),
        "scores": new(parts, 2, negatives_TM.shape[1]),
        "loss": loss_T,
        "hit": hit_T,
        "grad_x": grad_x_TD,
        "grad_rows": grads_pdD,
    }
    call = _SampledLoss(
        targets=len(x_TD),
        width=x_TD.shape[1],
        items=len(rows_dD),
        negatives=negatives_TM.shape[1],
        parts=parts,
        scale=scale,
    )
    for name, tensor in tensors.items():
        setattr(call, name, place(tensor))
    kernels.segue_sampled_loss(ctypes.byref(call))
    return LinearLoss(
        loss_T.sum(),
        hit_T.sum(),
        None if grad_x_TD is None else _narrow(grad_x_TD, width),
        None if grads_pdD is None else _narrow(_summed(grads_pdD), width),
        None,
    )


def _wide(x_nD: Tensor, tile: int) -> Tensor:
    """With columns of zeros up to a multiple of a tile."""
    return F.pad(x_nD, (0, -x_nD.shape[1] % tile)).contiguous()


def _narrow(x_nD: Tensor, width: int) -> Tensor:
    return x_nD if x_nD.shape[1] == width else x_nD[:, :width].contiguous()
