"""A plan applied: tables over the ranks with their optimizer in the backward, the rest data-parallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import ModuleSharder, ShardingEnv
from torchrec.optim import RowWiseAdagrad

from model.hashing_config import HashingConfig
from sharding.bag_metadata import fast_bag_metadata
from sharding.hashing.hashed_items import HashedItemsSharder, hash_items
from sharding.planning.placement import Placement
from sharding.uneven import allow_uneven_parts
from sharding.world import World

RowSource = Callable[[str, int, int, int], Tensor]
"""(table name, first row, one past the last row, width) → those rows' initial values [rows, width]."""

_ROWS_AT_ONCE = 2**14
"""Starting values that are made before they are copied."""


def shard_model(
    model: nn.Module,
    placement: Placement,
    world: World,
    *,
    learning_rate: float,
    epsilon: float,
    draw_rows: RowSource,
    hashing: HashingConfig | None = None,
) -> DistributedModelParallel:
    """Shard the tables of `model` as placed and wrap the rest in DistributedDataParallel.

    The tables come on the meta device and only this rank's rows are ever allocated. Their gradient never
    exists as a tensor: FBGEMM's backward applies row-wise Adagrad (one accumulator a row) to the rows touched.

    Args:
        model: dense parameters on `world.device`, tables on the meta device.
        placement: pieces to ranks, from `sharding.job`, or `sharding.planning.placement.row_wise`.
        learning_rate: of row-wise Adagrad; may be changed later through the fused optimizer.
        epsilon: of row-wise Adagrad.
        draw_rows: initial values of any run of rows, the same whatever the plan.
        hashing: who gets which row of the table of items, if it is hashed.

    Raises:
        InputError: the placement does not do for a hashed table.
    """
    allow_uneven_parts()
    fast_bag_metadata()
    plan = placement.to_torchrec(*_among_all(world))
    if hashing is not None:
        hash_items(model, plan, hashing)
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
            apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), {"lr": learning_rate, "eps": epsilon})
    sharded = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(world.group or torch.distributed.group.WORLD),
        device=world.device,
        plan=plan,
        sharders=table_sharders(placement.communication),
        init_parameters=False,  # rows are drawn below, per shard; dense parameters are initialised by the model
    )
    for name, table in sharded_tables(sharded).items():
        for shard in table.local_shards():
            (first, column), (count, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            weight_RD = shard.tensor.detach()
            for start in range(0, count, _ROWS_AT_ONCE):  # a whole table beside itself would not fit
                stop = min(start + _ROWS_AT_ONCE, count)
                drawn = draw_rows(name, first + start, first + stop, table.size(1))[:, column : column + columns]
                weight_RD[start:stop].copy_(drawn)
    return sharded


def _among_all(world: World) -> tuple[int, str]:
    """Where the ranks of `world` begin among all processes, and its device if it is a world of one."""
    if world.group is None:
        return 0, ""
    return torch.distributed.get_global_rank(world.group, 0), str(world.device) if world.size == 1 else ""


def table_sharders(communication: str) -> list[ModuleSharder[Any]]:
    """TorchRec's sharders, whose vectors and gradients travel as `communication` says."""
    codecs = None
    if communication != "float32":
        precision = _COMM_TYPES[communication]
        # Float16 gradients of a mean over a large batch would vanish; scaled up they keep their digits.
        scale = _GRADIENT_SCALE if communication == "float16" else None
        codecs = get_qcomm_codecs_registry(
            QCommsConfig(forward_precision=precision, backward_precision=precision, backward_loss_scale=scale)
        )
    return [
        EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
        EmbeddingCollectionSharder(qcomm_codecs_registry=codecs),
        HashedItemsSharder(qcomm_codecs_registry=codecs),
    ]


_COMM_TYPES = {"float16": CommType.FP16, "bfloat16": CommType.BF16, "int8": CommType.INT8}
_GRADIENT_SCALE = 1024.0


def sharded_tables(model: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Every sharded table by its own name (`rq`, not the path of its module)."""
    state: dict[str, Any] = model.state_dict()
    return {key.split(".")[-2]: value for key, value in state.items() if isinstance(value, ShardedTensor)}


def gather_table(table: ShardedTensor, world: World) -> Tensor | None:
    """The whole table [rows, width] on rank 0, None elsewhere. For tests and small tables: it must fit there."""
    whole = torch.empty(table.size(), device=world.device) if world.is_main else None
    table.gather(dst=0, out=whole)
    return whole
