"""What every rank holds, kind by kind, and whether there is room for it.

A GPU holds tables of kernel fused, caches, and all that is no table; its host the tables of the tiers below. On the CPU
all is one memory. Activations and the buffers of exchanges are never both at their largest: sums for other ranks
exist before the first block has kept anything, gradients for them when the last has let go. So the larger counts.

Float32 throughout: 4 bytes a number. Row-wise Adagrad keeps one number a row (of each piece that is cut by columns).
"""

from __future__ import annotations

from dataclasses import dataclass

from sharding.planning.placement import Placement, TablePlan
from sharding.planning.policy import CACHED, PRECISIONS, ShardingConfig
from sharding.planning.topology import GIB, Cluster
from sharding.planning.workload import TableUse, Workload

KINDS = {
    "tables": "tables",
    "sparse_optimizer": "their optimizer",
    "map": "map of ids to rows",
    "cache": "caches of tables below",
    "dense_parameters": "dense parameters",
    "dense_gradients": "dense gradients",
    "dense_optimizer": "dense optimizer",
    "working": "activations or exchange",
    "reserved": "left to the runtime",
}
"""Kinds of memory, and what people call them."""

MEMORIES = {"hbm": "GPU memory", "ddr": "host memory", "ssd": "disk"}
"""Memories, and what people call them."""

_ID = 8
_CACHE_ROW = 12
"""Bytes that a cached table's every row costs the GPU besides the cache: where it is, and when it was last used."""


@dataclass(frozen=True)
class RankMemory:
    """Of one rank, bytes.

    Attributes:
        rank, node: which.
        hbm, ddr, ssd: kind (of `KINDS`) → bytes.
        capacity: of `hbm`, `ddr`, `ssd`, reserved included.
    """

    rank: int
    node: int
    hbm: dict[str, int]
    ddr: dict[str, int]
    ssd: dict[str, int]
    capacity: dict[str, int]

    def used(self, memory: str) -> int:
        """Bytes of `hbm`, `ddr` or `ssd`."""
        return sum(getattr(self, memory).values())

    def headroom(self, memory: str) -> int:
        """What is left of it; negative where it does not fit."""
        return self.capacity[memory] - self.used(memory)


@dataclass(frozen=True)
class Shortage:
    """A memory that is too small: by so many bytes on the rank where most is missing."""

    memory: str
    rank: int
    missing: int


def memory_of_ranks(placement: Placement, cluster: Cluster, workload: Workload, *, reserved: int) -> list[RankMemory]:
    """What each rank holds under a plan."""
    main = "hbm" if cluster.device == "cuda" else "ddr"
    tables = _tables_by_rank(placement, workload, cluster.device)
    buffers = exchange_buffers(placement, workload)
    dense = workload.dense
    found = []
    for rank, node in enumerate(cluster.node_of_rank):
        held: dict[str, dict[str, int]] = {"hbm": {}, "ddr": {}, "ssd": {}}
        for (memory, kind), amount in tables[rank].items():
            held[memory][kind] = amount
        held[main] |= {
            "dense_parameters": 4 * dense.parameters,
            "dense_gradients": 4 * dense.parameters,
            "dense_optimizer": dense.optimizer,
            "working": max(_activations(workload), buffers[rank]),
            "reserved": reserved,
        }
        room = cluster.nodes[node]
        capacity = {"hbm": room.hbm, "ddr": room.ddr, "ssd": room.ssd}
        found.append(RankMemory(rank, node, held["hbm"], held["ddr"], held["ssd"], capacity))
    return found


def overhead(cluster: Cluster, config: ShardingConfig, workload: Workload, reserved: int) -> list[int]:
    """Bytes of each rank's memory that no table may have; of exchange buffers what row-wise tables would need."""
    dense, ranks = workload.dense, cluster.num_ranks
    buffers = sum(
        _buffer(
            use,
            ranks if use.pooled else 1,
            use.width,
            PRECISIONS[config.communication],
            copied=use.pooled and cluster.device == "cpu",
        )
        for use in workload.tables
    )
    each = 8 * dense.parameters + dense.optimizer + max(_activations(workload), buffers) + reserved
    return [each] * ranks


def shortages(ranks: list[RankMemory]) -> list[Shortage]:
    """Memories that are too small, worst rank of each."""
    worst = [
        Shortage(memory, one.rank, -one.headroom(memory))
        for memory in MEMORIES
        for one in [min(ranks, key=lambda rank: rank.headroom(memory))]
    ]
    return [shortage for shortage in worst if shortage.missing > 0]


