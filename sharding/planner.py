"""Which rows of which table lie on which rank."""

from __future__ import annotations

from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from common.errors import InputError
from sharding.world import World


def row_wise_plan(model: nn.Module, world: World) -> ShardingPlan:
    """Split every table of every EmbeddingBagCollection in `model` by rows over all ranks.

    Rank r holds the r-th run of ⌈rows / ranks⌉ consecutive rows. The plan is built by hand because TorchRec's
    planner does not offer row-wise sharding on the CPU (torchrec issue 1252), while the sharded module runs there.

    Raises:
        InputError: a rank would hold no row of a module's last table, which FBGEMM 1.8 does not survive on the CPU.
    """
    modules: dict[str, EmbeddingModuleShardingPlan] = {}
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            _check_last_table(module.embedding_bag_configs()[-1], world.size)
            modules[path] = construct_module_sharding_plan(
                module,
                {table.name: row_wise(compute_kernel="fused") for table in module.embedding_bag_configs()},
                local_size=world.local_size,
                world_size=world.size,
                device_type=world.device.type,
            )
    assert modules, "the model has no EmbeddingBagCollection to shard"
    return ShardingPlan(plan=modules)


def _check_last_table(table: EmbeddingBagConfig, ranks: int) -> None:
    rows_per_rank = -(-table.num_embeddings // ranks)
    if rows_per_rank * (ranks - 1) >= table.num_embeddings:
        raise InputError(
            f"table `{table.name}` has {table.num_embeddings} rows, too few for each of {ranks} ranks to hold some; "
            f"use fewer ranks, or codes with more levels or more codes a level"
        )
