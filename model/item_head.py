"""Items scored by their own rows: cosines of the user's vector with the table's rows, and a softmax over some of them.

u is the L2-normalised state, e_i the L2-normalised row of item i, the same row that is the input; an item's score is
u·e_i / τ. In training the softmax is over the target and its negatives (`data.negatives`); all items are scored where
lists are made. As in `model.losses`, gradients are formed in the forward, chunk by chunk, while scores are at hand.

T tokens with a target · D width · d items of the batch · G groups of targets · M negatives of a group · t tokens of a
chunk · J = 1 + M candidates: the target, then its negatives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import JaggedTensor

from data.batches import ITEM_KEY, Batch
from model.config import HeadsConfig
from model.kernels.losses import (
    LinearLoss,
    linear_cross_entropy,
    linear_loss_kernels,
    own_negatives_cross_entropy,
    sampled_cross_entropy_,
    sampled_loss_kernels,
)
from model.kernels.rows import add_rows, unit
from model.losses import CascadeLoss

EPS = 1e-6
"""A row shorter than this is divided by it instead of by its length, as published."""

ITEMS_PER_NEGATIVE = 40
"""Up to so many items of the batch for each negative of a target, scoring all of the batch's items and picking some is
faster than copying each negative's row: `_Picked` instead of `_Gathered`."""

SPARSE = 3
"""From so many items of the batch for each negative on, a kernel that reads the negatives' rows is faster."""

BLOCK_NUMBERS = 1 << 20
"""Numbers of copied rows held at once: a few megabytes, so that they are in the cache when they are read."""


class ItemHead(nn.Module):
    """The output without parameters of its own: it has the rows of the table of items.

    Attributes:
        levels: 1, as if an item were one code.
    """

    levels = 1

    def __init__(self, cfg: HeadsConfig) -> None:
        """Scores divided by `cfg.temperature`."""
        super().__init__()
        self.temperature, self.chunk_tokens = cfg.temperature, cfg.chunk_tokens

    def loss(self, hidden_LD: Tensor, items: Mapping[str, JaggedTensor], batch: Batch) -> tuple[CascadeLoss, int]:
        """The loss of a batch, and the number T of its tokens with a target.

        A batch that was made without negatives has nothing to learn: T is 0.

        Args:
            items: what the table of items gave for `batch.item_ids`.
        """
        rows_dD: Tensor = items[ITEM_KEY].values()
        if batch.target_rows_L is None or batch.negative_rows_GM is None or batch.negative_group_L is None:
            nothing = rows_dD.new_zeros(1)
            return CascadeLoss(nothing.sum(), nothing, torch.zeros_like(nothing, dtype=torch.int64)), 0
        learnt_T = (batch.target_rows_L < len(rows_dD)).nonzero().flatten()
        loss = sampled_softmax(
            hidden_LD.index_select(0, learnt_T),
            rows_dD,
            batch.target_rows_L.index_select(0, learnt_T),
            batch.negative_rows_GM,
            batch.negative_group_L.index_select(0, learnt_T),
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            offsets_d=batch.negative_offsets_d,
        )
        return loss, len(learnt_T)


def unit_rows(rows_dD: Tensor) -> Tensor:
    """Rows of the table as items are scored by."""
    return unit(rows_dD, EPS)


def sampled_softmax(
    x_TD: Tensor,
    rows_dD: Tensor,
    positives_T: Tensor,
    negatives_GM: Tensor,
    groups_T: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    offsets_d: Tensor | None = None,
) -> CascadeLoss:
    """Σ over targets of −log of the target's share in the softmax over itself and its negatives.

    A negative that is the target itself is left out. Logits never exist but for one chunk of tokens.

    Args:
        x_TD: L2-normalised states.
        rows_dD: rows of the table as they are; normalised here.
        positives_T: int64, place of each target in `rows_dD`.
        negatives_GM: int64, places of negatives.
        groups_T: int64, whose negatives a target has; ascending, each of 0 … G − 1 at least once.
        temperature: τ.
        chunk_tokens: tokens whose logits are held at once.
        offsets_d: added to an item's logit where it is a negative.

    Returns:
        Of one level; correct is a target whose score, offsets apart, no negative of its exceeds.
    """
    loss, correct = _SampledSoftmax.apply(
        x_TD,
        unit_rows(rows_dD),
        positives_T,
        negatives_GM,
        groups_T,
        offsets_d,
        1.0 / temperature,
        chunk_tokens,
        torch.is_grad_enabled(),
    )
    return CascadeLoss(loss, loss.detach()[None], correct[None])


