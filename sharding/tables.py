"""The rows and columns of tables that this rank holds, as live tensors, whatever the plan.

TorchRec names and shapes optimizer states differently from plan to plan (torchrec issue 2394; under a column-wise plan
a row-wise accumulator is listed as if the table had twice the rows). Here a piece of a table says which rows and
columns it is, and its states go by the same names everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel


@dataclass(frozen=True)
class TableShard:
    """A rectangle of a table on this rank.

    Attributes:
        table: its name.
        num_rows, width: of the whole table.
        first_row, first_column: where the rectangle begins.
        weight_RD: float32 [R, D], the table's memory itself: what is written there is in effect.
        states: optimizer states of these rows by name (`momentum1`), [R] or [R, D], live too.
    """

    table: str
    num_rows: int
    width: int
    first_row: int
    first_column: int
    weight_RD: Tensor
    states: dict[str, Tensor]

    @property
    def rows(self) -> int:
        """How many it has."""
        return self.weight_RD.shape[0]

    @property
    def columns(self) -> int:
        """How many it has."""
        return self.weight_RD.shape[1]


def table_shards(model: DistributedModelParallel) -> list[TableShard]:
    """Every piece of every sharded table on this rank that has rows; the same list at each call.

    Optimizer states are those of the fused optimizer, made if they were not yet.
    """
    states = model.fused_optimizer.state_dict()["state"]
    shards = []
    for key, value in model.state_dict().items():
        if not isinstance(value, ShardedTensor):
            continue
        table = key.split(".")[-2]
        by_name = {name.removeprefix(f"{table}."): state for name, state in states.get(key, {}).items()}
        for index, shard in enumerate(value.local_shards()):
            if not shard.tensor.shape[0]:
                continue
            first_row, first_column = shard.metadata.shard_offsets
            shards.append(
                TableShard(
                    table,
                    value.size(0),
                    value.size(1),
                    first_row,
                    first_column,
                    shard.tensor.detach(),
                    {name: _local(state, index) for name, state in by_name.items()},
                )
            )
    return shards


def _local(state: Tensor | ShardedTensor, index: int) -> Tensor:
    return state.local_shards()[index].tensor.detach() if isinstance(state, ShardedTensor) else state.detach()
