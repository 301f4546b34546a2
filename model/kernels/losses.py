"""Cross-entropies in the memory of their logits, in one reading where PyTorch's operators take several.

Where there are no kernels, PyTorch's operators do the same.

Shapes: t rows · V columns · M negatives · G rows of negatives: t, or 1 that all share.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        kernels.segue_cross_entropy(
            place(logits_tV), place(target_t), rows, columns, real(1.0), place(loss_t), place(hit_t)
        )
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