class _SampledSoftmax(torch.autograd.Function):
    """Summed loss over the candidates, and how often the target has the largest score (ties count)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        unit_dD: Tensor,
        positives_T: Tensor,
        negatives_GM: Tensor,
        groups_T: Tensor,
        offsets_d: Tensor | None,
        scale: float,
        chunk_tokens: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        given = _Given(x_TD, unit_dD, positives_T, negatives_GM, groups_T, offsets_d, scale)
        found = _by_everything(given, with_gradient=with_gradient)
        if found is None:
            found = _by_own_negatives(given, with_gradient=with_gradient)
        if found is None:
            found = _by_chunks(given, chunk_tokens, with_gradient=with_gradient)
        ctx.mark_non_differentiable(found.correct)
        if with_gradient:
            ctx.save_for_backward(found.grad_x_TD, found.grad_weight_VD)
        return found.loss, found.correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_unit = ctx.saved_tensors
        return grad_x * grad_loss, grad_unit * grad_loss, *(None,) * 7


@dataclass(frozen=True)
class _Given:
    """Arguments of `sampled_softmax`, rows normalised, and what cosines are multiplied by."""

    x_TD: Tensor
    unit_dD: Tensor
    positives_T: Tensor
    negatives_GM: Tensor
    groups_T: Tensor
    offsets_d: Tensor | None
    scale: float


def _by_everything(given: _Given, *, with_gradient: bool) -> LinearLoss | None:
    """By the kernel for a linear layer and its loss, where every row is a negative of all, once; None elsewhere.

    The target is then one of the outputs: leaving it out among the negatives and putting it beside them is the softmax
    over all.
    """
    (groups, negatives), items = given.negatives_GM.shape, len(given.unit_dD)
    if groups != 1 or negatives != items or given.offsets_d is not None:
        return None
    kernels = linear_loss_kernels(given.x_TD, given.unit_dD)
    if kernels is None or not torch.equal(given.negatives_GM[0].sort().values, torch.arange(items)):
        return None
    return linear_cross_entropy(
        kernels,
        given.x_TD,
        given.unit_dD,
        None,
        given.scale,
        with_gradient=with_gradient,
        targets_T=given.positives_T,
    )


def _by_own_negatives(given: _Given, *, with_gradient: bool) -> LinearLoss | None:
    """By the kernel for targets that each have negatives of their own, few among many; None where there is none."""
    (groups, negatives), items = given.negatives_GM.shape, len(given.unit_dD)
    kernels = sampled_loss_kernels(given.x_TD, given.unit_dD)
    if kernels is None or groups < len(given.x_TD) or items < SPARSE * negatives:
        return None
    return own_negatives_cross_entropy(
        kernels,
        given.x_TD,
        given.unit_dD,
        given.positives_T,
        given.negatives_GM,
        given.offsets_d,
        given.scale,
        with_gradient=with_gradient,
    )


def _by_chunks(given: _Given, chunk_tokens: int, *, with_gradient: bool) -> LinearLoss:
    """A chunk of targets at a time."""
    x_TD, unit_dD, positives_T = given.x_TD, given.unit_dD, given.positives_T
    grad_x = torch.zeros_like(x_TD) if with_gradient else None
    grad_unit = torch.zeros_like(unit_dD) if with_gradient else None
    loss, correct = x_TD.new_zeros(()), positives_T.new_zeros(())
    positive_TD = unit_dD.index_select(0, positives_T)
    grad_positive_T = x_TD.new_empty(len(x_TD))
    for part, scorer in _parts(x_TD, unit_dD, given.negatives_GM, given.groups_T, chunk_tokens):
        x_tD, positive_tD = x_TD[part], positive_TD[part]
        positive_t = (x_tD * positive_tD).sum(dim=1)
        targets = _Targets(positives_T[part], positive_t, given.offsets_d, given.scale)
        loss_t, correct_t = scorer.lose(x_tD, targets, None if grad_x is None else grad_x[part], grad_unit)
        loss += loss_t
        correct += correct_t
        if grad_x is not None:
            grad_positive_T[part] = positive_t
            grad_x[part].addcmul_(positive_t[:, None], positive_tD)
    if grad_unit is not None:
        add_rows(grad_unit, positives_T, grad_positive_T[:, None] * x_TD)
    return LinearLoss(loss, correct, grad_x, grad_unit, None)


# ── negatives of a chunk, three ways ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Targets:
    """What a chunk's tokens are to predict.

    Args:
        places_t: of their rows.
        scores_t: cosines; become the loss's gradient of them.
        offsets_d: what is added to an item's logit where it is a negative.
        scale: of cosines.
    """

    places_t: Tensor
    scores_t: Tensor
    offsets_d: Tensor | None
    scale: float

    def offsets_of(self, places: Tensor) -> Tensor | None:
        return None if self.offsets_d is None else self.offsets_d[places]


class _Scorer(ABC):
    """Cosines of a chunk's tokens with their negatives, and what comes back through them."""

    def __init__(self, unit_dD: Tensor, negatives_GM: Tensor) -> None:
        """`negatives_GM`: whose places; one row where all tokens share it."""
        self.unit_dD, self.negatives_GM = unit_dD, negatives_GM

    def lose(
        self, x_tD: Tensor, targets: _Targets, grad_x_tD: Tensor | None, grad_unit_dD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss and hits, summed; to the gradients, if they are asked for, that through the negatives is added."""
        scores_tM = self.scores(x_tD)
        loss, correct = sampled_cross_entropy_(
            scores_tM,
            self.negatives_GM,
            targets.offsets_of(self.negatives_GM),
            targets.places_t,
            targets.scores_t,
            targets.scale,
        )
        if grad_x_tD is not None and grad_unit_dD is not None:
            self.add_gradients(scores_tM, x_tD, grad_x_tD, grad_unit_dD)
        return loss, correct

    @abstractmethod
    def scores(self, x_tD: Tensor) -> Tensor:
        """[t, M]."""

    @abstractmethod
    def add_gradients(self, grad_tM: Tensor, x_tD: Tensor, grad_x_tD: Tensor, grad_unit_dD: Tensor) -> None:
        """Add what `grad_tM` of the scores is of the states and of the rows."""


class _Shared(_Scorer):
    """All tokens of the chunk have the same negatives: one product, or a kernel that needs no chunks."""

    def __init__(self, unit_dD: Tensor, negatives_1M: Tensor) -> None:
        super().__init__(unit_dD, negatives_1M)
        self._rows_M = negatives_1M[0]
        self.rows_MD = unit_dD.index_select(0, self._rows_M)

    def lose(
        self, x_tD: Tensor, targets: _Targets, grad_x_tD: Tensor | None, grad_unit_dD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kernels = linear_loss_kernels(x_tD, self.rows_MD)
        if kernels is None:
            return super().lose(x_tD, targets, grad_x_tD, grad_unit_dD)
        found = linear_cross_entropy(
            kernels,
            x_tD,
            self.rows_MD,
            targets.offsets_of(self._rows_M),
            targets.scale,
            with_gradient=grad_x_tD is not None,
            negatives=(self._rows_M, targets.places_t, targets.scores_t),
        )
        if grad_x_tD is not None and grad_unit_dD is not None:
            assert found.grad_x_TD is not None
            assert found.grad_weight_VD is not None
            grad_x_tD += found.grad_x_TD
            add_rows(grad_unit_dD, self._rows_M, found.grad_weight_VD)
        return found.loss, found.correct

    def scores(self, x_tD: Tensor) -> Tensor:
        return x_tD @ self.rows_MD.T

    def add_gradients(self, grad_tM: Tensor, x_tD: Tensor, grad_x_tD: Tensor, grad_unit_dD: Tensor) -> None:
        grad_x_tD.addmm_(grad_tM, self.rows_MD)
        add_rows(grad_unit_dD, self._rows_M, grad_tM.T @ x_tD)


class _Gathered(_Scorer):
    """Each token has negatives of its own: each one's row is copied."""

    def __init__(self, unit_dD: Tensor, negatives_tM: Tensor) -> None:
        super().__init__(unit_dD, negatives_tM)
        self._negative_tMD = F.embedding(negatives_tM, unit_dD)

    def scores(self, x_tD: Tensor) -> Tensor:
        return torch.bmm(self._negative_tMD, x_tD[:, :, None])[:, :, 0]

    def add_gradients(self, grad_tM: Tensor, x_tD: Tensor, grad_x_tD: Tensor, grad_unit_dD: Tensor) -> None:
        grad_x_tD += torch.bmm(grad_tM[:, None], self._negative_tMD)[:, 0]
        grad_tMD = grad_tM[:, :, None] * x_tD[:, None]
        add_rows(grad_unit_dD, self.negatives_GM.flatten(), grad_tMD.flatten(0, 1))


class _Picked(_Scorer):
    """Each token has negatives of its own, of few items: all items are scored, in one product, and some picked."""

    def scores(self, x_tD: Tensor) -> Tensor:
        return (x_tD @ self.unit_dD.T).gather(1, self.negatives_GM)

    def add_gradients(self, grad_tM: Tensor, x_tD: Tensor, grad_x_tD: Tensor, grad_unit_dD: Tensor) -> None:
        # An item drawn twice for a token has twice the same gradient: the sum does not depend on the order.
        grad_td = grad_tM.new_zeros(len(x_tD), len(self.unit_dD)).scatter_add_(1, self.negatives_GM, grad_tM)
        grad_x_tD.addmm_(grad_td, self.unit_dD)
        grad_unit_dD.addmm_(grad_td.T, x_tD)


def _parts(
    x_TD: Tensor, unit_dD: Tensor, negatives_GM: Tensor, groups_T: Tensor, chunk_tokens: int
) -> Iterator[tuple[slice, _Scorer]]:
    """Runs of tokens, each with the quickest way to its negatives."""
    (groups, per_target), (tokens, width) = negatives_GM.shape, x_TD.shape
    if groups < tokens:
        sizes = torch.bincount(groups_T, minlength=groups).tolist()
        first = 0
        for group, size in enumerate(sizes):
            shared = _Shared(unit_dD, negatives_GM[group, None])
            step = chunk_tokens if linear_loss_kernels(x_TD, shared.rows_MD) is None else max(size, 1)
            for start in range(first, first + size, step):
                yield slice(start, min(start + step, first + size)), shared
            first += size
        return
    picks = len(unit_dD) <= ITEMS_PER_NEGATIVE * per_target
    step = chunk_tokens if picks else min(chunk_tokens, max(1, BLOCK_NUMBERS // (per_target * width)))
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        yield part, (_Picked if picks else _Gathered)(unit_dD, negatives_GM[part])
