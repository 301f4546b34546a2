"""The whole model: pooled embeddings → HSTU or a Transformer → L2 norm → heads of codes or tasks, or item rows → loss.

Shapes: L tokens (with tail padding) · P rows of pooled embeddings, which tokens share · D width · C code levels ·
T tokens with a target, of n tokens · K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from common.spans import HEADS, LOOKUP, PROJECTIONS, span
from data.batches import Batch
from model.biases import describe_tokens
from model.config import ModelConfig, Vocabulary
from model.embeddings import add_items, sum_features
from model.heads import CascadedHeads
from model.hstu import HSTU
from model.item_head import ItemHead
from model.kernels.rows import dropout
from model.layers import normalised
from model.losses import CascadeLoss, cascaded_cross_entropy
from model.task_heads import TaskHeads
from model.transformer import LearnedPlaces, Transformer


@dataclass
class Output:
    """What a step reports; nothing here carries a gradient.

    Args:
        hidden_LD: L2-normalised states; meaningless in the tail padding.
        level_loss_sum_C: nats, summed over this rank's targets; of one level where the output are items; of each task,
            unweighted and squared where it is a regression, where they are actions.
        level_correct_C: int64, teacher-forced hits of the most likely code; targets that no negative of theirs beats;
            predictions of binary tasks on the right side of ½.
        num_targets: int64 0-d, this rank's tokens with a target.
    """

    hidden_LD: Tensor
    level_loss_sum_C: Tensor
    level_correct_C: Tensor
    num_targets: Tensor


class Tower(nn.Module):
    """The dense part. A module of its own, so that TorchRec's pipeline may trace past it without looking inside."""

    def __init__(self, cfg: ModelConfig, vocabulary: Vocabulary) -> None:
        """Blocks and heads."""
        super().__init__()
        self.cfg = cfg
        self.places = LearnedPlaces(cfg) if cfg.architecture == "sasrec" or cfg.places else None
        self.encoder = HSTU(cfg) if cfg.architecture == "hstu" else Transformer(cfg)
        self.heads: CascadedHeads | ItemHead | TaskHeads
        if cfg.output.kind == "codes":
            self.heads = CascadedHeads(cfg.output, cfg.width, vocabulary)
        elif cfg.output.kind == "items":
            self.heads = ItemHead(cfg.output)
        else:
            self.heads = TaskHeads(cfg.output, cfg.width)

    def encode(self, pooled: KeyedTensor, items: Mapping[str, JaggedTensor] | None, batch: Batch) -> Tensor:
        """L2-normalised states [L, D]; `items` are rows of the table of items, if there is one."""
        return self._states(self.summed(pooled, items, batch), batch)

    def predict(
        self, pooled: KeyedTensor, items: Mapping[str, JaggedTensor] | None, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """What the tasks predict, [T, K], and at which tokens, int64 [T]; see `TaskHeads.predictions`."""
        assert isinstance(self.heads, TaskHeads), "a model that predicts actions"
        x_PD = self.summed(pooled, items, batch)
        rows_T = (batch.target_items_L >= 0).nonzero().flatten()
        hidden_TD = self._states(x_PD, batch).index_select(0, rows_T)
        return self.heads.predictions(self.heads(hidden_TD, self._candidates(x_PD, batch, rows_T))), rows_T

    def summed(self, pooled: KeyedTensor, items: Mapping[str, JaggedTensor] | None, batch: Batch) -> Tensor:
        """x_PD, all that an event's tables say of it."""
        with span(LOOKUP):
            x_PD = sum_features(pooled, self.cfg.width)
            return x_PD if items is None else add_items(x_PD, items, batch.item_rows_P)

    def picked(self, x_PD: Tensor, rows_n: Tensor) -> Tensor:
        """Rows [n, D] as the encoder is given them."""
        x_nD = x_PD.index_select(0, rows_n)
        return x_nD * math.sqrt(self.cfg.width) if self.cfg.scale_input else x_nD

    def _states(self, x_PD: Tensor, batch: Batch) -> Tensor:
        """The encoder's, L2-normalised, [L, D]."""
        cfg = self.cfg
        tokens = describe_tokens(
            cfg.biases,
            batch.offsets,
            batch.timestamps_L,
            batch.request_times_L,
            batch.durations_L,
            batch.organic_L,
            batch.alone_L,
        )
        with span(LOOKUP):
            x_LD = self.picked(x_PD, batch.rows_L)
            if self.places is not None:
                x_LD = x_LD + self.places(tokens)
            x_LD = dropout(x_LD, cfg.input_dropout, training=self.training)
        with span(PROJECTIONS), torch.autocast(x_LD.device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
            x_LD = self.encoder(x_LD, tokens)
        return normalised(x_LD)

    def forward(
        self, pooled: KeyedTensor, items: Mapping[str, JaggedTensor] | None, batch: Batch
    ) -> tuple[Tensor, Output]:
        """The weighted loss of the batch and what to report of it."""
        x_PD = self.summed(pooled, items, batch)
        hidden_LD = self._states(x_PD, batch)
        with span(HEADS):
            result, targets = self._loss(hidden_LD, x_PD, items, batch)
        output = Output(
            hidden_LD=hidden_LD.detach(),
            level_loss_sum_C=result.level_loss_sum_C,
            level_correct_C=result.level_correct_C,
            num_targets=batch.offsets.new_tensor(targets),
        )
        return result.loss_sum * batch.loss_weight, output

    def _loss(
        self, hidden_LD: Tensor, x_PD: Tensor, items: Mapping[str, JaggedTensor] | None, batch: Batch
    ) -> tuple[CascadeLoss, int]:
        """Summed over this rank's targets, and how many these are."""
        if isinstance(self.heads, ItemHead):
            assert items is not None
            return self.heads.loss(hidden_LD, items, batch)
        rows_T = (batch.target_items_L >= 0).nonzero().flatten()
        hidden_TD = hidden_LD.index_select(0, rows_T)
        if isinstance(self.heads, TaskHeads):
            assert batch.labels_LT is not None, "a batch that was made without labels"
            labels_TK = batch.labels_LT.index_select(0, rows_T)
            return self.heads.loss(hidden_TD, self._candidates(x_PD, batch, rows_T), labels_TK), len(rows_T)
        codes_TC = batch.target_codes_LC.index_select(0, rows_T)
        return cascaded_cross_entropy(self.heads, hidden_TD, codes_TC, self.cfg.output.chunk_tokens), len(rows_T)

    def _candidates(self, x_PD: Tensor, batch: Batch, rows_T: Tensor) -> Tensor | None:
        """Embeddings [T, D] of the items whose actions are asked for, where the states have not seen them."""
        assert isinstance(self.heads, TaskHeads)
        if not self.heads.meets_candidates:
            return None
        assert batch.candidate_rows_L is not None, "a batch that was made without candidates"
        return self.picked(x_PD, batch.candidate_rows_L.index_select(0, rows_T))


class Recommender(nn.Module):
    """Embeddings and tower.

    `ebc` is called directly on `batch.features` and on nothing else, `item_table` on `batch.item_ids`: that is the
    shape TorchRec's DistributedModelParallel and TrainPipelineSparseDist know how to shard, trace and overlap.

    Args:
        cfg: the model.
        ebc: an EmbeddingBagCollection of `model.embeddings`, on any device, sharded later or never.
        vocabulary: sizes from the data; kept, since whoever reads for the model must have the same.
        items: an EmbeddingCollection of `model.embeddings`, in the same way; None in a model without a table of items.
    """

    def __init__(
        self, cfg: ModelConfig, ebc: nn.Module, vocabulary: Vocabulary, items: nn.Module | None = None
    ) -> None:
        """The tower is built here, the embeddings are given."""
        super().__init__()
        assert (items is not None) == (cfg.items.kind != "none"), cfg.items
        self.ebc, self.vocabulary = ebc, vocabulary
        self.item_table = items
        self.tower = Tower(cfg, vocabulary)

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """Loss (0-d): Σ over this rank's targets times `batch.loss_weight`; its mean over ranks is the global mean."""
        result: tuple[Tensor, Output] = self.tower(*self.looked_up(batch), batch)
        return result

    def looked_up(self, batch: Batch) -> tuple[KeyedTensor, Mapping[str, JaggedTensor] | None]:
        """What the tables say of a batch: pooled embeddings, and rows of the table of items, if there is one."""
        with span(LOOKUP):
            items = self.item_table(batch.item_ids) if self.item_table is not None else None
            return self.ebc(batch.features), items

    def encode(self, batch: Batch) -> Tensor:
        """L2-normalised states [L, D], without heads or loss."""
        return self.tower.encode(*self.looked_up(batch), batch)

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a user will do with each candidate: [T, K], and the candidates' tokens, int64 [T], ascending.

        Candidates are the tokens of which `batch.target_items_L` says that something is asked, labels or none; a
        column is a task's, the probability of a binary one, the value of a regression.
        """
        predicted: tuple[Tensor, Tensor] = self.tower.predict(*self.looked_up(batch), batch)
        return predicted
