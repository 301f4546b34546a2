"""A plan applied: tables row-wise over the ranks with their optimizer in the backward, the rest data-parallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad

from sharding.world import World

RowSource = Callable[[str, int, int, int], Tensor]
"""(table name, first row, one past the last row, width) → those rows' initial values [rows, width]."""


def shard_model(
    model: nn.Module, plan: ShardingPlan, world: World, *, learning_rate: float, epsilon: float, draw_rows: RowSource
) -> DistributedModelParallel:
    """Shard the tables of `model` as planned and wrap the rest in DistributedDataParallel.

    The tables come on the meta device and only this rank's rows are ever allocated. Their gradient never
    exists as a tensor: FBGEMM's backward applies row-wise Adagrad (one accumulator a row) to the rows touched.

    Args:
        model: dense parameters on `world.device`, tables on the meta device.
        plan: rows to ranks, from `sharding.planner`.
        learning_rate: of row-wise Adagrad; may be changed later through the fused optimizer.
        epsilon: of row-wise Adagrad.
        draw_rows: initial values of any run of rows, the same whatever the plan.
    """
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), {"lr": learning_rate, "eps": epsilon})
    sharded = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(torch.distributed.group.WORLD),
        device=world.device,
        plan=plan,
        sharders=[EmbeddingBagCollectionSharder()],
        init_parameters=False,  # rows are drawn below, per shard; dense parameters are initialised by the model
    )
    for name, table in sharded_tables(sharded).items():
        for shard in table.local_shards():
            first, width = shard.metadata.shard_offsets[0], table.size(1)
            rows = draw_rows(name, first, first + shard.metadata.shard_sizes[0], width)
            shard.tensor.detach().copy_(rows)
    return sharded


def sharded_tables(model: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Every sharded table by its own name (`rq`, not the path of its module)."""
    state: dict[str, Any] = model.state_dict()
    return {key.split(".")[-2]: value for key, value in state.items() if isinstance(value, ShardedTensor)}


def gather_table(table: ShardedTensor, world: World) -> Tensor | None:
    """The whole table [rows, width] on rank 0, None elsewhere. For tests and small tables: it must fit there."""
    whole = torch.empty(table.size(), device=world.device) if world.is_main else None
    table.gather(dst=0, out=whole)
    return whole
