"""What a user will do with an item: a small network a task over the state where the item is the candidate.

Each task's network is Linear → SiLU → Linear to one number, the logit of a binary task or the value of a regression. It
reads x, the L2-normalised state times √D, whose entries are then about 1. Where items and actions are one token each
event (form=interactions), the state knows nothing of the candidate yet: the network reads [x, e, x ⊙ e], e being the
candidate's embedding as the encoder would be given it.

Shapes: L tokens · T tokens of which something is asked · K tasks (T in a batch's `labels_LT`) · D width · I columns
that a network reads · W width of its hidden layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.ranking.config import INTERACTIONS
from data.ranking.tasks import BINARY, parse_tasks
from model.heads_config import HeadsConfig
from model.losses import CascadeLoss

RAREST = 1e-4
"""The lowest rate that a binary task begins at; and the highest is as far from 1."""


class TaskHeads(nn.Module):
    """The networks of all tasks, side by side: their first layers are one product.

    Attributes:
        tasks: what is predicted, in the order of columns.
        levels: K, as if a task were a code level.
        meets_candidates: whether the candidates' embeddings are read beside the states.
        binary_K: bool, which tasks are binary.
        weights_K: of their losses.
        mean_K, deviation_K: of a regression's labels, by which its values are told; 0 and 1 of a binary task.
    """

    binary_K: Tensor
    weights_K: Tensor
    mean_K: Tensor
    deviation_K: Tensor

    def __init__(self, cfg: HeadsConfig, width: int) -> None:
        """For states of `width`. Predictions begin near ½, and near 0 of a regression; see `start_from`."""
        super().__init__()
        self.tasks, self.hidden, self.width = parse_tasks(cfg.actions.tasks), cfg.actions.hidden, width
        self.levels = len(self.tasks)
        self.meets_candidates = cfg.actions.form == INTERACTIONS
        self.inner = nn.Linear(3 * width if self.meets_candidates else width, self.levels * self.hidden)
        self.outer_KW = nn.Parameter(torch.empty(self.levels, self.hidden))
        self.bias_K = nn.Parameter(torch.zeros(self.levels))
        nn.init.zeros_(self.inner.bias)
        nn.init.normal_(self.outer_KW, std=1 / math.sqrt(self.hidden))
        self.register_buffer("binary_K", torch.tensor([task.kind == BINARY for task in self.tasks]), persistent=False)
        self.register_buffer("weights_K", torch.tensor(cfg.actions.loss_weights), persistent=False)
        self.register_buffer("mean_K", torch.zeros(self.levels))
        self.register_buffer("deviation_K", torch.ones(self.levels))

    @torch.no_grad()
    def start_from(self, mean_K: Tensor, deviation_K: Tensor) -> None:
        """Begin at the mean label of each task, and measure a regression by how far its labels lie from it.

        An optimizer would need a thousand steps to walk to a mean rating of 3.5, and squared errors of percentages
        would drown the other tasks.

        Args:
            mean_K, deviation_K: of the labels that are learnt from; of a binary task the mean is its rate.
        """
        rate_K = mean_K.clamp(RAREST, 1 - RAREST)
        self.bias_K.copy_(torch.where(self.binary_K, torch.logit(rate_K), 0.0))
        self.mean_K.copy_(torch.where(self.binary_K, 0.0, mean_K))
        self.deviation_K.copy_(torch.where(self.binary_K | (deviation_K <= 0), 1.0, deviation_K))

    def forward(self, x_TD: Tensor, candidates_TD: Tensor | None = None) -> Tensor:
        """Logits of binary tasks and values of regressions, [T, K].

        Args:
            x_TD: L2-normalised states.
            candidates_TD: e, one a state; None but where `meets_candidates`.
        """
        assert (candidates_TD is not None) == self.meets_candidates, "candidates are for form=interactions"
        x_TI = x_TD * math.sqrt(self.width)
        if candidates_TD is not None:
            x_TI = torch.cat((x_TI, candidates_TD, x_TI * candidates_TD), dim=1)
        hidden_TKW = F.silu(self.inner(x_TI)).unflatten(1, (self.levels, self.hidden))
        raw_TK = torch.einsum("tkw,kw->tk", hidden_TKW, self.outer_KW) + self.bias_K
        return raw_TK * self.deviation_K + self.mean_K

    def predictions(self, logits_TK: Tensor) -> Tensor:
        """Probabilities of binary tasks, values of regressions, [T, K]."""
        return torch.where(self.binary_K, logits_TK.sigmoid(), logits_TK)

    def loss(self, x_TD: Tensor, candidates_TD: Tensor | None, labels_TK: Tensor) -> CascadeLoss:
        """Σ over tokens and tasks of weight · (binary cross-entropy | squared error / variance), where asked.

        Args:
            x_TD, candidates_TD: as in `forward`.
            labels_TK: NaN where nothing is asked; 0 or 1 of a binary task.

        Returns:
            `loss_sum` alone is weighted; what is counted as correct is on the right side of ½, and never a regression.
        """
        logits_TK = self(x_TD, candidates_TD)
        asked_TK = ~labels_TK.isnan()
        labels_TK = labels_TK.nan_to_num()  # in the branch not taken too, a NaN would reach the gradient
        loss_TK = torch.where(
            self.binary_K,
            F.binary_cross_entropy_with_logits(logits_TK, labels_TK, reduction="none"),
            ((logits_TK - labels_TK) / self.deviation_K).square(),
        )
        loss_K = (loss_TK * asked_TK).sum(dim=0)
        right_TK = ((logits_TK > 0) == (labels_TK > 0.5)) & asked_TK & self.binary_K
        return CascadeLoss((loss_K * self.weights_K).sum(), loss_K.detach(), right_TK.sum(dim=0))
