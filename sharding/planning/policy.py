"""What may be decided about each table: how it is cut, which memory holds it, what its vectors travel in."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import ShardingType

from common.config import group, option
from common.errors import InputError

SHARDINGS = {
    "row-wise": ShardingType.ROW_WISE.value,
    "table-wise": ShardingType.TABLE_WISE.value,
    "column-wise": ShardingType.COLUMN_WISE.value,
    "table-row-wise": ShardingType.TABLE_ROW_WISE.value,
}
"""Our names → TorchRec's. Copies on all ranks (its `data_parallel`) are not offered: a table has one owner for each
number, whose row-wise optimizer runs in the backward and whose rows a checkpoint finds once."""

KERNELS = {
    "fused": EmbeddingComputeKernel.FUSED.value,
    "uvm": EmbeddingComputeKernel.FUSED_UVM.value,
    "uvm-caching": EmbeddingComputeKernel.FUSED_UVM_CACHING.value,
    "ssd": EmbeddingComputeKernel.KEY_VALUE.value,
}
"""Tiers: a GPU's own memory (or a CPU's), the host's, the host's with a cache on the GPU, a disk with such a cache."""

CACHED = ("uvm-caching", "ssd")

PRECISIONS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Bytes a number takes on its way."""


@dataclass
class TablePolicy:
    """What is decided for one table; empty, the policy for all."""

    sharding: str = option(
        "",
        "row-wise; table-wise: on one rank; column-wise: some columns of all rows a rank, each piece with accumulators "
        "of its own (another optimizer than row-wise, then); table-row-wise: by rows over the ranks of one node; auto: "
        "as the planner finds best",
        choices=("", *SHARDINGS, "auto"),
    )
    kernel: str = option(
        "",
        "fused: GPU memory, or the CPU's; uvm: the host's memory, read from the GPU; uvm-caching: the host's with a "
        "cache on the GPU; ssd: a disk with a cache on the GPU; auto: as the planner finds best",
        choices=("", *KERNELS, "auto"),
    )
    cache_load_factor: float = option(0.2, "kernel uvm-caching and ssd: share of the rows that the cache holds")
    columns: int = option(0, "sharding=column-wise: columns of one piece, a multiple of 4; 0: as the planner does")

    def faults(self, key: str, policy: str) -> list[str]:
        """What has no meaning, by the key it stands under."""
        found = []
        sharding = self.sharding or policy
        if not 0 < self.cache_load_factor <= 1:
            found.append(f"`{key}.cache_load_factor` is {self.cache_load_factor}: a share above 0 and at most 1")
        elif self.cache_load_factor != 0.2 and self.kernel not in (*CACHED, "auto"):
            found.append(
                f"`{key}.cache_load_factor` is {self.cache_load_factor}, but kernel {self.kernel or 'fused'} has no "
                f"cache: set its kernel=uvm-caching or ssd"
            )
        if self.columns and sharding != "column-wise":
            found.append(
                f"`{key}.columns` is {self.columns}, but the table is cut {sharding}: set its sharding=column-wise"
            )
        if self.columns < 0 or self.columns % 4:
            found.append(f"`{key}.columns` is {self.columns}: FBGEMM wants a multiple of 4")
        if self.kernel == "ssd" and sharding not in ("row-wise", "auto"):
            found.append(f"`{key}`: kernel ssd goes with sharding row-wise alone, not with {sharding}")
        return found


@dataclass
class TablePolicies:
    """By table."""

    rq: TablePolicy = group(TablePolicy, "codes of items")
    artist_quotient: TablePolicy = group(TablePolicy, "artists by quotient")
    artist_remainder: TablePolicy = group(TablePolicy, "artists by remainder")
    event_type: TablePolicy = group(TablePolicy, "kinds of events")
    item: TablePolicy = group(TablePolicy, "plain items")

    def of(self, table: str) -> TablePolicy:
        """Of a table by its name."""
        policy: TablePolicy = getattr(self, table, None) or TablePolicy()
        return policy


@dataclass
class ShardingConfig:
    """Where tables lie."""

    policy: str = option(
        "row-wise",
        "of tables for which nothing else is said; row-wise: over all ranks; auto: as TorchRec's planner finds best",
        choices=("row-wise", "auto"),
    )
    communication: str = option(
        "float32",
        "what vectors and their gradients travel in; int8 only where single rows travel, not sums of them",
        choices=tuple(PRECISIONS),
    )
    reserved_gib: float | None = option(
        None,
        "memory of each rank left free for the runtime (CUDA context, NCCL, fragmentation), GiB; null: 2 on GPUs, 0.5 "
        "on CPUs",
        minimum=0,
    )
    plan: str = option("", "a plan.json made by `python -m sharding.plan`, to be followed instead of planning anew")
    tables: TablePolicies = group(TablePolicies, "overrides by table")

    def __post_init__(self) -> None:
        """Refuse what has no meaning, all of it at once."""
        faults = [
            fault
            for leaf in fields(TablePolicies)
            for fault in self.tables.of(leaf.name).faults(f"tables.{leaf.name}", self.policy)
        ]
        decided = (self.policy, self.communication, self.tables)
        if self.plan and decided != ("row-wise", "float32", TablePolicies()):
            faults.append(
                "`plan` names a plan to follow, which decides `policy`, `communication` and `tables`: leave these out, "
                "or plan anew with them"
            )
        if faults:
            raise InputError(*faults)

    def sharding_of(self, table: str) -> str:
        """Our name of how a table is to be cut, or auto."""
        return self.tables.of(table).sharding or self.policy

    def kernel_of(self, table: str) -> str:
        """Our name of the memory that is to hold it, or auto; nothing said means the planner's choice under auto."""
        return self.tables.of(table).kernel or ("auto" if self.policy == "auto" else "fused")