def reserved_bytes(config: ShardingConfig, device: str) -> int:
    """What is left to the runtime on each rank."""
    default = 2.0 if device == "cuda" else 0.5
    return round((default if config.reserved_gib is None else config.reserved_gib) * GIB)


def table_bytes(table: TablePlan) -> dict[int, int]:
    """Bytes of a table's numbers by rank."""
    held: dict[int, int] = {}
    for piece in table.pieces:
        held[piece.rank] = held.get(piece.rank, 0) + 4 * piece.rows * piece.columns
    return held


def optimizer_bytes(table: TablePlan) -> dict[int, int]:
    """Bytes of row-wise Adagrad's accumulators by rank: one number a row of a piece."""
    held: dict[int, int] = {}
    for piece in table.pieces:
        held[piece.rank] = held.get(piece.rank, 0) + 4 * piece.rows
    return held


def exchange_buffers(placement: Placement, workload: Workload) -> list[int]:
    """Bytes of sums or rows on their way, at the fullest, by rank: those an owner makes, those a rank gets."""
    by_rank = [0] * placement.num_ranks
    precision = PRECISIONS[placement.communication]
    for table in placement.tables:
        use = workload.table(table.name)
        # Gloo reduces a copy of what it is given; TorchRec copies sums before an AlltoAll, whatever the device.
        copied = table.pooled and (placement.device == "cpu" or table.sharding != "row-wise")
        for rank, (ranks, columns) in _made_by_owner(table, placement.num_ranks).items():
            by_rank[rank] += _buffer(use, ranks, columns, precision, copied=copied) - _received(use)
        by_rank = [amount + _received(use) for amount in by_rank]
    spread = 4 * (workload.rows + workload.tokens) * max(use.width for use in workload.tables)
    return [amount + spread for amount in by_rank]


def _made_by_owner(table: TablePlan, num_ranks: int) -> dict[int, tuple[float, int]]:
    """Rank → for how many ranks' bags it makes vectors, and of how many columns."""
    made: dict[int, tuple[float, int]] = {}
    for piece in table.pieces:
        if piece.rows or table.sharding == "row-wise":  # there a rank without rows sends sums too, all zeros
            share = num_ranks if table.pooled else num_ranks * piece.rows / table.rows
            before = made.get(piece.rank, (0.0, 0))
            made[piece.rank] = (max(before[0], share), before[1] + piece.columns)
    return made


def _buffer(use: TableUse, ranks: float, columns: int, precision: int, *, copied: bool) -> int:
    """What an owner makes in float32, packed if in fewer bytes, once more if copied, ids and lengths, what it gets."""
    vectors = use.bags if use.pooled else use.ids
    copies = (precision < 4) + copied
    made = ranks * vectors * columns * (4 + copies * precision)
    return round(made + ranks * _ID * (use.bags + use.ids)) + _received(use)


def _received(use: TableUse) -> int:
    """The vectors a rank asked for, and, of sums, once more for each of the rows that share them."""
    vectors = use.bags if use.pooled else use.ids
    return 4 * vectors * use.width


def _activations(workload: Workload) -> int:
    """Of the tower at its fullest moment, and of what it was given: vectors of tables are held until its loss is there.

    Sums come as one row for each of the P that tokens share, of all tables beside one another.
    """
    given = sum(4 * use.width * (workload.rows if use.pooled else use.ids) for use in workload.tables)
    return workload.dense.activations + given


def _tables_by_rank(placement: Placement, workload: Workload, device: str) -> list[dict[tuple[str, str], int]]:
    held: list[dict[tuple[str, str], int]] = [{} for _ in range(placement.num_ranks)]

    def add(rank: int, memory: str, kind: str, amount: int) -> None:
        held[rank][memory, kind] = held[rank].get((memory, kind), 0) + amount

    for table in placement.tables:
        main = "hbm" if device == "cuda" else "ddr"
        below = {"fused": main, "uvm": "ddr", "uvm-caching": "ddr", "ssd": "ssd"}[table.kernel]
        optimizer, map_row = optimizer_bytes(table), workload.table(table.name).map_row
        for rank, amount in table_bytes(table).items():
            add(rank, below, "tables", amount)
            add(rank, below, "sparse_optimizer", optimizer[rank])
            rows = optimizer[rank] // 4
            if map_row:
                add(rank, main, "map", map_row * rows)
            if table.kernel in CACHED:
                add(rank, main, "cache", round(table.cache_load_factor * amount) + _CACHE_ROW * rows)
    return held
