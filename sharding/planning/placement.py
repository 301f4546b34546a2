"""A plan: every piece of every table and who holds it, with what that costs each rank. Written, read, applied.

A plan is one JSON object, so that a dry run on a laptop and the job that follows it on a cluster speak of the same
thing. What a job follows are the pieces; memory, traffic and times are the dry run's arithmetic, for people.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.types import CacheParams, EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

from common.errors import InputError
from sharding.planning.policy import CACHED, KERNELS, SHARDINGS
from sharding.world import World

FORMAT = 1


@dataclass(frozen=True)
class Piece:
    """A rectangle of a table, and the rank that holds it. It may have no rows."""

    rank: int
    first_row: int
    rows: int
    first_column: int
    columns: int


@dataclass(frozen=True)
class TablePlan:
    """Where one table lies.

    Attributes:
        name: of the table.
        module: path of its collection in the model.
        rows, width: its size.
        pooled: whether a bag's rows come back as one sum.
        sharding, kernel: names of `sharding.planning.policy`.
        cache_load_factor: share of the rows that a cache holds, 0 without one.
        pieces: of which the table is made.
    """

    name: str
    module: str
    rows: int
    width: int
    pooled: bool
    sharding: str
    kernel: str
    cache_load_factor: float
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Float32 numbers of all rows."""
        return 4 * self.rows * self.width

    @property
    def ranks(self) -> list[int]:
        """Those that hold some of it."""
        return sorted({piece.rank for piece in self.pieces if piece.rows})


@dataclass(frozen=True)
class Placement:
    """All tables on the ranks of some nodes.

    Attributes:
        ranks_per_node: of each node.
        device: cuda or cpu.
        communication: what vectors travel in.
        tables: in the model's order.
    """

    ranks_per_node: tuple[int, ...]
    device: str
    communication: str
    tables: tuple[TablePlan, ...]

    @property
    def num_ranks(self) -> int:
        """Of all nodes."""
        return sum(self.ranks_per_node)

    def table(self, name: str) -> TablePlan:
        """One of them."""
        return next(table for table in self.tables if table.name == name)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        tables = [
            {
                **{field.name: getattr(table, field.name) for field in dataclasses.fields(table)},
                "bytes": table.bytes,
                "ranks": table.ranks,
                "pieces": [dataclasses.astuple(piece) for piece in table.pieces],
            }
            for table in self.tables
        ]
        return {
            "format": FORMAT,
            "device": self.device,
            "ranks_per_node": list(self.ranks_per_node),
            "communication": self.communication,
            "tables": tables,
        }

    def to_torchrec(self, first_rank: int = 0, device: str = "") -> ShardingPlan:
        """The same in TorchRec's words.

        Args:
            first_rank: of the placement's ranks among all processes, where these are more.
            device: of that rank, where it is the only one.
        """
        modules: dict[str, EmbeddingModuleShardingPlan] = {}
        first_of_node = [sum(self.ranks_per_node[:node]) for node in range(len(self.ranks_per_node))]
        for table in self.tables:
            shards = []
            for piece in table.pieces:
                local = piece.rank - max(first for first in first_of_node if first <= piece.rank)
                where = device or (self.device if self.device == "cpu" else f"{self.device}:{local}")
                shards.append(
                    ShardMetadata(
                        [piece.first_row, piece.first_column],
                        [piece.rows, piece.columns],
                        f"rank:{first_rank + piece.rank}/{where}",
                    )
                )
            modules.setdefault(table.module, EmbeddingModuleShardingPlan())[table.name] = ParameterSharding(
                sharding_type=SHARDINGS[table.sharding],
                compute_kernel=KERNELS[table.kernel],
                ranks=[piece.rank for piece in table.pieces],
                sharding_spec=EnumerableShardingSpec(shards),
                cache_params=CacheParams(load_factor=table.cache_load_factor) if table.kernel in CACHED else None,
            )
        return ShardingPlan(plan=dict(modules))


def even_rows(rows: int, num_ranks: int) -> list[tuple[int, int, int]]:
    """Rank, first row and number of rows of each piece of a row-wise table."""
    each = -(-rows // num_ranks)
    starts = [min(rank * each, rows) for rank in range(num_ranks + 1)]
    return [(rank, first, after - first) for rank, (first, after) in enumerate(pairwise(starts))]


def table_modules(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Table → path of its collection, and the collection, for every collection of tables in the model."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            found |= {table.name: (path, module) for table in module.embedding_bag_configs()}
        elif isinstance(module, EmbeddingCollection):
            found |= {table.name: (path, module) for table in module.embedding_configs()}
    return found


def row_wise(model: nn.Module, world: World) -> Placement:
    """Every table by rows over all ranks, ⌈rows / ranks⌉ consecutive ones each: what a policy of `row-wise` gives too.

    For models that are read, not trained, and need no room to be worked out.

    Raises:
        InputError: a rank would hold no row of a collection's last table, on the CPU.
    """
    sizes, modules = table_sizes(model), table_modules(model)
    tables = []
    for name, (rows, width) in sizes.items():
        path, module = modules[name]
        pieces = tuple(Piece(rank, first, count, 0, width) for rank, first, count in even_rows(rows, world.size))
        pooled = isinstance(module, EmbeddingBagCollection)
        tables.append(TablePlan(name, path, rows, width, pooled, "row-wise", "fused", 0.0, pieces))
    nodes = tuple(min(world.local_size, world.size - first) for first in range(0, world.size, world.local_size))
    placement = Placement(nodes, world.device.type, "float32", tuple(tables))
    check_last_tables(placement)
    return placement


def check_last_tables(placement: Placement) -> None:
    """Refuse what `last_table_faults` finds.

    Raises:
        InputError: naming the tables.
    """
    faults = last_table_faults(placement)
    if faults:
        raise InputError(*faults)


def last_table_faults(placement: Placement) -> list[str]:
    """On the CPU FBGEMM 1.8 reads past its arrays when the last table of a kernel has no rows on some rank.

    A kernel serves the tables of one collection that are cut alike.
    """
    if placement.device != "cpu":
        return []
    last = {(table.module, table.sharding): table for table in placement.tables}
    return [
        f"table `{table.name}` has {table.rows} rows, too few for each of {len(table.pieces)} ranks to hold some; set "
        f"`sharding.tables.{table.name}.sharding=table-wise`, or use fewer ranks, or codes with more levels or more "
        f"codes a level"
        for table in last.values()
        if table.sharding in ("row-wise", "table-row-wise") and not all(piece.rows for piece in table.pieces)
    ]


def table_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Rows and width of each table."""
    sizes: dict[str, tuple[int, int]] = {}
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
            configs = (
                module.embedding_bag_configs()
                if isinstance(module, EmbeddingBagCollection)
                else module.embedding_configs()
            )
            sizes |= {config.name: (config.num_embeddings, config.embedding_dim) for config in configs}
    return sizes
