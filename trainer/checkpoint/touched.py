"""Which rows training has looked up since the last checkpoint: all that can have changed.

A byte a row, set by TorchRec's hook after each lookup in training: as much memory as rows whatever the interval, where
a list of ids (TorchRec's delta tracker) grows with every batch. A row that was looked up and did not change counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.hashing.hashed_items import hashed_tables
from sharding.tables import TableShard

BeforeUpdate = Callable[[int, Tensor], None]
"""(number of a shard, its rows that the backward is about to change, int64, with repetitions)."""


class TouchedRows:
    """Watches the lookups of a model's tables.

    Attributes:
        shards: the pieces of tables on this rank, in the order of all lists here.
        before_update: called with the rows of each lookup in training before they are marked, if set.
    """

    def __init__(self, model: DistributedModelParallel, shards: list[TableShard]) -> None:
        self.shards = shards
        self.before_update: BeforeUpdate | None = None
        self._masks_R = self._none()
        self._shards_of: dict[str, list[int]] = {}
        for module in model.modules():
            if isinstance(module, ShardedEmbeddingBagCollection):
                self._watch(module, module._embedding_bag_configs)
            elif isinstance(module, ShardedEmbeddingCollection):
                self._watch(module, module._embedding_configs)
        for hashed in hashed_tables(model).values():
            hashed.before_reset = self._before_reset

    def _watch(self, module: Any, configs: Sequence[BaseEmbeddingConfig]) -> None:
        for config in configs:
            of_table = [index for index, shard in enumerate(self.shards) if shard.table == config.name]
            for feature in config.feature_names:
                self._shards_of.setdefault(feature, []).extend(of_table)
        module.register_post_lookup_tracker_fn(self._after_lookup)

    def _none(self) -> list[Tensor]:
        return [torch.zeros(shard.rows, dtype=torch.uint8, device=shard.weight_RD.device) for shard in self.shards]

    def _after_lookup(self, features: KeyedJaggedTensor, _pooled: Tensor, module: Any, _raw_ids: Any) -> None:
        """The hook: `features` are numbers of rows on this rank, as every sharding hands them to its kernels."""
        if not module.training:
            return
        for key in set(features.keys()):
            rows_n = features[key].values().long()  # some inputs come in 32 bits
            for index in self._shards_of[key]:
                self.mark(index, rows_n)

    def _before_reset(self, table: str, rows_n: Tensor) -> None:
        """Rows of a hashed table that get another owner change without being looked up."""
        for index, shard in enumerate(self.shards):
            if shard.table == table:
                self.mark(index, rows_n)

    def mark(self, index: int, rows_n: Tensor) -> None:
        """Rows of a shard that are about to change."""
        if self.before_update:
            self.before_update(index, rows_n)
        self._masks_R[index].index_fill_(0, rows_n, 1)

    def take(self) -> list[Tensor]:
        """Masks, uint8 [R], of what was touched since the last call: not 0 there; begins anew."""
        taken, self._masks_R = self._masks_R, self._none()
        return taken

    def put_back(self, masks_R: list[Tensor]) -> None:
        """Undo a `take` whose checkpoint came to nothing: its rows belong to the next."""
        for mask_R, back_R in zip(self._masks_R, masks_R, strict=True):
            mask_R |= back_R != 0
